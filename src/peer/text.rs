//! Which texts a peer may carry, and how numbers become text.

use super::RejectReason;

/// The text in `bytes`, if it is UTF-8 without control characters. Peers' texts
/// reach log lines unescaped, so a newline would forge a line.
pub fn checked(bytes: &[u8]) -> Result<&str, RejectReason> {
    let text = std::str::from_utf8(bytes).map_err(|_| RejectReason::Utf8)?;
    if has_control_character(text) {
        return Err(RejectReason::ControlCharacter);
    }
    Ok(text)
}

/// Whether `text` has a C0, DEL or C1 control character.
#[must_use]
pub fn has_control_character(text: &str) -> bool {
    // Most texts are ASCII, which has no C1 characters.
    text.bytes().any(|byte| byte.is_ascii_control())
        || !text.is_ascii() && text.contains(char::is_control)
}

/// A number as text: an integer that a float represents exactly (`15090`), or a
/// number below 1e9 with at most six decimal places (`-0.5`). `None` for any
/// other, which names no workload. (Formatting arbitrary floats would add 20 KB
/// to the module.)
#[must_use]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::float_cmp
)] // The range is checked, and the nearest float is intended.
pub fn of_number(number: f64) -> Option<String> {
    /// Beyond this, floats do not represent all integers.
    const MAX_INTEGER: f64 = 9_007_199_254_740_992.0;
    const MILLION: i64 = 1_000_000;
    if number.fract() == 0.0 && number.abs() < MAX_INTEGER {
        return Some((number as i64).to_string());
    }
    let millionths = (number.abs() * 1e6).round();
    if number.abs() >= 1e9 || millionths / 1e6 != number.abs() {
        return None;
    }
    let sign = if number < 0.0 { "-" } else { "" };
    let millionths = millionths as i64;
    let (whole, fraction) = (millionths / MILLION, millionths % MILLION);
    let text = format!("{sign}{whole}.{fraction:06}");
    Some(text.trim_end_matches('0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_found_at_every_position() {
        for bad in ["\n", "a\0", "\u{7f}b", "a\u{80}", "\u{9f}", "ä\u{85}ä"] {
            assert_eq!(
                checked(bad.as_bytes()),
                Err(RejectReason::ControlCharacter),
                "{bad:?}"
            );
        }
        for good in ["", " ", "~", "\u{a0}", "ä", "日本", "\u{2c80}"] {
            assert_eq!(checked(good.as_bytes()), Ok(good));
        }
        assert_eq!(checked(b"\xff"), Err(RejectReason::Utf8));
        assert_eq!(checked(b"\xc2"), Err(RejectReason::Utf8));
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
            assert_eq!(of_number(number).as_deref(), Some(text));
            assert!((text.parse::<f64>().unwrap() - number).abs() < f64::MIN_POSITIVE);
        }
        for number in [
            9_007_199_254_740_992.0,
            -1e300,
            1e-7,
            0.1 + 0.2,
            1.0 / 3.0,
            1e9 + 0.5,
            f64::MIN_POSITIVE,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
        ] {
            assert_eq!(of_number(number), None);
        }
    }
}
