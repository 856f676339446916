//! Envoy's gRPC Access Log Service, v3: HTTP and TCP logs.
//!
//! Nothing is dropped here. Who takes the entries may be slow: then the streams
//! are read more slowly, and Envoy buffers, and at last drops and counts
//! (`access_logs.grpc_access_log.logs_dropped`). So memory is bounded by
//! [`Limits`]: streams times the size of a message.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    Identifier, LogEntries,
};
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Server as Transport;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// The messages of one stream that hold entries.
#[derive(Debug)]
pub struct Batch<I> {
    /// Who sends the stream: made of the identifier by [`Sink::identify`].
    pub source: Arc<I>,
    /// The entries.
    pub entries: LogEntries,
}

/// Who takes the entries.
pub trait Sink: Send + Sync + 'static {
    /// What is kept of a stream's sender.
    type Source: Default + Send + Sync;

    /// Reads who sends a stream. Envoy says so in its first message only.
    fn identify(&self, identifier: Identifier) -> Self::Source;

    /// Takes entries. The stream is not read on before this is done.
    fn take(&self, batch: Batch<Self::Source>) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Nobody takes entries any more.
#[derive(Debug)]
pub struct Gone;

/// What bounds the memory of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many streams at a time; more are refused. An Envoy has one for each
    /// worker and log.
    pub streams: usize,
    /// The longest message, in bytes. Envoy's are 16 KiB and an entry, unless
    /// it is configured otherwise.
    pub message_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 1024,
            message_bytes: 1 << 20,
        }
    }
}

/// What a server has seen.
#[derive(Debug, Default)]
pub struct Counts {
    /// Streams that began.
    pub streams: AtomicU64,
    /// Streams refused, for there were too many.
    pub refused: AtomicU64,
    /// Streams that ended in an error of the sender, as a message too long.
    pub broken: AtomicU64,
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
}

/// How long the end of a server may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl Server {
    /// Serves on `listener`.
    pub fn start(listener: TcpListener, limits: Limits, sink: impl Sink) -> Result<Self> {
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let (stop, mut stopped) = watch::channel(());
        let service = AccessLogServiceServer::new(Service {
            sink,
            room: Semaphore::new(limits.streams),
            stopped: stopped.clone(),
            counts: Arc::clone(&counts),
        })
        .max_decoding_message_size(limits.message_bytes);
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
        })
    }

    /// Ends every stream and connection, and listens no more.
    pub async fn stop(self) -> Result<()> {
        drop(self.stop);
        timeout(PATIENCE, self.running)
            .await
            .context("the access-log server does not end")???;
        Ok(())
    }
}

struct Service<S> {
    sink: S,
    room: Semaphore,
    stopped: watch::Receiver<()>,
    counts: Arc<Counts>,
}

fn going_away() -> Status {
    Status::unavailable("going away")
}

#[tonic::async_trait]
impl<S: Sink> AccessLogService for Service<S> {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let Ok(_room) = self.room.try_acquire() else {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::resource_exhausted("too many streams"));
        };
        self.counts.streams.fetch_add(1, Ordering::Relaxed);
        let mut messages = request.into_inner();
        let mut source = Arc::<S::Source>::default();
        let mut stopped = self.stopped.clone();
        loop {
            let message = tokio::select! {
                message = messages.message() => message,
                _ = stopped.changed() => return Err(going_away()),
            };
            let message = message.inspect_err(|_| {
                self.counts.broken.fetch_add(1, Ordering::Relaxed);
            })?;
            let Some(message) = message else {
                return Ok(Response::new(StreamAccessLogsResponse {}));
            };
            if let Some(identifier) = message.identifier {
                source = Arc::new(self.sink.identify(identifier));
            }
            if let Some(entries) = message.log_entries {
                let source = Arc::clone(&source);
                // Also while stopping: what was received is not lost.
                let taken = self.sink.take(Batch { source, entries }).await;
                taken.map_err(|Gone| going_away())?;
            }
        }
    }
}
