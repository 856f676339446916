//! What is served without the filter is served with it, also close to the proxies' header limits:
//! the same messages pass two chains of Envoys, one with the filter and one without.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use envoy_test::bootstrap::FILTER;
use envoy_test::client::{Protocol, has_peer_headers};
use envoy_test::{Lab, Listener, Mesh, Node, Workload};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::counter;

envoy_test::stories!(
    a_thousand_messages_near_the_limits,
    messages_near_raised_limits,
    messages_near_lowered_limits,
    metadata_longer_than_any_header,
);

async fn a_thousand_messages_near_the_limits(lab: &Lab) -> Result<()> {
    let chains = Chains::start(lab, &pods()?, &Limits::DEFAULT).await?;
    let cases = cases(Limits::DEFAULT);
    assert_eq!(cases.len(), 1000);

    let sweep = chains.sweep(&cases).await?;

    println!("{sweep}");
    assert_eq!(sweep.differences, [""; 0]);
    // The sweep exceeds both limits, and far below them peers are exchanged.
    assert!(sweep.refused_without > 100, "{sweep}");
    assert!(sweep.exchanged > 300, "{sweep}");
    assert!(sweep.too_large > 100, "{sweep}");
    Ok(())
}

async fn messages_near_raised_limits(lab: &Lab) -> Result<()> {
    let limits = Limits { kb: 96, count: 200 };
    let chains = Chains::start(lab, &pods()?, &limits).await?;

    let sweep = chains.sweep(&every_fourth(cases(limits))).await?;

    println!("{sweep}");
    assert_eq!(sweep.differences, [""; 0]);
    assert!(sweep.refused_without > 25, "{sweep}");
    assert!(sweep.exchanged > 75, "{sweep}");
    Ok(())
}

async fn messages_near_lowered_limits(lab: &Lab) -> Result<()> {
    let limits = Limits { kb: 12, count: 40 };
    let chains = Chains::start(lab, &pods()?, &limits).await?;

    let sweep = chains.sweep(&every_fourth(cases(limits))).await?;

    println!("{sweep}");
    assert_eq!(sweep.differences, [""; 0]);
    assert!(sweep.refused_without > 25, "{sweep}");
    assert!(sweep.exchanged > 75, "{sweep}");
    Ok(())
}

/// Metadata of 68 KiB: beyond the default limits, and, with raised limits, beyond HTTP/2's limit on
/// a single header.
async fn metadata_longer_than_any_header(lab: &Lab) -> Result<()> {
    let pods = pods()?.map(|node| node.with("OWNER", "o".repeat(50_000).into()));
    for limits in [Limits::DEFAULT, Limits { kb: 96, count: 100 }] {
        let chains = Chains::start(lab, &pods, &limits).await?;

        let small = (0..25).map(|place| (2 + place, 100 * place));
        let sweep = chains.sweep(&each_way(small)).await?;

        println!("{sweep}");
        assert_eq!(sweep.differences, [""; 0]);
        assert_eq!(sweep.refused_without, 0, "{sweep}");
        assert_eq!(sweep.exchanged, 0, "{sweep}");
    }
    Ok(())
}

fn pods() -> Result<[Node; 2]> {
    Ok([Node::pod_client()?, Node::pod_server()?])
}

/// Limits that are set in Envoy and in the filter.
#[derive(Clone, Copy)]
struct Limits {
    kb: usize,
    count: usize,
}

impl Limits {
    const DEFAULT: Self = Self { kb: 60, count: 100 };

    /// The filter's configuration.
    fn configuration(&self) -> Value {
        let mut configuration = json!({ "max_sent_bytes": 1_048_576 });
        if (self.kb, self.count) != (60, 100) {
            for kind in ["request", "response"] {
                configuration[format!("max_{kind}_headers_kb")] = self.kb.into();
                configuration[format!("max_{kind}_headers_count")] = self.count.into();
            }
        }
        configuration
    }

    /// Sets the limits for requests.
    fn limit_requests(&self, listener: &mut Listener) {
        listener.connection_manager = json!({
            "max_request_headers_kb": self.kb,
            "common_http_protocol_options": { "max_headers_count": self.count },
            "http_protocol_options": { "accept_http_10": true },
            "upgrade_configs": [{ "upgrade_type": "websocket" }],
        });
    }

