//! Computes what a node sends, with the filter's own code.

use anyhow::{Context as _, Result, bail};
use metadata_exchange::config::Config;
use metadata_exchange::local::{LocalNode, Locality, Node, Note};
use metadata_exchange::peer::{self, Field, Peer};
use prost::Message as _;
use serde::Serialize;
use serde_json::{Map, Value, json};
use struct_json::struct_of_json;

/// The headers that a node sends.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// `x-envoy-peer-metadata-id`
    pub id: Option<String>,
    /// `x-envoy-peer-metadata`
    pub header: Option<String>,
    /// The length of the id.
    pub id_bytes: usize,
    /// The length of the metadata.
    pub header_bytes: usize,
    /// What both add to a request, including names, before compression.
    pub request_bytes: usize,
    /// What this proxy is, `id` and `metadata`, before `share` and `max_sent_bytes`.
    pub node: Value,
    /// Notes about values that are absent, or not sent.
    pub notes: Vec<String>,
}

/// An environment: names and values.
pub type Environment = [(String, String)];

/// What the node in `json` sends with the plugin configuration `config`, in this environment.
pub fn encode(json: &Value, config: &Config, environment: &Environment) -> Result<Sent> {
    let (node, mut notes) = over(json, config, environment)?;
    let sent = LocalNode::new(&node, &config.share, config.max_sent_bytes, &mut notes);
    let id = String::from_utf8_lossy(&node.id);
    let node = json!({ "id": id, "metadata": metadata_of(&node) });
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let (id_bytes, header_bytes) = (length(&sent.id), length(&sent.header));
    let named = |name: &str, length: usize| if length == 0 { 0 } else { name.len() + length };
    Ok(Sent {
        id_bytes,
        header_bytes,
        request_bytes: named("x-envoy-peer-metadata-id", id_bytes)
            + named("x-envoy-peer-metadata", header_bytes),
        id: sent.id,
        header: sent.header,
        node,
        notes: notes.iter().map(ToString::to_string).collect(),
    })
}

/// The node in `json` with what `config` says over it.
pub(crate) fn over(
    json: &Value,
    config: &Config,
    environment: &Environment,
) -> Result<(Node, Vec<Note>)> {
    let env = |name: &str| {
        let mut variables = environment.iter();
        let variable = variables.find(|(known, _)| known == name);
        variable.map(|(_, value)| value.clone())
    };
    let mut notes = Vec::new();
    let node = config.node.over(&read(json)?, &env, &mut notes);
    Ok((node, notes))
}

/// The metadata of a node that are exchanged.
pub(crate) fn metadata_of(node: &Node) -> Value {
    json_of(&node.peer(&mut Vec::new())).into()
}

fn json_of(peer: &Peer) -> Map<String, Value> {
    let value = |field| match peer.value(field)? {
        peer::Value::Text(text) => Some(json!(text)),
        peer::Value::Map(map) => {
            let entries = map.iter().cloned();
            Some(entries.map(|(key, value)| (key, json!(value))).collect())
        }
    };
    let fields = Field::ALL.into_iter();
    fields
        .filter_map(|field| Some((field.key().to_owned(), value(field)?)))
        .collect()
}

/// The node as the filter reads it from Envoy.
fn read(json: &Value) -> Result<Node> {
    let (id, node) = node_in(json)?;
    // Metadata alone have no node around them.
    let (node, metadata) = node.map_or((&Value::Null, json), |node| (node, &node["metadata"]));
    let metadata = match metadata {
        Value::Null => Vec::new(),
        metadata => struct_of_json(metadata)
            .context("node.metadata")?
            .encode_to_vec(),
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().into();
    let locality = &node["locality"];
    Ok(Node {
        id: id.into(),
        cluster: text(&node["cluster"]),
        metadata,
        locality: Some(Locality {
            region: text(&locality["region"]),
            zone: text(&locality["zone"]),
            sub_zone: text(&locality["sub_zone"]),
        }),
    })
}

fn kind(json: &Value) -> &'static str {
    match json {
        Value::Array(_) => "it is a list",
        Value::String(text) if text.contains('=') => {
            "it is a text; if it is a header, use `mxctl decode header`"
        }
        Value::String(_) => "it is a text",
        _ => "it is a single value",
    }
}

