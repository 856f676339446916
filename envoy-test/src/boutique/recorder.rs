//! What the access logs say, by the phase of the run that a request belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use mxctl::als::{Batch, Gone, Limits, Server, Sink};
use mxctl::entry::{Entry, Reporter, Side, entries};
use mxctl::naming::Naming;
use mxctl::topology::{Reading, Snapshot, Topology};
use serde_json::Value;
use tokio::net::TcpListener;

/// What one phase has shown.
pub(super) struct Record {
    topology: Topology,
    /// The versions that peers said they are of, by service.
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
    _server: Server,
}

impl Recorder {
    pub(super) async fn start() -> Result<Self> {
        let records = Records::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let sink = Recording(Arc::clone(&records));
        let server = Server::start(listener, Limits::default(), sink)?;
        Ok(Self {
            address: server.address,
            records,
            _server: server,
        })
    }

    /// What there is of a phase so far.
    pub(super) fn read<T>(&self, phase: &str, read: impl FnOnce(&Record) -> T) -> T {
        read(
            lock(&self.records)
                .entry(phase.to_owned())
                .or_insert_with(Record::new),
        )
    }
}

struct Recording(Records);

impl Sink for Recording {
    type Source = Reporter;

    fn identify(&self, identifier: Identifier) -> Reporter {
        Reporter::from(identifier)
    }

    async fn take(&self, batch: Batch<Reporter>) -> Result<(), Gone> {
        let mut records = lock(&self.0);
        for entry in entries(&batch.source, batch.entries) {
            let phase = entry.path.split_once('?').map_or("", |(_, phase)| phase);
            let record = records.entry(phase.to_owned()).or_insert_with(Record::new);
            record.add(&entry);
        }
        Ok(())
    }
}

/// Entries are added one by one, so that a reader that failed leaves whole ones.
fn lock(records: &Records) -> MutexGuard<'_, BTreeMap<String, Record>> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}