    /// Sets the limits for responses.
    fn limit_responses(&self) -> Value {
        json!({
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "common_http_protocol_options": {
                        "max_headers_count": self.count,
                        "max_response_headers_kb": self.kb,
                    },
                    "use_downstream_protocol_config": { "http2_protocol_options": {} },
                },
            },
        })
    }
}

/// Which message is large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Request,
    /// A request in HTTP/1.0.
    OldRequest,
    /// A request for an upgrade.
    Upgrade,
    Response,
    /// A gRPC response that consists of headers only.
    TrailersOnly,
}

/// A message with this number of headers and total bytes.
#[derive(Clone, Copy, Debug)]
struct Case {
    message: Message,
    protocol: Protocol,
    count: usize,
    bytes: usize,
}

impl Case {
    fn headers(&self) -> HeaderMap {
        filler(self.count, self.bytes)
    }
}

/// `count` headers of `bytes` in total, or of the fewest bytes possible.
fn filler(count: usize, bytes: usize) -> HeaderMap {
    const NAME: usize = "x-0000".len();
    let values = bytes.saturating_sub(count * NAME);
    let headers = (0..count).map(|number| {
        let size = values / count + usize::from(number < values % count);
        let name: HeaderName = format!("x-{number:04}").parse().expect("a name");
        let value = HeaderValue::from_str(&"0".repeat(size)).expect("a value");
        (name, value)
    });
    headers.collect()
}

/// A thousand messages: sizes up to the limit with few headers, counts up to the
/// limit with small ones, and both.
fn cases(limits: Limits) -> Vec<Case> {
    let max = limits.kb * 1024;
    let around = |end: usize, step: usize, number: usize| {
        (0..number).map(move |place| end.saturating_sub(step * place))
    };
    // Headers that a hop adds: pseudo-headers, x-request-id and others.
    let largest = max + 200;
    let mut shapes: Vec<(usize, usize)> = Vec::new();
    shapes.extend(around(largest, max / 1000, 60).map(|bytes| (6, bytes)));
    shapes.extend(around(largest, max / 40, 20).map(|bytes| (6, bytes)));
    let most = limits.count + 2;
    shapes.extend(around(most, 1, 40).map(|count| (count, 0)));
    for count in around(most, limits.count / 20, 10) {
        shapes.extend(around(largest, max / 100, 13).map(|bytes| (count, bytes)));
    }
    each_way(shapes)
}

/// Messages with these numbers of headers and bytes: requests and responses over HTTP/1.1 and
/// HTTP/2.
fn each_way(shapes: impl IntoIterator<Item = (usize, usize)>) -> Vec<Case> {
    let shapes: Vec<_> = shapes.into_iter().collect();
    let ways = [
        (Message::Request, Protocol::Http1),
        (Message::Request, Protocol::Http2),
        (Message::Response, Protocol::Http1),
        (Message::Response, Protocol::Http2),
    ];
    let mut cases = Vec::new();
    for (message, protocol) in ways {
        for (number, (count, bytes)) in shapes.iter().copied().enumerate() {
            let message = match (message, protocol, number % 5) {
                (Message::Request, Protocol::Http1, 1) => Message::OldRequest,
                (Message::Request, Protocol::Http1, 2) => Message::Upgrade,
                (Message::Response, Protocol::Http2, 1) => Message::TrailersOnly,
                (message, ..) => message,
            };
            cases.push(Case {
                message,
                protocol,
                count,
                bytes,
            });
        }
    }
    cases
}

fn every_fourth(cases: Vec<Case>) -> Vec<Case> {
    cases.into_iter().step_by(4).collect()
}

/// The outcome of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Answered(u16),
    /// Failed by its gRPC status, with the HTTP status 200.
    Failed(String),
    Broken,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => write!(f, "{status}"),
            Self::Failed(status) => write!(f, "grpc {status}"),
            Self::Broken => f.write_str("reset"),
        }
    }
}

