//! The access-log collector: Envoy's gRPC Access Log Service, v3, as `SkyWalking`
//! runs one. It keeps every HTTP entry with the node that sent it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use envoy_types::pb::envoy::config::core::v3::Node as ProtoNode;
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{
    StreamAccessLogsMessage, StreamAccessLogsResponse,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, BytesValue, Struct, Value as ProtoValue};
use metadata_exchange::peer::{Peer, flat};
use prost::{Message as _, Name as _};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::client::CALL;
use crate::wait::PATIENCE;

/// Which end of a call a peer is, seen from the proxy that logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Downstream,
    /// The callee.
    Upstream,
}

impl Side {
    /// The filter-state key of the peer.
    #[must_use]
    pub fn peer_key(self) -> &'static str {
        match self {
            Self::Downstream => "wasm.downstream_peer",
            Self::Upstream => "wasm.upstream_peer",
        }
    }

    /// The filter-state key of the peer's node id.
    #[must_use]
    pub fn id_key(self) -> &'static str {
        match self {
            Self::Downstream => "wasm.downstream_peer_id",
            Self::Upstream => "wasm.upstream_peer_id",
        }
    }
}

/// Who sends a stream of entries. Envoy says so in its first message only.
#[derive(Debug, Default)]
pub struct Source {
    /// The log's name, `workload/listener` in this harness.
    pub log: String,
    /// The local node's id.
    pub node_id: String,
    /// The local node's metadata.
    pub metadata: Value,
}

/// One entry of an access log.
#[derive(Debug)]
pub struct Entry {
    /// Who logged it.
    pub source: Arc<Source>,
    /// The call that the request belongs to.
    pub call: String,
    /// The request's path.
    pub path: String,
    /// The response's status, 0 if there was none.
    pub status: u32,
    /// Why there was that response, in Envoy's words: `via_upstream`, ...
    pub details: String,
    /// The filter state that was logged: bytes, or why there are none.
    state: BTreeMap<String, Result<Vec<u8>, String>>,
}

impl Entry {
    /// The filter-state keys that the entry has, sorted, with the length of
    /// each value.
    pub fn keys(&self) -> impl Iterator<Item = (&str, usize)> {
        let length = |bytes: &Result<Vec<u8>, String>| bytes.as_ref().map_or(0, Vec::len);
        self.state
            .iter()
            .map(move |(key, bytes)| (key.as_str(), length(bytes)))
    }

    /// The peer of that side. An error if the state is not a `FlatNode` in the
    /// envelope that readers expect.
    pub fn peer(&self, side: Side) -> Result<Option<Peer<'_>>> {
        let key = side.peer_key();
        let Some(bytes) = self.bytes(key)? else {
            return Ok(None);
        };
        let peer = flat::read(bytes).map_err(|error| anyhow!("{key} is no FlatNode: {error}"))?;
        Ok(Some(peer))
    }

    /// The id of that side's node.
    pub fn id(&self, side: Side) -> Result<Option<&str>> {
        let bytes = self.bytes(side.id_key())?;
        Ok(bytes.map(str::from_utf8).transpose()?)
    }

    /// An entry of `call` with that filter state, as no collector gets it.
    #[cfg(test)]
    pub(crate) fn of_state(call: &str, state: &[(&str, &[u8])]) -> Self {
        let state = state.iter();
        Self {
            source: Arc::default(),
            call: call.to_owned(),
            path: "/".to_owned(),
            status: 200,
            details: String::new(),
            state: state
                .map(|(key, bytes)| ((*key).to_owned(), Ok(bytes.to_vec())))
                .collect(),
        }
    }

    fn bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        match self.state.get(key) {
            None => Ok(None),
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(reason)) => bail!("{key}: {reason}"),
        }
    }
}

/// The collector. It stops with its value.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    store: Arc<Store>,
    server: Mutex<Option<Running>>,
}

impl Collector {
    /// Starts the collector.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let store = Arc::<Store>::default();
        let server = Running::start(listener, Arc::clone(&store));
        Ok(Self {
            address,
            store,
            server: Mutex::new(Some(server)),
        })
    }

    /// Hands every entry from now on to `drain`, instead of keeping it.
    pub fn drain(&self, drain: impl Fn(&Entry) + Send + Sync + 'static) -> Result<()> {
        let drain = self.store.drain.set(Drain(Box::new(drain)));
        drain.map_err(|_| anyhow!("the collector has a drain already"))
    }

    /// Ends every stream and connection, and listens no more.
    pub async fn go_away(&self) -> Result<()> {
        let running = self.server.lock().await.take();
        running.context("the collector is away")?.stop().await
    }

    /// Listens again at the same address.
    pub async fn come_back(&self) -> Result<()> {
        let mut server = self.server.lock().await;
        ensure!(server.is_none(), "the collector is not away");
        let listener = TcpListener::bind(self.address).await?;
        *server = Some(Running::start(listener, Arc::clone(&self.store)));
        Ok(())
    }

    /// Waits until at least `count` entries match and returns those that do.
    pub async fn wait_for(
        &self,
        what: &str,
        count: usize,
        matches: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Arc<Entry>>> {
        let matching = |entries: &[Arc<Entry>]| -> Vec<_> {
            let matching = entries.iter().filter(|entry| matches(entry));
            matching.cloned().collect()
        };
        let mut entries = self.store.entries.subscribe();
        let wait = entries.wait_for(|entries| matching(entries).len() >= count);
        match timeout(PATIENCE, wait).await {
            Ok(entries) => Ok(matching(&entries?)),
            Err(_) => Err(anyhow!(
                "no access-log entry of {what}; there are:\n{}",
                self.listing()
            )),
        }
    }

    fn listing(&self) -> String {
        let entries = self.store.entries.borrow();
        let line = |entry: &Arc<Entry>| {
            let Entry {
                source,
                call,
                path,
                status,
                ..
            } = entry.as_ref();
            format!("  {} call {call} {path} {status}\n", source.log)
        };
        entries.iter().map(line).collect()
    }
}

