//! Requests at a steady rate, and what becomes of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use access_log::{Each, Entry, Limits, Protocol, Server, Side};
use anyhow::Result;
use axum::Router;
use axum::extract::{Request, State};
use hyper::StatusCode;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep_until};

use super::network::{CONTROL_PLANE, Namespace};
use super::pod::{APP_PORT, Pod};
use crate::client::{self, Call, Connection, has_peer_headers};

/// Where access logs go, as `deploy/istio` names the port.
const LOGS_PORT: u16 = 11800;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of the requests of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Those that were sent.
    pub requests: u64,
    /// Those that were not answered with 200.
    pub failed: u64,
    /// Those that reached an app with a header of the exchange, and answers that
    /// reached the caller with one.
    pub leaked: u64,
    /// Entries of the caller's proxy that name no callee by the exchange.
    pub unnamed_callees: u64,
    /// Entries of the callee's proxy that name no caller.
    pub unnamed_callers: u64,
    /// What failed, the first of them.
    pub failures: Vec<String>,
}

/// An entry of an access log, as far as it is judged here.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    /// The node that logged.
    pub(super) reporter: String,
    /// Whether it is that of an inbound listener.
    pub(super) is_inbound: bool,
    pub(super) path: String,
    /// The workload that the entry names on each side, if the exchange named it.
    pub(super) downstream: Option<String>,
    pub(super) upstream: Option<String>,
}

/// What apps, callers and proxies have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    counts: Mutex<BTreeMap<String, Count>>,
    entries: Mutex<Vec<Logged>>,
}

impl Seen {
    fn count(&self, path: &str, count: impl FnOnce(&mut Count)) {
        count(lock(&self.counts).entry(path.to_owned()).or_default());
    }

    /// The entries of a path.
    pub(super) fn entries(&self, path: &str) -> Vec<Logged> {
        let entries = lock(&self.entries);
        entries
            .iter()
            .filter(|one| one.path == path)
            .cloned()
            .collect()
    }

    /// What became of a path's requests, of which the proxy of `client` and that of
    /// `server` log one entry each. `None` as long as entries are missing.
    pub(super) fn of(&self, path: &str, client: Pod, server: Pod) -> Option<Count> {
        let mut count = lock(&self.counts).get(path).cloned().unwrap_or_default();
        let entries = self.entries(path);
        let of = |pod: Pod, is_inbound| {
            entries
                .iter()
                .filter(move |one| one.is_inbound == is_inbound)
                .filter(move |one| one.reporter.contains(&pod.proxy_id()))
        };
        let answered = usize::try_from(count.requests - count.failed).ok()?;
        if of(client, false).count() < answered || of(server, true).count() < answered {
            return None;
        }
        let unnamed = |none: usize| u64::try_from(none).unwrap_or(u64::MAX);
        count.unnamed_callees = unnamed(
            of(client, false)
                .filter(|one| one.upstream.is_none())
                .count(),
        );
        count.unnamed_callers = unnamed(
            of(server, true)
                .filter(|one| one.downstream.is_none())
                .count(),
        );
        Some(count)
    }
}

/// The collector of access logs.
pub(super) async fn collect(seen: Arc<Seen>) -> Result<Server> {
    let listener = TcpListener::bind((CONTROL_PLANE, LOGS_PORT)).await?;
    let each = Each(move |entry: &Entry| {
        if entry.protocol != Protocol::Http {
            return;
        }
        let workload = |side: Side| {
            let peer = entry.peer_at(side.peer_key(), side)?;
            // A callee that another source names has no id.
            peer.id?;
            peer.metadata["WORKLOAD_NAME"].as_str().map(str::to_owned)
        };
        lock(&seen.entries).push(Logged {
            reporter: entry.reporter.id.clone(),
            is_inbound: entry.direction() == Some(access_log::Direction::Inbound),
            path: entry.path.clone(),
            downstream: workload(Side::Downstream),
            upstream: workload(Side::Upstream),
        });
    });
    Server::start(listener, Limits::default(), each)
}

