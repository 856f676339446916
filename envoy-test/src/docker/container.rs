//! The programs in the harness's containers: an app, or the collector.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use access_log::{Each, Entry, Limits, Server};
use anyhow::{Context as _, Result};
use axum::Router;
use axum::routing::get;
use tokio::net::{TcpListener, lookup_host};

use crate::app::App;
use crate::wait::until;

/// The path where the collector serves received entries as JSON lines.
pub(crate) const ENTRIES: &str = "/entries";

/// Runs an app at `listen`, whose own calls go to `outbound`, a name and a
/// port.
pub async fn app(listen: SocketAddr, outbound: &str) -> Result<()> {
    let app = App::start_at(listen).await?;
    let address = until(&format!("the address of {outbound}"), async || {
        let addresses = lookup_host(outbound).await.ok();
        Ok(addresses.and_then(|mut addresses| addresses.next()))
    })
    .await?;
    app.calls_through(address);
    std::future::pending().await
}

/// Runs a collector that receives access logs at `listen` and serves all
/// entries so far at `serve`, under `/entries`.
pub async fn collector(listen: SocketAddr, serve: SocketAddr) -> Result<()> {
    let bind = async |address: SocketAddr| {
        let listener = TcpListener::bind(address).await;
        listener.with_context(|| format!("cannot listen at {address}"))
    };
    let lines = Arc::<Mutex<String>>::default();
    let received = Arc::clone(&lines);
    let each = Each(move |entry: &Entry| {
        let mut lines = received.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_str(&entry.to_line());
        lines.push('\n');
    });
    let _server = Server::start(bind(listen).await?, Limits::default(), each)?;
    let entries = get(async move || {
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    });
    let router = Router::new().route(ENTRIES, entries);
    Ok(axum::serve(bind(serve).await?, router).await?)
}
