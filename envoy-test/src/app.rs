//! The app behind a sidecar. It records its requests, so that a test can assert that no header of
//! the exchange reached it, and misbehaves on request.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::any;
use http_body_util::{BodyExt as _, Full};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic_health::server::HealthReporter;

use crate::client::{CALL, Call, METADATA_OF_NAME_X, PEER_HEADERS, has_peer_headers};
use crate::wait::until;

const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The timeout for connecting. Separated networks may not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A request as an app received it.
#[derive(Clone, Debug)]
pub struct Received {
    /// The call that the request belongs to.
    pub call: String,
    /// The protocol of the request.
    pub version: Version,
    /// All headers.
    pub headers: HeaderMap,
}

/// An app on its own port, over HTTP/1.1 and HTTP/2. Dropping it stops it.
///
/// | path | answer |
/// |---|---|
/// | `/status/{code}` | that status |
/// | `/echo` | 200, with the request's headers as response headers |
/// | `/forged` | 200, with headers of the exchange: the app speaks for a proxy named `x` |
/// | `/trailers` | 200, with the request's trailers as trailers |
/// | `/redirect/{service}` | 302 to that service |
/// | `/flaky` | 503 to the first request of a call, then 200 |
/// | `/call/{service}` | what that service answers; all received headers are passed on to it |
/// | `/reach/{address}` | 200 if a TCP connection to that address can be opened, else 504 |
/// | `/grpc.health.v1.Health/Check` | the standard gRPC health check |
/// | any other | 200 |
#[derive(Debug)]
pub struct App {
    /// The app's address.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    requests: AtomicU64,
    leaks: AtomicU64,
    /// Calls that `/flaky` has already answered with 503.
    refused: Mutex<HashSet<String>>,
    /// The destination of the app's own calls: the sidecar's outbound listener.
    outbound: OnceLock<SocketAddr>,
}

impl Shared {
    fn count(&self, headers: &HeaderMap) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if has_peer_headers(headers) {
            self.leaks.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl App {
    /// Starts the app on a free port.
    pub async fn start() -> Result<Self> {
        Self::start_at(FREE_PORT).await
    }

    /// Starts the app at `address`.
    pub(crate) async fn start_at(address: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let router = router(Arc::clone(&shared)).await;
        Self::serve(shared, router, address).await
    }

    /// Starts an app that answers every request with 200 and does not record it.
    pub(crate) async fn start_counting() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .fallback(count)
            .with_state(Arc::clone(&shared));
        Self::serve(shared, router, FREE_PORT).await
    }

    async fn serve(shared: Arc<Shared>, router: Router, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            shared,
            server: server.abort_handle(),
        })
    }

    /// Sets the destination of the app's own calls.
    pub(crate) fn calls_through(&self, outbound: SocketAddr) {
        self.shared.outbound.get_or_init(|| outbound);
    }

    /// Stops the app: from now on its port refuses connections.
    pub async fn stop(&self) -> Result<()> {
        self.server.abort();
        until("the app's port to be closed", async || {
            let connection = TcpStream::connect(self.address).await;
            Ok(connection.err().map(|_| ()))
        })
        .await
    }

    /// The number of requests received.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The number of requests that had a header of the exchange, which none may have.
    #[must_use]
    pub fn leaks(&self) -> u64 {
        self.shared.leaks.load(Ordering::Relaxed)
    }

    /// Every request of `call` so far.
    #[must_use]
    pub fn received(&self, call: &str) -> Vec<Received> {
        let received = lock(&self.shared.received);
        let of_call = received.iter().filter(|request| request.call == call);
        of_call.cloned().collect()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn router(shared: Arc<Shared>) -> Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    serve_all(&reporter).await;
    Router::new()
        .route("/status/{code}", any(status))
        .route("/echo", any(echo))
        .route("/forged", any(forged))
        .route("/trailers", any(trailers))
        .route("/redirect/{service}", any(redirect))
        .route("/flaky", any(flaky))
        .route("/call/{service}", any(call))
        .route("/reach/{address}", any(reach))
        .route_service("/grpc.health.v1.Health/{method}", health)
        .fallback(async || StatusCode::OK)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), record))
        .with_state(shared)
}

async fn count(State(shared): State<Arc<Shared>>, headers: HeaderMap) {
    shared.count(&headers);
}

async fn record(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    shared.count(request.headers());
    lock(&shared.received).push(Received {
        call: call_of(request.headers()),
        version: request.version(),
        headers: request.headers().clone(),
    });
    next.run(request).await
}

async fn status(Path(code): Path<u16>) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST)
}

async fn echo(headers: HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = without_framing(headers);
    response
}

async fn forged() -> impl IntoResponse {
    let [metadata, id] = PEER_HEADERS;
    [(metadata, METADATA_OF_NAME_X), (id, "x")]
}

async fn trailers(request: Request) -> Response {
    let Ok(body) = request.into_body().collect().await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let trailers = body.trailers().cloned().map(Ok);
    let body = Full::from("body").with_trailers(async { trailers });
    Response::new(Body::new(body))
}

async fn redirect(Path(service): Path<String>) -> Response {
    let mut response = Redirect::temporary(&format!("http://{service}/")).into_response();
    *response.status_mut() = StatusCode::FOUND;
    response
}

async fn flaky(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> StatusCode {
    if lock(&shared.refused).insert(call_of(&headers)) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

/// Calls the next service like a careless app, with every header it received.
async fn call(
    State(shared): State<Arc<Shared>>,
    Path(service): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    let Some(outbound) = shared.outbound.get() else {
        return StatusCode::NOT_IMPLEMENTED;
    };
    let call = Call::new(*outbound, &service)
        .part_of(call_of(&headers))
        .headers(without_framing(headers));
    match call.send().await {
        Ok(reply) => reply.status,
        Err(_) => StatusCode::BAD_GATEWAY,
    }
}

async fn reach(Path(address): Path<SocketAddr>) -> StatusCode {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => StatusCode::OK,
        Ok(Err(_)) | Err(_) => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// Headers without those that belong to one connection or one message.
fn without_framing(mut headers: HeaderMap) -> HeaderMap {
    for name in [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
    ] {
        headers.remove(name);
    }
    headers
}

fn call_of(headers: &HeaderMap) -> String {
    let value = headers.get(CALL).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

async fn serve_all(reporter: &HealthReporter) {
    reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
}

/// A test that failed while holding the lock has left complete values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
