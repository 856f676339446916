//! Wasm VMs: one per worker, and several plugins in one.

use anyhow::{Context as _, Result};
use envoy_test::{Lab, Mesh, Node, Side, Workload};
use serde_json::json;

use crate::{assert_no_peer, assert_peer};

envoy_test::stories!(two_workers_serve, two_plugins_share_a_vm);

/// Enough calls that both workers certainly get some: each call has its own
/// connection, and the kernel distributes connections.
const CALLS: usize = 64;

async fn two_workers_serve(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()).workers(2),
            Workload::sidecar("ratings", server.clone()),
        ])
        .await?;

    for _ in 0..CALLS {
        let reply = mesh.call("productpage", "ratings")?.send().await?;
        let outbound = lab.entry("productpage/outbound", &reply.call).await?;
        assert_peer(&outbound, Side::Upstream, &server)?;
        let inbound = lab.entry("ratings/inbound", &reply.call).await?;
        assert_peer(&inbound, Side::Downstream, &client)?;
    }

    // Each worker decoded the callee once and had it cached from then on.
    let envoy = mesh.envoy("productpage")?;
    let hits = u64::try_from(CALLS - 2)?;
    let name = "wasmcustom.metadata_exchange.cache_hit";
    assert_eq!(envoy.counts(name, hits).await?, hits);
    let name = "wasmcustom.metadata_exchange.cache_miss";
    assert_eq!(envoy.counts(name, 2).await?, 2);
    Ok(())
}

async fn two_plugins_share_a_vm(lab: &Lab) -> Result<()> {
    let node = Node::vm_server()?;
    let ratings = Workload::sidecar("ratings", node.clone()).listener("inbound", |listener| {
        listener.plugin.configuration = json!({ "record_local_node": true });
    });
    let apart = Workload::sidecar("apart", Node::pod_server()?).listener("inbound", |listener| {
        "another_vm".clone_into(&mut listener.plugin.vm_id);
    });
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::gateway("one-plugin", Node::gateway()?),
            ratings,
            apart,
        ])
        .await?;
    assert_eq!(
        vms(&mesh, "ratings").await?,
        vms(&mesh, "one-plugin").await?
    );
    assert!(vms(&mesh, "ratings").await? < vms(&mesh, "apart").await?);

    let reply = mesh.call("productpage", "ratings")?.send().await?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Upstream, &node)?;
    let reply = mesh.call("ratings", "productpage")?.send().await?;
    let outbound = lab.entry("ratings/outbound", &reply.call).await?;
    assert_no_peer(&outbound, Side::Downstream)?;
    assert_peer(&outbound, Side::Upstream, &Node::pod_client()?)?;
    Ok(())
}

/// The number of VMs in the proxy of a workload.
pub(crate) async fn vms(mesh: &Mesh, workload: &str) -> Result<u64> {
    let stats = mesh.envoy(workload)?.stats().await?;
    let vms = stats.get("wasm.envoy.wasm.runtime.v8.active");
    vms.copied().context("Envoy counts no VMs")
}
