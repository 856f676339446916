//! Entries as they arrive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::say;
use access_log::server::{Batch, Gone, Room, Server, Sink};
use access_log::{Entry, Limits, Reporter};

/// How many messages may queue before the streams have to wait.
const QUEUE: usize = 64;

/// The entries of a message, and the memory they occupy.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) entries: Vec<Entry>,
    _room: Room,
}

/// Passes entries to one reader, with backpressure.
struct Queue(mpsc::Sender<Received>);

impl Sink for Queue {
    type Source = Reporter;

    fn identify(&self, identifier: Identifier, first: Option<&Arc<Reporter>>) -> Reporter {
        Reporter::identified(identifier, first)
    }

    async fn take(&self, batch: Batch<Reporter>) -> Result<(), Gone> {
        let received = Received {
            entries: access_log::entries(&batch.source, batch.entries),
            _room: batch.room,
        };
        self.0.send(received).await.map_err(|_| Gone)
    }
}

/// Starts a server; returns it with the queue of received entries.
pub(super) async fn receive(
    address: SocketAddr,
    limits: Limits,
) -> Result<(Server, mpsc::Receiver<Received>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let listener = listen(address).await?;
    let server = Server::start(listener, limits, Queue(sender))?;
    say(&format!("receiving access logs at {}", server.address));
    Ok((server, receiver))
}

pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen at {address}"))
}

/// Returns on SIGINT or SIGTERM, or after that many seconds. Any later signal
/// ends the process at once.
pub(super) async fn until_stopped(after: Option<u64>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let time_is_up = async {
        match after {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = time_is_up => {}
    }
    tokio::spawn(async move {
        let signal = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        };
        // The exit status by which shells report a signal.
        std::process::exit(128 + signal.as_raw_value());
    });
    Ok(())
}
