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
    rules_read_the_metadata_of_other_control_planes,
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

/// Kuma writes who a callee is at its endpoint, Envoy Gateway at the locality of its endpoint.
async fn rules_read_the_metadata_of_other_control_planes(lab: &Lab) -> Result<()> {
    let kuma = json!({
        "envoy.lb": { "version": "v2", "team": "store", "kuma.io/zone": "zone-1" },
        "io.kuma.labels": {
            "kuma.io/workload": "backend", "kuma.io/mesh": "default", "kuma.io/zone": "zone-1",
            "kuma.io/env": "universal", "app": "backend",
        },
    });
    let of_kuma = json!({
        "NAME": "backend", "WORKLOAD_NAME": "backend", "MESH_ID": "default", "CLUSTER_ID": "zone-1",
        "LABELS": { "service.istio.io/canonical-name": "backend", "version": "v2" },
    });
    let resource = json!({ "kind": "Service", "namespace": "shop", "name": "backend" });
    let envoy_gateway = json!({ "envoy-gateway": { "resources": [resource] } });
    let of_envoy_gateway = json!({
        "NAME": "backend", "WORKLOAD_NAME": "backend", "NAMESPACE": "shop",
        "LABELS": { "service.istio.io/canonical-name": "backend" },
    });
    let bare = || Workload::bare("legacy");
    for (rules, callee, expected) in [
        ("kuma", bare().endpoint_metadata(kuma), of_kuma),
        (
            "envoy-gateway",
            bare().locality_metadata(envoy_gateway),
            of_envoy_gateway,
        ),
    ] {
        let caller = Workload::sidecar("productpage", Node::pod_client()?);
        let caller = caller.configured(&json!({ "callee": rules }));
        let mesh = lab.start([caller, callee]).await?;
        let reply = mesh.call("productpage", "legacy")?.send().await?;
        let entry = lab.entry("productpage/outbound", &reply.call).await?;
        let peer = entry.peer(Side::Upstream)?.cloned();
        assert_eq!(peer, Some(expected), "{rules}: {entry:?}");
        assert_eq!(entry.id(Side::Upstream)?, None);
        let envoy = mesh.envoy("productpage")?;
        counter(envoy, "upstream_peer_from_rules", 1).await?;
    }
    Ok(())
}
