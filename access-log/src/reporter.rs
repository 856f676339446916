//! The proxy that sends a stream of access logs.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node as ProtoNode;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use metadata_exchange::peer::Field;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use struct_json::json_of_struct;

use crate::convert;

/// The proxy that sends a stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reporter {
    /// The log's name.
    #[serde(default)]
    pub log: String,
    /// The id of the proxy's node.
    #[serde(default)]
    pub id: String,
    /// The metadata of the proxy's node.
    #[serde(default)]
    pub metadata: Value,
    /// The reporter in the stream's first message, if it differs or is empty:
    /// `SkyWalking` uses that one for the whole stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Arc<Reporter>>,
}

impl Reporter {
    /// The reporter of a message; `first` is the one in the stream's first
    /// message, if this is a later message.
    #[must_use]
    pub fn identified(identifier: Identifier, first: Option<&Arc<Self>>) -> Self {
        let current = Self::from(identifier);
        let is_same = |first: &Arc<Self>| {
            (&first.log, &first.id, &first.metadata)
                == (&current.log, &current.id, &current.metadata)
        };
        let first = first.filter(|first| !is_same(first)).cloned();
        Self { first, ..current }
    }

    /// The reporter in the stream's first message.
    #[must_use]
    pub fn first(&self) -> &Self {
        self.first.as_deref().unwrap_or(self)
    }
}

/// The most metadata of a stream's sender that are kept completely while the
/// stream is open. Istio's proxies have a few kilobytes.
const MAX_REPORTER_BYTES: usize = 64 << 10;
/// The most metadata of a node that are kept beyond its entry.
const MAX_EXCHANGED_BYTES: usize = 8 << 10;

impl From<Identifier> for Reporter {
    fn from(identifier: Identifier) -> Self {
        let node: ProtoNode = identifier.node.unwrap_or_default();
        let mut metadata = node
            .metadata
            .and_then(|metadata| convert(&metadata).ok())
            .map(json_of_struct)
            .unwrap_or_default();
        if weight(&metadata) > MAX_REPORTER_BYTES {
            let kept = exchanged(&metadata).map(|(key, value)| (key.to_owned(), value.clone()));
            metadata = Value::Object(kept.collect());
        }
        Self {
            log: identifier.log_name,
            id: node.id,
            metadata,
            first: None,
        }
    }
}

/// The exchanged part of a node's metadata, as long as its size is usual:
/// metadata is untrusted.
pub fn exchanged(metadata: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    let mut room = MAX_EXCHANGED_BYTES;
    Field::ALL.into_iter().filter_map(move |field| {
        let value = metadata.get(field.key())?;
        // Smaller values after one that is too large may still fit.
        room = room.checked_sub(weight(value))?;
        Some((field.key(), value))
    })
}

/// The approximate memory of a value, in bytes.
fn weight(value: &Value) -> usize {
    const EACH: usize = 64;
    EACH + match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(fields) => {
            let weights = fields.iter().map(|(key, value)| key.len() + weight(value));
            weights.sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use struct_json::struct_of_json;

    #[test]
    fn only_exchanged_metadata_of_a_large_sender_is_kept() {
        let kept = |annotations: usize, labels: usize| {
            let metadata = json!({
                "NAME": "a-1", "NAMESPACE": "shop", "LABELS": { "app": "l".repeat(labels) },
                "ANNOTATIONS": "a".repeat(annotations),
            });
            let node = ProtoNode {
                metadata: convert(&struct_of_json(&metadata).unwrap()).ok(),
                ..ProtoNode::default()
            };
            let reporter = Reporter::from(Identifier {
                node: Some(node),
                ..Identifier::default()
            });
            let keys = reporter.metadata.as_object().unwrap().keys().cloned();
            keys.collect::<std::collections::BTreeSet<_>>()
        };
        let usual = ["ANNOTATIONS", "LABELS", "NAME", "NAMESPACE"].map(str::to_owned);
        assert_eq!(kept(30_000, 30_000), usual.clone().into());
        assert_eq!(kept(100_000, 100), usual[1..].iter().cloned().collect());
        assert_eq!(kept(100, 100_000), usual[2..].iter().cloned().collect());
    }
}
