//! Faults around the filter, under load: no request fails because of the
//! filter, and no entry names another request's caller.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Result;
use envoy_test::client::Protocol;
use envoy_test::traffic::{Ledger, Plan, Shape, Summary, abandon, send};
use envoy_test::{Lab, Mesh, Node, Plugin, Workload, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

envoy_test::stories!(
    the_collector_goes_away_and_comes_back,
    the_app_resets_connections,
    clients_disconnect_in_mid_request,
    the_listeners_are_drained,
    the_listeners_change,
    the_listeners_are_replaced,
    the_plugin_changes,
);

const CALLERS: NonZeroUsize = NonZeroUsize::new(50).unwrap();
const SEED: u64 = 4;

/// The number of requests that are answered before and after each event.
const WHILE: u64 = 1000;

/// The most requests; no story sends as many.
const LIMIT: u64 = 1 << 20;

const CONNECTIONS: usize = 8;

async fn the_collector_goes_away_and_comes_back(lab: &Lab) -> Result<()> {
    let load = Load::start(lab, sidecar()?.counting()).await?;

    load.while_running(async || {
        load.goes_on().await?;
        lab.collector().go_away().await?;
        load.goes_on().await?;
        lab.collector().come_back().await?;
        load.is_logged_again().await
    })
    .await?;

    let summary = load.finish("the entries that are left", |_| true).await?;
    assert_all_answered(&summary);
    // Entries logged while the collector was gone are lost.
    assert_ne!(summary.unlogged, 0, "{summary:?}");
    Ok(())
}

async fn the_app_resets_connections(lab: &Lab) -> Result<()> {
    let app = ResettingApp::start().await?;
    let load = Load::start(lab, sidecar()?.served_at(app.address)).await?;

    load.while_running(async || load.goes_on().await).await?;

    let summary = load.finish("all entries", is_all_logged).await?;
    assert!(summary.unanswered > 0, "{summary:?}");
    let statuses: Vec<u16> = summary.statuses.keys().copied().collect();
    assert_eq!(statuses, [200, 503], "{summary:?}");
    Ok(())
}

async fn clients_disconnect_in_mid_request(lab: &Lab) -> Result<()> {
    let load = Load::start(lab, sidecar()?.counting()).await?;

    load.while_running(async || {
        for _ in 0..WHILE {
            abandon(load.to, &load.ledger).await?;
        }
        load.goes_on().await
    })
    .await?;

    let summary = load.finish("all entries", is_all_logged).await?;
    assert_eq!(summary.unanswered, WHILE);
    assert_eq!(answered_200(&summary), summary.requests - WHILE);
    Ok(())
}

/// Each connection is closed after a reply, and no new ones are accepted.
async fn the_listeners_are_drained(lab: &Lab) -> Result<()> {
    let load = Load::start(lab, sidecar()?.counting()).await?;

    load.while_running(async || {
        load.goes_on().await?;
        load.mesh.envoy(NAME)?.drain_listeners().await?;
        until("connections to be refused", async || {
            let connection = TcpStream::connect(load.to).await;
            Ok(connection.err().map(|_| ()))
        })
        .await
    })
    .await?;

    let summary = load.finish("the entries of all answers", |summary| {
        summary.entries >= answered_200(summary)
    });
    let summary = summary.await?;
    // A connection that the kernel but not Envoy had accepted is reset.
    assert!(summary.unanswered <= CONNECTIONS as u64, "{summary:?}");
    assert_eq!(
        answered_200(&summary),
        summary.requests - summary.unanswered
    );
    Ok(())
}

async fn the_listeners_change(lab: &Lab) -> Result<()> {
    let load = Load::start(lab, sidecar()?.counting().watching_listeners()).await?;

    load.while_running(async || {
        let envoy = load.mesh.envoy(NAME)?;
        for (change, size) in (1..).zip([0, 7, 500]) {
            let configuration = json!({ "max_peer_cache_size": size }).to_string();
            let configure = |listener: &mut Value| {
                let config = "/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config/configuration/value";
                if let Some(value) = listener.pointer_mut(config) {
                    *value = configuration.clone().into();
                }
            };
            load.mesh.change_listeners(NAME, configure).await?;
            // The proxy has two listeners, and both change.
            envoy.counts("listener_manager.listener_in_place_updated", 2 * change).await?;
            load.goes_on().await?;
        }
        Ok(())
    })
    .await?;

    let summary = load.finish("all entries", is_all_logged).await?;
    assert_all_answered(&summary);
    Ok(())
}

/// Unlike a change of filters, a change of the listener itself starts a new
/// listener and drains the old one.
async fn the_listeners_are_replaced(lab: &Lab) -> Result<()> {
    let load = Load::start(lab, sidecar()?.counting().watching_listeners()).await?;

    load.while_running(async || {
        let envoy = load.mesh.envoy(NAME)?;
        for change in 1..=3 {
            let limit = |listener: &mut Value| {
                listener["per_connection_buffer_limit_bytes"] = (change << 16).into();
            };
            load.mesh.change_listeners(NAME, limit).await?;
            envoy
                .counts("listener_manager.listener_modified", 2 * change)
                .await?;
            load.goes_on().await?;
        }
        Ok(())
    })
    .await?;

    let summary = load.finish("all entries", is_all_logged).await?;
    assert_all_answered(&summary);
    Ok(())
}

async fn the_plugin_changes(lab: &Lab) -> Result<()> {
    let plugin = |size| Plugin {
        configuration: json!({ "max_peer_cache_size": size }),
        watched: true,
        ..Plugin::default()
    };
    let workload = sidecar()?.counting();
    let workload = workload.listener("inbound", |listener| listener.plugin = plugin(500));
    let load = Load::start(lab, workload).await?;

    load.while_running(async || {
        let envoy = load.mesh.envoy(NAME)?;
        for (change, size) in (2..).zip([0, 7, 500]) {
            load.mesh.reconfigure(NAME, &plugin(size)).await?;
            let changed = "extension_config_discovery.http_filter.metadata_exchange.config_reload";
            envoy.counts(changed, change).await?;
            load.goes_on().await?;
        }
        Ok(())
    })
    .await?;

    let summary = load.finish("all entries", is_all_logged).await?;
    assert_all_answered(&summary);
    Ok(())
}

const NAME: &str = "ratings";

fn sidecar() -> Result<Workload> {
    Ok(Workload::sidecar(NAME, Node::vm_server()?).workers(2))
}

fn assert_all_answered(summary: &Summary) {
    assert_eq!(
        summary.statuses,
        BTreeMap::from([(200, summary.requests)]),
        "{summary:?}"
    );
}

fn answered_200(summary: &Summary) -> u64 {
    summary.statuses.get(&200).copied().unwrap_or_default()
}

fn is_all_logged(summary: &Summary) -> bool {
    summary.unlogged == 0
}

/// Many callers that call one workload continuously.
struct Load {
    mesh: Mesh,
    to: SocketAddr,
    ledger: Arc<Ledger>,
}

impl Load {
    async fn start(lab: &Lab, workload: Workload) -> Result<Self> {
        let plan = Plan::of_peers(SEED, CALLERS);
        let ledger = Arc::new(Ledger::new(plan, Node::vm_server()?, LIMIT));
        let drain = Arc::clone(&ledger);
        lab.collector()
            .drain(move |entry| drain.check_entry(entry))?;
        let mesh = lab.start([workload]).await?;
        let to = mesh.address(NAME)?;
        Ok(Self { mesh, to, ledger })
    }

    /// Sends requests while `story` runs.
    async fn while_running(&self, story: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        let shape = Shape {
            protocol: Protocol::Http1,
            connections: CONNECTIONS,
            at_a_time: 1,
        };
        let story = async {
            let outcome = story().await;
            self.ledger.stop();
            outcome
        };
        tokio::try_join!(send(self.to, shape, &self.ledger), story)?;
        Ok(())
    }

    async fn goes_on(&self) -> Result<()> {
        let enough = self.ledger.requests() + WHILE;
        until("calls under load", async || {
            Ok((self.ledger.requests() >= enough).then_some(()))
        })
        .await
    }

    async fn is_logged_again(&self) -> Result<()> {
        let enough = self.ledger.entries() + WHILE;
        until("entries of calls under load", async || {
            Ok((self.ledger.entries() >= enough).then_some(()))
        })
        .await
    }

    /// The summary once it is `enough`. It must have no mismatches.
    async fn finish(&self, what: &str, enough: impl Fn(&Summary) -> bool) -> Result<Summary> {
        let summary = until(what, async || {
            let summary = self.ledger.summary();
            Ok(enough(&summary).then_some(summary))
        })
        .await?;
        println!("{summary:?}");
        assert_eq!(summary.examples, [""; 0]);
        assert_eq!(summary.mismatches, 0);
        Ok(summary)
    }
}

/// An app that answers some requests of a connection and resets it before the
/// next reply, or occasionally in the middle of it. (Only occasionally, because
/// Envoy takes a second to close the connection of a client that received half
/// a reply.)
struct ResettingApp {
    address: SocketAddr,
    server: tokio::task::AbortHandle,
}

impl ResettingApp {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let mut connections = 0_u64;
            while let Ok((stream, _)) = listener.accept().await {
                connections += 1;
                tokio::spawn(answer_and_reset(stream, connections.is_multiple_of(8)));
            }
        });
        let server = server.abort_handle();
        Ok(Self { address, server })
    }
}

impl Drop for ResettingApp {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer_and_reset(mut stream: TcpStream, begins_to_answer: bool) -> std::io::Result<()> {
    for _ in 0..10 {
        read_request(&mut stream).await?;
        let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(reply).await?;
    }
    read_request(&mut stream).await?;
    if begins_to_answer {
        let half_a_reply = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe first part";
        stream.write_all(half_a_reply).await?;
    }
    stream.set_zero_linger()
}

/// Reads a request without a body.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
