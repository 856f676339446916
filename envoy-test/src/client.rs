//! The client: HTTP/1.1, HTTP/2 and gRPC to an address with an authority, like
//! an app whose traffic a sidecar intercepts.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::wait::PATIENCE;

/// The header that identifies a call in access logs; apps pass it on.
pub const CALL: &str = "x-call";

/// The headers of the metadata exchange, which no app may see.
pub const PEER_HEADERS: [&str; 2] = ["x-envoy-peer-metadata", "x-envoy-peer-metadata-id"];

/// Metadata with the name `x` and nothing else.
pub const METADATA_OF_NAME_X: &str = "CgsKBE5BTUUSAxoBeA==";

/// Whether any header of the exchange is among `headers`.
#[must_use]
pub fn has_peer_headers(headers: &HeaderMap) -> bool {
    PEER_HEADERS.iter().any(|name| headers.contains_key(*name))
}

/// The protocol of a connection, which Envoy keeps for the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2 without TLS, by prior knowledge
    Http2,
}

/// The reply to a call.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The call, by which its access-log entries are found.
    pub call: String,
    /// The status.
    pub status: StatusCode,
    /// The headers, as the calling app sees them.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers, if there are any.
    pub trailers: HeaderMap,
}

/// A request builder.
#[derive(Clone, Debug)]
#[must_use]
pub struct Call {
    to: SocketAddr,
    protocol: Protocol,
    method: Method,
    authority: String,
    path: String,
    headers: HeaderMap,
    trailers: HeaderMap,
    id: String,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Call {
    /// A request to `to` for the service `authority`.
    pub fn new(to: SocketAddr, authority: &str) -> Self {
        static CALLS: AtomicU64 = AtomicU64::new(1);
        Self {
            to,
            protocol: Protocol::Http1,
            method: Method::GET,
            authority: authority.to_owned(),
            path: "/".to_owned(),
            headers: HeaderMap::new(),
            trailers: HeaderMap::new(),
            id: CALLS.fetch_add(1, Ordering::Relaxed).to_string(),
        }
    }

    /// Makes the request a part of the call `id`, like an app that makes
    /// further calls.
    pub fn part_of(mut self, id: String) -> Self {
        self.id = id;
        self
    }

    /// Requests `path`; see [`crate::App`] for the paths of apps.
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Uses `protocol`.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Has another method than GET.
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: &str) -> Result<Self> {
        self.headers
            .append(HeaderName::from_static(name), value.parse()?);
        Ok(self)
    }

    /// Adds several headers.
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers);
        self
    }

    /// Adds a trailer.
    pub fn trailer(mut self, name: &'static str, value: &str) -> Result<Self> {
        self.trailers
            .append(HeaderName::from_static(name), value.parse()?);
        Ok(self)
    }

    /// Sends the request over its own connection and reads the reply.
    pub async fn send(self) -> Result<Reply> {
        let mut connection = Connection::open(self.to, self.protocol).await?;
        connection.send(self).await
    }

    /// Sends a gRPC health check, which must find the app healthy. Returns the
    /// call for [`crate::Lab::entry`].
    pub async fn grpc_health_check(self) -> Result<String> {
        let channel = Endpoint::from_shared(format!("http://{}", self.to))?
            .origin(Uri::try_from(format!("http://{}", self.authority))?)
            .timeout(PATIENCE)
            .connect()
            .await?;
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.metadata_mut().insert(CALL, self.id.parse()?);
        HealthClient::new(channel).check(request).await?;
        Ok(self.id)
    }

    fn into_request(mut self, protocol: Protocol) -> Result<Request<Body>> {
        self.headers.insert(CALL, HeaderValue::from_str(&self.id)?);
        let uri = match protocol {
            Protocol::Http1 => {
                self.headers
                    .insert(HOST, HeaderValue::from_str(&self.authority)?);
                Uri::try_from(self.path)?
            }
            Protocol::Http2 => Uri::try_from(format!("http://{}{}", self.authority, self.path))?,
        };
        let mut request = Request::new(body(self.trailers));
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers;
        Ok(request)
    }
}

/// An empty body, or one with trailers after some data, because some proxies
/// drop trailers without a body.
fn body(trailers: HeaderMap) -> Body {
    if trailers.is_empty() {
        return Full::default().boxed_unsync();
    }
    let body = Full::from("body");
    body.with_trailers(async { Some(Ok(trailers)) })
        .boxed_unsync()
}

/// Sends `request` unchanged and reads until the connection is closed.
pub async fn raw(to: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(request).await?;
    let mut reply = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut reply))
        .await
        .context("the connection stays open")??;
    Ok(reply)
}

/// A connection for one request after the other.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Connection {
    /// Connects. The connection's task ends with the connection.
    pub async fn open(to: SocketAddr, protocol: Protocol) -> Result<Self> {
        let stream = TcpStream::connect(to)
            .await
            .with_context(|| format!("cannot connect to {to}"))?;
        Self::over(stream, protocol).await
    }

    /// Speaks over a stream. The connection's task ends with the connection.
    pub(crate) async fn over(stream: TcpStream, protocol: Protocol) -> Result<Self> {
        let io = TokioIo::new(stream);
        let sender = match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        };
        Ok(Self { sender })
    }

    /// Sends the request of `call` and reads the reply.
    pub async fn send(&mut self, call: Call) -> Result<Reply> {
        let what = format!("call {} of {}{}", call.id, call.authority, call.path);
        timeout(PATIENCE, self.exchange(call))
            .await
            .with_context(|| format!("no reply in time to {what}"))?
            .with_context(|| format!("no reply to {what}"))
    }

    async fn exchange(&mut self, call: Call) -> Result<Reply> {
        let id = call.id.clone();
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender
                    .send_request(call.into_request(Protocol::Http1)?)
                    .await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender
                    .send_request(call.into_request(Protocol::Http2)?)
                    .await?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        Ok(Reply {
            call: id,
            status: head.status,
            headers: head.headers,
            trailers: body.trailers().cloned().unwrap_or_default(),
            body: body.to_bytes(),
        })
    }
}
