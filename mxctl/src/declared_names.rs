//! Converts JSON names of protobuf fields to their declared names.

use serde_json::{Map, Value};

/// Fields whose keys are user data, not field names.
const MAPS: [&str; 6] = [
    "metadata",
    "filterMetadata",
    "typedPerFilterConfig",
    "typedExtensionProtocolOptions",
    "labels",
    "value",
];

/// istiod writes JSON field names, `filterChains`; Envoy writes declared ones,
/// `filter_chains`. The doctor reads declared names.
pub(crate) fn with_declared_names(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(with_declared_names).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| {
                let value = match (MAPS.contains(&key.as_str()), value) {
                    (true, Value::Object(map)) => Value::Object(with_own_keys(map)),
                    (_, value) => with_declared_names(value),
                };
                (declared(&key), value)
            });
            Value::Object(fields.collect())
        }
        other => other,
    }
}

fn with_own_keys(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .map(|(key, value)| {
            let is_message = value.get("@type").is_some();
            (
                key,
                if is_message {
                    with_declared_names(value)
                } else {
                    value
                },
            )
        })
        .collect()
}

fn declared(key: &str) -> String {
    // Type names, and user data in place of field names.
    if !key
        .chars()
        .all(|char| char.is_ascii_alphanumeric() || char == '_')
    {
        return key.to_owned();
    }
    let mut name = String::with_capacity(key.len());
    for char in key.chars() {
        // A name that begins with a capital is not a field name.
        if char.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        } else if char.is_ascii_uppercase() {
            return key.to_owned();
        }
        name.push(char.to_ascii_lowercase());
    }
    name
}
