//! The access-log collector: a server of Envoy's gRPC Access Log Service v3,
//! like `SkyWalking`'s. It keeps every entry with the node that sent it.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use access_log::{Each, Limits, Server, State};
pub use access_log::{Reporter, Side};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::client::CALL;
use crate::wait::PATIENCE;

/// An access-log entry. A peer that cannot be read is an error.
#[derive(Debug)]
pub struct Entry(access_log::Entry);

impl Deref for Entry {
    type Target = access_log::Entry;

    fn deref(&self) -> &access_log::Entry {
        &self.0
    }
}

impl From<access_log::Entry> for Entry {
    fn from(entry: access_log::Entry) -> Self {
        Self(entry)
    }
}

impl Entry {
    /// The call that the request belongs to.
    #[must_use]
    pub fn call(&self) -> &str {
        self.request_headers.get(CALL).map_or("", String::as_str)
    }

    /// The filter-state keys of the entry, sorted, with the length of each
    /// value.
    pub fn keys(&self) -> impl Iterator<Item = (&str, usize)> {
        let length = |state: &State| match state {
            State::Flat { bytes, .. } | State::Other { bytes, .. } => *bytes,
            State::Id { id } => id.len(),
            State::Struct { .. } | State::Broken { .. } => 0,
        };
        let state = self.state.iter();
        state.map(move |(key, state)| (key.as_str(), length(state)))
    }

    /// The metadata of the peer on that side. An error if the state is not a
    /// `FlatNode` in the envelope that readers expect.
    pub fn peer(&self, side: Side) -> Result<Option<&Value>> {
        let key = side.peer_key();
        match self.state.get(key) {
            None => Ok(None),
            Some(State::Flat { metadata, .. }) => Ok(Some(metadata)),
            Some(other) => bail!("{key} is not a FlatNode: {other:?}"),
        }
    }

    /// The id of that side's node. An empty id names nobody: it only marks a
    /// gateway's entry without a peer.
    pub fn id(&self, side: Side) -> Result<Option<&str>> {
        let key = side.id_key();
        match self.state.get(key) {
            None => Ok(None),
            Some(State::Id { id }) => Ok((!id.is_empty()).then_some(id.as_str())),
            Some(other) => bail!("{key} is not an id: {other:?}"),
        }
    }
}

/// The collector. Dropping it stops it.
#[derive(Debug)]
pub struct Collector {
    /// The address on which it listens.
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

    /// Passes every entry from now on to `drain`, instead of keeping it.
    pub fn drain(&self, drain: impl Fn(&Entry) + Send + Sync + 'static) -> Result<()> {
        let drain = self.store.drain.set(Drain(Box::new(drain)));
        drain.map_err(|_| anyhow!("the collector has a drain already"))
    }

    /// Ends every stream and connection, and stops listening.
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
                "no access-log entry of {what}; the entries are:\n{}",
                self.listing()
            )),
        }
    }

    fn listing(&self) -> String {
        let entries = self.store.entries.borrow();
        let line = |entry: &Arc<Entry>| {
            let (log, call) = (&entry.reporter.log, entry.call());
            format!("  {log} call {call} {} {}\n", entry.path, entry.status)
        };
        entries.iter().map(line).collect()
    }
}

/// The entries so far.
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
    fn add(&self, entry: Entry) {
        match self.drain.get() {
            Some(Drain(drain)) => drain(&entry),
            None => self.entries.send_modify(|all| all.push(Arc::new(entry))),
        }
    }
}

fn serve(listener: TcpListener, store: &Arc<Store>) -> Result<Server> {
    let store = Arc::clone(store);
    let each = Each(move |entry: &access_log::Entry| store.add(Entry(entry.clone())));
    Server::start(listener, Limits::default(), each)
}