/// The result of a sweep.
#[derive(Debug, Default)]
struct Sweep {
    cases: usize,
    /// The number of messages by outcome: without the filter, and with it.
    ends: BTreeMap<(String, String), usize>,
    refused_without: usize,
    /// Callers and callees that were stored on the other side.
    exchanged: usize,
    /// Messages that the filter counted as too large.
    too_large: usize,
    /// Messages whose outcome differs from that without the filter.
    differences: Vec<String>,
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cases, without and with the filter:", self.cases)?;
        for ((without, with), number) in &self.ends {
            writeln!(f, "{without:>6} {with:>6} {number:>5}")?;
        }
        let differences = self.differences.len();
        write!(
            f,
            "{differences} differences, {} exchanged, {} too large",
            self.exchanged, self.too_large
        )
    }
}

/// Two chains of a caller's and a callee's Envoy in front of one app.
struct Chains {
    mesh: Mesh,
    _app: LargeApp,
}

const CALLER: &str = "caller";
const CALLEE: &str = "callee";
const PLAIN_CALLER: &str = "plain-caller";
const PLAIN_CALLEE: &str = "plain-callee";

impl Chains {
    async fn start(lab: &Lab, [caller, callee]: &[Node; 2], limits: &Limits) -> Result<Self> {
        let app = LargeApp::start().await?;
        let without_filter = json!({
            "typed_per_filter_config": {
                FILTER: {
                    "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
                    "disabled": true,
                },
            },
        });
        let proxy = |name: &str, node: &Node, callee: &str, virtual_host: &Value| {
            let change = |listener: &mut Listener| {
                limits.limit_requests(listener);
                listener.virtual_host = virtual_host.clone();
                listener.logged_keys.clear();
            };
            Workload::sidecar(name, node.clone())
                .served_at(app.address)
                .configured(&limits.configuration())
                .listener("inbound", change)
                .listener("outbound", change)
                .cluster(callee, limits.limit_responses())
        };
        let with_filter = json!({});
        let mesh = lab
            .start([
                proxy(CALLER, caller, CALLEE, &with_filter),
                proxy(CALLEE, callee, CALLER, &with_filter),
                proxy(PLAIN_CALLER, caller, PLAIN_CALLEE, &without_filter),
                proxy(PLAIN_CALLEE, callee, PLAIN_CALLER, &without_filter),
            ])
            .await?;
        Ok(Self { mesh, _app: app })
    }

    async fn sweep(&self, cases: &[Case]) -> Result<Sweep> {
        const AT_A_TIME: usize = 8;
        let with = (self.mesh.outbound(CALLER)?, CALLEE);
        let without = (self.mesh.outbound(PLAIN_CALLER)?, PLAIN_CALLEE);
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut ends = JoinSet::new();
        for case in cases.iter().copied() {
            let place = Arc::clone(&places).acquire_owned().await?;
            ends.spawn(async move {
                let ends = (send(without, case).await, send(with, case).await);
                drop(place);
                (case, ends)
            });
        }
        let mut sweep = Sweep::default();
        while let Some(ended) = ends.join_next().await {
            let (case, (without, with)) = ended?;
            let (without, with) = (without?, with?);
            sweep.cases += 1;
            sweep.refused_without += usize::from(without != End::Answered(200));
            // A message that is refused in both chains may be refused differently.
            if without == End::Answered(200) && with != without {
                sweep
                    .differences
                    .push(format!("{case:?}: {without}, {with} with the filter"));
            }
            let pair = (without.to_string(), with.to_string());
            *sweep.ends.entry(pair).or_default() += 1;
        }
        for name in [CALLER, CALLEE] {
            sweep.too_large += self.counted(name, "too_large_to_send").await?;
        }
        sweep.exchanged = self.counted(CALLEE, "downstream_peer_stored").await?
            + self.counted(CALLER, "upstream_peer_stored").await?;
        Ok(sweep)
    }

    /// The filter's counter, once published.
    async fn counted(&self, name: &str, counter_name: &str) -> Result<usize> {
        let envoy = self.mesh.envoy(name)?;
        let ticks = counter(envoy, "ticks", 1).await?;
        counter(envoy, "ticks", ticks + 2).await?;
        let stats = envoy.stats().await?;
        let count = stats.get(&format!("wasmcustom.metadata_exchange.{counter_name}"));
        Ok(usize::try_from(count.copied().unwrap_or_default())?)
    }
}

