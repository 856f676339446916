//! One workload calls another: each side's access log names the other.

use anyhow::Result;
use envoy_test::{Lab, Node, Side, Workload};

use crate::{assert_clean, assert_no_peer, assert_peer};

envoy_test::stories!(a_pod_calls_a_vm, a_vm_calls_a_pod, a_vm_calls_a_vm);

async fn a_pod_calls_a_vm(lab: &Lab) -> Result<()> {
    one_calls_the_other(lab, Node::pod_client()?, Node::vm_server()?).await
}

async fn a_vm_calls_a_pod(lab: &Lab) -> Result<()> {
    one_calls_the_other(lab, Node::vm_client()?, Node::pod_server()?).await
}

async fn a_vm_calls_a_vm(lab: &Lab) -> Result<()> {
    one_calls_the_other(lab, Node::vm_minimal()?, Node::vm_server()?).await
}

async fn one_calls_the_other(lab: &Lab, client: Node, server: Node) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;

    let outbound = lab.entry("productpage/outbound", &reply.call).await?;
    assert_peer(&outbound, Side::Upstream, &server)?;
    assert_no_peer(&outbound, Side::Downstream)?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &client)?;
    assert_no_peer(&inbound, Side::Upstream)?;
    assert_clean(&mesh, "ratings", &reply)?;
    Ok(())
}