/// The node's id and the node, from an Envoy bootstrap, a `/config_dump` or a
/// node; `None` if there are metadata alone.
fn node_in(json: &Value) -> Result<(&str, Option<&Value>)> {
    if !json.is_object() {
        bail!(
            "not an object, as a bootstrap, a config_dump, a node or its metadata is: {}",
            kind(json)
        );
    }
    let node = if let Some(configs) = json.get("configs").and_then(Value::as_array) {
        let mut bootstraps = configs.iter().filter_map(|config| config.get("bootstrap"));
        let bootstrap = bootstraps
            .next()
            .context("a config_dump without bootstrap")?;
        bootstrap
            .get("node")
            .context("a config_dump whose bootstrap has no node")?
    } else if let Some(node) = json.get("node") {
        node
    } else if json.get("static_resources").is_some() || json.get("admin").is_some() {
        bail!(
            "a bootstrap without node: Envoy may have it from its command line, ask its admin \
               interface"
        );
    } else if json.get("id").is_some() || json.get("metadata").is_some_and(Value::is_object) {
        json
    } else {
        return Ok(("", None));
    };
    let id = match &node["id"] {
        Value::Null => "",
        Value::String(id) => id,
        other => bail!(
            "node.id is {other}, not a string, with which Envoy does not start: quote \
                        it"
        ),
    };
    Ok((id, Some(node)))
}

