//! Connections that send one request after the other.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use envoy_test::client::Protocol;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::app::{GRPC, LARGE, MIB};
use super::sidecar::CALLEE;

type Body = Full<Bytes>;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No body either way, over HTTP/1.1.
    Small,
    /// One MiB either way, over HTTP/1.1.
    Large,
    /// No body either way, over HTTP/2.
    Http2,
    /// Unary gRPC calls.
    Grpc,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Small, Self::Large, Self::Http2, Self::Grpc];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "HTTP/1.1",
            Self::Large => "1 MiB bodies",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
        }
    }

    fn protocol(self) -> Protocol {
        match self {
            Self::Small | Self::Large => Protocol::Http1,
            Self::Http2 | Self::Grpc => Protocol::Http2,
        }
    }

    fn request(self, headers: HeaderMap) -> Result<Request<Body>> {
        let path = match self {
            Self::Small | Self::Http2 => "/",
            Self::Large => LARGE,
            Self::Grpc => GRPC,
        };
        let mut request = Request::new(match self {
            Self::Small | Self::Http2 => Body::default(),
            Self::Large => Body::from(Bytes::from_static(&MIB)),
            // An empty message in its frame.
            Self::Grpc => Body::from(Bytes::from_static(&[0; 5])),
        });
        *request.headers_mut() = headers;
        match self.protocol() {
            Protocol::Http1 => {
                *request.uri_mut() = Uri::from_static(path);
                let host = HeaderValue::from_static(CALLEE);
                request.headers_mut().insert(HOST, host);
            }
            Protocol::Http2 => {
                *request.uri_mut() = Uri::try_from(format!("http://{CALLEE}{path}"))?;
            }
        }
        if self == Self::Grpc {
            *request.method_mut() = hyper::Method::POST;
            let headers = request.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("te", HeaderValue::from_static("trailers"));
        }
        Ok(request)
    }
}

/// The headers of request number so and so.
pub(crate) type Headers = Arc<dyn Fn(u64) -> Result<HeaderMap> + Send + Sync>;

/// The same headers in every request.
pub(crate) fn always(headers: &[(&'static str, String)]) -> Result<Headers> {
    let headers = header_map(headers)?;
    Ok(Arc::new(move |_| Ok(headers.clone())))
}

pub(crate) fn header_map(headers: &[(&'static str, String)]) -> Result<HeaderMap> {
    headers
        .iter()
        .map(|(name, value)| {
            let name = HeaderName::from_static(name);
            Ok((name, HeaderValue::from_str(value)?))
        })
        .collect()
}

/// Some connections to one address.
pub(crate) struct Lanes {
    each: Vec<Lane>,
    kind: Kind,
    headers: Headers,
    sent: u64,
}

impl Lanes {
    pub(crate) async fn open(
        to: SocketAddr,
        count: usize,
        kind: Kind,
        headers: Headers,
    ) -> Result<Self> {
        let mut lanes = Vec::new();
        for _ in 0..count {
            lanes.push(Lane::open(to, kind.protocol()).await?);
        }
        Ok(Self {
            each: lanes,
            kind,
            headers,
            sent: 0,
        })
    }

    /// Sends `count` requests, and returns when all have been answered well.
    pub(crate) async fn send(&mut self, count: usize) -> Result<()> {
        let mut running = JoinSet::new();
        let (kind, lanes, first) = (self.kind, self.each.len(), self.sent);
        let mut next = first;
        for (number, mut lane) in self.each.drain(..).enumerate() {
            let share = (count + lanes - 1 - number) / lanes;
            let numbers = next..next + share as u64;
            next = numbers.end;
            let headers = Arc::clone(&self.headers);
            running.spawn(async move {
                for number in numbers {
                    let request = kind.request(headers(number)?)?;
                    lane.exchange(request, kind).await?;
                }
                anyhow::Ok(lane)
            });
        }
        self.sent = next;
        while let Some(lane) = running.join_next().await {
            self.each.push(lane??);
        }
        Ok(())
    }
}

enum Lane {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Lane {
    async fn open(to: SocketAddr, protocol: Protocol) -> Result<Self> {
        let stream = TcpStream::connect(to)
            .await
            .with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        Ok(match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Self::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        })
    }

    async fn exchange(&mut self, request: Request<Body>, kind: Kind) -> Result<()> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        check(response, kind).await
    }
}

/// Reads the whole answer, which must be the one that was asked for.
async fn check(response: Response<Incoming>, kind: Kind) -> Result<()> {
    let status = response.status();
    ensure!(
        status == StatusCode::OK,
        "{} answered {status}",
        kind.name()
    );
    let mut body = response.into_body();
    let (mut length, mut grpc_status) = (0, None);
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            length += data.len();
        }
        if let Some(trailers) = frame.trailers_ref() {
            grpc_status = trailers.get("grpc-status").cloned();
        }
    }
    match kind {
        Kind::Grpc => ensure!(
            grpc_status.as_ref().is_some_and(|status| status == "0"),
            "the gRPC call ended with status {grpc_status:?}"
        ),
        Kind::Large => ensure!(length == MIB.len(), "{length} bytes instead of 1 MiB"),
        Kind::Small | Kind::Http2 => ensure!(length == 0, "{length} bytes instead of none"),
    }
    Ok(())
}
