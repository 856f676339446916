//! What Envoy does with connections once a network filter's VM has failed. No input is known that makes the filter's VM
//! fail, so another module fails instead.

use std::net::SocketAddr;

use anyhow::Result;
use envoy_test::tcp::Route;
use envoy_test::{Direction, Envoy, FailurePolicy, Lab, Node, Plugin, until};

use crate::ends::{End, Server};
use crate::{LINK, start_sidecar};

envoy_test::stories!(
    failing_open_serves_new_connections_without_the_filter,
    failing_closed_closes_new_connections,
    reloading_serves_new_connections_with_the_filter,
);

/// Bytes of a client that make the module trap; as bytes of a server they pass.
const KILL: &[u8] = b"K";
/// Bytes of a server that make the module trap; as bytes of a client they pass.
const KILL_UPSTREAM: &[u8] = b"U";

/// Connections whose VM may fail in either direction.
const KILLED_BY: [Direction; 2] = [Direction::Inbound, Direction::Outbound];

async fn failing_open_serves_new_connections_without_the_filter(lab: &Lab) -> Result<()> {
    for killed_by in KILLED_BY {
        let proxied = Proxied::start(lab, FailurePolicy::Open).await?;
        proxied.fails(killed_by).await?;

        for _ in 0..3 {
            let (mut client, mut server) = proxied.connect().await?;
            client.says(KILL).await?;
            server.hears(KILL).await?;
            server.says(KILL_UPSTREAM).await?;
            client.hears(KILL_UPSTREAM).await?;
        }
    }
    Ok(())
}

async fn failing_closed_closes_new_connections(lab: &Lab) -> Result<()> {
    for killed_by in KILLED_BY {
        let proxied = Proxied::start(lab, FailurePolicy::Closed).await?;
        proxied.fails(killed_by).await?;
        let before = proxied.upstream_connections().await?;

        for _ in 0..3 {
            End::connect(proxied.address).await?.is_closed().await?;
        }
        // The server is not even connected to.
        assert_eq!(proxied.upstream_connections().await?, before);
    }
    Ok(())
}

async fn reloading_serves_new_connections_with_the_filter(lab: &Lab) -> Result<()> {
    for killed_by in KILLED_BY {
        let proxied = Proxied::start(lab, FailurePolicy::Reload).await?;
        proxied.fails(killed_by).await?;

        // Envoy reloads the VM for a new connection, but not within a second of the last load. Until then it closes them.
        let (mut client, mut server) = until("a connection to be served", async || {
            let mut client = End::connect(proxied.address).await?;
            if client.says(b"hello").await.is_err() {
                return Ok(None);
            }
            tokio::select! {
                server = proxied.server.accept() => Ok(Some((client, server?))),
                closed = client.is_closed() => { closed?; Ok(None) }
            }
        })
        .await?;
        server.hears(b"hello").await?;
        server.says(b"welcome").await?;
        client.hears(b"welcome").await?;
        let reloads = "wasm.metadata_exchange.vm_reload_success";
        assert_eq!(proxied.envoy.counts(reloads, 1).await?, 1);

        // The filter is there again.
        client.says(KILL).await?;
        client.is_closed().await?;
        server.is_closed().await?;
    }
    Ok(())
}

/// A server behind a sidecar with the module that fails.
struct Proxied {
    envoy: Envoy,
    server: Server,
    address: SocketAddr,
}

impl Proxied {
    async fn start(lab: &Lab, failure_policy: FailurePolicy) -> Result<Self> {
        let module = lab.dir().join("mortal.wasm");
        std::fs::write(&module, wat::parse_str(include_str!("mortal.wat"))?)?;
        let server = Server::start().await?;
        let mut route = Route::new(LINK, Direction::Inbound, server.address);
        route.plugin = Some(Plugin {
            module: Some(module),
            failure_policy,
            ..Plugin::default()
        });
        let envoy = start_sidecar(lab, &Node::pod_server()?, route).await?;
        let address = envoy.listener(LINK).await?;
        Ok(Self {
            envoy,
            server,
            address,
        })
    }

    /// A connection, in both directions of which bytes have passed.
    async fn connect(&self) -> Result<(End, End)> {
        let mut client = End::connect(self.address).await?;
        let mut server = self.server.accept().await?;
        client.says(b"hello").await?;
        server.hears(b"hello").await?;
        server.says(b"welcome").await?;
        client.hears(b"welcome").await?;
        Ok((client, server))
    }

    /// The VM fails on bytes of the client (inbound) or of the server. With any policy, this ends the connection in which
    /// it fails, whose last bytes are lost, and the others of the VM with the next bytes, which are lost, too.
    async fn fails(&self, killed_by: Direction) -> Result<()> {
        let mut failing = self.connect().await?;
        let mut others = [self.connect().await?, self.connect().await?];

        match killed_by {
            Direction::Inbound => failing.0.says(KILL).await?,
            Direction::Outbound => failing.1.says(KILL_UPSTREAM).await?,
        }
        failing.0.is_closed().await?;
        failing.1.is_closed().await?;

        // As long as they are idle, the others stay open.
        self.has_open(others.len()).await?;
        let [(client, server), _] = &mut others;
        client.says(b"more").await?;
        server.is_closed().await?;
        client.is_closed().await?;
        self.has_open(1).await?;
        let [_, (client, server)] = &mut others;
        server.says(b"more").await?;
        client.is_closed().await?;
        server.is_closed().await?;
        self.has_open(0).await
    }

    /// Waits until exactly so many connections are open.
    async fn has_open(&self, expected: usize) -> Result<()> {
        until(&format!("{expected} open connections"), async || {
            let stats = self.envoy.stats().await?;
            let open = stats.get("listener.127.0.0.1_0.downstream_cx_active");
            let open = usize::try_from(open.copied().unwrap_or_default())?;
            Ok((open == expected).then_some(()))
        })
        .await
    }

    async fn upstream_connections(&self) -> Result<u64> {
        let stats = self.envoy.stats().await?;
        let total = stats.get("cluster.link.upstream_cx_total");
        Ok(total.copied().unwrap_or_default())
    }
}
