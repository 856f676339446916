//! Records access logs by the phase of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use access_log::{Each, Entry, Limits, Protocol, Server, Side};
use anyhow::Result;
use mxctl::naming::Naming;
use mxctl::topology::{Reading, Snapshot, Topology};
use serde_json::Value;
use tokio::net::TcpListener;

/// The record of a phase.
pub(super) struct Record {
    topology: Topology,
    /// The versions that peers stated, by service.
    pub(super) versions: BTreeMap<String, BTreeSet<String>>,
}

impl Record {
    pub(super) fn snapshot(&self) -> Snapshot {
        self.topology.snapshot()
    }

    fn new() -> Self {
        Self {
            topology: Topology::new(Naming::default(), Reading::Mesh),
            versions: BTreeMap::new(),
        }
    }

    fn add(&mut self, entry: &Entry) {
        self.topology.record(entry);
        let peers = [Side::Downstream, Side::Upstream].map(|side| entry.peer(side));
        for peer in peers.into_iter().flatten() {
            let service = self.topology.naming().service(&peer.metadata);
            if let Value::String(version) = &peer.metadata["LABELS"]["version"] {
                let versions = self.versions.entry(service).or_default();
                versions.insert(version.clone());
            }
        }
    }
}

type Records = Arc<Mutex<BTreeMap<String, Record>>>;

/// An access-log server with the records of all phases.
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    records: Records,
    /// The phase of connections, which have no path.
    phase: Arc<Mutex<String>>,
    _server: Server,
}

impl Recorder {
    pub(super) async fn start() -> Result<Self> {
        let records = Records::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let recording = Arc::clone(&records);
        let phase = Arc::new(Mutex::new(String::new()));
        let of_connections = Arc::clone(&phase);
        let sink = Each(move |entry: &Entry| {
            let current = lock(&of_connections).clone();
            let phase = match entry.protocol {
                Protocol::Tcp => &*current,
                Protocol::Http => entry.path.split_once('?').map_or("", |(_, phase)| phase),
            };
            record_of(&mut lock(&recording), phase).add(entry);
        });
        let server = Server::start(listener, Limits::default(), sink)?;
        Ok(Self {
            address: server.address,
            records,
            phase,
            _server: server,
        })
    }

    /// Begins a phase; all connections of the one before have been logged.
    pub(super) fn begin(&self, phase: &str) {
        phase.clone_into(&mut lock(&self.phase));
    }

    /// Reads the record of a phase so far.
    pub(super) fn read<T>(&self, phase: &str, read: impl FnOnce(&Record) -> T) -> T {
        read(record_of(&mut lock(&self.records), phase))
    }
}

fn record_of<'r>(records: &'r mut BTreeMap<String, Record>, phase: &str) -> &'r mut Record {
    records.entry(phase.to_owned()).or_insert_with(Record::new)
}

/// Records are updated one entry at a time, so a failed reader leaves them
/// complete.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
