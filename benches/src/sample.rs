//! The nodes that stand for everybody's.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_test::Node;
use envoy_test::client::PEER_HEADERS;
use prost::Message as _;
use serde_json::{Value, json};

/// How many labels a usual pod has.
pub(crate) const USUAL_LABELS: usize = 5;

/// How many labels nodes have where the cost of labels is looked at.
pub(crate) const LABELS: [usize; 6] = [0, USUAL_LABELS, 10, 20, 50, 100];

/// A pod of the workload `name`, with so many labels.
pub(crate) fn pod(name: &str, labels: usize) -> Result<Node> {
    let mut node = Node::pod_client()?;
    let full_name = format!("{name}-84975bc778-pxz2w");
    node.id = format!("sidecar~10.52.0.34~{full_name}.default~default.svc.cluster.local");
    node.metadata["NAME"] = json!(full_name);
    let own = node.metadata["LABELS"].take();
    let own = own.as_object().context("the sample has no labels")?;
    let more = (0..).map(|number| {
        let key = format!("team.example.com/label-{number:03}");
        (key, json!(format!("value-{number:03}")))
    });
    let all = own.clone().into_iter().chain(more).take(labels);
    node.metadata["LABELS"] = Value::Object(all.collect());
    Ok(node)
}

/// The headers of `node`, made by a protobuf library and not by the filter.
pub(crate) fn headers(node: &Node) -> [(&'static str, String); 2] {
    let fields = wasm_host::Node::new("", &node.as_peer()).metadata;
    let [metadata, id] = PEER_HEADERS;
    [
        (metadata, STANDARD.encode(fields.encode_to_vec())),
        (id, node.id.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_as_many_labels_as_asked_for() {
        for labels in LABELS {
            let pod = pod("any", labels).unwrap();
            assert_eq!(pod.metadata["LABELS"].as_object().unwrap().len(), labels);
        }
    }
}
