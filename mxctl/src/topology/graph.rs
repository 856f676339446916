//! The call graph of access-log entries, in bounded memory.
//!
//! A call may be logged twice, by the caller's proxy and by the callee's. An
//! edge keeps both apart and never adds them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use access_log::{Entry, Named};
use serde_json::Value;

use super::snapshot::{EdgeView, NoteView, Reading, Snapshot, WorkloadView};
pub(super) use super::tally::Seen;
use super::tally::{Bytes, Tally};
use super::workload::{Workload, cut, is_cut};
use crate::naming::Naming;

/// The most workloads that are kept, because names come from the network.
const MAX_WORKLOADS: usize = 2048;
/// The most edges that are kept.
const MAX_EDGES: usize = 8192;
/// The most instances that are kept, over all workloads.
const MAX_ALL_INSTANCES: usize = 16_384;
/// The most open connections that are kept.
const MAX_OPEN: usize = 16_384;
/// The most distinct notes that are kept.
const MAX_NOTES: usize = 64;

/// The key of a workload in the graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    standing: Standing,
    name: String,
}

/// What is known of a workload. One without metadata is not the service of the
/// same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It has metadata.
    Known,
    /// It has none.
    Unknown,
    /// It was called by this name and did not answer: it is the workload that
    /// answers other calls by the name.
    Unresolved,
}

/// The service that answers calls to a host.
#[derive(Debug, PartialEq, Eq)]
enum Answering {
    /// One service, of this name.
    One(String),
    Several,
}

