//! Which texts a peer may carry, and how numbers become texts.

use super::Text;

/// Why bytes are not a text that may reach a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadText {
    /// Not UTF-8.
    Utf8,
    /// Contains a C0, DEL or C1 control character.
    ControlCharacter,
}

/// The text in `bytes`, if it is UTF-8 without control characters: peer texts
/// reach log lines as they are, so a newline in one would forge a line.
pub fn check(bytes: &[u8]) -> Result<&str, BadText> {
    let (words, rest) = bytes.as_chunks::<8>();
    let is_printable = words
        .iter()
        .all(|word| are_printable(u64::from_le_bytes(*word)))
        && rest.iter().all(|byte| (0x20..0x7F).contains(byte));
    let text = std::str::from_utf8(bytes).map_err(|_| BadText::Utf8)?;
    if is_printable || !text.contains(char::is_control) {
        Ok(text)
    } else {
        Err(BadText::ControlCharacter)
    }
}

/// Whether all eight bytes of `word` are printable ASCII, 0x20 to 0x7E: the
/// quick way for nearly all texts.
fn are_printable(word: u64) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * EACH;
    // Without a high bit, the bytes add and subtract without carries: one below
    // 0x20 borrows, 0x7F overflows.
    let below = (word | HIGH).wrapping_sub(0x20 * EACH);
    let above = (word & !HIGH).wrapping_add(EACH);
    (word | !below | above) & HIGH == 0
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
    let text = if number.fract() == 0.0 && number.abs() < LONG {
        #[allow(clippy::cast_possible_truncation)] // It is an integer in range.
        let integer = number as i64;
        integer.to_string()
    } else {
        // Not the standard library's way, which for a few numbers takes a hundred
        // times as long as for others.
        zmij::Buffer::new().format_finite(number).to_owned()
    };
    Some(Text::Owned(text))
}

/// A bool as text: `true` or `false`.
#[must_use]
pub fn of_bool(bool: bool) -> Text<'static> {
    Text::Borrowed(if bool { "true" } else { "false" })
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
            assert_eq!(check(good.as_bytes()), Ok(good));
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
                assert_eq!(check(&bytes).map(|_| ()), expected, "{byte} at {place}");
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
            assert_eq!(of_number(number).as_deref(), Some(text));
            assert!((text.parse::<f64>().unwrap() - number).abs() < f64::MIN_POSITIVE);
        }
        for none in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(of_number(none), None);
        }
    }
}
