//! Headers and `FlatNode`s that Istio's C++ plugin produced: the filter reads the former and stores the latter. One
//! difference is intended: the plugin sends four fields even if the node lacks them; here absent fields stay absent.

use crate::support::{DOWNSTREAM, ID, METADATA, Proxy, assert_values, peer};
use serde_json::{Map, Value as Json};
use std::path::Path;
use wasm_host::{Headers, Node};

/// Fields that the C++ plugin sends empty for a node that lacks them.
const SENT_ANYWAY: [&str; 4] = [
    "APP_CONTAINERS",
    "INSTANCE_IPS",
    "LABELS",
    "PLATFORM_METADATA",
];

struct Vector {
    name: String,
    json: Json,
}

impl Vector {
    fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/vectors");
        let entries = std::fs::read_dir(folder).expect("the vectors");
        let vectors: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .map(|path| {
                let text = std::fs::read(&path).expect("a readable vector");
                let json: Json = serde_json::from_slice(&text).expect("JSON");
                Self {
                    name: json["name"].as_str().expect("a name").to_owned(),
                    json,
                }
            })
            .collect();
        assert!(vectors.len() >= 8, "{}", vectors.len());
        vectors
    }

    fn text(&self, section: &str, key: &str) -> &str {
        self.json[section][key].as_str().unwrap_or_default()
    }

    fn metadata(&self) -> &Map<String, Json> {
        self.json["node"]["metadata"].as_object().expect("metadata")
    }

    fn node(&self) -> Node {
        Node::new(self.text("node", "id"), &self.json["node"]["metadata"])
    }

    fn lacks(&self) -> Vec<&'static str> {
        let lacks = |key: &&str| !self.metadata().contains_key(*key);
        SENT_ANYWAY.into_iter().filter(lacks).collect()
    }

    /// The `FlatNode` as the metadata it was made from.
    fn stored(&self) -> Json {
        let flat = self.json["wasm.downstream_peer"]
            .as_object()
            .expect("a FlatNode");
        flat.iter()
            .map(|(key, value)| (key.to_uppercase(), flat_value(value)))
            .collect()
    }
}

/// A list of pairs becomes a map, a list of names a comma-separated string.
fn flat_value(value: &Json) -> Json {
    let Some(list) = value.as_array() else {
        return value.clone();
    };
    if list.iter().all(Json::is_object) {
        let pair = |pair: &Json| {
            (
                pair["key"].as_str().unwrap_or_default().to_owned(),
                pair["value"].clone(),
            )
        };
        return list.iter().map(pair).collect();
    }
    let names: Vec<&str> = list.iter().filter_map(Json::as_str).collect();
    Json::from(names.join(","))
}

fn without_empty(mut metadata: Json) -> Json {
    let fields = metadata.as_object_mut().expect("an object");
    fields.retain(|_, value| {
        let is_empty_text = value.as_str().is_some_and(str::is_empty);
        let is_empty_map = value.as_object().is_some_and(Map::is_empty);
        !is_empty_text && !is_empty_map
    });
    metadata
}

#[test]
fn what_the_plugin_sent_is_understood() {
    for vector in Vector::all() {
        let sent = vector.text("request_headers", METADATA);
        let headers = Headers::from([(METADATA, sent), (ID, vector.text("request_headers", ID))]);
        let mut proxy = Proxy::plain("local");
        let stream = proxy.inbound(&headers);
        let seen = peer(&stream, DOWNSTREAM);
        match vector.name.as_str() {
            // An empty node, and one with only empty strings, name no workload.
            "empty" => assert_eq!(seen, None),
            // It has a newline and a NUL in its labels, which would forge log lines.
            "containers_edge" => {
                assert_eq!(seen, None);
                assert_eq!(proxy.counter("refused_control_character"), 1);
            }
            "empty_strings" => {
                if let Some(seen) = seen {
                    assert_eq!(without_empty(seen), without_empty(vector.stored()));
                }
            }
            _ => {
                let seen = seen.unwrap_or_else(|| panic!("{} is not stored", vector.name));
                assert_eq!(
                    without_empty(seen),
                    without_empty(vector.stored()),
                    "{}",
                    vector.name
                );
            }
        }
    }
}

#[test]
fn what_the_plugin_sent_is_sent() {
    let mut byte_equal = Vec::new();
    for vector in Vector::all() {
        let mut proxy = Proxy::of_node(&vector.node(), &serde_json::json!({}));
        let headers = proxy.outbound(&Headers::new()).request_headers();
        let theirs = vector.text("request_headers", METADATA);
        if vector.lacks().is_empty()
            && vector.name != "empty_strings"
            && vector.name != "containers_edge"
        {
            assert_values(&headers, METADATA, &[theirs]);
            byte_equal.push(vector.name.clone());
        }
        if !vector.text("node", "id").is_empty() {
            assert_values(&headers, ID, &[vector.text("request_headers", ID)]);
        }
    }
    byte_equal.sort();
    assert_eq!(byte_equal, ["k8s_pod_client", "k8s_pod_server"]);
}

#[test]
fn what_a_node_lacks_is_not_sent() {
    for name in ["minimal", "gce_vm", "generic_vm"] {
        let vectors = Vector::all();
        let vector = vectors
            .iter()
            .find(|vector| vector.name == name)
            .expect("the vector");
        assert!(!vector.lacks().is_empty(), "{name}");
        let mut proxy = Proxy::of_node(&vector.node(), &serde_json::json!({}));
        let headers = proxy.outbound(&Headers::new()).request_headers();
        let ours = headers.get(METADATA).expect("sent");
        let stream = Proxy::plain("other").inbound(&Headers::new().with(METADATA, ours));
        let seen = peer(&stream, DOWNSTREAM).expect("stored");
        for key in vector.lacks() {
            assert!(seen.get(key).is_none(), "{name}: {key}");
        }
        assert_eq!(
            without_empty(seen),
            without_empty(vector.stored()),
            "{name}"
        );
    }
}
