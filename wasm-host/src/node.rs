//! Envoy's node as a proxy-wasm module sees it: as a whole through `xds.node`, and by field through `node.*`.

use crate::{Status, pairs};
use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use struct_json::struct_of_json;

/// The parts of `envoy.config.core.v3.Node` that a bootstrap sets, and the list of extensions that a real Envoy adds.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// The node's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The node's cluster.
    #[prost(string, tag = "2")]
    pub cluster: String,
    /// The node's metadata.
    #[prost(message, required, tag = "3")]
    pub metadata: Struct,
    /// The name of the proxy.
    #[prost(string, tag = "6")]
    pub user_agent_name: String,
    /// The extensions compiled into the proxy; about 60 KB in a real Envoy.
    #[prost(message, repeated, tag = "9")]
    pub extensions: Vec<Extension>,
}

/// `envoy.config.core.v3.Metadata`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    filter_metadata: BTreeMap<String, Struct>,
}

impl Metadata {
    /// The metadata of each filter; other than JSON objects are ignored.
    pub(crate) fn new(filters: &Json) -> Self {
        let filters = filters.as_object().into_iter().flatten();
        let metadata = |(name, json): (&String, &Json)| {
            let metadata = struct_of_json(json).ok()?;
            Some((name.clone(), metadata))
        };
        Self {
            filter_metadata: filters.filter_map(metadata).collect(),
        }
    }
}

/// An extension compiled into the proxy.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Extension {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its category.
    #[prost(string, tag = "2")]
    pub category: String,
}

impl Node {
    /// A node with this id and metadata. Metadata other than a JSON object is ignored.
    #[must_use]
    pub fn new(id: &str, metadata: &Json) -> Self {
        Self {
            id: id.to_owned(),
            metadata: struct_of_json(metadata).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// The same node with `count` extensions, about 60 bytes each.
    #[must_use]
    pub fn with_extensions(mut self, count: usize) -> Self {
        self.extensions = (0..count)
            .map(|index| Extension {
                name: format!("envoy.filters.http.extension_{index:06}"),
                category: "envoy.filters.http".to_owned(),
            })
            .collect();
        self
    }

    /// The same node with one more metadata value, for values that JSON cannot represent (NaN, an unset value).
    #[must_use]
    pub fn with_metadata(mut self, key: &str, value: Option<Kind>) -> Self {
        self.metadata
            .fields
            .insert(key.to_owned(), Value { kind: value });
        self
    }

    /// The protobuf bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

/// The bytes that Envoy returns for a metadata value: a string unchanged, a number as a little-endian double, a bool as
/// one byte, a struct or list as serialised pairs. A null has no such form, and neither has a map or list that contains
/// one.
pub(crate) fn property_bytes(value: &Value) -> Result<Vec<u8>, Status> {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Err(Status::SerializationFailure),
        Some(Kind::StringValue(text)) => Ok(text.clone().into_bytes()),
        Some(Kind::NumberValue(number)) => Ok(number.to_le_bytes().to_vec()),
        Some(Kind::BoolValue(flag)) => Ok(vec![u8::from(*flag)]),
        Some(Kind::StructValue(fields)) => struct_bytes(fields),
        Some(Kind::ListValue(list)) => list_bytes(list),
    }
}

pub(crate) fn struct_bytes(fields: &Struct) -> Result<Vec<u8>, Status> {
    let pairs = fields.fields.iter();
    let pairs: Result<Vec<_>, Status> = pairs
        .map(|(key, value)| Ok((key, property_bytes(value)?)))
        .collect();
    Ok(pairs::encode(&pairs?))
}

fn list_bytes(list: &ListValue) -> Result<Vec<u8>, Status> {
    let pairs: Result<Vec<_>, Status> = list
        .values
        .iter()
        .map(|value| Ok((property_bytes(value)?, "")))
        .collect();
    Ok(pairs::encode(&pairs?))
}
