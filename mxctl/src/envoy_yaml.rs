//! Parses YAML as Envoy's loader does, which is neither YAML 1.1 nor 1.2.
//!
//! Envoy reads an unquoted scalar as a bool where yaml-cpp does (`y`, `on`, `Yes`, ...), else as an
//! integer (`12`, `010` is 8, `0x1F`), and otherwise as a string: `1.20` and `2001-01-01` are
//! strings. It ignores all tags but `!`, and an integer that a double cannot hold exactly becomes a
//! string. Observed in Envoy 1.36.2 and 1.40.0, in the node metadata of `/config_dump`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// How deep collections may be nested.
const MAX_DEPTH: usize = 128;
/// How many values a document may have, including those that aliases repeat.
const MAX_VALUES: usize = 1 << 20;

/// Parses a file by its name, as Envoy does: `.yaml` and `.yml` are YAML. Others are JSON or else
/// YAML.
///
/// # Errors
///
/// If it is neither.
pub fn parse_file(name: &str, content: &str) -> Result<Value> {
    let extension = Path::new(name).extension().and_then(|it| it.to_str());
    if matches!(extension, Some("yaml" | "yml")) {
        return parse(content);
    }
    match serde_json::from_str(content) {
        Ok(value) => Ok(value),
        Err(error) => {
            // A file that begins like this is meant to be JSON.
            let begins = content.trim_start();
            if begins.starts_with(['{', '[']) {
                return Err(error).context("not JSON");
            }
            parse(content).context("neither JSON nor YAML")
        }
    }
}

/// Parses the first document of `yaml`.
///
/// # Errors
///
/// If it is not YAML, exceeds the limits on depth or size, or has no document.
pub fn parse(yaml: &str) -> Result<Value> {
    let mut loader = Loader::default();
    for event in Parser::new_from_str(yaml) {
        let (event, span) = event.context("not YAML")?;
        let line = || format!("in line {}", span.start.line());
        if let Some(value) = loader.take(event).with_context(line)? {
            return Ok(value);
        }
    }
    bail!("no document")
}

/// Builds values from parser events.
#[derive(Default)]
struct Loader {
    /// The collections that are not complete yet, the innermost last.
    open: Vec<Open>,
    /// The values that aliases may stand for, by the anchor's number.
    anchors: BTreeMap<usize, Value>,
    values: usize,
}

struct Open {
    anchor: usize,
    collection: Collection,
}

enum Collection {
    Sequence(Vec<Value>),
    /// The entries so far, and the key whose value comes next.
    Mapping(Map<String, Value>, Option<String>),
}

