//! Names of protobuf fields, as JSON writes them and as they are declared.

use serde_json::{Map, Value};

/// Keys whose objects have keys of their users, not of a message.
const MAPS: [&str; 6] = [
    "metadata",
    "filterMetadata",
    "typedPerFilterConfig",
    "typedExtensionProtocolOptions",
    "labels",
    "value",
];

/// istiod writes the names of fields as JSON has them, `filterChains`; Envoy as
/// they are declared, `filter_chains`. The latter is what the doctor reads.
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
    // Types, and names of users that stand where fields do.
    if !key
        .chars()
        .all(|char| char.is_ascii_alphanumeric() || char == '_')
    {
        return key.to_owned();
    }
    let mut name = String::with_capacity(key.len());
    for char in key.chars() {
        // A name that begins with a capital is no field's.
        if char.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        } else if char.is_ascii_uppercase() {
            return key.to_owned();
        }
        name.push(char.to_ascii_lowercase());
    }
    name
}
