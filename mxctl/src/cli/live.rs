//! Entries as they come in.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::als::{Batch, Gone, Limits, Server, Sink};
use crate::entry::{self, Entry, Reporter};

/// How many messages wait for their reader before the streams do.
const QUEUE: usize = 64;

/// Hands entries to one reader, and waits for it.
struct Queue(mpsc::Sender<Vec<Entry>>);

impl Sink for Queue {
    type Source = Reporter;

    fn identify(&self, identifier: Identifier) -> Reporter {
        Reporter::from(identifier)
    }

    async fn take(&self, batch: Batch<Reporter>) -> Result<(), Gone> {
        let entries = entry::entries(&batch.source, batch.entries);
        self.0.send(entries).await.map_err(|_| Gone)
    }
}

/// A server, and the entries that it receives.
pub(super) async fn receive(
    address: SocketAddr,
    limits: Limits,
) -> Result<(Server, mpsc::Receiver<Vec<Entry>>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let listener = listen(address).await?;
    let server = Server::start(listener, limits, Queue(sender))?;
    eprintln!("mxctl: access logs are taken at {}", server.address);
    Ok((server, receiver))
}

pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen at {address}"))
}

/// Returns at SIGINT or SIGTERM, or after so many seconds.
pub(super) async fn told_to_end(after: Option<u64>) -> Result<()> {
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
    Ok(())
}
