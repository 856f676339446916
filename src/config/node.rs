//! `node`: what this proxy says of itself.

use serde_json::{Map, Value};

use super::ConfigError;
use crate::local::identity::{Identity, Stated};
use crate::peer::Field;
use crate::template::{Allowed, SyntaxError, Template};

/// What is allowed for the key.
pub(super) const FIELDS: &str = "an object with id and keys of node metadata (APP_CONTAINERS, \
                                 CLUSTER_ID, INSTANCE_IPS, ISTIO_VERSION, LABELS, MESH_ID, NAME, \
                                 NAMESPACE, OWNER, PLATFORM_METADATA, WORKLOAD_NAME)";
const TEXT: &str = "a text, which may have references such as ${env:POD_NAME:-${node:/id}}";
const MAP: &str = "an object of texts";

/// How a key states who somebody is.
pub(super) struct Texts {
    pub(super) key: &'static str,
    /// What is allowed.
    pub(super) fields: &'static str,
    /// Whether it may state an id.
    pub(super) has_id: bool,
    pub(super) sources: &'static Allowed,
}

/// Reads the value of `node`.
pub(super) fn read(json: &Value) -> Result<Identity, ConfigError> {
    let texts = Texts {
        key: "node",
        fields: FIELDS,
        has_id: true,
        sources: Identity::SOURCES,
    };
    read_texts(json, &texts).map(Identity)
}

/// Reads an object of fields.
pub(super) fn read_texts(json: &Value, texts: &Texts) -> Result<Vec<Stated>, ConfigError> {
    let mut read = Vec::new();
    for (key, value) in texts.object("", json, texts.fields)? {
        let field = match key.as_str() {
            "id" if texts.has_id => None,
            key => Some(Field::of_key(key).ok_or_else(|| texts.refused(key, value, texts.fields))?),
        };
        if matches!(field, Some(Field::Labels | Field::PlatformMetadata)) {
            for (entry, value) in texts.object(key, value, MAP)? {
                read.push(texts.text([key, ".", entry].concat(), field, value)?);
            }
        } else {
            read.push(texts.text(key.clone(), field, value)?);
        }
    }
    Ok(read)
}

impl Texts {
    #[inline(never)]
    fn text(
        &self,
        path: String,
        field: Option<Field>,
        json: &Value,
    ) -> Result<Stated, ConfigError> {
        let text = json
            .as_str()
            .ok_or_else(|| self.refused(&path, json, TEXT))?;
        let text = Template::parse(text, self.sources)
            .map_err(|SyntaxError(problem)| self.inside(&path, json, &[problem]))?;
        Ok(Stated { path, field, text })
    }

    fn object<'v>(
        &self,
        path: &str,
        json: &'v Value,
        allowed: &str,
    ) -> Result<&'v Map<String, Value>, ConfigError> {
        json.as_object()
            .ok_or_else(|| self.refused(path, json, allowed))
    }

    #[inline(never)]
    fn refused(&self, path: &str, json: &Value, allowed: &str) -> ConfigError {
        self.inside(path, json, &["allowed is ", allowed])
    }

    fn inside(&self, path: &str, json: &Value, problem: &[&str]) -> ConfigError {
        let dot = if path.is_empty() { "" } else { "." };
        ConfigError::inside(&[self.key, dot, path], json, problem)
    }
}
