//! JSON as a configuration holds it. In place of `serde_json::Value`, whose maps,
//! conversions and printing of numbers would be a fifth of the module.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::peer::text;

/// A JSON value. [`fmt::Display`] writes it without spaces.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Integer(u64),
    /// Any other number: negative, or written as a float.
    Number(f64),
    Text(String),
    List(Vec<Json>),
    /// In the order in which it is written; a key may stand twice.
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub(crate) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(bool) => Some(*bool),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    pub(crate) fn as_object(&self) -> Option<&[(String, Self)]> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyJson)
    }
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Json, E> {
        Ok(Json::Bool(bool))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Json, E> {
        Ok(Json::Integer(integer))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Json, E> {
        #[allow(clippy::cast_precision_loss)] // Negative, which no key allows.
        let number = integer as f64;
        Ok(Json::Number(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            object.push(entry);
        }
        Ok(Json::Object(object))
    }
}

/// Writes a number that is not zero with an exponent, to six places: near enough
/// for whoever wrote it to know it again.
fn write_rounded(number: f64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (mut mantissa, mut exponent) = (number.abs(), 0_i32);
    // No float needs more steps.
    for _ in 0..400 {
        if mantissa >= 10.0 {
            (mantissa, exponent) = (mantissa / 10.0, exponent.saturating_add(1));
        } else if mantissa < 1.0 {
            (mantissa, exponent) = (mantissa * 10.0, exponent.saturating_sub(1));
        }
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It is below 10.
    #[allow(clippy::cast_precision_loss)]
    let mantissa = (mantissa * 1e6 + 0.5) as u64 as f64 / 1e6;
    let sign = if number < 0.0 { "-" } else { "" };
    let mantissa = text::of_number(mantissa).unwrap_or("?".into());
    write!(f, "{sign}{mantissa}e{exponent:+}")
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(bool) => f.write_str(if *bool { "true" } else { "false" }),
            Self::Integer(integer) => integer.fmt(f),
            Self::Number(number) => match text::of_number(*number) {
                Some(text) => f.write_str(&text),
                None => write_rounded(*number, f),
            },
            Self::Text(text) => Quoted(text).fmt(f),
            Self::List(list) => {
                f.write_char('[')?;
                for (place, item) in list.iter().enumerate() {
                    write!(f, "{}{item}", if place == 0 { "" } else { "," })?;
                }
                f.write_char(']')
            }
            Self::Object(object) => {
                f.write_char('{')?;
                for (place, (key, value)) in object.iter().enumerate() {
                    let comma = if place == 0 { "" } else { "," };
                    write!(f, "{comma}{}:{value}", Quoted(key))?;
                }
                f.write_char('}')
            }
        }
    }
}

/// A text in quotes, as JSON has it: on one line, and with a visible end.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for char in self.0.chars() {
            match char {
                '"' | '\\' => write!(f, "\\{char}")?,
                _ if char.is_control() => write!(f, "\\u{:04x}", u32::from(char))?,
                _ => f.write_char(char)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn it_is_read_and_written_as_serde_json_does() {
        for json in [
            "null",
            "true",
            "18446744073709551615",
            "-1",
            "0.5",
            "-2.5e-300",
            "[]",
            "{}",
            r#"[1,"a",[false],{"b":null}]"#,
            r#"{"a":{"b":[{}]},"c":"\"\\ä日"}"#,
        ] {
            let value: Value = serde_json::from_str(json).unwrap();
            assert_eq!(
                Json::parse(json.as_bytes()).unwrap().to_string(),
                value.to_string()
            );
        }
    }

    #[test]
    fn a_text_with_control_characters_stays_on_one_line() {
        let text = "a\n\u{7f}\u{85}\"";
        let quoted = Quoted(text).to_string();
        assert_eq!(quoted, r#""a\u000a\u007f\u0085\"""#);
        assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
    }
}
