//! The app does not answer, or not at once: the proxies still log which
//! workload called which.

use anyhow::Result;
use envoy_test::bootstrap::abort_filter;
use envoy_test::client::has_peer_headers;
use envoy_test::{Lab, Node, Side, Workload};
use hyper::StatusCode;
use serde_json::json;

use crate::{assert_clean, assert_peer};

envoy_test::stories!(
    the_router_replies_for_a_dead_app,
    a_filter_behind_ours_replies,
    a_request_is_retried,
);

async fn the_router_replies_for_a_dead_app(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;
    mesh.app("ratings")?.stop().await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!has_peer_headers(&reply.headers));
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert!(inbound.details.starts_with("upstream_reset"), "{inbound:?}");
    assert_peer(&inbound, Side::Downstream, &client)?;
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    Ok(())
}

async fn a_filter_behind_ours_replies(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", server.clone()).listener("inbound", |listener| {
                listener.behind.push(abort_filter(503));
            }),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!has_peer_headers(&reply.headers));
    assert!(mesh.app("ratings")?.received(&reply.call).is_empty());
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_eq!(inbound.details, "fault_filter_abort");
    assert_peer(&inbound, Side::Downstream, &client)?;
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    Ok(())
}

async fn a_request_is_retried(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()).listener("outbound", |listener| {
                listener.route_action = json!({
                    "retry_policy": { "retry_on": "5xx", "num_retries": 1 },
                });
            }),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    let call = mesh.call("productpage", "ratings")?;
    let reply = call.path("/flaky").send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    let inbound = lab.entries("ratings/inbound", &reply.call, 2).await?;
    let statuses: Vec<u32> = inbound.iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [503, 200]);
    for entry in &inbound {
        assert_peer(entry, Side::Downstream, &client)?;
    }
    assert_clean(&mesh, "ratings", &reply)?;
    Ok(())
}
