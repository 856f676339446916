//! The metadata exchange between real Envoys, as stories.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod apps;
mod boutique;
mod callees;
mod cel;
mod configuration;
mod ends;
mod failure_policy;
mod fallback;
mod faults;
mod gateways;
mod header_limits;
mod hostile;
mod identity;
mod idle;
mod image;
mod istio_plugin;
mod late_wasm;
mod lifecycle;
mod local_node;
mod local_replies;
mod log_forging;
mod observe;
mod pairs;
mod privacy;
mod protocols;
mod readers;
mod soak;
mod troubleshooting;
mod trust;
mod vms;
mod without_sidecar;

use anyhow::Result;
use envoy_test::client::{PEER_HEADERS, has_peer_headers};
use envoy_test::scenario::assert_peer;
use envoy_test::{Entry, Envoy, Mesh, Reply, Side};
use serde_json::{Value, json};

/// Asserts that the entry names no peer on that side.
fn assert_no_peer(entry: &Entry, side: Side) -> Result<()> {
    assert_eq!(entry.peer(side)?, None);
    assert_eq!(entry.id(side)?, None);
    Ok(())
}

/// The filter's counter `name`, once it is at least `least`.
async fn counter(envoy: &Envoy, name: &str, least: usize) -> Result<usize> {
    let name = format!("wasmcustom.metadata_exchange.{name}");
    let count = envoy.counts(&name, u64::try_from(least)?).await?;
    Ok(usize::try_from(count)?)
}

/// Virtual host settings that make Envoy itself remove the headers of the
/// exchange: from requests after all filters, from responses before them.
fn removal_of_peer_headers() -> Value {
    json!({
        "request_headers_to_remove": PEER_HEADERS,
        "response_headers_to_remove": PEER_HEADERS,
    })
}

/// Asserts that neither the called app nor the calling one has seen a header of
/// the exchange.
fn assert_clean(mesh: &Mesh, server: &str, reply: &Reply) -> Result<()> {
    let received = mesh.app(server)?.received(&reply.call);
    assert!(!received.is_empty(), "{server} was not called");
    for request in received {
        assert!(!has_peer_headers(&request.headers), "{request:?}");
    }
    assert!(!has_peer_headers(&reply.headers), "{reply:?}");
    Ok(())
}