/// The node of a running Envoy, from the documents of its `/config_dump`. Its
/// id may come from the command line, which only `/server_info` shows.
pub fn node_of(documents: &[Value], server_info: Option<&Value>) -> Result<Value> {
    let configs = documents
        .iter()
        .flat_map(|document| match document.get("configs") {
            Some(Value::Array(configs)) => configs.as_slice(),
            _ => std::slice::from_ref(document),
        });
    let mut bootstraps = configs.filter_map(|config| config.get("bootstrap"));
    let bootstrap = bootstraps
        .next()
        .context("a config_dump without bootstrap")?;
    let mut node = bootstrap.get("node").cloned().unwrap_or_default();
    let running = server_info.and_then(|info| info["node"]["id"].as_str());
    if let Some(id) = running.filter(|id| !id.is_empty()) {
        node["id"] = id.into();
    }
    Ok(json!({ "node": node }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Form, decode};

    fn sent(json: &Value) -> Sent {
        encode(json, &Config::default(), &[]).unwrap()
    }

    #[test]
    fn a_node_is_read_from_every_document() {
        let metadata = json!({ "NAME": "pay-1", "NAMESPACE": "shop", "OTHER": { "deep": [1] } });
        let node = json!({ "id": "sidecar~1", "metadata": metadata });
        let bootstrap = json!({ "node": node, "static_resources": {} });
        let dump = json!({ "configs": [{ "other": 1 }, { "bootstrap": bootstrap }] });
        let whole = sent(&node);
        assert_eq!(whole.id.as_deref(), Some("sidecar~1"));
        assert_eq!(sent(&bootstrap), whole);
        assert_eq!(sent(&dump), whole);
        assert_eq!(sent(&metadata).header, whole.header);
        assert_eq!(sent(&metadata).id, None);
        let header = whole.header.unwrap();
        assert_eq!(whole.header_bytes, header.len());
        assert_eq!(whole.request_bytes, 24 + 9 + 21 + header.len());
        let decoded = decode(Form::Header, header.as_bytes()).unwrap();
        assert_eq!(
            decoded["metadata"],
            json!({ "NAME": "pay-1", "NAMESPACE": "shop" })
        );
    }

    /// The metadata that the node in a recorded `/config_dump` sends.
    fn sent_by(dump: &str) -> Value {
        let dump = serde_json::from_str(dump).unwrap();
        decode(Form::Header, sent(&dump).header.unwrap().as_bytes()).unwrap()["metadata"].take()
    }

    /// The agent writes much more into the node, as objects, lists and numbers, too.
    #[test]
    fn only_the_exchanged_fields_of_istios_agent_are_sent() {
        assert_eq!(
            sent_by(include_str!("../../testdata/doctor/istio-vm.json")),
            json!({
                "CLUSTER_ID": "Kubernetes",
                "INSTANCE_IPS": "10.44.0.13",
                "ISTIO_VERSION": "1.30.3",
                "LABELS": {
                    "app": "ratings",
                    "service.istio.io/canonical-name": "ratings",
                    "service.istio.io/canonical-revision": "v1",
                    "version": "v1",
                },
                "MESH_ID": "",
                "NAME": "vm",
                "NAMESPACE": "vms",
                "WORKLOAD_NAME": "ratings-vm",
            })
        );
        assert_eq!(
            sent_by(include_str!(
                "../../testdata/doctor/istio-egress-gateway.json"
            )),
            json!({
                "APP_CONTAINERS": "app",
                "CLUSTER_ID": "Kubernetes",
                "INSTANCE_IPS": "10.44.0.15",
                "ISTIO_VERSION": "1.30.3",
                "LABELS": {
                    "app": "istio-egressgateway",
                    "istio": "egressgateway",
                    "service.istio.io/canonical-name": "istio-egressgateway",
                    "service.istio.io/canonical-revision": "latest",
                },
                "MESH_ID": "cluster.local",
                "NAME": "istio-egressgateway-5f7c8d9b6-fghij",
                "NAMESPACE": "istio-system",
                "OWNER": "kubernetes://apis/apps/v1/namespaces/istio-system/deployments/istio-egressgateway",
                "WORKLOAD_NAME": "istio-egressgateway",
            })
        );
    }

    #[test]
    fn values_that_are_left_out_are_noted() {
        let labels: serde_json::Map<_, _> = (0..300)
            .map(|number| (format!("l{number}"), json!("v")))
            .collect();
        let sent = sent(
            &json!({ "NAME": "a\nb", "WORKLOAD_NAME": "a", "NAMESPACE": "shop", "LABELS": labels }),
        );
        assert_eq!(sent.notes.len(), 2, "{:?}", sent.notes);
        assert!(
            sent.notes[0].contains("\"NAME\" is left out"),
            "{:?}",
            sent.notes
        );
        assert!(sent.notes[1].contains("labels that do not name a service"));
    }

    #[test]
    fn the_plugin_configuration_is_applied() {
        let config = Config::parse(br#"{ "share": { "fields": ["NAME"] } }"#).unwrap();
        let node = json!({ "NAME": "a", "NAMESPACE": "b" });
        let header = encode(&node, &config, &[]).unwrap().header.unwrap();
        let decoded = decode(Form::Header, header.as_bytes()).unwrap();
        assert_eq!(decoded["metadata"], json!({ "NAME": "a" }));
    }

    #[test]
    fn the_configuration_may_say_who_the_node_is() {
        let config = Config::parse(
            br#"{ "share": { "fields": ["NAME", "LABELS"] }, "node": { "id": "${env:POD_NAME}",
                  "NAME": "${env:POD_NAME}", "OWNER": "${env:OWNER}", "LABELS": {
                  "app": "${node:/cluster}", "zone": "${node:/locality/zone}" } } }"#,
        )
        .unwrap();
        let node = json!({ "id": "b", "cluster": "web", "locality": { "zone": "z-1" },
                           "metadata": { "NAMESPACE": "shop" } });
        let environment = [("POD_NAME".to_owned(), "web-1".to_owned())];
        let sent = encode(&node, &config, &environment).unwrap();
        let labels = json!({ "app": "web", "zone": "z-1" });
        let metadata = json!({ "LABELS": labels, "NAME": "web-1", "NAMESPACE": "shop" });
        assert_eq!(sent.node, json!({ "id": "web-1", "metadata": metadata }));
        assert_eq!(sent.id.as_deref(), Some("web-1"));
        let decoded = decode(Form::Header, sent.header.unwrap().as_bytes()).unwrap();
        assert_eq!(
            decoded["metadata"],
            json!({ "LABELS": labels, "NAME": "web-1" })
        );
        assert_eq!(sent.notes.len(), 2, "{:?}", sent.notes);
        assert!(sent.notes[0].contains("${env:OWNER}"), "{:?}", sent.notes);
    }

    #[test]
    fn other_documents_are_refused() {
        for json in [
            json!([]),
            json!({ "configs": [] }),
            json!({ "static_resources": {} }),
            json!({ "node": { "metadata": 5 } }),
            json!({ "node": { "id": 5 } }),
            json!("CgwKBE5BTUU="),
        ] {
            assert!(encode(&json, &Config::default(), &[]).is_err(), "{json}");
        }
    }

    /// Values are parsed as Envoy's loader does.
    #[test]
    fn yaml_is_parsed_as_by_envoy() {
        let yaml = "node:\n  id: a\n  metadata:\n    NAME: y\n    NAMESPACE: b\n    \
                    ISTIO_VERSION: 1.20\n    WORKLOAD_NAME: 010\n    OWNER: '010'\n";
        let json = crate::envoy_yaml::parse_file("a.yaml", yaml).unwrap();
        let header = sent(&json).header.unwrap();
        let decoded = decode(Form::Header, header.as_bytes()).unwrap();
        assert_eq!(
            decoded["metadata"],
            json!({ "NAME": "true", "NAMESPACE": "b", "ISTIO_VERSION": "1.20",
                    "WORKLOAD_NAME": "8", "OWNER": "010" })
        );
    }

    #[test]
    fn the_id_may_come_from_the_command_line() {
        let metadata = json!({ "NAME": "a" });
        let dump = json!({ "configs": [{ "bootstrap": { "node": { "metadata": metadata } } }] });
        let part = json!({ "bootstrap": { "node": { "id": "b" } } });
        let info = json!({ "node": { "id": "c" } });
        let id = |documents: &[Value], info: Option<&Value>| {
            sent(&node_of(documents, info).unwrap())
                .id
                .unwrap_or_default()
        };
        assert_eq!(id(std::slice::from_ref(&dump), None), "");
        assert_eq!(id(&[dump], Some(&info)), "c");
        assert_eq!(
            id(std::slice::from_ref(&part), Some(&json!({ "node": {} }))),
            "b"
        );
        assert_eq!(id(&[part], Some(&info)), "c");
        assert!(node_of(&[json!({ "configs": [] })], Some(&info)).is_err());
    }
}
