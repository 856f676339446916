//! A server for Envoy's gRPC Access Log Service v3, for HTTP and TCP logs.
//! It also serves OpenTelemetry's `LogsService`, and converts the records to entries of that service.
//!
//! The server drops nothing. If the sink is slow, streams are read more slowly, and Envoy buffers,
//! then finally drops and counts entries (`access_logs.grpc_access_log.logs_dropped`).
//!
//! Memory is bounded by [`Limits`]. A decoded message may be much larger than the encoded one: an
//! empty entry is encoded in two bytes. Therefore the parts of a message are counted first, and it
//! is decoded once there is room for the result.

use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context as Polling, Poll};
use std::time::Duration;

use anyhow::{Result, bail};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::SERVICE_NAME;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    Identifier, LogEntries,
};
use prost::bytes::Bytes;
use prost::{DecodeError, Message as _};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service as HttpService, http};
use tonic::server::{ClientStreamingService, Grpc, NamedService, UnaryService};
use tonic::transport::Server as Transport;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::codec::Raw;
use crate::limits::{Limits, MAX_PARTS, parts_at, parts_of, room_of};
use crate::otlp;

/// The messages of one stream that hold entries.
#[derive(Debug)]
pub struct Batch<I> {
    /// The sender of the stream, from [`Sink::identify`].
    pub source: Arc<I>,
    /// The entries.
    pub entries: LogEntries,
    /// Reserved memory; keep it as long as what was made from the entries.
    pub room: Room,
}

/// Reserved memory, released on drop.
#[derive(Debug)]
pub struct Room {
    _taken: OwnedSemaphorePermit,
}

/// A consumer of entries.
pub trait Sink: Send + Sync + 'static {
    /// What is kept of a stream's sender.
    type Source: Default + Send + Sync;

    /// Identifies the sender of a stream. Envoy sends the identifier in the first message only; for
    /// later messages, `first` is the result for the first one, or the default.
    fn identify(&self, identifier: Identifier, first: Option<&Arc<Self::Source>>) -> Self::Source;

    /// Consumes entries. The stream is not read further until this returns.
    fn take(&self, batch: Batch<Self::Source>) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// The consumer is gone.
#[derive(Debug)]
pub struct Gone;

/// A server's counters.
#[derive(Debug, Default)]
pub struct Counts {
    /// Streams that were opened.
    pub streams: AtomicU64,
    /// Streams refused because there were too many.
    pub refused: AtomicU64,
    /// Streams that ended with an error of the sender, such as a message that is too large.
    pub broken: AtomicU64,
    /// Messages that were too large: over the limit, or with too many parts.
    pub too_large: AtomicU64,
}

/// A running server. Dropping it ends it with all its streams.
#[derive(Debug)]
pub struct Server {
    /// The address on which it listens.
    pub address: SocketAddr,
    /// Its counters.
    pub counts: Arc<Counts>,
    stop: watch::Sender<()>,
    running: JoinHandle<Result<(), tonic::transport::Error>>,
    streams: Arc<Semaphore>,
    max_streams: usize,
    /// The only lasting reference, because connections may outlive the server.
    sink: Arc<dyn Any + Send + Sync>,
}

/// How long streams may take to end, which they do once their entries are consumed.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long connections may take to end once no stream is left.
const FAREWELL: Duration = Duration::from_secs(1);

