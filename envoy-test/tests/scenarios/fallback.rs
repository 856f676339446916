//! A callee that sends nothing is named by the metadata of its endpoint.

use anyhow::Result;
use envoy_test::{Entry, Lab, Node, Side, Workload};
use hyper::StatusCode;
use serde_json::json;

use crate::{assert_peer, counter};

envoy_test::stories!(
    an_endpoint_stands_for_a_silent_callee,
    an_endpoint_that_refuses_connections_is_named,
    a_gateway_knows_the_endpoint_too,
);

/// Asserts that the entry names the callee by the endpoint's metadata, without
/// an id, so that readers can distinguish them.
fn assert_endpoint(entry: &Entry) -> Result<()> {
    let peer = entry.peer(Side::Upstream)?.cloned();
    let expected = json!({
        "NAME": "legacy-v2",
        "WORKLOAD_NAME": "legacy-v2",
        "NAMESPACE": "attic",
        "CLUSTER_ID": "east",
        "LABELS": {
            "service.istio.io/canonical-name": "legacy",
            "service.istio.io/canonical-revision": "v2",
        },
    });
    assert_eq!(peer, Some(expected), "{entry:?}");
    assert_eq!(entry.id(Side::Upstream)?, None);
    Ok(())
}

fn endpoint(workload: Workload) -> Workload {
    described(workload, "legacy-v2;attic;legacy;v2;east")
}

fn described(workload: Workload, description: &str) -> Workload {
    workload.endpoint_metadata(json!({ "istio": { "workload": description } }))
}

async fn an_endpoint_stands_for_a_silent_callee(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            endpoint(Workload::bare("legacy")),
        ])
        .await?;

    let reply = mesh.call("productpage", "legacy")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    assert_endpoint(&*lab.entry("productpage/outbound", &reply.call).await?)?;
    let envoy = mesh.envoy("productpage")?;
    counter(envoy, "upstream_peer_from_endpoint", 1).await?;
    assert_eq!(counter(envoy, "upstream_peer_stored", 0).await?, 0);
    Ok(())
}

/// The proxy itself replies, but a host had been selected.
async fn an_endpoint_that_refuses_connections_is_named(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            endpoint(Workload::bare("legacy")),
        ])
        .await?;
    mesh.app("legacy")?.stop().await?;

    let reply = mesh.call("productpage", "legacy")?.send().await?;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_ne!(outbound.details, "via_upstream");
    assert_endpoint(&outbound)
}

async fn a_gateway_knows_the_endpoint_too(lab: &Lab) -> Result<()> {
    let client = Node::pod_client()?;
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()).listener("outbound", |listener| {
                listener.via = vec![("legacy".to_owned(), "egress".to_owned())];
            }),
            Workload::gateway("egress", Node::gateway()?),
            endpoint(Workload::bare("legacy")),
        ])
        .await?;

    let reply = mesh.call("productpage", "legacy")?.send().await?;

    let passed_on = lab.entry("egress/gateway", &reply.call).await?;
    assert_peer(&passed_on, Side::Downstream, &client)?;
    assert_endpoint(&passed_on)
}
