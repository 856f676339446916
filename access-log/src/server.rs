//! Envoy's gRPC Access Log Service, v3: HTTP and TCP logs.
//!
//! Nothing is dropped here. Who takes the entries may be slow: then the streams
//! are read more slowly, and Envoy buffers, and at last drops and counts
//! (`access_logs.grpc_access_log.logs_dropped`).
//!
//! Memory is bounded by [`Limits`]. What a message becomes may be much larger
//! than the message: an empty entry is two bytes of it. So its parts are counted
//! before it is read, and it is read when there is room for what it may become.

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
use tonic::server::{ClientStreamingService, Grpc, NamedService};
use tonic::transport::Server as Transport;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::codec::Raw;
use crate::limits::{Limits, MAX_PARTS, parts_of, room_of};

/// The messages of one stream that hold entries.
#[derive(Debug)]
pub struct Batch<I> {
    /// Who sends the stream: made of the identifier by [`Sink::identify`].
    pub source: Arc<I>,
    /// The entries.
    pub entries: LogEntries,
    /// To be kept as long as what was made of the entries.
    pub room: Room,
}

/// Room in memory. It is free again when this is dropped.
#[derive(Debug)]
pub struct Room {
    _taken: OwnedSemaphorePermit,
}

/// Who takes the entries.
pub trait Sink: Send + Sync + 'static {
    /// What is kept of a stream's sender.
    type Source: Default + Send + Sync;

    /// Reads who sends a stream. Envoy says so in its first message only; of a later
    /// message, `first` is what the first has said, or the default.
    fn identify(&self, identifier: Identifier, first: Option<&Arc<Self::Source>>) -> Self::Source;

    /// Takes entries. The stream is not read on before this is done.
    fn take(&self, batch: Batch<Self::Source>) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Nobody takes entries any more.
#[derive(Debug)]
pub struct Gone;

/// What a server has seen.
#[derive(Debug, Default)]
pub struct Counts {
    /// Streams that began.
    pub streams: AtomicU64,
    /// Streams refused, for there were too many.
    pub refused: AtomicU64,
    /// Streams that ended in an error of the sender, as a message too large.
    pub broken: AtomicU64,
    /// Messages that were too large: beyond the limit, or of too many parts.
    pub too_large: AtomicU64,
}

/// A server that runs. It ends, with all its streams, with its value.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it has seen.
    pub counts: Arc<Counts>,
    stop: watch::Sender<()>,
    running: JoinHandle<Result<(), tonic::transport::Error>>,
    streams: Arc<Semaphore>,
    max_streams: usize,
    /// The only one that lasts: connections may outlive the server.
    sink: Arc<dyn Any + Send + Sync>,
}

/// How long the streams may take to end: as long as their entries are not taken.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long the connections may take to end, when no stream is left.
const FAREWELL: Duration = Duration::from_secs(1);

impl Server {
    /// Serves on `listener`.
    pub fn start(listener: TcpListener, limits: Limits, sink: impl Sink) -> Result<Self> {
        let limits = limits.within_bounds();
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let (stop, mut stopped) = watch::channel(());
        let (sink, streams) = (Arc::new(sink), Arc::new(Semaphore::new(limits.streams)));
        let service = Service(Arc::new(Shared {
            sink: Arc::downgrade(&sink),
            streams: Arc::clone(&streams),
            memory: Arc::new(Semaphore::new(limits.memory_bytes())),
            limits,
            stopped: stopped.clone(),
            counts: Arc::clone(&counts),
        }));
        let server = Transport::builder()
            // Envoys that are gone without a word must not keep their streams.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(service)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), async move {
                // The only event is that the sender is gone.
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

    /// Ends every stream, and listens no more. It fails if streams do not end, for
    /// nobody takes their entries. The sink is gone afterwards.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.stop);
        let all = u32::try_from(self.max_streams).unwrap_or(u32::MAX);
        let ended = timeout(PATIENCE, self.streams.acquire_many(all)).await;
        self.streams.close();
        drop(self.sink);
        // A connection may be silent, and never end.
        match timeout(FAREWELL, &mut self.running).await {
            Ok(done) => done??,
            Err(_) => self.running.abort(),
        }
        if ended.is_err() {
            let left = self.max_streams - self.streams.available_permits();
            bail!("{left} streams of access logs do not end: their entries are not taken");
        }
        Ok(())
    }
}

/// The service for every connection.
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

/// Who sends a stream, by its messages so far.
struct Sender<I> {
    /// By the first message.
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
        // Then whoever stops the server takes all places, and nobody is refused.
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
            // Also while stopping: what was received is not lost.
            self.take(message, &mut sender).await?;
        }
    }

    async fn take(&self, message: Bytes, sender: &mut Sender<S::Source>) -> Result<(), Status> {
        let unreadable = |error: DecodeError| {
            self.broken(Status::invalid_argument(format!("not a message: {error}")))
        };
        let parts = parts_of(&message).map_err(unreadable)?;
        if parts > MAX_PARTS {
            return Err(self.broken(Status::out_of_range(format!(
                "a message of {parts} parts, the limit is {MAX_PARTS}: let Envoy flush earlier \
                 (buffer_size_bytes)"
            ))));
        }
        let room = u32::try_from(room_of(message.len(), parts)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.memory).acquire_many_owned(room).await;
        let room = Room {
            _taken: room.map_err(|_| going_away())?,
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

    /// Counts a stream that its sender broke off, or that is broken off for what
    /// it sent.
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

// What is generated for the service reads messages before they can be counted.
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
            let limit = service.0.limits.message_bytes;
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(limit);
            Ok(grpc.client_streaming(service, request).await)
        })
    }
}

impl<S> NamedService for Service<S> {
    const NAME: &'static str = SERVICE_NAME;
}