impl Server {
    /// Serves on `listener`.
    pub fn start(listener: TcpListener, limits: Limits, sink: impl Sink) -> Result<Self> {
        let limits = limits.within_bounds();
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let (stop, mut stopped) = watch::channel(());
        let (sink, streams) = (Arc::new(sink), Arc::new(Semaphore::new(limits.streams)));
        let shared = Arc::new(Shared {
            sink: Arc::downgrade(&sink),
            streams: Arc::clone(&streams),
            memory: Arc::new(Semaphore::new(limits.memory_bytes())),
            limits,
            stopped: stopped.clone(),
            counts: Arc::clone(&counts),
        });
        let server = Transport::builder()
            // Detects Envoys that vanished without closing their streams.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(Service(Arc::clone(&shared)))
            .add_service(Otlp(shared))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), async move {
                // The only event is that the sender was dropped.
                let _gone = stopped.changed().await;
            });
        Ok(Self {
            address,
            counts,
            stop,
            running: tokio::spawn(server),
            streams,
            max_streams: limits.streams,
            sink,
        })
    }

    /// Stops listening and ends every stream. Fails if streams do not end because their entries are
    /// not consumed. The sink is dropped afterwards.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.stop);
        let all = u32::try_from(self.max_streams).unwrap_or(u32::MAX);
        let ended = timeout(PATIENCE, self.streams.acquire_many(all)).await;
        self.streams.close();
        drop(self.sink);
        // A silent connection may never end.
        match timeout(FAREWELL, &mut self.running).await {
            Ok(done) => done??,
            Err(_) => self.running.abort(),
        }
        if ended.is_err() {
            let left = self.max_streams - self.streams.available_permits();
            bail!("{left} streams of access logs do not end: their entries are not consumed");
        }
        Ok(())
    }
}

/// The gRPC service, shared by all connections.
struct Service<S>(Arc<Shared<S>>);

impl<S> Clone for Service<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<S> {
    sink: Weak<S>,
    streams: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    limits: Limits,
    stopped: watch::Receiver<()>,
    counts: Arc<Counts>,
}

/// The sender of a stream, by its messages so far.
struct Sender<I> {
    /// The result for the first message.
    first: Option<Arc<I>>,
    latest: Arc<I>,
}

impl<I: Default> Default for Sender<I> {
    fn default() -> Self {
        Self {
            first: None,
            latest: Arc::default(),
        }
    }
}

fn going_away() -> Status {
    Status::unavailable("going away")
}