impl Loader {
    /// Handles an event; returns the document's value once it is complete.
    fn take(&mut self, event: Event<'_>) -> Result<Option<Value>> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain;
                let is_tagged = tag.is_some();
                // The tag `!` makes it a string.
                let is_text = tag.is_some_and(|tag| tag.to_string() == "!");
                self.scalar(&text, is_plain && !is_text, is_tagged, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.begin(anchor, Collection::Sequence(Vec::new()))
            }
            Event::MappingStart(_, anchor, _) => {
                self.begin(anchor, Collection::Mapping(Map::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned();
                let value = value.context("an alias of a value that is not complete yet")?;
                self.count(size(&value))?;
                self.put(value, None)
            }
            _ => Ok(None),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        is_plain: bool,
        is_tagged: bool,
        anchor: usize,
    ) -> Result<Option<Value>> {
        self.count(1)?;
        let value = match (is_plain, is_tagged) {
            (true, false) if is_null(text) => Value::Null,
            (true, _) => plain(text),
            (false, _) => Value::from(text),
        };
        // A key is always the text as written.
        let key = if value.is_null() { "null" } else { text };
        self.keep(anchor, &value)?;
        let key = key.to_owned();
        self.put(value, Some(key))
    }

    fn begin(&mut self, anchor: usize, collection: Collection) -> Result<Option<Value>> {
        self.count(1)?;
        if self.open.len() >= MAX_DEPTH {
            bail!("more than {MAX_DEPTH} nested collections");
        }
        self.open.push(Open { anchor, collection });
        Ok(None)
    }

    fn end(&mut self) -> Result<Option<Value>> {
        let Some(open) = self.open.pop() else {
            return Ok(None);
        };
        let value = match open.collection {
            Collection::Sequence(values) => Value::Array(values),
            Collection::Mapping(fields, _) => Value::Object(fields),
        };
        self.keep(open.anchor, &value)?;
        self.put(value, None)
    }

    /// Adds a value to the innermost collection; `key` is its text, if it can be a key.
    fn put(&mut self, value: Value, key: Option<String>) -> Result<Option<Value>> {
        let Some(open) = self.open.last_mut() else {
            return Ok(Some(value));
        };
        match &mut open.collection {
            Collection::Sequence(values) => values.push(value),
            Collection::Mapping(fields, next) => {
                if let Some(name) = next.take() {
                    fields.insert(name, value);
                } else {
                    let text = || value.as_str().map(str::to_owned);
                    let key = key.or_else(text);
                    *next = Some(key.context("a key that is not a scalar")?);
                }
            }
        }
        Ok(None)
    }

    fn keep(&mut self, anchor: usize, value: &Value) -> Result<()> {
        // Zero means no anchor.
        if anchor > 0 {
            self.count(size(value))?;
            self.anchors.insert(anchor, value.clone());
        }
        Ok(())
    }

    fn count(&mut self, number: usize) -> Result<()> {
        self.values = self.values.saturating_add(number);
        if self.values > MAX_VALUES {
            bail!("more than {MAX_VALUES} values");
        }
        Ok(())
    }
}

/// How many values it consists of.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

fn is_null(text: &str) -> bool {
    ["", "~", "null", "Null", "NULL"].contains(&text)
}

/// The value of an unquoted scalar that is not null.
fn plain(text: &str) -> Value {
    if let Some(bool) = bool_of(text) {
        return bool.into();
    }
    match integer(text) {
        // Beyond this, Envoy makes the number a decimal string.
        Some(number) if number.unsigned_abs() >= MAX_EXACT => number.to_string().into(),
        Some(number) => number.into(),
        None => text.into(),
    }
}

/// The largest integer that JavaScript holds exactly; Envoy excludes it.
const MAX_EXACT: u64 = (1 << 53) - 1;

/// yaml-cpp's bools: lower case, upper case or capitalised.
fn bool_of(text: &str) -> Option<bool> {
    let lower = text.to_ascii_lowercase();
    let mut rest = text.chars();
    let first_is_upper = rest.next()?.is_ascii_uppercase();
    let is_regular = text == lower
        || text == text.to_ascii_uppercase()
        || first_is_upper && rest.all(|char| char.is_ascii_lowercase());
    match lower.as_str() {
        _ if !is_regular => None,
        "y" | "yes" | "true" | "on" => Some(true),
        "n" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// An integer as C++ streams read one: with a sign, decimal, octal after `0`,
/// hexadecimal after `0x`.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let hexadecimal = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match (hexadecimal, digits) {
        (Some(digits), _) => (digits, 16),
        (None, "0") => ("0", 10),
        (None, digits) => match digits.strip_prefix('0') {
            Some(octal) => (octal, 8),
            None => (digits, 10),
        },
    };
    // `from_str_radix` would take a second sign.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;

    /// Expectations are from the `/config_dump` of Envoy 1.36.2 and 1.40.0.
    #[test]
    fn scalars_are_parsed_as_by_envoy() {
        for (scalar, expected) in [
            ("1.20", json!("1.20")),
            ("1e3", json!("1e3")),
            (".5", json!(".5")),
            (".inf", json!(".inf")),
            ("y", json!(true)),
            ("Y", json!(true)),
            ("yes", json!(true)),
            ("ON", json!(true)),
            ("Off", json!(false)),
            ("n", json!(false)),
            ("oN", json!("oN")),
            ("tRUE", json!("tRUE")),
            ("t", json!("t")),
            ("12", json!(12)),
            ("+5", json!(5)),
            ("-7", json!(-7)),
            ("-0", json!(0)),
            ("010", json!(8)),
            ("-010", json!(-8)),
            ("00", json!(0)),
            ("08", json!("08")),
            ("0x1F", json!(31)),
            ("0X1f", json!(31)),
            ("-0x10", json!(-16)),
            ("0x", json!("0x")),
            ("0xfg", json!("0xfg")),
            ("0o17", json!("0o17")),
            ("0b101", json!("0b101")),
            ("1_000", json!("1_000")),
            ("++5", json!("++5")),
            ("+ 5", json!("+ 5")),
            ("5.", json!("5.")),
            ("12abc", json!("12abc")),
            ("1 2", json!("1 2")),
            ("9007199254740990", json!(9_007_199_254_740_990_i64)),
            ("9007199254740991", json!("9007199254740991")),
            ("-9007199254740991", json!("-9007199254740991")),
            ("9223372036854775808", json!("9223372036854775808")),
            ("2001-01-01", json!("2001-01-01")),
            ("12:30:45", json!("12:30:45")),
            ("~", json!(null)),
            ("", json!(null)),
            ("NULL", json!(null)),
            ("nULL", json!("nULL")),
            ("'true'", json!("true")),
            ("\"12\"", json!("12")),
            ("\"\"", json!("")),
            ("'~'", json!("~")),
            ("!!str 12", json!(12)),
            ("!!str true", json!(true)),
            ("!!float 12", json!(12)),
            ("!!null x", json!("x")),
            ("!!str", json!("")),
            ("!foo bar", json!("bar")),
            ("! 12", json!("12")),
            ("|\n  12", json!("12\n")),
            (">-\n  true", json!("true")),
        ] {
            let yaml = format!("a: {scalar}\n");
            let value = parse(&yaml).unwrap_or_else(|error| panic!("{yaml}: {error:#}"));
            assert_eq!(value["a"], expected, "{yaml}");
        }
    }

    #[test]
    fn collections_are_parsed_as_by_envoy() {
        let yaml = "base: &base { k: v, l: 5 }\nmerged: { <<: *base, m: 1 }\nalias: *base\n\
                    list: [1, y, [2.5]]\n7: int\ntrue: bool\n010: octal\n~: null key\n\
                    flow: {a: 1, b}\na: 1\na: 2\n---\nanother: document\n";
        let base = json!({ "k": "v", "l": 5 });
        assert_eq!(
            parse(yaml).unwrap(),
            json!({
                "base": base, "merged": { "<<": base, "m": 1 }, "alias": base,
                "list": [1, true, ["2.5"]], "7": "int", "true": "bool", "010": "octal",
                "null": "null key", "flow": { "a": 1, "b": null }, "a": 2,
            })
        );
    }

    #[test]
    fn invalid_documents_are_refused() {
        let deep = MAX_DEPTH + 1;
        let deep = "[".repeat(deep) + &"]".repeat(deep);
        let mut bomb = "a0: &a0 [x, x]\n".to_owned();
        for level in 1..40 {
            let before = level - 1;
            writeln!(bomb, "a{level}: &a{level} [*a{before}, *a{before}]").unwrap();
        }
        for (yaml, expected) in [
            ("", "no document"),
            ("a: [", "not YAML"),
            ("a: *b", "not YAML"),
            ("[x]: y", "not a scalar"),
            (&deep, "collections"),
            (&bomb, "more than 1048576 values"),
        ] {
            let error = format!("{:#}", parse(yaml).unwrap_err());
            assert!(error.contains(expected), "{yaml:.40}: {error}");
        }
    }

    #[test]
    fn the_file_name_selects_the_format() {
        let json = r#"{ "a": 1.5 }"#;
        assert_eq!(parse_file("a.json", json).unwrap(), json!({ "a": 1.5 }));
        assert_eq!(parse_file("a.yaml", json).unwrap(), json!({ "a": "1.5" }));
        assert_eq!(parse_file("-", "a: on").unwrap(), json!({ "a": true }));
        let error = format!("{:#}", parse_file("a.json", "{\"a\": }").unwrap_err());
        assert!(error.starts_with("not JSON: "), "{error}");
    }
}
