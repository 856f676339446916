//! Who logs: the proxy at the other end of a stream.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node as ProtoNode;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use metadata_exchange::peer::Field;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::{convert, json_of_struct};

/// Who logs.
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
    /// Whom the stream's first message has named, if that is another, or nobody:
    /// `SkyWalking` goes by that as long as the stream lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Arc<Reporter>>,
}

impl Reporter {
    /// Reads who sends a stream, of which `first` is whom its first message has
    /// named, if this is a later one.
    #[must_use]
    pub fn told(identifier: Identifier, first: Option<&Arc<Self>>) -> Self {
        let told = Self::from(identifier);
        let is_same = |first: &Arc<Self>| {
            (&first.log, &first.id, &first.metadata) == (&told.log, &told.id, &told.metadata)
        };
        let first = first.filter(|first| !is_same(first)).cloned();
        Self { first, ..told }
    }

    /// Whom the stream's first message has named.
    #[must_use]
    pub fn first(&self) -> &Self {
        self.first.as_deref().unwrap_or(self)
    }
}

/// The most metadata that is kept whole of a stream's sender, as long as the stream
/// is open. Istio's proxies have some kilobytes.
const MAX_REPORTER_BYTES: usize = 64 << 10;
/// The most metadata of a node that is kept beyond its entry.
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

/// Of a node's metadata, what proxies tell each other, as far as it has the usual
/// size: anyone may send any.
pub fn exchanged(metadata: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    let mut room = MAX_EXCHANGED_BYTES;
    Field::ALL.into_iter().filter_map(move |field| {
        let value = metadata.get(field.key())?;
        // Smaller ones after one that is too large may have room.
        room = room.checked_sub(weight(value))?;
        Some((field.key(), value))
    })
}

/// About how many bytes of memory the value takes.
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
    use crate::json::struct_of_json;

    #[test]
    fn of_a_sender_with_much_metadata_is_kept_what_is_exchanged() {
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