impl<S: Sink> Shared<S> {
    async fn read_stream(&self, mut messages: Streaming<Bytes>) -> Result<(), Status> {
        // While stopping, `stop` holds all permits, and no stream is refused.
        if self.stopped.has_changed().is_err() {
            return Err(going_away());
        }
        let _stream = self.streams.try_acquire().map_err(|error| match error {
            TryAcquireError::Closed => going_away(),
            TryAcquireError::NoPermits => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                Status::resource_exhausted("too many streams")
            }
        })?;
        self.counts.streams.fetch_add(1, Ordering::Relaxed);
        let mut sender = Sender::<S::Source>::default();
        let mut stopped = self.stopped.clone();
        loop {
            let message = tokio::select! {
                message = messages.message() => message,
                _ = stopped.changed() => return Err(going_away()),
            };
            let Some(message) = message.map_err(|status| self.broken(status))? else {
                return Ok(());
            };
            // Also while stopping, so that nothing received is lost.
            self.take(message, &mut sender).await?;
        }
    }

    async fn take(&self, message: Bytes, sender: &mut Sender<S::Source>) -> Result<(), Status> {
        let unreadable = |error: DecodeError| {
            self.broken(Status::invalid_argument(format!("not a message: {error}")))
        };
        let parts = parts_of(&message).map_err(unreadable)?;
        let room = Room {
            _taken: self.room(message.len(), parts).await?,
        };
        let read = StreamAccessLogsMessage::decode(message).map_err(unreadable)?;
        let sink = self.sink.upgrade().ok_or_else(going_away)?;
        if let Some(identifier) = read.identifier {
            let source = sink.identify(identifier, sender.first.as_ref());
            sender.latest = Arc::new(source);
        }
        sender.first.get_or_insert(Arc::clone(&sender.latest));
        if let Some(entries) = read.log_entries {
            let source = Arc::clone(&sender.latest);
            let batch = Batch {
                source,
                entries,
                room,
            };
            sink.take(batch).await.map_err(|Gone| going_away())?;
        }
        Ok(())
    }

    /// Waits until there is room for a decoded message.
    async fn room(&self, bytes: usize, parts: usize) -> Result<OwnedSemaphorePermit, Status> {
        if parts > MAX_PARTS {
            return Err(self.broken(Status::out_of_range(format!(
                "a message of {parts} parts, the limit is {MAX_PARTS}: make Envoy flush earlier \
                 (buffer_size_bytes)"
            ))));
        }
        let room = u32::try_from(room_of(bytes, parts)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.memory).acquire_many_owned(room).await;
        room.map_err(|_| going_away())
    }

    /// Passes on the records of one export, which is a unary call.
    async fn take_records(&self, message: Bytes) -> Result<(), Status> {
        if self.stopped.has_changed().is_err() {
            return Err(going_away());
        }
        let _export = self.streams.try_acquire().map_err(|error| match error {
            TryAcquireError::Closed => going_away(),
            TryAcquireError::NoPermits => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                Status::resource_exhausted("too many streams")
            }
        })?;
        let unreadable = |error: DecodeError| {
            self.broken(Status::invalid_argument(format!("not a message: {error}")))
        };
        let parts = parts_at(&message, &otlp::LEVELS).map_err(unreadable)?;
        let mut room = self.room(message.len(), parts).await?;
        let export = otlp::Export::decode(message).map_err(unreadable)?;
        let sink = self.sink.upgrade().ok_or_else(going_away)?;
        let logs = export.resource_logs.into_iter();
        let mut left: Vec<_> = logs.flat_map(otlp::entries).collect();
        while let Some((identifier, entries)) = left.pop() {
            // Each takes its share of the room.
            let share = room.num_permits() / (left.len() + 1);
            let Some(taken) = room.split(share) else {
                return Err(Status::internal("no room"));
            };
            let source = Arc::new(sink.identify(identifier, None));
            let batch = Batch {
                source,
                entries,
                room: Room { _taken: taken },
            };
            sink.take(batch).await.map_err(|Gone| going_away())?;
        }
        Ok(())
    }

    /// Reads messages as they are, up to their limit.
    fn grpc(&self) -> Grpc<Raw> {
        Grpc::new(Raw).max_decoding_message_size(self.limits.message_bytes)
    }

    /// Counts a stream that its sender aborted, or that is closed because of what it sent.
    fn broken(&self, status: Status) -> Status {
        self.counts.broken.fetch_add(1, Ordering::Relaxed);
        if status.code() == Code::OutOfRange {
            self.counts.too_large.fetch_add(1, Ordering::Relaxed);
        }
        status
    }
}

impl<S: Sink> ClientStreamingService<Bytes> for Service<S> {
    type Response = ();
    type Future = BoxFuture<Response<()>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            shared.read_stream(request.into_inner()).await?;
            Ok(Response::new(()))
        })
    }
}

// The generated service decodes messages before their parts can be counted.
impl<S: Sink> HttpService<http::Request<Body>> for Service<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Polling<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/StreamAccessLogs") {
                return Ok(Status::unimplemented("only StreamAccessLogs").into_http());
            }
            Ok(service.0.grpc().client_streaming(service, request).await)
        })
    }
}

impl<S> NamedService for Service<S> {
    const NAME: &'static str = SERVICE_NAME;
}

/// OpenTelemetry's service for logs, for every connection.
struct Otlp<S>(Arc<Shared<S>>);

impl<S> Clone for Otlp<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Sink> UnaryService<Bytes> for Otlp<S> {
    type Response = ();
    type Future = BoxFuture<Response<()>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            shared.take_records(request.into_inner()).await?;
            // An empty `ExportLogsServiceResponse`.
            Ok(Response::new(()))
        })
    }
}

impl<S: Sink> HttpService<http::Request<Body>> for Otlp<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Polling<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/Export") {
                return Ok(Status::unimplemented("only Export").into_http());
            }
            Ok(service.0.grpc().unary(service, request).await)
        })
    }
}

impl<S> NamedService for Otlp<S> {
    const NAME: &'static str = "opentelemetry.proto.collector.logs.v1.LogsService";
}