/// An app: it answers everything with 200. It stops with its value.
#[derive(Debug)]
pub(super) struct App(AbortHandle);

impl App {
    pub(super) fn start(network: Namespace, seen: &Arc<Seen>) -> Result<Self> {
        let listener = network.listen(APP_PORT)?;
        let router = Router::new().fallback(record).with_state(Arc::clone(seen));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self(server.abort_handle()))
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn record(State(seen): State<Arc<Seen>>, request: Request) {
    if has_peer_headers(request.headers()) {
        seen.count(request.uri().path(), |count| count.leaked += 1);
    }
}

/// Where requests go, and whom they name.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) from: Namespace,
    pub(super) to: SocketAddr,
    pub(super) host: String,
}

impl Target {
    /// One request, counted under its path. The error says why it failed.
    pub(super) async fn call(&self, seen: &Seen, path: &str) -> Result<(), String> {
        let mut connection = None;
        self.call_over(&mut connection, seen, path).await
    }

    async fn call_over(
        &self,
        kept: &mut Option<Connection>,
        seen: &Seen,
        path: &str,
    ) -> Result<(), String> {
        let call = Call::new(self.to, &self.host).path(path);
        let sent = async {
            let mut connection = if let Some(connection) = kept.take() {
                connection
            } else {
                let stream = self.from.connect(self.to).await?;
                Connection::over(stream, client::Protocol::Http1).await?
            };
            let reply = connection.send(call).await?;
            let is_last = reply.headers.get("connection");
            if is_last.is_none_or(|value| value != "close") {
                *kept = Some(connection);
            }
            anyhow::Ok(reply)
        };
        let sent = sent.await;
        let failure = match &sent {
            Ok(reply) if reply.status == StatusCode::OK => None,
            Ok(reply) => Some(reply.status.to_string()),
            Err(error) => Some(format!("{error:#}")),
        };
        let leaks = sent.is_ok_and(|reply| has_peer_headers(&reply.headers));
        seen.count(path, |count| {
            count.requests += 1;
            count.leaked += u64::from(leaks);
            if let Some(failure) = &failure {
                count.failed += 1;
                if count.failures.len() < 5 {
                    count.failures.push(failure.clone());
                }
            }
        });
        failure.map_or(Ok(()), Err)
    }
}

/// Requests that are sent until [`Load::stop`], whose path is the phase of a
/// story.
#[derive(Debug)]
pub(super) struct Load {
    path: Arc<Mutex<String>>,
    is_over: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

/// How many connections there are, and how often each sends.
const CONNECTIONS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

impl Load {
    /// Thirty requests a second.
    pub(super) fn start(target: &Target, seen: &Arc<Seen>, path: &str) -> Self {
        let path = Arc::new(Mutex::new(path.to_owned()));
        let is_over = Arc::new(AtomicBool::new(false));
        let callers = (0..CONNECTIONS).map(|number| {
            let (target, seen) = (target.clone(), Arc::clone(seen));
            let (path, is_over) = (Arc::clone(&path), Arc::clone(&is_over));
            let mut next = Instant::now() + PAUSE / CONNECTIONS * number;
            tokio::spawn(async move {
                let mut connection = None;
                while !is_over.load(Ordering::Relaxed) {
                    sleep_until(next).await;
                    next = Instant::now().max(next) + PAUSE;
                    let path = lock(&path).clone();
                    // What failed is counted.
                    let _ = target.call_over(&mut connection, &seen, &path).await;
                }
            })
        });
        let callers = callers.collect();
        Self {
            path,
            is_over,
            callers,
        }
    }

    /// From now on requests belong to this phase.
    pub(super) fn phase(&self, path: &str) {
        path.clone_into(&mut lock(&self.path));
    }

    /// Ends it with the answers to the last requests.
    pub(super) async fn stop(self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await?;
        }
        Ok(())
    }
}
