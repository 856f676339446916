//! `node`: what this proxy says of itself.

use serde_json::{Map, Value};

use super::ConfigError;
use crate::local::identity::{Identity, Stated};
use crate::peer::Field;
use crate::template::{SyntaxError, Template};

/// What is allowed for the key.
pub(super) const FIELDS: &str = "an object with id and keys of node metadata (APP_CONTAINERS, \
                                 CLUSTER_ID, INSTANCE_IPS, ISTIO_VERSION, LABELS, MESH_ID, NAME, \
                                 NAMESPACE, OWNER, PLATFORM_METADATA, WORKLOAD_NAME)";
const TEXT: &str = "a text, which may have references such as ${env:POD_NAME:-${node:/id}}";
const MAP: &str = "an object of texts";

/// Reads the value of `node`.
pub(super) fn read(json: &Value) -> Result<Identity, ConfigError> {
    let mut identity = Identity::default();
    for (key, value) in object("", json, FIELDS)? {
        let field = match key.as_str() {
            "id" => None,
            key => Some(Field::of_key(key).ok_or_else(|| refused(key, value, FIELDS))?),
        };
        if matches!(field, Some(Field::Labels | Field::PlatformMetadata)) {
            for (entry, value) in object(key, value, MAP)? {
                add(&mut identity, [key, ".", entry].concat(), field, value)?;
            }
        } else {
            add(&mut identity, key.clone(), field, value)?;
        }
    }
    Ok(identity)
}

#[inline(never)]
fn add(
    Identity(values): &mut Identity,
    path: String,
    field: Option<Field>,
    json: &Value,
) -> Result<(), ConfigError> {
    let text = json.as_str().ok_or_else(|| refused(&path, json, TEXT))?;
    let text = Template::parse(text, Identity::SOURCES)
        .map_err(|SyntaxError(problem)| inside(&path, json, &[problem]))?;
    values.push(Stated { path, field, text });
    Ok(())
}

fn object<'v>(
    path: &str,
    json: &'v Value,
    allowed: &str,
) -> Result<&'v Map<String, Value>, ConfigError> {
    json.as_object().ok_or_else(|| refused(path, json, allowed))
}

#[inline(never)]
fn refused(path: &str, json: &Value, allowed: &str) -> ConfigError {
    inside(path, json, &["allowed is ", allowed])
}

fn inside(path: &str, json: &Value, problem: &[&str]) -> ConfigError {
    let dot = if path.is_empty() { "" } else { "." };
    ConfigError::inside(&["node", dot, path], json, problem)
}
