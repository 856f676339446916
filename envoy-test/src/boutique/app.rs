//! The app of a service: it makes the calls that the service's answer takes.

use std::net::SocketAddr;

use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::graph;
use crate::client::Call;

/// Where calls go, which changes when a proxy is replaced. At first, nowhere.
pub(super) type Exit = watch::Sender<Option<SocketAddr>>;

/// An app. It stops with its value.
#[derive(Debug)]
pub(super) struct App {
    pub(super) address: SocketAddr,
    /// The outbound listener of its sidecar.
    pub(super) exit: Exit,
    server: AbortHandle,
}

#[derive(Clone)]
struct Answering {
    service: &'static str,
    exit: watch::Receiver<Option<SocketAddr>>,
}

impl App {
    pub(super) async fn start(service: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (exit, receiver) = watch::channel(None);
        let answering = Answering {
            service,
            exit: receiver,
        };
        let router = Router::new().fallback(answer).with_state(answering);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            exit,
            server: server.abort_handle(),
        })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Answers 200 if all that is called does, else 502. The query, which tells the
/// phases of a run apart, is passed on.
async fn answer(State(app): State<Answering>, request: Request) -> StatusCode {
    let query = request.uri().query().unwrap_or_default();
    for (callee, path) in graph::calls(app.service, request.uri().path()) {
        if !succeeds(&app.exit, callee, &format!("{path}?{query}")).await {
            return StatusCode::BAD_GATEWAY;
        }
    }
    StatusCode::OK
}

/// Whether the call of `service` through `exit` is answered with 200.
pub(super) async fn succeeds(
    exit: &watch::Receiver<Option<SocketAddr>>,
    service: &str,
    path: &str,
) -> bool {
    let exit = *exit.borrow();
    let Some(exit) = exit else {
        return false;
    };
    let reply = Call::new(exit, service).path(path).send().await;
    reply.is_ok_and(|reply| reply.status == StatusCode::OK)
}
