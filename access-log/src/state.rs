//! The filter state in an entry, and the peers in it.

use envoy_types::pb::google::protobuf::{Any, BytesValue, Struct as EnvoyStruct};
use metadata_exchange::peer::{Field, Peer, Value as PeerValue, flat};
use prost::{Message as _, Name as _};
use prost_types::Struct;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use struct_json::json_of_struct;

use crate::side::Side;
use crate::unchecked;

/// An object of filter state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum State {
    /// A node in a `FlatNode`, as this filter and Istio up to 1.23 write it.
    Flat {
        /// The metadata, under the keys of node metadata.
        metadata: Value,
        /// The size of the `FlatNode` in bytes.
        #[serde(default)]
        bytes: usize,
    },
    /// A node in a `Struct`, as Istio writes it from 1.24 on.
    Struct {
        /// The metadata, under the keys that Istio uses there.
        metadata: Value,
    },
    /// A node's id.
    Id {
        /// The id.
        id: String,
    },
    /// A peer's key whose value is not a peer.
    Broken {
        /// Why.
        reason: String,
        /// Its size in bytes.
        bytes: usize,
        /// What a reader that checks neither type nor structure finds, such as
        /// `SkyWalking`, under the keys of node metadata.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unchecked: Option<Value>,
    },
    /// Any other object.
    Other {
        /// The type of the message.
        type_url: String,
        /// Its size in bytes.
        bytes: usize,
    },
}

pub(crate) fn state_of(key: &str, any: &Any) -> State {
    let is = |key_of: fn(Side) -> &'static str| {
        [Side::Downstream, Side::Upstream]
            .map(key_of)
            .contains(&key)
    };
    let state = if is(Side::peer_key) {
        open(any).and_then(|bytes| {
            let peer = flat::read(&bytes).map_err(|error| format!("not a FlatNode: {error}"))?;
            let metadata = json_of_peer(&peer);
            Ok(State::Flat {
                metadata,
                bytes: bytes.len(),
            })
        })
    } else if is(Side::id_key) {
        open(any).and_then(|bytes| {
            let id = String::from_utf8(bytes).map_err(|error| format!("no text: {error}"))?;
            Ok(State::Id { id })
        })
    } else if is(Side::struct_key) {
        struct_in(any).map(|metadata| State::Struct { metadata })
    } else {
        Ok(State::Other {
            type_url: any.type_url.clone(),
            bytes: any.value.len(),
        })
    };
    state.unwrap_or_else(|reason| State::Broken {
        reason,
        bytes: any.value.len(),
        unchecked: is(Side::peer_key).then(|| unchecked(any)).flatten(),
    })
}

/// The node in an envelope whose type is not checked.
fn unchecked(any: &Any) -> Option<Value> {
    let message = BytesValue::decode(any.value.as_slice()).ok()?;
    unchecked::read(&message.value)
}

/// The bytes in `Any(BytesValue)`, the envelope that `SkyWalking` reads, or why
/// there are none.
pub fn open(any: &Any) -> Result<Vec<u8>, String> {
    if any.type_url != BytesValue::type_url() {
        return Err(format!("a {}, not a BytesValue", any.type_url));
    }
    match BytesValue::decode(any.value.as_slice()) {
        Ok(message) => Ok(message.value),
        Err(error) => Err(format!("not a BytesValue: {error}")),
    }
}

fn struct_in(any: &Any) -> Result<Value, String> {
    if any.type_url != EnvoyStruct::type_url() {
        return Err(format!("a {}, not a Struct", any.type_url));
    }
    match Struct::decode(any.value.as_slice()) {
        Ok(message) => Ok(json_of_struct(message)),
        Err(error) => Err(format!("not a Struct: {error}")),
    }
}

/// Converts the keys that Istio uses from 1.24 on to those of node metadata.
pub(crate) fn node_metadata_of(metadata: &Value) -> Value {
    let key = |key: &str| {
        match key {
            "name" => "NAME",
            "namespace" => "NAMESPACE",
            "labels" => "LABELS",
            "workload" => "WORKLOAD_NAME",
            "cluster" => "CLUSTER_ID",
            "owner" => "OWNER",
            "service" => "SERVICE",
            other => return other.to_owned(),
        }
        .to_owned()
    };
    let fields = metadata.as_object().into_iter().flatten();
    Value::Object(fields.map(|(k, v)| (key(k), v.clone())).collect())
}

/// A peer under the keys of node metadata; absent fields stay absent.
#[must_use]
pub fn json_of_peer(peer: &Peer) -> Value {
    let fields = Field::ALL.into_iter().filter_map(|field| {
        let value = match peer.value(field)? {
            PeerValue::Text(text) => Value::from(text),
            PeerValue::Map(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
                .collect::<Map<_, _>>()
                .into(),
        };
        Some((field.key().to_owned(), value))
    });
    Value::Object(fields.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_node_of_shared_parts_uses_limited_memory() {
        const APP_CONTAINERS: u16 = 20;
        let with_names = |count: usize, length: usize| {
            let mut flat = flatbuffers::FlatBufferBuilder::new();
            let name = flat.create_string(&"n".repeat(length));
            let names = flat.create_vector(&vec![name; count]);
            let node = flat.start_table();
            flat.push_slot_always(APP_CONTAINERS, names);
            let node = flat.end_table(node);
            flat.finish_minimal(node);
            flat.finished_data().to_vec()
        };
        let few = with_names(3, 2);
        let few = flat::read(&few).unwrap();
        assert_eq!(few.app_containers, Some("nn,nn,nn".into()));
        assert!(flat::read(&with_names(10_000, 10_000)).is_err());
    }
}
