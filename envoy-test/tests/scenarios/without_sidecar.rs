//! One side has no exchange, which does not harm the other.

use anyhow::Result;
use envoy_test::client::{PEER_HEADERS, has_peer_headers};
use envoy_test::{Lab, Node, Side, Workload};
use hyper::StatusCode;

use crate::{assert_clean, assert_peer};

envoy_test::stories!(the_caller_has_no_sidecar, the_callee_has_no_sidecar);

/// A request without metadata stores nothing, and does not show the previous
/// request's peer.
async fn the_caller_has_no_sidecar(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::bare("outsider"),
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::sidecar("ratings", Node::vm_server()?),
        ])
        .await?;
    let known = mesh.call("productpage", "ratings")?.send().await?;
    let inbound = lab.entry("ratings/inbound", &known.call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)?;

    let reply = mesh.call("outsider", "ratings")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    assert_clean(&mesh, "ratings", &reply)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_eq!(inbound.keys().count(), 0, "{inbound:?}");
    Ok(())
}

/// The callee receives the headers, because no proxy can know that it has no
/// sidecar.
async fn the_callee_has_no_sidecar(lab: &Lab) -> Result<()> {
    let client = Node::pod_client()?;
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::bare("legacy"),
        ])
        .await?;

    let reply = mesh.call("productpage", "legacy")?.send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    assert!(!has_peer_headers(&reply.headers));
    let received = mesh.app("legacy")?.received(&reply.call);
    assert_eq!(received.len(), 1);
    let [_, id] = PEER_HEADERS;
    assert!(received.iter().all(|one| one.headers[id] == client.id));
    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_eq!(outbound.keys().count(), 0, "{outbound:?}");
    Ok(())
}