/// One end of an edge.
#[derive(Debug)]
pub(super) enum End<'e> {
    /// A node with metadata.
    Node(Named<'e>),
    /// A node that is named by other metadata than its own.
    NamedBy(Named<'e>, Value),
    /// A workload by its metadata, of whichever instance.
    Workload(&'e Value),
    /// An unknown workload under this name.
    Unknown(&'e str),
    /// The workload that this name stands for, which did not answer.
    Unresolved(&'e str),
}

/// The graph.
#[derive(Debug)]
pub(super) struct Graph {
    naming: Naming,
    entries: u64,
    workloads: BTreeMap<Key, Workload>,
    /// The number of instances of all workloads.
    instances: usize,
    edges: BTreeMap<(Key, Key), Edge>,
    /// Services by the host of the Envoy cluster.
    answering: BTreeMap<String, Answering>,
    /// Open connections, by their ids and the ends that have logged them.
    open: BTreeMap<(String, Seen), Open>,
    notes: BTreeMap<String, u64>,
}

/// An open connection, as its latest entry states it.
#[derive(Debug)]
struct Open {
    edge: (Key, Key),
    bytes: Bytes,
}

#[derive(Debug, Default)]
struct Edge {
    client: Option<Tally>,
    server: Option<Tally>,
}

impl Graph {
    /// An empty graph.
    pub(super) fn new(naming: Naming) -> Self {
        Self {
            naming,
            entries: 0,
            workloads: BTreeMap::new(),
            instances: 0,
            edges: BTreeMap::new(),
            answering: BTreeMap::new(),
            open: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// Counts entries of any kind.
    pub(super) fn count_entries(&mut self, count: u64) {
        self.entries += count;
    }

    /// How nodes are named.
    pub(super) fn naming(&self) -> &Naming {
        &self.naming
    }

    /// Remembers that `service` answers calls to `host`.
    pub(super) fn answers(&mut self, host: &str, service: &str) {
        let (host, service) = (&*cut(host), cut(service).into_owned());
        if let Some(known) = self.answering.get_mut(host) {
            if *known != Answering::One(service) {
                *known = Answering::Several;
            }
        } else if self.answering.len() < MAX_WORKLOADS {
            self.answering
                .insert(host.to_owned(), Answering::One(service));
        }
    }

    /// The workload that `key` stands for by now.
    fn resolved(&self, key: &Key) -> Key {
        if key.standing != Standing::Unresolved {
            return key.clone();
        }
        let (standing, name) = match self.answering.get(&key.name) {
            Some(Answering::One(service)) => (Standing::Known, service),
            Some(Answering::Several) | None => (Standing::Unknown, &key.name),
        };
        Key {
            standing,
            name: name.clone(),
        }
    }

    /// Counts an entry that made no edge, or a fact that an operator should
    /// know.
    pub(super) fn note(&mut self, note: &str) {
        let note = &*cut(note);
        if let Some(count) = self.notes.get_mut(note) {
            *count += 1;
        } else if self.notes.len() < MAX_NOTES {
            self.notes.insert(note.to_owned(), 1);
        }
    }

    /// Adds a call to an edge.
    pub(super) fn edge(&mut self, from: &End<'_>, to: &End<'_>, seen: Seen, entry: &Entry) {
        if let Some(tally) = self.tally(from, to, seen) {
            tally.add(entry, seen);
        }
    }

    /// Adds a connection that has not ended, or updates it.
    pub(super) fn open(&mut self, from: &End<'_>, to: &End<'_>, seen: Seen, entry: &Entry) {
        let id = (cut(&entry.stream_id).into_owned(), seen);
        self.close(&id);
        if self.open.len() >= MAX_OPEN {
            self.note("more than 16384 open connections: further ones count once they have ended");
            return;
        }
        let bytes = Bytes::of(entry);
        if let Some((edge, tally)) = self.edge_of(from, to, seen) {
            tally.add_open(bytes);
            self.open.insert(id, Open { edge, bytes });
        }
    }

    /// Forgets that a connection is open.
    pub(super) fn ended(&mut self, id: &str) {
        for seen in [Seen::Client, Seen::Server] {
            self.close(&(cut(id).into_owned(), seen));
        }
    }

    fn close(&mut self, id: &(String, Seen)) {
        let Some(Open { edge, bytes }) = self.open.remove(id) else {
            return;
        };
        let edge = self.edges.get_mut(&edge);
        if let Some(tally) = edge.and_then(|edge| edge.side(id.1).as_mut()) {
            tally.remove_open(bytes);
        }
    }

    /// What one side saw of an edge so far, if there is room for it.
    pub(super) fn tally(&mut self, from: &End<'_>, to: &End<'_>, seen: Seen) -> Option<&mut Tally> {
        self.edge_of(from, to, seen).map(|(_, tally)| tally)
    }

    fn edge_of(
        &mut self,
        from: &End<'_>,
        to: &End<'_>,
        seen: Seen,
    ) -> Option<((Key, Key), &mut Tally)> {
        let (Some(from), Some(to)) = (self.workload(from), self.workload(to)) else {
            self.note("more than 2048 workloads: further ones are left out");
            return None;
        };
        let key = (from, to);
        if self.edges.len() >= MAX_EDGES && !self.edges.contains_key(&key) {
            self.note("more than 8192 edges: further ones are left out");
            return None;
        }
        let edge = self.edges.entry(key.clone()).or_default();
        Some((key, edge.side(seen).get_or_insert_with(Tally::new)))
    }

    fn workload(&mut self, end: &End<'_>) -> Option<Key> {
        let (node, metadata) = match end {
            End::Node(node) => (Some(node), node.metadata.as_ref()),
            End::NamedBy(node, metadata) => (Some(node), metadata),
            End::Workload(metadata) => (None, *metadata),
            End::Unknown(_) | End::Unresolved(_) => (None, &Value::Null),
        };
        let (standing, name) = match end {
            End::Unknown(name) => (Standing::Unknown, cut(name).into_owned()),
            End::Unresolved(name) => (Standing::Unresolved, cut(name).into_owned()),
            End::Node(_) | End::NamedBy(..) | End::Workload(_) => {
                let name = self.naming.service(metadata);
                (Standing::Known, cut(&name).into_owned())
            }
        };
        let key = Key { standing, name };
        if self.workloads.len() >= MAX_WORKLOADS && !self.workloads.contains_key(&key) {
            return None;
        }
        let workload = self.workloads.entry(key.clone()).or_default();
        if let Some(node) = node {
            let name = cut(&self.naming.instance(metadata)).into_owned();
            let id = node.id.map(cut);
            let bounded = Named {
                id: id.as_deref(),
                metadata: Cow::Borrowed(&*node.metadata),
            };
            let before = workload.instances.len();
            workload.add(name, &bounded, self.instances < MAX_ALL_INSTANCES);
            self.instances += workload.instances.len() - before;
            if is_cut(node) {
                self.note("metadata of more than 8 KiB: only part of it is kept");
            }
        }
        Some(key)
    }

    /// Workloads that only an open connection had, whose later entries name others.
    fn unseen(&self) -> BTreeSet<&Key> {
        let ends = |is_empty: bool| {
            let edges = self.edges.iter();
            let edges = edges.filter(move |(_, edge)| edge.is_empty() == is_empty);
            edges.flat_map(|((from, to), _)| [from, to])
        };
        let seen: BTreeSet<_> = ends(false).collect();
        ends(true).filter(|key| !seen.contains(key)).collect()
    }

    /// The graph as it is now.
    pub(super) fn snapshot(&self, reading: Reading) -> Snapshot {
        // Known workloads come first, so that an unresolved one does not hide
        // them.
        let mut workloads: BTreeMap<Key, &Workload> = BTreeMap::new();
        let unseen = self.unseen();
        for (key, workload) in &self.workloads {
            if !unseen.contains(key) {
                workloads.entry(self.resolved(key)).or_insert(workload);
            }
        }
        let numbers: BTreeMap<&Key, usize> = workloads.keys().zip(0..).collect();
        let mut edges: BTreeMap<(usize, usize), Sum<'_>> = BTreeMap::new();
        for ((from, to), edge) in self.edges.iter().filter(|(_, edge)| !edge.is_empty()) {
            let ends = [from, to].map(|end| numbers[&self.resolved(end)]);
            edges.entry((ends[0], ends[1])).or_default().add(edge);
        }
        let workloads = workloads.iter().map(|(key, workload)| WorkloadView {
            name: key.name.clone(),
            kind: workload.kind(),
            instances: workload.views(),
            further_instances: workload.further_instances,
        });
        let edges = edges.into_iter().map(|((from, to), edge)| EdgeView {
            from,
            to,
            client: edge.client.map(|tally| tally.view(reading)),
            server: edge.server.map(|tally| tally.view(reading)),
        });
        let notes = self.notes.iter().map(|(note, count)| NoteView {
            note: note.clone(),
            count: *count,
        });
        Snapshot {
            reading,
            entries: self.entries,
            workloads: workloads.collect(),
            edges: edges.collect(),
            notes: notes.collect(),
        }
    }
}

impl Edge {
    fn side(&mut self, seen: Seen) -> &mut Option<Tally> {
        match seen {
            Seen::Client => &mut self.client,
            Seen::Server => &mut self.server,
        }
    }

    fn is_empty(&self) -> bool {
        let mut sides = [&self.client, &self.server].into_iter().flatten();
        sides.all(Tally::is_empty)
    }
}

/// Edges between the same ends.
#[derive(Default)]
struct Sum<'t> {
    client: Option<Cow<'t, Tally>>,
    server: Option<Cow<'t, Tally>>,
}

impl<'t> Sum<'t> {
    fn add(&mut self, edge: &'t Edge) {
        let sides = [
            (&mut self.client, &edge.client),
            (&mut self.server, &edge.server),
        ];
        for (sum, tally) in sides {
            match (sum, tally) {
                (_, Some(tally)) if tally.is_empty() => {}
                (Some(sum), Some(tally)) => sum.to_mut().add_all(tally),
                (sum @ None, Some(tally)) => *sum = Some(Cow::Borrowed(tally)),
                (_, None) => {}
            }
        }
    }
}
