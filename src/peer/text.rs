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
    let text = std::str::from_utf8(bytes).map_err(|_| BadText::Utf8)?;
    let mut previous = 0;
    for &byte in bytes {
        // C1 (U+0080 to U+009F) is C2 80 to C2 9F in UTF-8.
        let c1 = previous == 0xC2 && byte < 0xA0;
        if byte < 0x20 || byte == 0x7F || c1 {
            return Err(BadText::ControlCharacter);
        }
        previous = byte;
    }
    Ok(text)
}

/// A number as text: integral ones without a fraction (`15090`), others in the
/// shortest form that reads back equal; `None` for NaN and the infinities.
#[must_use]
pub fn of_number(number: f64) -> Option<Text<'static>> {
    if !number.is_finite() {
        return None;
    }
    // Adding zero turns -0 into 0.
    let number = number + 0.0;
    let text = if number.fract() == 0.0 {
        number.to_string()
    } else {
        format!("{number:?}")
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
    fn numbers_read_back_equal_and_integral_ones_have_no_fraction() {
        for (number, text) in [
            (15090.0, "15090"),
            (-0.0, "0"),
            (-3.0, "-3"),
            (0.1, "0.1"),
            (1.5e-9, "1.5e-9"),
            (1e21, "1000000000000000000000"),
        ] {
            assert_eq!(of_number(number).as_deref(), Some(text));
            assert!((text.parse::<f64>().unwrap() - number).abs() < f64::MIN_POSITIVE);
        }
        for none in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(of_number(none), None);
        }
    }
}
