//! A configuration that changes under load, and an update that is refused.
//! [`crate::idle`] tests invalid first configurations.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use envoy_test::{Lab, Mesh, Node, Plugin, Side, Workload, until};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::assert_peer;

envoy_test::stories!(
    a_configuration_changes_under_load,
    a_changed_configuration_is_refused,
);

/// The number of calls under each configuration before the next one.
const CALLS_PER_CHANGE: usize = 50;

async fn a_configuration_changes_under_load(lab: &Lab) -> Result<()> {
    let mesh = with_watched_plugin(lab).await?;
    let answered = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);

    let load = async || {
        while !done.load(Ordering::Relaxed) {
            let reply = mesh.call("productpage", "ratings")?.send().await?;
            assert_eq!(reply.status, StatusCode::OK);
            answered.lock().await.push(reply.call);
        }
        anyhow::Ok(())
    };
    let changes = async {
        for (number, recording) in [true, false, true, false].into_iter().enumerate() {
            let changed = watched(json!({ "record_local_node": recording }));
            mesh.reconfigure("ratings", &changed).await?;
            until_recording(lab, &mesh, recording).await?;
            until("calls under load", async || {
                let enough = (number + 1) * CALLS_PER_CHANGE;
                Ok((answered.lock().await.len() >= enough).then_some(()))
            })
            .await?;
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    tokio::try_join!(load(), load(), load(), changes)?;

    for call in answered.into_inner() {
        let inbound = lab.entry("ratings/inbound", &call).await?;
        assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)?;
    }
    Ok(())
}

async fn a_changed_configuration_is_refused(lab: &Lab) -> Result<()> {
    let mesh = with_watched_plugin(lab).await?;
    let changed = watched(json!({ "record_local_node": true }));
    mesh.reconfigure("ratings", &changed).await?;
    until_recording(lab, &mesh, true).await?;

    let refused = watched(json!({ "record_local_node": "yes" }));
    mesh.reconfigure("ratings", &refused).await?;
    let envoy = mesh.envoy("ratings")?;
    let rejected = "extension_config_discovery.http_filter.metadata_exchange.update_rejected";
    envoy.counts(rejected, 1).await?;

    let reply = mesh.call("productpage", "ratings")?.send().await?;
    assert_eq!(reply.status, StatusCode::OK);
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Upstream, &Node::vm_server()?)?;
    Ok(())
}

async fn with_watched_plugin(lab: &Lab) -> Result<Mesh> {
    lab.start([
        Workload::sidecar("productpage", Node::pod_client()?),
        Workload::sidecar("ratings", Node::vm_server()?).listener("inbound", |listener| {
            listener.plugin = watched(json!({}));
        }),
    ])
    .await
}

fn watched(configuration: Value) -> Plugin {
    Plugin {
        configuration,
        watched: true,
        ..Plugin::default()
    }
}

/// Calls until the callee's entries contain its local node, or no longer do.
async fn until_recording(lab: &Lab, mesh: &Mesh, recording: bool) -> Result<()> {
    until(
        &format!("record_local_node to be {recording}"),
        async || {
            let reply = mesh.call("productpage", "ratings")?.send().await?;
            assert_eq!(reply.status, StatusCode::OK);
            let inbound = lab.entry("ratings/inbound", &reply.call).await?;
            let is_recorded = inbound.peer(Side::Upstream)?.is_some();
            Ok((is_recorded == recording).then_some(()))
        },
    )
    .await
}
