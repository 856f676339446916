//! Helpers for Envoy's messages in JSON.

use serde_json::Value;

/// The type of a message and the message itself, unwrapped if a control plane
/// wraps it.
pub(super) fn typed(any: &Value) -> (&str, &Value) {
    if type_of(any).ends_with(".TypedStruct") {
        (text(&any["type_url"]), &any["value"])
    } else {
        (type_of(any), any)
    }
}

pub(super) fn type_of(any: &Value) -> &str {
    text(&any["@type"])
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> + Clone {
    value.as_array().into_iter().flatten()
}

/// Whether any string in `value`, at any depth, passes `test`.
pub(super) fn any_text(value: &Value, test: &mut dyn FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(values) => values.iter().any(|value| any_text(value, test)),
        Value::Object(fields) => fields.values().any(|value| any_text(value, test)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
