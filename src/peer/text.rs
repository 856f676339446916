//! Which texts a peer may carry, and how numbers become texts.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use crate::bytes::are_printable;

/// A text of a peer: UTF-8, borrowed from the message it came in or made from a
/// number or a list. It is kept as bytes, for it is made many times and shown
/// seldom, and to tell that bytes are UTF-8 takes longer than to see that they
/// are ASCII.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<'a>(Cow<'a, [u8]>);

impl<'a> Text<'a> {
    /// The text in `bytes`, if it is UTF-8 without control characters: peer
    /// texts reach log lines as they are, so a newline in one would forge a line.
    #[inline(always)]
    pub fn checked(bytes: &'a [u8]) -> Result<Self, BadText> {
        check(bytes)?;
        Ok(Self(Cow::Borrowed(bytes)))
    }

    /// Its UTF-8.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text on its own, borrowing nothing.
    #[must_use]
    pub fn into_owned(self) -> Text<'static> {
        Text(Cow::Owned(self.0.into_owned()))
    }

    /// The names in a text of names separated by commas.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b',')
    }

    /// How many [`Self::names`] there are.
    #[must_use]
    pub fn count_names(&self) -> usize {
        let commas = self.0.iter().filter(|byte| **byte == b',');
        commas.count().saturating_add(1)
    }

    /// Appends a comma and `name`.
    #[must_use]
    pub fn with_name(mut self, name: &Text<'_>) -> Self {
        let bytes = self.0.to_mut();
        bytes.push(b',');
        bytes.extend_from_slice(&name.0);
        self
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        // Never the default: every way to make a text checks it.
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text.into_bytes()))
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// Why bytes are not a text that may reach a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadText {
    /// Not UTF-8.
    Utf8,
    /// Contains a C0, DEL or C1 control character.
    ControlCharacter,
}

/// Whether `bytes` are UTF-8 without control characters.
#[inline(always)]
pub fn check(bytes: &[u8]) -> Result<(), BadText> {
    if are_printable(bytes) {
        return Ok(());
    }
    check_chars(bytes)
}

#[cold]
fn check_chars(bytes: &[u8]) -> Result<(), BadText> {
    let text = core::str::from_utf8(bytes).map_err(|_| BadText::Utf8)?;
    if text.contains(char::is_control) {
        return Err(BadText::ControlCharacter);
    }
    Ok(())
}

/// A number as text: an integer that a float holds exactly (`15090`), or a number
/// below 1e9 with at most six places behind the point (`-0.5`). Nobody names a
/// workload by others, and to write them takes ten times as long.
#[must_use]
pub fn of_number(number: f64) -> Option<Text<'static>> {
    const MILLION: u64 = 1_000_000;
    const BILLION: u64 = 1_000_000_000;
    /// From here on floats do not tell all integers apart.
    const MOST: f64 = 9_007_199_254_740_992.0;
    let magnitude = number.abs();
    let is_long = magnitude >= 1e9;
    let (units, scale) = if is_long {
        (magnitude, 1.0)
    } else {
        (magnitude * 1e6 + 0.5, 1e6)
    };
    if units.is_nan() || units >= MOST {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It is below `MOST`.
    let units = units as u64;
    #[allow(clippy::cast_precision_loss, clippy::float_cmp)] // The nearest float, or not.
    if units as f64 / scale != magnitude {
        return None;
    }
    let is_digit = |byte: &u8| *byte != b'0';
    let (first, last) = if is_long {
        (units / BILLION, units % BILLION)
    } else {
        (units / MILLION, units % MILLION)
    };
    let first: [u8; 9] = digits(first);
    let start = first.iter().position(is_digit).unwrap_or(8);
    let mut text = Vec::with_capacity("-999999999.999999".len());
    if number < 0.0 {
        text.push(b'-');
    }
    text.extend_from_slice(first.get(start..).unwrap_or_default());
    if is_long {
        text.extend_from_slice(&digits::<9>(last));
    } else {
        let last: [u8; 6] = digits(last);
        if let Some(end) = last.iter().rposition(is_digit) {
            text.push(b'.');
            text.extend_from_slice(last.get(..=end).unwrap_or_default());
        }
    }
    Some(Text(Cow::Owned(text)))
}

/// The last digits of `number`, which fits 32 bits: to divide more takes ten times
/// as many instructions.
fn digits<const COUNT: usize>(number: u64) -> [u8; COUNT] {
    let mut number = u32::try_from(number).unwrap_or(0);
    let mut digits = [b'0'; COUNT];
    for digit in digits.iter_mut().rev() {
        let [low, ..] = (number % 10).to_le_bytes();
        *digit |= low;
        number /= 10;
    }
    digits
}

/// A bool as text: `true` or `false`.
#[must_use]
pub fn of_bool(bool: bool) -> Text<'static> {
    Text::from(if bool { "true" } else { "false" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_found_wherever_they_stand() {
        for bad in ["\n", "a\0", "\u{7f}b", "a\u{80}", "\u{9f}", "ä\u{85}ä"] {
            assert_eq!(
                check(bad.as_bytes()),
                Err(BadText::ControlCharacter),
                "{bad:?}"
            );
        }
        for good in ["", " ", "~", "\u{a0}", "ä", "日本", "\u{2c80}"] {
            assert_eq!(check(good.as_bytes()), Ok(()));
        }
        assert_eq!(check(b"\xff"), Err(BadText::Utf8));
        assert_eq!(check(b"\xc2"), Err(BadText::Utf8));
    }

    #[test]
    fn each_byte_is_judged_at_each_place() {
        for byte in 0..=u8::MAX {
            for place in 0..20 {
                let mut bytes = [b'a'; 20];
                bytes[place] = byte;
                let expected = match byte {
                    0x20..=0x7E => Ok(()),
                    0x80.. => Err(BadText::Utf8),
                    _ => Err(BadText::ControlCharacter),
                };
                assert_eq!(check(&bytes), expected, "{byte} at {place}");
            }
        }
    }

    #[test]
    fn short_numbers_read_back_equal_and_integral_ones_have_no_fraction() {
        for (number, text) in [
            (15090.0, "15090"),
            (-0.0, "0"),
            (-3.0, "-3"),
            (0.1, "0.1"),
            (-1.1, "-1.1"),
            (0.000_001, "0.000001"),
            (1_234.050_6, "1234.0506"),
            (999_999_999.999_999, "999999999.999999"),
            (1_700_000_000_000.0, "1700000000000"),
            (1e9, "1000000000"),
            (-9_007_199_254_740_991.0, "-9007199254740991"),
        ] {
            assert_eq!(of_number(number), Some(text.into()));
            assert!((text.parse::<f64>().unwrap() - number).abs() < f64::MIN_POSITIVE);
        }
        let long = [
            9_007_199_254_740_992.0,
            -1e300,
            1e-7,
            0.1 + 0.2,
            1.0 / 3.0,
            1e9 + 0.5,
            f64::MIN_POSITIVE,
        ];
        for units in (1..1_000_000_000_000_000_u64).step_by(9_876_543_211_237) {
            for places in 1..=6 {
                let digits = format!("{units:07}");
                let (whole, fraction) = digits.split_at(digits.len() - places);
                let number = format!("{whole}.{fraction}").parse::<f64>().unwrap();
                let expected = (number < 1e9).then(|| number.to_string().into());
                if expected.is_some() || fraction.bytes().any(|digit| digit != b'0') {
                    assert_eq!(of_number(number), expected, "{number}");
                }
            }
        }
        let none = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for none in long.into_iter().chain(none) {
            assert_eq!(of_number(none), None);
        }
    }
}
