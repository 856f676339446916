//! The exchange works the same over every version of HTTP.

use anyhow::Result;
use envoy_test::client::{Protocol, has_peer_headers};
use envoy_test::{Lab, Mesh, Node, Side, Workload};
use hyper::{StatusCode, Version};

use crate::{assert_clean, assert_peer};

envoy_test::stories!(over_http_1, over_http_2, over_grpc);

async fn over_http_1(lab: &Lab) -> Result<()> {
    over(lab, Protocol::Http1, Version::HTTP_11).await
}

async fn over_http_2(lab: &Lab) -> Result<()> {
    over(lab, Protocol::Http2, Version::HTTP_2).await
}

async fn over(lab: &Lab, protocol: Protocol, version: Version) -> Result<()> {
    let mesh = two_workloads(lab).await?;

    let call = mesh.call("productpage", "ratings")?;
    let reply = call.protocol(protocol).send().await?;

    assert_eq!(reply.status, StatusCode::OK);
    let received = mesh.app("ratings")?.received(&reply.call);
    assert!(received.iter().all(|request| request.version == version));
    assert_clean(&mesh, "ratings", &reply)?;
    both_name_each_other(lab, &reply.call).await
}

async fn over_grpc(lab: &Lab) -> Result<()> {
    let mesh = two_workloads(lab).await?;

    let call = mesh.call("productpage", "ratings")?;
    let call = call.grpc_health_check().await?;

    let received = mesh.app("ratings")?.received(&call);
    assert_eq!(received.len(), 1);
    for request in received {
        assert_eq!(request.headers["content-type"], "application/grpc");
        assert!(!has_peer_headers(&request.headers));
    }
    both_name_each_other(lab, &call).await
}

async fn two_workloads(lab: &Lab) -> Result<Mesh> {
    lab.start([
        Workload::sidecar("productpage", Node::pod_client()?),
        Workload::sidecar("ratings", Node::vm_server()?),
    ])
    .await
}

async fn both_name_each_other(lab: &Lab, call: &str) -> Result<()> {
    let outbound = lab.entry("productpage/outbound", call).await?;
    assert_peer(&outbound, Side::Upstream, &Node::vm_server()?)?;
    let inbound = lab.entry("ratings/inbound", call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)?;
    Ok(())
}
