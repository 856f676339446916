//! What answers behind the sidecars: as little as possible.

use std::future::ready;
use std::net::SocketAddr;

use anyhow::Result;
use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// The path of a request that is answered with [`MIB`] bytes.
pub(crate) const LARGE: &str = "/large";

/// The path of a gRPC call.
pub(crate) const GRPC: &str = "/grpc.health.v1.Health/Check";

/// A body of one MiB.
pub(crate) static MIB: [u8; 1 << 20] = [b'x'; 1 << 20];

/// An app on a port of its own. It stops with its value.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    server: AbortHandle,
}

impl App {
    /// Starts an app that has `headers` in every answer.
    pub(crate) async fn start(headers: &[(&'static str, String)]) -> Result<Self> {
        let mut answered = HeaderMap::new();
        for (name, value) in headers {
            answered.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        }
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("", tonic_health::ServingStatus::Serving)
            .await;
        let router = Router::new()
            .route_service("/grpc.health.v1.Health/{method}", health)
            .fallback(answer)
            .layer(middleware::map_response(move |mut response: Response| {
                response.headers_mut().extend(answered.clone());
                ready(response)
            }));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            server: server.abort_handle(),
        })
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Reads all, then answers.
async fn answer(request: Request) -> Response {
    let is_large = request.uri().path() == LARGE;
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    if is_large {
        return Bytes::from_static(&MIB).into_response();
    }
    ().into_response()
}
