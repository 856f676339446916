//! A TCP connection, which is drawn by its bytes alone.

use access_log::Direction;
use anyhow::Result;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Stage, pod, vm};
use crate::skywalking::drawn::Bytes;
use crate::tcp::{Route, sidecar};

const QUERY: &[u8] = b"a query of thirty characters.\n";
const ANSWER: &[u8] = b"an answer that is a little longer.\n";

/// A single connection, because the OAP has the average of those of a minute.
pub(super) async fn connection(stage: &mut Stage<'_>) -> Result<()> {
    let namespace = stage.namespace("tcp");
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let inbound = Route::new("inbound", Direction::Inbound, server.local_addr()?);
    let inbound = sidecar(stage.lab, &vm("db", &namespace), &[inbound]);
    let inbound = stage.lab.start_envoy(&inbound).await?;
    let at = inbound.listener("inbound").await?;
    let outbound = Route::new("outbound", Direction::Outbound, at)
        .configured(&json!({ "tcp_clusters": ["outbound"] }));
    let outbound = sidecar(stage.lab, &pod("shop", &namespace), &[outbound]);
    let outbound = stage.lab.start_envoy(&outbound).await?;

    let mut client = TcpStream::connect(outbound.listener("outbound").await?).await?;
    let (mut server, _) = server.accept().await?;
    client.write_all(QUERY).await?;
    server.read_exact(&mut [0; QUERY.len()]).await?;
    server.write_all(ANSWER).await?;
    client.read_exact(&mut [0; ANSWER.len()]).await?;
    drop((client, server));

    // Each proxy reports the bytes of its downstream connection: that between the proxies has the frames, too.
    let bytes = [QUERY, ANSWER].map(|bytes| bytes.len() as u64);
    let between = ["tx", "rx"].map(|way| format!("cluster.outbound.upstream_cx_{way}_bytes_total"));
    let [received, sent] = bytes;
    let made = Bytes { received, sent };
    let with_frames = Bytes {
        received: outbound.counts(&between[0], received + 1).await?,
        sent: outbound.counts(&between[1], sent + 1).await?,
    };
    let [shop, db] = ["shop", "db"].map(|name| format!("{name}.{namespace}"));
    let expected = &mut stage.expected;
    expected.connection("TCP", &shop, &db, [made, with_frames]);
    expected.instances(&db, ["db-vm-1"]);
    stage.envoys.extend([inbound, outbound]);
    Ok(())
}
