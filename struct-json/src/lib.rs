//! Conversion between `google.protobuf.Struct` and JSON, for the tools and the tests.
//!
//! The map of `prost_types::Struct` is ordered, so equal objects have equal bytes.

#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::Value;

/// Converts a `google.protobuf.Struct` to JSON.
#[must_use]
pub fn json_of_struct(message: Struct) -> Value {
    let fields = message.fields.into_iter();
    Value::Object(fields.map(|(key, value)| (key, json_of(value))).collect())
}

fn json_of(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => Value::from(number),
        Some(Kind::StringValue(text)) => Value::from(text),
        Some(Kind::BoolValue(bool)) => Value::from(bool),
        Some(Kind::StructValue(fields)) => json_of_struct(fields),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_of).collect(),
    }
}

/// Converts a JSON object to a `google.protobuf.Struct`.
pub fn struct_of_json(value: &Value) -> Result<Struct> {
    let object = value.as_object().context("not a JSON object")?;
    let fields = object
        .iter()
        .map(|(key, value)| Ok((key.clone(), value_of_json(value)?)))
        .collect::<Result<_>>()?;
    Ok(Struct { fields })
}

fn value_of_json(value: &Value) -> Result<ProtoValue> {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(*bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().context("not a double")?),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => {
            let values = values.iter().map(value_of_json).collect::<Result<_>>()?;
            Kind::ListValue(ListValue { values })
        }
        Value::Object(_) => Kind::StructValue(struct_of_json(value)?),
    };
    Ok(ProtoValue { kind: Some(kind) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_converts_both_ways() -> Result<()> {
        let object = json!({
            "null": null,
            "bool": true,
            "number": 1.5,
            "text": "a",
            "list": [null, { "deep": [[]] }],
        });
        assert_eq!(json_of_struct(struct_of_json(&object)?), object);
        Ok(())
    }

    #[test]
    fn only_objects_convert() {
        for value in [json!(null), json!([]), json!("{}")] {
            assert!(struct_of_json(&value).is_err(), "{value}");
        }
    }
}
