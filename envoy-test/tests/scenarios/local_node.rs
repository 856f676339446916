//! The local node: too large to send, or stored beside the peer.

use anyhow::Result;
use envoy_test::client::PEER_HEADERS;

use envoy_test::{Lab, Node, Side, Workload};
use serde_json::{Value, json};

use crate::{assert_no_peer, assert_peer};

envoy_test::stories!(
    a_node_has_60_kib_of_labels,
    one_entry_names_both_sides,
    a_gateway_records_no_local_node,
);

async fn a_node_has_60_kib_of_labels(lab: &Lab) -> Result<()> {
    let client = Node::pod_client()?;
    let service_labels = json!({
        "app": "productpage",
        "service.istio.io/canonical-name": "productpage-v1",
    });
    let labels = with_60_kib(service_labels.clone());
    let client = client.with("LABELS", labels);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", Node::vm_server()?),
            Workload::bare("legacy"),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    let remaining = client.clone().with("LABELS", service_labels);
    assert_peer(&inbound, Side::Downstream, &remaining)?;

    let [value, _] = PEER_HEADERS;
    let reply = mesh.call("productpage", "legacy")?.send().await?;
    let received = mesh.app("legacy")?.received(&reply.call);
    assert!(received.iter().all(|one| one.headers[value].len() <= 16384));

    // Logged when a plugin starts, and never for a request.
    let log = mesh.envoy("productpage")?.log().await?;
    let lines_with = |text| log.lines().filter(|line| line.contains(text)).count();
    let starts = lines_with(" started, node id ");
    assert_eq!(lines_with("longer than max_sent_bytes"), starts, "{log}");
    assert_ne!(starts, 0, "{log}");
    Ok(())
}

fn with_60_kib(mut labels: Value) -> Value {
    for number in 0..600 {
        labels[format!("label-{number:03}")] = "x".repeat(90).into();
    }
    labels
}

async fn one_entry_names_both_sides(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let recording = json!({ "record_local_node": true });
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()).configured(&recording),
            Workload::sidecar("ratings", server.clone()).configured(&recording),
            Workload::bare("outsider"),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;
    for log in ["productpage/outbound", "ratings/inbound"] {
        let entry = lab.entry(log, &reply.call).await?;
        assert_peer(&entry, Side::Downstream, &client)?;
        assert_peer(&entry, Side::Upstream, &server)?;
    }

    // The local node is stored even if the other side is unknown.
    let reply = mesh.call("outsider", "ratings")?.send().await?;
    let entry = lab.entry("ratings/inbound", &reply.call).await?;
    assert_no_peer(&entry, Side::Downstream)?;
    assert_peer(&entry, Side::Upstream, &server)?;
    let reply = mesh.call("productpage", "outsider")?.send().await?;
    let entry = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&entry, Side::Downstream, &client)?;
    assert_no_peer(&entry, Side::Upstream)?;
    Ok(())
}

async fn a_gateway_records_no_local_node(lab: &Lab) -> Result<()> {
    let server = Node::vm_server()?;
    let mesh = lab
        .start([
            Workload::gateway("egress", Node::gateway()?)
                .configured(&json!({ "direction": "gateway", "record_local_node": true })),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    let reply = mesh.call("egress", "ratings")?.send().await?;

    let entry = lab.entry("egress/gateway", &reply.call).await?;
    assert_peer(&entry, Side::Upstream, &server)?;
    assert_no_peer(&entry, Side::Downstream)?;
    Ok(())
}
