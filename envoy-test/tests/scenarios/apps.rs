//! Careless and forging apps, which cannot impersonate a proxy.

use anyhow::Result;
use envoy_test::client::{PEER_HEADERS, has_peer_headers};
use envoy_test::{Lab, Node, Side, Workload};
use hyper::StatusCode;
use serde_json::json;

use crate::{assert_clean, assert_no_peer, assert_peer};

envoy_test::stories!(
    a_middle_hop_passes_all_headers_on,
    an_app_forges_peer_headers,
    an_app_echoes_its_request_headers,
    an_app_without_sidecar_echoes_its_request_headers,
    an_echo_is_believed_if_own_peers_are_accepted,
);

async fn a_middle_hop_passes_all_headers_on(lab: &Lab) -> Result<()> {
    let (first, middle, last) = (Node::pod_client()?, Node::vm_minimal()?, Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", first.clone()),
            Workload::sidecar("reviews", middle.clone()),
            Workload::sidecar("ratings", last.clone()),
        ])
        .await?;

    let call = mesh.call("productpage", "reviews")?;
    let reply = call.path("/call/ratings").send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let received = lab.entry("reviews/inbound", &reply.call).await?;
    assert_peer(&received, Side::Downstream, &first)?;
    let passed_on = lab.entry("reviews/outbound", &reply.call).await?;
    assert_peer(&passed_on, Side::Upstream, &last)?;
    let arrived = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&arrived, Side::Downstream, &middle)?;
    assert_clean(&mesh, "reviews", &reply)?;
    assert_clean(&mesh, "ratings", &reply)?;
    Ok(())
}

async fn an_app_forges_peer_headers(lab: &Lab) -> Result<()> {
    let client = Node::pod_client()?;
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", Node::vm_server()?),
        ])
        .await?;

    let [value, id] = PEER_HEADERS;
    let call = mesh.call("productpage", "ratings")?;
    let call = call
        .header(value, "Zm9yZ2Vk")?
        .header(id, "somebody-else")?;
    let reply = call.header(value, "")?.send().await?;

    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &client)?;
    assert_clean(&mesh, "ratings", &reply)?;
    Ok(())
}

async fn an_app_echoes_its_request_headers(lab: &Lab) -> Result<()> {
    let server = Node::vm_server()?;
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    let call = mesh.call("productpage", "ratings")?;
    let reply = call.path("/echo").send().await?;

    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    assert_clean(&mesh, "ratings", &reply)?;
    Ok(())
}

/// The response carries the caller's own metadata: no peer is stored, and no
/// edge to itself results.
async fn an_app_without_sidecar_echoes_its_request_headers(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::bare("legacy"),
        ])
        .await?;

    let call = mesh.call("productpage", "legacy")?;
    let reply = call.path("/echo").send().await?;

    let received = mesh.app("legacy")?.received(&reply.call);
    assert!(received.iter().all(|one| has_peer_headers(&one.headers)));
    assert!(!has_peer_headers(&reply.headers));
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_no_peer(&outbound, Side::Upstream)?;
    let envoy = mesh.envoy("productpage")?;
    envoy.counts("wasmcustom.metadata_exchange.own", 1).await?;
    Ok(())
}

async fn an_echo_is_believed_if_own_peers_are_accepted(lab: &Lab) -> Result<()> {
    let node = Node::pod_client()?;
    let mesh = lab
        .start([
            Workload::sidecar("productpage", node.clone())
                .configured(&json!({ "accept_own": true })),
            Workload::bare("legacy"),
        ])
        .await?;

    let call = mesh.call("productpage", "legacy")?;
    let reply = call.path("/echo").send().await?;

    assert!(!has_peer_headers(&reply.headers));
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &node)?;
    Ok(())
}
