//! A client that sends the beginning of a frame, and no more.

use std::time::{Duration, Instant};

use anyhow::Result;
use envoy_test::tcp::Route;
use envoy_test::{Direction, Lab, Node, Side};

use crate::ends::{End, Server};
use crate::{LINK, entry, start_sidecar};

envoy_test::stories!(the_beginning_of_a_frame_passes_in_the_end);

async fn the_beginning_of_a_frame_passes_in_the_end(lab: &Lab) -> Result<()> {
    const BEGINNING: &[u8] = b"=#\x04";
    let server = Server::start().await?;
    let route = Route::new(LINK, Direction::Inbound, server.address);
    let envoy = start_sidecar(lab, &Node::pod_server()?, route).await?;

    let begin = Instant::now();
    let mut client = End::connect(envoy.listener(LINK).await?).await?;
    let mut server = server.accept().await?;
    client.says(BEGINNING).await?;
    // The other direction is not held.
    server.says(b"welcome").await?;
    client.hears(b"welcome").await?;

    server.hears(BEGINNING).await?;
    let held = begin.elapsed();
    // A slow machine only adds to it.
    assert!(held > Duration::from_secs(4), "held for {held:?}");
    client.says(b"more").await?;
    server.hears(b"more").await?;
    server.says(b"answer").await?;
    client.hears(b"answer").await?;
    client.ends().await?;
    server.is_closed().await?;
    drop(server);

    let timed_out = "wasmcustom.metadata_exchange.frame_timed_out";
    assert_eq!(envoy.counts(timed_out, 1).await?, 1);
    let entry = entry(lab, LINK, 0).await?;
    assert_eq!(entry.peer(Side::Downstream)?, None);
    Ok(())
}
