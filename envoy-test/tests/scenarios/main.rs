//! The metadata exchange through real Envoys, told as stories.

mod apps;
mod configuration;
mod gateways;
mod hostile;
mod lifecycle;
mod local_node;
mod local_replies;
mod pairs;
mod protocols;
mod readers;
mod vms;
mod without_sidecar;

use anyhow::Result;
use envoy_test::client::has_peer_headers;
use envoy_test::node::peer_json;
use envoy_test::{Entry, Mesh, Node, Reply, Side};

/// The entry names `node` on that side, with all its metadata and its id.
fn assert_peer(entry: &Entry, side: Side, node: &Node) -> Result<()> {
    let peer = entry.peer(side)?.map(|peer| peer_json(&peer));
    assert_eq!(
        peer,
        Some(node.as_peer()),
        "{} in {entry:?}",
        side.peer_key()
    );
    assert_eq!(entry.id(side)?, Some(node.id.as_str()));
    Ok(())
}

/// The entry names nobody on that side.
fn assert_no_peer(entry: &Entry, side: Side) -> Result<()> {
    assert_eq!(entry.peer(side)?, None);
    assert_eq!(entry.id(side)?, None);
    Ok(())
}

/// Neither the called app nor the calling one has seen a header of the exchange.
fn assert_clean(mesh: &Mesh, server: &str, reply: &Reply) -> Result<()> {
    let received = mesh.app(server)?.received(&reply.call);
    assert!(!received.is_empty(), "{server} was not called");
    for request in received {
        assert!(!has_peer_headers(&request.headers), "{request:?}");
    }
    assert!(!has_peer_headers(&reply.headers), "{reply:?}");
    Ok(())
}
