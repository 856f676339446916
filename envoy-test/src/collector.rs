//! The access-log collector: Envoy's gRPC Access Log Service, v3, as `SkyWalking`
//! runs one. It keeps every HTTP entry with the node that sent it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
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
use tokio::sync::watch;
use tokio::task::AbortHandle;
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
    entries: watch::Receiver<Vec<Arc<Entry>>>,
    server: AbortHandle,
}

impl Collector {
    /// Starts the collector.
    pub async fn start() -> Result<Self> {
        let incoming = TcpIncoming::from(TcpListener::bind("127.0.0.1:0").await?);
        let address = incoming.local_addr()?;
        let (sink, entries) = watch::channel(Vec::new());
        let service = AccessLogServiceServer::new(Service { sink });
        let server = Server::builder().add_service(service);
        let server = tokio::spawn(server.serve_with_incoming(incoming));
        Ok(Self {
            address,
            entries,
            server: server.abort_handle(),
        })
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
        let mut entries = self.entries.clone();
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
        let entries = self.entries.borrow();
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

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    sink: watch::Sender<Vec<Arc<Entry>>>,
}

#[tonic::async_trait]
impl AccessLogService for Service {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        let mut source = Arc::new(Source::default());
        while let Some(message) = messages.message().await? {
            if let Some(identifier) = message.identifier {
                source = Arc::new(source_of(identifier.log_name, identifier.node));
            }
            if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
                let entries = logs.log_entry.into_iter();
                let entries = entries.map(|entry| Arc::new(entry_of(Arc::clone(&source), entry)));
                self.sink.send_modify(|all| all.extend(entries));
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
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
