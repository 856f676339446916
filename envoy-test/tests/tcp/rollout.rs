//! The order in which the filter is rolled out: callees first.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use envoy_test::tcp::{Route, Running, Server as Kind};
use envoy_test::{Direction, Envoy, Lab, Node, Side, until};
use metadata_exchange::peer::frame::{Frame, HEADER_BYTES};
use serde_json::json;

use crate::ends::{End, Server};
use crate::{LINK, entry, start_sidecar};

envoy_test::stories!(
    callees_first_changes_nothing_for_the_application,
    callers_first_gives_the_frame_to_the_server,
    callers_first_silences_redis,
    callers_first_breaks_other_servers,
);

const INBOUND: &str = "inbound";

/// Whether the proxies of a link have the filter.
#[derive(Clone, Copy)]
enum Step {
    /// Only that of the callee does.
    CalleeHasIt,
    /// Both do, and the caller's configuration does not name the cluster.
    BothHaveIt,
    /// Both do, and the caller's configuration names the cluster.
    BothExchange,
    /// Only that of the caller does, and its configuration names the cluster.
    OnlyTheCallerHasIt,
}

/// The sidecars of a link, that of the caller first.
async fn sidecars(lab: &Lab, step: Step, to: SocketAddr) -> Result<[Envoy; 2]> {
    let mut inbound = Route::new(INBOUND, Direction::Inbound, to);
    if matches!(step, Step::OnlyTheCallerHasIt) {
        inbound = inbound.without_filter();
    }
    let server = start_sidecar(lab, &Node::pod_server()?, inbound).await?;
    let outbound = Route::new(LINK, Direction::Outbound, server.listener(INBOUND).await?);
    let outbound = match step {
        Step::CalleeHasIt => outbound.without_filter(),
        Step::BothHaveIt => outbound,
        Step::BothExchange | Step::OnlyTheCallerHasIt => {
            outbound.configured(&json!({ "tcp_clusters": [LINK] }))
        }
    };
    let client = start_sidecar(lab, &Node::pod_client()?, outbound).await?;
    Ok([client, server])
}

async fn callees_first_changes_nothing_for_the_application(lab: &Lab) -> Result<()> {
    for (number, step) in [Step::CalleeHasIt, Step::BothHaveIt, Step::BothExchange]
        .into_iter()
        .enumerate()
    {
        let server = Server::start().await?;
        let [caller, _callee] = sidecars(lab, step, server.address).await?;

        let mut client = End::connect(caller.listener(LINK).await?).await?;
        let mut server = server.accept().await?;
        client.says(b"query").await?;
        server.hears(b"query").await?;
        server.says(b"answer").await?;
        client.hears(b"answer").await?;
        drop(client);
        server.is_closed().await?;
        drop(server);

        // The caller is known once its proxy sends a frame.
        let inbound = entry(lab, INBOUND, number).await?;
        let is_named = inbound.peer(Side::Downstream)?.is_some();
        assert_eq!(is_named, matches!(step, Step::BothExchange));
    }
    Ok(())
}

async fn callers_first_gives_the_frame_to_the_server(lab: &Lab) -> Result<()> {
    let server = Server::start().await?;
    let [caller, _callee] = sidecars(lab, Step::OnlyTheCallerHasIt, server.address).await?;

    let mut client = End::connect(caller.listener(LINK).await?).await?;
    let mut server = server.accept().await?;
    client.says(b"query").await?;
    client.ends().await?;

    let bytes = server.rest().await?;
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES).unwrap_or_default();
    assert_eq!(header.get(..4), Some(b"=#\x04\x67".as_slice()));
    let frame = rest.strip_suffix(b"query").and_then(Frame::decode);
    let id = frame.map(|frame| frame.id);
    assert_eq!(id.as_deref(), Some(Node::pod_client()?.id.as_bytes()));
    Ok(())
}

/// Redis takes the frame for a command of one line. It looks for the end of the line up to the first zero byte only, so it
/// waits for it until more than 64 KiB have arrived.
async fn callers_first_silences_redis(lab: &Lab) -> Result<()> {
    let Some(redis) = start(Kind::Redis).await? else {
        return Ok(());
    };
    let [caller, _callee] = sidecars(lab, Step::OnlyTheCallerHasIt, redis.address()).await?;

    let mut client = End::connect(caller.listener(LINK).await?).await?;
    for _ in 0..10_000 {
        client.says(b"PING\r\n").await?;
    }
    client.says(&[b' '; 10_000]).await?;
    client
        .hears(b"-ERR Protocol error: too big inline request\r\n")
        .await
}

async fn callers_first_breaks_other_servers(lab: &Lab) -> Result<()> {
    /// A request to use TLS.
    const TLS: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
    /// The version of the protocol.
    const AMQP: &[u8] = b"AMQP\0\0\x09\x01";
    /// A packet that quits.
    const QUIT: &[u8] = b"\x01\0\0\x01\x01";

    if let Some(postgres) = start(Kind::Postgres).await? {
        let [caller, _callee] = sidecars(lab, Step::OnlyTheCallerHasIt, postgres.address()).await?;
        let mut client = End::connect(caller.listener(LINK).await?).await?;
        client.says(TLS).await?;
        client.is_closed().await?;
        until("PostgreSQL's complaint", async || {
            let complaint = "invalid length of startup packet";
            Ok(postgres.log()?.contains(complaint).then_some(()))
        })
        .await?;
    }

    if let Some(rabbitmq) = start(Kind::RabbitMq).await? {
        let [caller, _callee] = sidecars(lab, Step::OnlyTheCallerHasIt, rabbitmq.address()).await?;
        let mut client = End::connect(caller.listener(LINK).await?).await?;
        client.says(AMQP).await?;
        // Its own version, unless the connection is reset before.
        let answer = client.rest().await?;
        ensure!(
            answer.is_empty() || answer == AMQP,
            "{}",
            answer.escape_ascii()
        );
    }

    if let Some(mariadb) = start(Kind::MariaDb).await? {
        let [caller, _callee] = sidecars(lab, Step::OnlyTheCallerHasIt, mariadb.address()).await?;
        // It resets the connection, so its error may be lost.
        until("MariaDB's error", async || {
            let mut client = End::connect(caller.listener(LINK).await?).await?;
            client.says(QUIT).await?;
            let answer = client.rest().await?.escape_ascii().to_string();
            let error = "#08S01Got packets out of order";
            Ok(answer.contains(error).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Starts a server, unless it is not installed.
async fn start(kind: Kind) -> Result<Option<Running>> {
    if let Some(packages) = kind.missing() {
        ensure!(
            std::env::var_os("NO_SKIPPING").is_none(),
            "skipped: {kind}: on Debian, apt-get install {packages}"
        );
        eprintln!("SKIPPED {kind}: on Debian, apt-get install {packages}");
        return Ok(None);
    }
    Ok(Some(kind.start().await?))
}
