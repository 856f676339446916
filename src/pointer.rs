//! JSON Pointers (RFC 6901) into a `google.protobuf.Struct`, and into JSON inside a string.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::Value as Json;

use crate::peer::text;

/// Whether `pointer` points to a value inside: it begins with `/`, and each `~` is `~0` or `~1`.
#[must_use]
pub fn is_valid(pointer: &str) -> bool {
    let mut escapes = pointer.split('~').skip(1);
    pointer.starts_with('/') && escapes.all(|escape| escape.starts_with(['0', '1']))
}

/// The first token of `pointer`, unescaped, and the pointer behind it; `None` at the end.
#[must_use]
#[inline(never)]
pub fn split_first(pointer: &str) -> Option<(String, &str)> {
    let tokens = pointer.strip_prefix('/')?;
    let end = tokens.bytes().position(|byte| byte == b'/');
    let (written, rest) = tokens.split_at_checked(end.unwrap_or(tokens.len()))?;
    let mut token = Vec::new();
    let mut bytes = written.bytes();
    while let Some(byte) = bytes.next() {
        token.push(match byte {
            b'~' if bytes.next() == Some(b'1') => b'/',
            byte => byte,
        });
    }
    Some((String::from_utf8(token).ok()?, rest))
}

/// The value at `pointer` as text, if it is a text, number or bool. A text on the way there is read
/// as JSON.
#[must_use]
pub fn find(message: &Struct, pointer: &str) -> Option<String> {
    let (key, rest) = split_first(pointer)?;
    find_in(message.fields.get(&key)?, rest)
}

fn find_in(value: &Value, pointer: &str) -> Option<String> {
    match value.kind.as_ref()? {
        Kind::StructValue(message) => find(message, pointer),
        Kind::ListValue(list) => {
            let (index, rest) = split_first(pointer)?;
            find_in(list.values.get(of_index(&index)?)?, rest)
        }
        Kind::StringValue(json) if !pointer.is_empty() => {
            find_in_json(&serde_json::from_slice(json.as_bytes()).ok()?, pointer)
        }
        _ if !pointer.is_empty() => None,
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => text::of_number(*number),
        Kind::BoolValue(bool) => Some(bool.to_string()),
        Kind::NullValue(_) => None,
    }
}

/// Digits without a leading zero.
fn of_index(index: &str) -> Option<usize> {
    let is_index = index == "0" || !index.starts_with(['0', '+']);
    index.parse().ok().filter(|_| is_index)
}

fn find_in_json(json: &Json, pointer: &str) -> Option<String> {
    match json {
        Json::Object(map) => {
            let (key, rest) = split_first(pointer)?;
            find_in_json(map.get(&key)?, rest)
        }
        Json::Array(list) => {
            let (index, rest) = split_first(pointer)?;
            find_in_json(list.get(of_index(&index)?)?, rest)
        }
        _ if !pointer.is_empty() => None,
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => text::of_number(number.as_f64()?),
        Json::Bool(bool) => Some(bool.to_string()),
        Json::Null => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost_types::ListValue;

    use super::*;

    fn message<const N: usize>(fields: [(&str, Kind); N]) -> Struct {
        let value = |(key, kind): (&str, Kind)| (key.to_owned(), Value { kind: Some(kind) });
        Struct {
            fields: fields.into_iter().map(value).collect::<BTreeMap<_, _>>(),
        }
    }

    fn string(text: &str) -> Kind {
        Kind::StringValue(text.to_owned())
    }

    #[test]
    fn every_token_is_followed() {
        let resource = r#"{"name": "web-1", "tags": [{"kuma.io/service": "web"}, 7, true, null],
            "inner": "{\"a\": \"b\"}"}"#;
        let list = ["a", "b"].map(|text| Value {
            kind: Some(string(text)),
        });
        let message = message([
            ("text", string("t")),
            ("empty", string("")),
            ("", string("of the empty key")),
            ("number", Kind::NumberValue(1.5)),
            ("bool", Kind::BoolValue(false)),
            ("null", Kind::NullValue(0)),
            ("a/b~c", message_of("~1", string("escaped"))),
            (
                "list",
                Kind::ListValue(ListValue {
                    values: list.into(),
                }),
            ),
            ("dataplane.resource", string(resource)),
        ]);
        for (pointer, expected) in [
            ("/text", Some("t")),
            ("/empty", Some("")),
            ("/", Some("of the empty key")),
            ("/number", Some("1.5")),
            ("/bool", Some("false")),
            ("/a~1b~0c/~01", Some("escaped")),
            ("/list/1", Some("b")),
            ("/dataplane.resource/name", Some("web-1")),
            ("/dataplane.resource/tags/0/kuma.io~1service", Some("web")),
            ("/dataplane.resource/tags/1", Some("7")),
            ("/dataplane.resource/tags/2", Some("true")),
            ("/dataplane.resource/tags/3", None),
            ("/dataplane.resource/tags", None),
            ("/dataplane.resource/none", None),
            ("/dataplane.resource/", None),
            ("/null", None),
            ("/list", None),
            ("/list/2", None),
            ("/list/01", None),
            ("/list/+1", None),
            ("/list/-", None),
            ("/text/more", None),
            ("/number/more", None),
            ("/a~1b~0c", None),
            ("/none", None),
            ("", None),
            ("text", None),
        ] {
            assert_eq!(find(&message, pointer).as_deref(), expected, "{pointer}");
        }
    }

    fn message_of(key: &str, kind: Kind) -> Kind {
        Kind::StructValue(message([(key, kind)]))
    }

    #[test]
    fn only_pointers_into_a_value_are_valid() {
        for valid in ["/", "/a", "/a/b", "/~0~1", "//", "/ä b"] {
            assert!(is_valid(valid), "{valid}");
        }
        for invalid in ["", "a", "#/a", "/~", "/~2", "/a~/b", "~0"] {
            assert!(!is_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn a_text_that_is_no_json_gives_nothing() {
        for json in ["", "{", "[1", "web", &"[".repeat(100_000)] {
            let message = message([("json", string(json))]);
            assert_eq!(find(&message, "/json/0"), None);
        }
    }
}
