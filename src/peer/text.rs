//! Which texts a peer may carry, and how numbers become texts.

use alloc::borrow::Cow;
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::string::ToString;
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

/// A number as text: an integer without a fraction (`15090`), any other number
/// in the shortest form that reads back equal (`0.5`, `1e+300`); `None` for NaN
/// and the infinities.
#[must_use]
pub fn of_number(number: f64) -> Option<Text<'static>> {
    /// From here on the exponent is shorter.
    const LONG: f64 = 1e16;
    if !number.is_finite() {
        return None;
    }
    #[allow(clippy::cast_possible_truncation)] // Then it is not used.
    let integer = number as i64;
    #[allow(clippy::cast_precision_loss, clippy::float_cmp)] // Below `LONG` it is exact.
    let text = if integer as f64 == number && number.abs() < LONG {
        integer.to_string()
    } else {
        // Not the standard library's way, which for a few numbers takes a hundred
        // times as long as for others.
        zmij::Buffer::new().format_finite(number).to_owned()
    };
    Some(text.into())
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
    fn numbers_read_back_equal_and_integral_ones_have_no_fraction() {
        for (number, text) in [
            (15090.0, "15090"),
            (-0.0, "0"),
            (-3.0, "-3"),
            (0.1, "0.1"),
            (1.5e-9, "1.5e-9"),
            (9_007_199_254_740_992.0, "9007199254740992"),
            (-9_007_199_254_740_994.0, "-9007199254740994"),
            (1e16, "1e+16"),
            (1e21, "1e+21"),
            (-2.5e-300, "-2.5e-300"),
        ] {
            assert_eq!(of_number(number), Some(text.into()));
            assert!((text.parse::<f64>().unwrap() - number).abs() < f64::MIN_POSITIVE);
        }
        for none in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(of_number(none), None);
        }
    }
}
