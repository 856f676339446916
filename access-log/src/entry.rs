//! One entry of an access log, and its form as a JSON line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::reporter::Reporter;
use crate::side::{Direction, Side};
use crate::state::{State, node_metadata_of};

/// The version of the JSON form. It changes when readers of the previous version would misread it.
pub const VERSION: u32 = 1;

/// One entry of an access log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// [`VERSION`].
    pub version: u32,
    /// The proxy that logged it.
    pub reporter: Arc<Reporter>,
    /// What was logged.
    pub protocol: Protocol,
    /// When the request or connection began, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The time until the last byte to the caller, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// The request's method; empty for TCP, like all fields of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// The request's authority.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// The request's path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Other request headers that the log names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub request_headers: BTreeMap<String, String>,
    /// The response's status, 0 if there was none.
    #[serde(default)]
    pub status: u32,
    /// The reason for the response, in Envoy's terms: `via_upstream`, ...
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
    /// Envoy's response flags by their short names, such as `UF`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<Cow<'static, str>>,
    /// The Envoy cluster that the request went to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub upstream_cluster: String,
    /// The caller's address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub downstream_address: String,
    /// The callee's address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub upstream_address: String,
    /// The id that all entries of a TCP connection have; empty for requests, and if it was not logged.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stream_id: String,
    /// The bytes that a TCP connection has received from the caller so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub received_bytes: u64,
    /// The bytes that a TCP connection has sent to the caller so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sent_bytes: u64,
    /// Whether it is one of several entries of a stream, and not the last.
    #[serde(default, skip_serializing_if = "is_false")]
    pub intermediate: bool,
    /// Whether the entry lacks the common properties.
    #[serde(default, skip_serializing_if = "is_false")]
    pub bare: bool,
    /// Whether the entry lacks a start time.
    #[serde(default, skip_serializing_if = "is_false")]
    pub startless: bool,
    /// The logged filter state.
    #[serde(default)]
    pub state: BTreeMap<String, State>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde needs.
fn is_false(bool: &bool) -> bool {
    !bool
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde needs.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A request.
    Http,
    /// A connection.
    Tcp,
}

/// A node that an entry names.
#[derive(Clone, Debug)]
pub struct Named<'e> {
    /// Its id, if known.
    pub id: Option<&'e str>,
    /// Its metadata, under the keys of node metadata.
    pub metadata: Cow<'e, Value>,
}

/// Whether nobody but Envoy itself answered a request.
#[must_use]
pub fn is_unanswered<'f>(status: u32, mut flags: impl Iterator<Item = &'f str>) -> bool {
    // The flags with which Envoy answers in place of upstream.
    const OWN: [&str; 10] = ["DF", "DT", "LR", "NC", "UC", "UF", "UH", "UO", "UR", "UT"];
    status == 0 || status >= 500 && flags.any(|flag| OWN.contains(&flag))
}

impl Entry {
    /// The node that logged.
    #[must_use]
    pub fn local(&self) -> Named<'_> {
        let id = self.reporter.id.as_str();
        Named {
            id: (!id.is_empty()).then_some(id),
            metadata: Cow::Borrowed(&self.reporter.metadata),
        }
    }

    /// The peer on that side, under this filter's key or else Istio's.
    #[must_use]
    pub fn peer(&self, side: Side) -> Option<Named<'_>> {
        let keys = [side.peer_key(), side.struct_key()];
        keys.into_iter().find_map(|key| self.peer_at(key, side))
    }

    /// The peer on that side under one of its keys.
    #[must_use]
    pub fn peer_at(&self, key: &str, side: Side) -> Option<Named<'_>> {
        match self.state.get(key)? {
            State::Flat { metadata, .. } => Some(Named {
                id: match self.state.get(side.id_key()) {
                    // An empty id names nobody: it marks a gateway's entry without a peer.
                    Some(State::Id { id }) if !id.is_empty() => Some(id),
                    _ => None,
                },
                metadata: Cow::Borrowed(metadata),
            }),
            State::Struct { metadata } => Some(Named {
                id: None,
                metadata: Cow::Owned(node_metadata_of(metadata)),
            }),
            State::Id { .. } | State::Broken { .. } | State::Other { .. } => None,
        }
    }

    /// The listener's direction, from the name of the Envoy cluster as Istio forms it, or else from
    /// the log's name.
    #[must_use]
    pub fn direction(&self) -> Option<Direction> {
        let cluster = self.upstream_cluster.as_str();
        if cluster.starts_with("inbound|") || cluster == "InboundPassthroughCluster" {
            return Some(Direction::Inbound);
        }
        if cluster.starts_with("outbound|") || cluster == "PassthroughCluster" {
            return Some(Direction::Outbound);
        }
        let log = self.reporter.log.to_ascii_lowercase();
        match (log.contains("inbound"), log.contains("outbound")) {
            (true, false) => Some(Direction::Inbound),
            (false, true) => Some(Direction::Outbound),
            _ => None,
        }
    }

    /// Whether no response came from upstream, not even an error. Unknown for connections.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.protocol == Protocol::Http
            && is_unanswered(self.status, self.flags.iter().map(|flag| &**flag))
    }

    /// Reads a JSON line.
    pub fn of_line(line: &str) -> Result<Self> {
        let entry: Self = serde_json::from_str(line)?;
        ensure!(
            entry.version == VERSION,
            "an entry of version {}, but this is a reader of version {VERSION}",
            entry.version
        );
        Ok(entry)
    }

    /// The entry as a JSON line, without the line feed.
    #[must_use]
    pub fn to_line(&self) -> String {
        json!(self).to_string()
    }
}
