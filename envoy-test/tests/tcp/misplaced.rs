//! The module in another kind of filter chain than its configuration is for, and in both kinds at once.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_test::bootstrap::{collector_log, router, wasm_filter};
use envoy_test::client::{Call, METADATA_OF_NAME_X, PEER_HEADERS};
use envoy_test::tcp::{Route, sidecar};
use envoy_test::{Direction, Envoy, Lab, Node, Plugin, Side, Workload, until};
use hyper::StatusCode;
use metadata_exchange::peer::frame::Frame;
use serde_json::{Value, json};

use crate::ends::{End, Server};
use crate::{LINK, entry, start_sidecar};

envoy_test::stories!(
    http_in_a_network_chain_is_idle,
    tcp_in_an_http_chain_is_idle,
    both_kinds_share_a_vm,
);

async fn http_in_a_network_chain_is_idle(lab: &Lab) -> Result<()> {
    let server = Server::start().await?;
    let route = Route::new(LINK, Direction::Inbound, server.address)
        .configured(&json!({ "protocol": "http" }));
    let envoy = start_sidecar(lab, &Node::pod_server()?, route).await?;

    for _ in 0..2 {
        let mut client = End::connect(envoy.listener(LINK).await?).await?;
        let mut server = server.accept().await?;
        // Nor is a frame removed.
        client.says(&frame()).await?;
        server.hears(&frame()).await?;
        server.says(b"answer").await?;
        client.hears(b"answer").await?;
        drop(client);
        server.is_closed().await?;
        drop(server);
        is_idle(&envoy, r#""protocol" must be "tcp""#).await?;
    }
    assert_eq!(entry(lab, LINK, 1).await?.peer(Side::Downstream)?, None);
    Ok(())
}

async fn tcp_in_an_http_chain_is_idle(lab: &Lab) -> Result<()> {
    let node = Node::pod_server()?;
    let ratings = Workload::sidecar("ratings", node).configured(&json!({ "protocol": "tcp" }));
    let mesh = lab.start([Workload::bare("outsider"), ratings]).await?;

    for _ in 0..2 {
        let reply = mesh.call("outsider", "ratings")?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        let entry = lab.entry("ratings/inbound", &reply.call).await?;
        assert_eq!(entry.peer(Side::Downstream)?, None);
        is_idle(mesh.envoy("ratings")?, r#""protocol" must be "http""#).await?;
    }
    Ok(())
}

/// The log and the gauge say that the filter does nothing.
async fn is_idle(envoy: &Envoy, error: &str) -> Result<()> {
    until(error, async || {
        Ok(envoy.log().await?.contains(error).then_some(()))
    })
    .await?;
    let gauge = "wasmcustom.metadata_exchange.configuration_idle";
    envoy.counts(gauge, 1).await?;
    Ok(())
}

async fn both_kinds_share_a_vm(lab: &Lab) -> Result<()> {
    let server = Server::start().await?;
    let route = Route::new(LINK, Direction::Inbound, server.address);
    let apart = Plugin {
        vm_id: "another_vm".to_owned(),
        ..Plugin::default()
    };
    let node = Node::pod_server()?;
    let mut shared = sidecar(lab, &node, std::slice::from_ref(&route));
    add(&mut shared, http_listener(lab, &Plugin::default()))?;
    let mut separate = sidecar(lab, &node, &[route]);
    add(&mut separate, http_listener(lab, &apart))?;
    let envoy = lab.start_envoy(&shared).await?;
    let separate = lab.start_envoy(&separate).await?;
    assert!(vms(&envoy).await? < vms(&separate).await?);

    let named = json!({ "NAME": "x" });
    for number in 0..2 {
        let [metadata, _] = PEER_HEADERS;
        let call = Call::new(envoy.listener("http").await?, "anyone");
        let reply = call.header(metadata, METADATA_OF_NAME_X)?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        let request = lab.entry("http", &reply.call).await?;
        assert_eq!(request.peer(Side::Downstream)?, Some(&named));

        let mut client = End::connect(envoy.listener(LINK).await?).await?;
        let mut server = server.accept().await?;
        client.says(&frame()).await?;
        client.says(b"query").await?;
        server.hears(b"query").await?;
        drop(client);
        server.is_closed().await?;
        drop(server);
        let connection = entry(lab, LINK, number).await?;
        assert_eq!(connection.peer(Side::Downstream)?, Some(&named));
    }
    Ok(())
}

/// The frame of a peer with the name `x`.
fn frame() -> Vec<u8> {
    let metadata = STANDARD.decode(METADATA_OF_NAME_X).unwrap_or_default();
    let id = Vec::new();
    Frame { metadata, id }.encode()
}

fn add(bootstrap: &mut Value, listener: Value) -> Result<()> {
    let listeners = bootstrap["static_resources"]["listeners"].as_array_mut();
    listeners.context("no listeners")?.push(listener);
    Ok(())
}

/// A listener that answers each request itself.
fn http_listener(lab: &Lab, plugin: &Plugin) -> Value {
    let answer = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "route_config": {
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [answer] }],
        },
        "http_filters": [wasm_filter(plugin, lab.module()), router()],
        "access_log": [collector_log("http", 0, &[Side::Downstream.peer_key()])],
    });
    json!({
        "name": "http",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "traffic_direction": "INBOUND",
        "filter_chains": [{
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }],
        }],
    })
}

async fn vms(envoy: &Envoy) -> Result<u64> {
    let stats = envoy.stats().await?;
    let vms = stats.get("wasm.envoy.wasm.runtime.v8.active");
    vms.copied().context("Envoy counts no VMs")
}