/// What has become of the entries.
#[derive(Debug, Default)]
struct Store {
    entries: watch::Sender<Vec<Arc<Entry>>>,
    drain: OnceLock<Drain>,
}

struct Drain(Box<dyn Fn(&Entry) + Send + Sync>);

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Drain")
    }
}

impl Store {
    fn take(&self, entries: impl Iterator<Item = Entry>) {
        match self.drain.get() {
            Some(Drain(drain)) => entries.for_each(|entry| drain(&entry)),
            None => self
                .entries
                .send_modify(|all| all.extend(entries.map(Arc::new))),
        }
    }
}

/// The server. It ends, with all its streams, when `stop` is dropped.
#[derive(Debug)]
struct Running {
    stop: watch::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Running {
    fn start(listener: TcpListener, store: Arc<Store>) -> Self {
        let (stop, mut stopped) = watch::channel(());
        let service = AccessLogServiceServer::new(Service {
            store,
            stopped: stopped.clone(),
        });
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), async move {
                // The only event is that the sender is gone.
                let _gone = stopped.changed().await;
            });
        Self {
            stop,
            server: tokio::spawn(server),
        }
    }

    async fn stop(self) -> Result<()> {
        drop(self.stop);
        timeout(PATIENCE, self.server)
            .await
            .context("the collector does not end")???;
        Ok(())
    }
}

struct Service {
    store: Arc<Store>,
    stopped: watch::Receiver<()>,
}

#[tonic::async_trait]
impl AccessLogService for Service {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        let mut source = Arc::new(Source::default());
        let mut stopped = self.stopped.clone();
        loop {
            let message = tokio::select! {
                message = messages.message() => message?,
                _ = stopped.changed() => return Err(Status::unavailable("going away")),
            };
            let Some(message) = message else {
                return Ok(Response::new(StreamAccessLogsResponse {}));
            };
            if let Some(identifier) = message.identifier {
                source = Arc::new(source_of(identifier.log_name, identifier.node));
            }
            if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
                let entries = logs.log_entry.into_iter();
                self.store
                    .take(entries.map(|entry| entry_of(Arc::clone(&source), entry)));
            }
        }
    }
}

fn source_of(log: String, node: Option<ProtoNode>) -> Source {
    let node = node.unwrap_or_default();
    Source {
        log,
        node_id: node.id,
        metadata: node.metadata.map(json_of_struct).unwrap_or_default(),
    }
}

fn entry_of(source: Arc<Source>, entry: HttpAccessLogEntry) -> Entry {
    let request = entry.request.unwrap_or_default();
    let response = entry.response.unwrap_or_default();
    let common = entry.common_properties.unwrap_or_default();
    Entry {
        source,
        call: request
            .request_headers
            .get(CALL)
            .cloned()
            .unwrap_or_default(),
        path: request.path,
        status: response.response_code.map_or(0, |code| code.value),
        details: response.response_code_details,
        state: common
            .filter_state_objects
            .into_iter()
            .map(|(key, any)| (key, open(&any)))
            .collect(),
    }
}

/// The bytes in `Any(BytesValue)`, the envelope from which `SkyWalking` takes them.
fn open(any: &Any) -> Result<Vec<u8>, String> {
    if any.type_url != BytesValue::type_url() {
        return Err(format!("a {}, not a BytesValue", any.type_url));
    }
    match BytesValue::decode(any.value.as_slice()) {
        Ok(message) => Ok(message.value),
        Err(error) => Err(format!("no BytesValue: {error}")),
    }
}

fn json_of_struct(message: Struct) -> Value {
    let fields = message.fields.into_iter();
    Value::Object(fields.map(|(key, value)| (key, json_of(value))).collect())
}

fn json_of(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => Value::from(number),
        Some(Kind::StringValue(text)) => Value::from(text),
        Some(Kind::BoolValue(bool)) => Value::from(bool),
        Some(Kind::StructValue(fields)) => json_of_struct(fields),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_of).collect(),
    }
}
