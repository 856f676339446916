//! What runs in the containers of the harness: an app, or the collector.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::routing::get;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
};
use hyper::body::{Buf as _, Bytes};
use prost::Message as _;
use tokio::net::{TcpListener, lookup_host};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::app::App;
use crate::wait::until;

/// Where the collector hands out what it got: every message of the access-log
/// service, each with its identifier, length-delimited.
pub(crate) const MESSAGES: &str = "/messages";

/// An app at `listen`, whose own calls go to `outbound`, a name and a port.
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

/// A collector at `listen` that keeps every message as it came, for whoever asks
/// at `/messages`.
pub async fn collector(listen: SocketAddr) -> Result<()> {
    let kept = Kept::default();
    let served = kept.clone();
    let messages = Router::new().route(MESSAGES, get(async move || served.all()));
    let router = Routes::new(AccessLogServiceServer::new(kept))
        .into_axum_router()
        .merge(messages);
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen at {listen}"))?;
    Ok(axum::serve(listener, router).await?)
}

/// The messages in what [`collector`] hands out.
pub(crate) fn messages(mut bytes: Bytes) -> Result<Vec<StreamAccessLogsMessage>> {
    let mut messages = Vec::new();
    while bytes.has_remaining() {
        let message = StreamAccessLogsMessage::decode_length_delimited(&mut bytes);
        messages.push(message.context("the collector hands out what is no access-log message")?);
    }
    Ok(messages)
}

/// All messages so far, length-delimited.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn keep(&self, message: &StreamAccessLogsMessage) {
        let bytes = message.encode_length_delimited_to_vec();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
    }

    fn all(&self) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone()
    }
}

#[tonic::async_trait]
impl AccessLogService for Kept {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        let mut identifier = None;
        while let Some(mut message) = messages.message().await? {
            // Envoy identifies itself in a stream's first message only; here streams mix.
            match message.identifier {
                Some(_) => identifier.clone_from(&message.identifier),
                None => message.identifier.clone_from(&identifier),
            }
            self.keep(&message);
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}
