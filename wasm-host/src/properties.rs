//! Attributes of a proxy, a listener or a stream, for `proxy_get_property`.

use crate::node::Metadata;
use crate::{Node, Status, node, pairs};
use prost::Message as _;
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// The direction of a listener's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No direction was configured.
    Unspecified,
    /// Towards the workload.
    Inbound,
    /// Away from the workload.
    Outbound,
}

/// A set of attributes, each a value or the status with which reading it fails.
#[derive(Clone, Debug, Default)]
pub struct Properties(BTreeMap<Vec<u8>, Result<Vec<u8>, Status>>);

impl Properties {
    /// No attributes: reading any returns [`Status::NotFound`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A string or bytes.
    #[must_use]
    pub fn bytes(self, path: &[&str], value: impl AsRef<[u8]>) -> Self {
        self.insert(path, Ok(value.as_ref().to_vec()))
    }

    /// An integer.
    #[must_use]
    pub fn integer(self, path: &[&str], value: i64) -> Self {
        self.bytes(path, value.to_le_bytes())
    }

    /// A bool.
    #[must_use]
    pub fn flag(self, path: &[&str], value: bool) -> Self {
        self.bytes(path, [u8::from(value)])
    }

    /// A map, as serialised pairs.
    #[must_use]
    pub fn map(self, path: &[&str], value: &[(&str, &str)]) -> Self {
        self.bytes(path, pairs::encode(value))
    }

    /// The metadata of a listener, a route, a cluster or an endpoint, by filter.
    #[must_use]
    pub fn metadata(self, path: &[&str], filters: &Json) -> Self {
        self.bytes(path, Metadata::new(filters).encode_to_vec())
    }

    /// An attribute that cannot be read.
    #[must_use]
    pub fn failing(self, path: &[&str], status: Status) -> Self {
        self.insert(path, Err(status))
    }

    /// With `request.protocol`, which every request has.
    pub(crate) fn of_request(mut self) -> Self {
        let protocol = self.0.entry(b"request\0protocol".to_vec());
        protocol.or_insert(Ok(b"HTTP/1.1".to_vec()));
        self
    }

    /// `xds.listener_direction`.
    #[must_use]
    pub fn direction(self, direction: Direction) -> Self {
        self.integer(&["xds", "listener_direction"], direction as i64)
    }

    /// `xds.node` and the fields below it.
    #[must_use]
    pub fn xds_node(self, node: &Node) -> Self {
        let prefix: &[&str] = &["xds", "node"];
        let metadata = [prefix, &["metadata"]].concat();
        let whole = self
            .bytes(prefix, node.to_bytes())
            .bytes(&[prefix, &["id"]].concat(), &node.id)
            .bytes(&[prefix, &["cluster"]].concat(), &node.cluster)
            .insert(&metadata, node::struct_bytes(&node.metadata));
        let fields = &node.metadata.fields;
        fields.iter().fold(whole, |all, (key, value)| {
            let path = [metadata.as_slice(), &[key]].concat();
            all.insert(&path, node::property_bytes(value))
        })
    }

    pub(crate) fn get(&self, path: &PropertyPath) -> Option<Result<&[u8], Status>> {
        let value = self.0.get(&path.0)?;
        Some(value.as_ref().map(Vec::as_slice).map_err(|status| *status))
    }

    fn insert(mut self, path: &[&str], value: Result<Vec<u8>, Status>) -> Self {
        self.0.insert(path.join("\0").into_bytes(), value);
        self
    }
}

/// The segments of a path, joined with NUL; a trailing NUL, which some SDKs write, is ignored.
#[derive(Debug)]
pub(crate) struct PropertyPath(Vec<u8>);

impl PropertyPath {
    pub(crate) fn from_guest(mut path: Vec<u8>) -> Self {
        if path.last() == Some(&0) {
            path.pop();
        }
        Self(path)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn segments(&self) -> Vec<String> {
        self.0
            .split(|byte| *byte == 0)
            .map(|segment| String::from_utf8_lossy(segment).into_owned())
            .collect()
    }
}