/// Sends a message through the chain that begins at an address.
async fn send((to, callee): (SocketAddr, &str), case: Case) -> Result<End> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut request = Request::new(Empty::<Bytes>::new());
    let path = match case.message {
        Message::Response => format!("/{}/{}/plain", case.count, case.bytes),
        Message::TrailersOnly => format!("/{}/{}/grpc", case.count, case.bytes),
        Message::Request | Message::OldRequest | Message::Upgrade => {
            *request.headers_mut() = case.headers();
            "/".to_owned()
        }
    };
    let headers = request.headers_mut();
    match case.message {
        Message::Upgrade => {
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
        }
        Message::TrailersOnly => {
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("te", HeaderValue::from_static("trailers"));
        }
        Message::Request | Message::OldRequest | Message::Response => {}
    }
    if case.message == Message::OldRequest {
        *request.version_mut() = hyper::Version::HTTP_10;
    }
    let io = TokioIo::new(TcpStream::connect(to).await?);
    let response = async {
        match case.protocol {
            Protocol::Http1 => {
                request.headers_mut().insert("host", callee.parse()?);
                *request.uri_mut() = path.parse()?;
                let (mut sender, connection) = http1::Builder::new()
                    .max_headers(MANY)
                    .max_buf_size(LARGE)
                    .handshake(io)
                    .await?;
                let connection = tokio::spawn(connection);
                let response = sender.send_request(request).await;
                let end = end(response).await;
                connection.abort();
                end
            }
            Protocol::Http2 => {
                *request.uri_mut() = format!("http://{callee}{path}").parse()?;
                let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .max_header_list_size(u32::try_from(LARGE)?)
                    .handshake(io)
                    .await?;
                let connection = tokio::spawn(connection);
                let response = sender.send_request(request).await;
                let end = end(response).await;
                connection.abort();
                end
            }
        }
    };
    timeout(PATIENCE, response)
        .await
        .with_context(|| format!("no end of {case:?}"))?
}

async fn end(response: hyper::Result<Response<Incoming>>) -> Result<End> {
    let Ok(response) = response else {
        return Ok(End::Broken);
    };
    if has_peer_headers(response.headers()) {
        bail!("the app was shown a header of the exchange");
    }
    let status = response.status().as_u16();
    let grpc_status = response.headers().get("grpc-status").cloned();
    match response.into_body().collect().await {
        Ok(_) => Ok(match grpc_status {
            Some(status) if status != "0" => End::Failed(status.to_str()?.to_owned()),
            _ => End::Answered(status),
        }),
        Err(_) => Ok(End::Broken),
    }
}

/// The header limit of the app and the client.
const MANY: usize = 1000;
const LARGE: usize = 1 << 20;

/// An app that accepts every request, and answers `/COUNT/BYTES/plain` with this number of headers
/// and bytes, and `/COUNT/BYTES/grpc` with the same and the end of a gRPC response.
struct LargeApp {
    address: SocketAddr,
    server: AbortHandle,
}

impl LargeApp {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http1().max_headers(MANY).max_buf_size(LARGE);
                server.http2().max_header_list_size(1 << 20);
                tokio::spawn(async move {
                    let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
                    let connection = server.serve_connection(TokioIo::new(stream), service);
                    connection.await.map_err(|error| error.to_string())
                });
            }
        });
        let server = server.abort_handle();
        Ok(Self { address, server })
    }
}

impl Drop for LargeApp {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn answer(request: &Request<Incoming>) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    if has_peer_headers(request.headers()) {
        *response.status_mut() = hyper::StatusCode::IM_A_TEAPOT;
        return response;
    }
    let parts: Vec<&str> = request.uri().path().split('/').collect();
    if let [_, count, bytes, kind] = parts.as_slice()
        && let (Ok(count), Ok(bytes)) = (count.parse(), bytes.parse())
    {
        *response.headers_mut() = filler(count, bytes);
        if *kind == "grpc" {
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static("0"));
        }
    }
    response
}
