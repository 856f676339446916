//! The access-log collector: Envoy's gRPC Access Log Service, v3, as `SkyWalking`
//! runs one. It keeps every HTTP entry with the node that sent it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    Identifier, LogEntries,
};
use metadata_exchange::peer::{Peer, flat};
use mxctl::als::{Batch, Gone, Limits, Server, Sink};
use mxctl::entry::open;
pub use mxctl::entry::{Reporter, Side};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::client::CALL;
use crate::wait::PATIENCE;

/// One entry of an access log.
#[derive(Debug)]
pub struct Entry {
    /// Who logged it.
    pub source: Arc<Reporter>,
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
    server: Mutex<Option<Server>>,
}

impl Collector {
    /// Starts the collector.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let store = Arc::<Store>::default();
        let server = serve(listener, &store)?;
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
        *server = Some(serve(listener, &self.store)?);
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

/// The store as the server knows it.
struct Shared(Arc<Store>);

impl Sink for Shared {
    type Source = Reporter;

    fn identify(&self, identifier: Identifier) -> Reporter {
        Reporter::from(identifier)
    }

    async fn take(&self, batch: Batch<Reporter>) -> Result<(), Gone> {
        self.0
            .take(http_entries(&batch.source, Some(batch.entries)));
        Ok(())
    }
}

fn serve(listener: TcpListener, store: &Arc<Store>) -> Result<Server> {
    Server::start(listener, Limits::default(), Shared(Arc::clone(store)))
}

/// The HTTP entries of a message. `source` is who sent the stream's messages so far.
pub(crate) fn entries_of(
    source: &mut Arc<Reporter>,
    message: StreamAccessLogsMessage,
) -> impl Iterator<Item = Entry> {
    if let Some(identifier) = message.identifier {
        *source = Arc::new(Reporter::from(identifier));
    }
    http_entries(source, message.log_entries)
}

fn http_entries(
    source: &Arc<Reporter>,
    entries: Option<LogEntries>,
) -> impl Iterator<Item = Entry> + use<> {
    let entries = match entries {
        Some(LogEntries::HttpLogs(logs)) => logs.log_entry,
        _ => Vec::new(),
    };
    let source = Arc::clone(source);
    entries
        .into_iter()
        .map(move |entry| entry_of(Arc::clone(&source), entry))
}

fn entry_of(source: Arc<Reporter>, entry: HttpAccessLogEntry) -> Entry {
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
