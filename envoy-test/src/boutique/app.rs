//! The app of a service, which makes the calls that the service needs for its
//! response.

use std::net::SocketAddr;

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{cart, graph};
use crate::client::Call;

/// The destination of calls, which changes when a proxy is replaced. Initially
/// there is none.
pub(super) type Destination = watch::Sender<Option<SocketAddr>>;

/// An app. Dropping it stops it.
#[derive(Debug)]
pub(super) struct App {
    pub(super) address: SocketAddr,
    /// The outbound listener of its sidecar.
    pub(super) outbound: Destination,
    /// The listener of its sidecar that leads to its database, if it has one.
    pub(super) database: Destination,
    server: AbortHandle,
}

#[derive(Clone)]
struct Answering {
    service: &'static str,
    outbound: watch::Receiver<Option<SocketAddr>>,
    database: watch::Receiver<Option<SocketAddr>>,
}

impl App {
    pub(super) async fn start(service: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (outbound, receiver) = watch::channel(None);
        let (database, of_database) = watch::channel(None);
        let answering = Answering {
            service,
            outbound: receiver,
            database: of_database,
        };
        let router = Router::new().fallback(answer).with_state(answering);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            outbound,
            database,
            server: server.abort_handle(),
        })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Answers 200 if all called services and the database do, else 502. It passes on the query,
/// which identifies the phase of a run.
async fn answer(State(app): State<Answering>, request: Request) -> StatusCode {
    let query = request.uri().query().unwrap_or_default();
    for (callee, path) in graph::calls(app.service, request.uri().path()) {
        if !succeeds(&app.outbound, callee, &format!("{path}?{query}")).await {
            return StatusCode::BAD_GATEWAY;
        }
    }
    let database = *app.database.borrow();
    match database {
        Some(database) if !cart::serves(database, request.uri().path()).await => {
            StatusCode::BAD_GATEWAY
        }
        _ => StatusCode::OK,
    }
}

/// Whether the call of `service` through `outbound` is answered with 200.
pub(super) async fn succeeds(
    outbound: &watch::Receiver<Option<SocketAddr>>,
    service: &str,
    path: &str,
) -> bool {
    let outbound = *outbound.borrow();
    let Some(outbound) = outbound else {
        return false;
    };
    let reply = Call::new(outbound, service).path(path).send().await;
    reply.is_ok_and(|reply| reply.status == StatusCode::OK)
}
