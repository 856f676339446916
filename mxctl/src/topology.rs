//! Who calls whom, out of access-log entries, in bounded memory.
//!
//! A call may be logged twice, by the caller's proxy and by the callee's. Both
//! are kept apart on its edge, never added.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use metadata_exchange::peer::Field;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::entry::{self, Entry, Named, Protocol, Side, State};
use crate::naming::Naming;
use crate::skywalking;

/// How many workloads are kept. Names come from the network.
const MAX_WORKLOADS: usize = 2048;
/// How many edges are kept.
const MAX_EDGES: usize = 8192;
/// How many instances of each workload are kept.
const MAX_INSTANCES: usize = 64;
/// How many instances of all workloads are kept.
const MAX_ALL_INSTANCES: usize = 16_384;
/// How long a name that is kept may be.
const MAX_NAME_BYTES: usize = 512;
/// How many kinds of notes are kept.
const MAX_NOTES: usize = 64;
/// Latencies beyond an hour count as an hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;
/// Percentiles are exact to one percent.
const LATENCY_DIGITS: u8 = 2;

/// By whose rules entries become edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::doc_markdown)] // These comments are help texts, too.
pub enum Reading {
    /// What the entries say
    #[default]
    Mesh,
    /// What SkyWalking's mx-mesh analyser makes of them
    Skywalking,
}

/// What a workload runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing is known of it.
    Unknown,
    /// A Kubernetes pod.
    Pod,
    /// A virtual machine.
    Vm,
    /// A proxy by itself.
    Gateway,
    /// Pods and VMs of one service.
    Mixed,
}

impl Kind {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Pod => "pod",
            Self::Vm => "VM",
            Self::Gateway => "gateway",
            Self::Mixed => "pod+VM",
        }
    }
}

/// What a node runs on, and how sure that is, from 0 up:
///
/// | sign | kind |
/// |---|---|
/// | id `router~...` or `waypoint~...` | gateway |
/// | `OWNER` is a `WorkloadGroup` | VM |
/// | another `OWNER`, `APP_CONTAINERS`, or the label `pod-template-hash` | pod |
/// | an id, and none of these | VM, unless another entry has a sign |
/// | not even an id | unknown, unless another entry has a sign |
///
/// The last two are guesses: from Istio 1.24 on, pods without a deployment or
/// job send no owner to their peers, and a callee that did not answer may be
/// named by what its endpoint says. Their own proxies say more.
#[must_use]
pub fn kind_of(node: &Named<'_>) -> (u8, Kind) {
    let text = |key: &str| node.metadata[key].as_str().unwrap_or_default();
    let (role, owner) = (Role::of_id(node.id), text("OWNER"));
    if matches!(role, Role::Gateway | Role::Waypoint) {
        (4, Kind::Gateway)
    } else if owner.contains("/workloadgroups/") {
        (3, Kind::Vm)
    } else if !owner.is_empty()
        || !text("APP_CONTAINERS").is_empty()
        || !node.metadata["LABELS"]["pod-template-hash"].is_null()
    {
        (2, Kind::Pod)
    } else if node.id.is_some() {
        (1, Kind::Vm)
    } else {
        (0, Kind::Unknown)
    }
}

/// What a node's id says of its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `sidecar~...`
    Sidecar,
    /// `router~...`
    Gateway,
    /// `waypoint~...`
    Waypoint,
    /// No id of Istio's form.
    None,
}

impl Role {
    /// The role in an id.
    #[must_use]
    pub fn of_id(id: Option<&str>) -> Self {
        match id.and_then(|id| id.split_once('~')) {
            Some(("sidecar", _)) => Self::Sidecar,
            Some(("router", _)) => Self::Gateway,
            Some(("waypoint", _)) => Self::Waypoint,
            _ => Self::None,
        }
    }
}

/// Which way a sidecar's listener leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    /// By the name of the Envoy cluster, as Istio names them, or else of the
    /// log.
    pub(crate) fn of(entry: &Entry) -> Option<Self> {
        let cluster = entry.upstream_cluster.as_str();
        if cluster.starts_with("inbound|") || cluster == "InboundPassthroughCluster" {
            return Some(Self::Inbound);
        }
        if cluster.starts_with("outbound|") || cluster == "PassthroughCluster" {
            return Some(Self::Outbound);
        }
        let log = entry.reporter.log.to_ascii_lowercase();
        match (log.contains("inbound"), log.contains("outbound")) {
            (true, false) => Some(Self::Inbound),
            (false, true) => Some(Self::Outbound),
            _ => None,
        }
    }
}

/// Which end of an edge a proxy stands at that saw its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The caller's.
    Client,
    /// The callee's.
    Server,
}

/// A workload's place in the graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    standing: Standing,
    name: String,
}

/// What is known of a workload. Those without metadata are apart from a service
/// of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It has metadata.
    Known,
    /// It has none.
    Unknown,
    /// It was called by this name in vain. Whoever answers other calls by the
    /// name was meant.
    Meant,
}

/// Who answers calls by a name.
#[derive(Debug, PartialEq, Eq)]
enum Answering {
    /// One service, of this name.
    One(String),
    Several,
}

/// One end of an edge.
#[derive(Debug)]
pub enum End<'e> {
    /// A node with metadata.
    Node(Named<'e>),
    /// A node that is named by other metadata than what is known of it.
    NamedBy(Named<'e>, Value),
    /// Nobody knows who, under this name.
    Unknown(&'e str),
    /// Whoever answers to this name, but did not.
    Meant(&'e str),
}

/// The graph.
#[derive(Debug)]
pub struct Topology {
    naming: Naming,
    reading: Reading,
    entries: u64,
    workloads: BTreeMap<Key, Workload>,
    /// How many instances all workloads have.
    instances: usize,
    edges: BTreeMap<(Key, Key), Edge>,
    /// By the host of the Envoy cluster.
    answering: BTreeMap<String, Answering>,
    notes: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Workload {
    instances: BTreeMap<String, Instance>,
    further_instances: u64,
}

#[derive(Debug)]
struct Instance {
    certainty: u8,
    kind: Kind,
    id: Option<String>,
    metadata: Map<String, Value>,
}

#[derive(Debug, Default)]
struct Edge {
    client: Option<Tally>,
    server: Option<Tally>,
}

/// What one side saw of an edge.
#[derive(Clone, Debug)]
struct Tally {
    calls: u64,
    errors: u64,
    client_errors: u64,
    connections: u64,
    latencies_us: Histogram<u32>,
}

impl Topology {
    /// An empty graph.
    #[must_use]
    pub fn new(naming: Naming, reading: Reading) -> Self {
        Self {
            naming,
            reading,
            entries: 0,
            workloads: BTreeMap::new(),
            instances: 0,
            edges: BTreeMap::new(),
            answering: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// Adds what an entry says.
    pub fn record(&mut self, entry: &Entry) {
        self.entries += 1;
        match self.reading {
            Reading::Mesh => self.record_mesh(entry),
            Reading::Skywalking => skywalking::record(self, entry),
        }
    }

    /// How nodes are named.
    #[must_use]
    pub fn naming(&self) -> &Naming {
        &self.naming
    }

    fn record_mesh(&mut self, entry: &Entry) {
        if entry.intermediate {
            return self.note("an entry that is not its stream's last: not counted");
        }
        for (key, state) in &entry.state {
            if let State::Broken { reason, .. } = state {
                self.note(&format!("{key} is no peer: {reason}"));
            }
        }
        let local = entry.local();
        let is_own = |peer: &Named<'_>| self.is_same(peer, &local);
        let mut caller = entry.peer(Side::Downstream);
        let mut callee = entry.peer(Side::Upstream);
        let own = [&caller, &callee].map(|peer| peer.as_ref().is_some_and(is_own));
        let is_proxy = matches!(Role::of_id(local.id), Role::Gateway | Role::Waypoint);
        // Where `record_local_node` is set, the own node stands for the side
        // that the listener's direction is about.
        let direction = Direction::of(entry).or(match own {
            [true, false] => Some(Direction::Outbound),
            [false, true] => Some(Direction::Inbound),
            _ => None,
        });
        if direction == Some(Direction::Inbound) && own[1] {
            callee = None;
        }
        if direction == Some(Direction::Outbound) && own[0] {
            caller = None;
        }
        let has_peer = caller.is_some() || callee.is_some();
        let called_by_nobody =
            caller.is_none() && (is_proxy || !has_peer && direction == Some(Direction::Inbound));
        let calls_nobody = callee.is_none()
            && (is_proxy && !entry.upstream_cluster.is_empty()
                || !has_peer && direction == Some(Direction::Outbound));
        if let Some(caller) = caller {
            self.edge(
                &End::Node(caller),
                &End::Node(local.clone()),
                Seen::Server,
                entry,
            );
        } else if called_by_nobody {
            self.edge(
                &End::Unknown("unknown"),
                &End::Node(local.clone()),
                Seen::Server,
                entry,
            );
        }
        let host = host_of_cluster(&entry.upstream_cluster);
        if let Some(callee) = callee {
            if let Some(host) = host {
                self.answers(host, &self.naming.service(&callee.metadata));
            }
            self.edge(&End::Node(local), &End::Node(callee), Seen::Client, entry);
        } else if calls_nobody {
            let callee = match host {
                Some(host) if entry.is_unanswered() => End::Meant(host),
                host => End::Unknown(host.unwrap_or("unknown")),
            };
            self.edge(&End::Node(local), &callee, Seen::Client, entry);
        } else if !has_peer && !called_by_nobody {
            self.note(
                "no peer, and neither cluster nor log tells whether it came in or went out: no edge",
            );
        }
    }

    fn is_same(&self, peer: &Named<'_>, local: &Named<'_>) -> bool {
        if let (Some(peer), Some(local)) = (peer.id, local.id) {
            return peer == local;
        }
        let name = |node: &Named<'_>| {
            let metadata = &node.metadata;
            (
                self.naming.service(metadata),
                self.naming.instance(metadata),
            )
        };
        name(peer) == name(local)
    }

    /// Remembers that `service` answers calls to `host`.
    fn answers(&mut self, host: &str, service: &str) {
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

    /// The workload that stands for `key` by what is known now.
    fn resolved(&self, key: &Key) -> Key {
        if key.standing != Standing::Meant {
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

    /// Counts something that made no edge, or that an operator should know.
    pub fn note(&mut self, note: &str) {
        let note = &*cut(note);
        if let Some(count) = self.notes.get_mut(note) {
            *count += 1;
        } else if self.notes.len() < MAX_NOTES {
            self.notes.insert(note.to_owned(), 1);
        }
    }

    /// Adds a call to an edge.
    pub fn edge(&mut self, from: &End<'_>, to: &End<'_>, seen: Seen, entry: &Entry) {
        let (Some(from), Some(to)) = (self.workload(from), self.workload(to)) else {
            return self.note("more than 2048 workloads: those beyond are left out");
        };
        let key = (from, to);
        if self.edges.len() >= MAX_EDGES && !self.edges.contains_key(&key) {
            return self.note("more than 8192 edges: those beyond are left out");
        }
        let edge = self.edges.entry(key).or_default();
        let tally = match seen {
            Seen::Client => &mut edge.client,
            Seen::Server => &mut edge.server,
        };
        tally.get_or_insert_with(Tally::new).add(entry);
    }

    fn workload(&mut self, end: &End<'_>) -> Option<Key> {
        let (node, metadata) = match end {
            End::Node(node) => (Some(node), node.metadata.as_ref()),
            End::NamedBy(node, metadata) => (Some(node), metadata),
            End::Unknown(_) | End::Meant(_) => (None, &Value::Null),
        };
        let (standing, name) = match end {
            End::Unknown(name) => (Standing::Unknown, cut(name).into_owned()),
            End::Meant(name) => (Standing::Meant, cut(name).into_owned()),
            End::Node(_) | End::NamedBy(..) => {
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
                self.note("metadata of more than 8 KiB: not all of it is kept");
            }
        }
        Some(key)
    }

    /// The graph as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        // Known ones come first, so that they are not hidden by one that is meant.
        let mut workloads: BTreeMap<Key, &Workload> = BTreeMap::new();
        for (key, workload) in &self.workloads {
            workloads.entry(self.resolved(key)).or_insert(workload);
        }
        let numbers: BTreeMap<&Key, usize> = workloads.keys().zip(0..).collect();
        let mut edges: BTreeMap<(usize, usize), Sum<'_>> = BTreeMap::new();
        for ((from, to), edge) in &self.edges {
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
            client: edge.client.map(|tally| tally.view()),
            server: edge.server.map(|tally| tally.view()),
        });
        let notes = self.notes.iter().map(|(note, count)| NoteView {
            note: note.clone(),
            count: *count,
        });
        Snapshot {
            reading: self.reading,
            entries: self.entries,
            workloads: workloads.collect(),
            edges: edges.collect(),
            notes: notes.collect(),
        }
    }
}

/// The host in the name of an Envoy cluster, as Istio forms it:
/// `outbound|443||api.example.com`.
pub(crate) fn host_of_cluster(cluster: &str) -> Option<&str> {
    let host = cluster.rsplit('|').next();
    host.filter(|host| !host.is_empty())
}

impl Workload {
    fn add(&mut self, name: String, node: &Named<'_>, has_room: bool) {
        let (certainty, kind) = kind_of(node);
        let is_full = self.instances.len() >= MAX_INSTANCES || !has_room;
        if let Some(known) = self.instances.get_mut(&name) {
            if certainty > known.certainty {
                (known.certainty, known.kind) = (certainty, kind);
            }
            if known.id.is_none() {
                known.id = node.id.map(str::to_owned);
            }
            // The fuller report is the node's own; of two the later, for a VM may
            // come back with other labels.
            if known.metadata.len() <= exchanged(node).count() {
                known.metadata = exchanged(node).collect();
            }
        } else if is_full {
            self.further_instances += 1;
        } else {
            let instance = Instance {
                certainty,
                kind,
                id: node.id.map(str::to_owned),
                metadata: exchanged(node).collect(),
            };
            self.instances.insert(name, instance);
        }
    }

    /// What its instances are, as far as that is known of any.
    fn kind(&self) -> Kind {
        let kinds = self.instances.values().map(|instance| instance.kind);
        let mut known = kinds.filter(|kind| *kind != Kind::Unknown);
        match known.next() {
            None => Kind::Unknown,
            Some(first) if known.all(|kind| kind == first) => first,
            Some(_) => Kind::Mixed,
        }
    }

    fn views(&self) -> Vec<InstanceView> {
        let view = |(name, instance): (&String, &Instance)| InstanceView {
            name: name.clone(),
            kind: instance.kind,
            id: instance.id.clone(),
            metadata: instance.metadata.clone(),
        };
        self.instances.iter().map(view).collect()
    }
}

/// Of a node's metadata, what is kept.
fn exchanged(node: &Named<'_>) -> impl Iterator<Item = (String, Value)> {
    let kept = entry::exchanged(&node.metadata);
    kept.map(|(key, value)| (key.to_owned(), value.clone()))
}

/// Whether more proxies tell each other of it than is kept.
fn is_cut(node: &Named<'_>) -> bool {
    let told = Field::ALL
        .into_iter()
        .filter(|field| node.metadata.get(field.key()).is_some());
    told.count() > entry::exchanged(&node.metadata).count()
}

/// The name, or its start if it is longer than any that Kubernetes allows.
fn cut(name: &str) -> Cow<'_, str> {
    if name.len() <= MAX_NAME_BYTES {
        return Cow::Borrowed(name);
    }
    let start = name.get(..name.floor_char_boundary(MAX_NAME_BYTES));
    Cow::Owned(format!("{}\u{2026}", start.unwrap_or_default()))
}

impl Tally {
    fn new() -> Self {
        // It grows as needed.
        let latencies_us =
            Histogram::new(LATENCY_DIGITS).expect("two digits are within the histogram's bounds");
        Self {
            calls: 0,
            errors: 0,
            client_errors: 0,
            connections: 0,
            latencies_us,
        }
    }

    fn add(&mut self, entry: &Entry) {
        self.calls += 1;
        if entry.protocol == Protocol::Tcp {
            self.connections += 1;
            // How long a connection lasted is no latency.
            self.errors += u64::from(!entry.flags.is_empty());
            return;
        }
        self.errors += u64::from(entry.status == 0 || entry.status >= 500);
        self.client_errors += u64::from((400..500).contains(&entry.status));
        if let Some(duration) = entry.duration_us {
            // The histogram grows to any value that is bounded so.
            let _ = self.latencies_us.record(duration.min(MAX_LATENCY_US));
        }
    }

    fn add_all(&mut self, other: &Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.client_errors += other.client_errors;
        self.connections += other.connections;
        // It has the same precision and no bound, so that nothing is refused.
        let _ = self.latencies_us.add(&other.latencies_us);
    }

    fn view(&self) -> TallyView {
        let latency_ms = (!self.latencies_us.is_empty()).then(|| LatencyView {
            p50: self.percentile_ms(50.0),
            p90: self.percentile_ms(90.0),
            p99: self.percentile_ms(99.0),
        });
        TallyView {
            calls: self.calls,
            errors: self.errors,
            client_errors: self.client_errors,
            connections: self.connections,
            latency_ms,
        }
    }

    fn percentile_ms(&self, percentile: f64) -> f64 {
        let us = self.latencies_us.value_at_percentile(percentile);
        #[allow(clippy::cast_precision_loss)] // At most an hour.
        let us = us as f64;
        us / 1000.0
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
                (Some(sum), Some(tally)) => sum.to_mut().add_all(tally),
                (sum @ None, Some(tally)) => *sum = Some(Cow::Borrowed(tally)),
                (_, None) => {}
            }
        }
    }
}

/// The graph at one time, for all outputs.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// By whose rules.
    pub reading: Reading,
    /// How many entries it was made of.
    pub entries: u64,
    /// The workloads, by name.
    pub workloads: Vec<WorkloadView>,
    /// The edges, by the names of their ends.
    pub edges: Vec<EdgeView>,
    /// What made no edge, or should be known.
    pub notes: Vec<NoteView>,
}

/// A service.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadView {
    /// Its name.
    pub name: String,
    /// What it runs on.
    pub kind: Kind,
    /// Its pods and VMs.
    pub instances: Vec<InstanceView>,
    /// Sightings of instances beyond those that are kept.
    pub further_instances: u64,
}

/// A pod or VM.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceView {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its node's id.
    pub id: Option<String>,
    /// Its node's metadata, of those that are exchanged.
    pub metadata: Map<String, Value>,
}

/// Calls of one workload to another.
#[derive(Clone, Debug, Serialize)]
pub struct EdgeView {
    /// The caller's place among the workloads.
    pub from: usize,
    /// The callee's.
    pub to: usize,
    /// What the caller's proxy saw.
    pub client: Option<TallyView>,
    /// What the callee's proxy saw.
    pub server: Option<TallyView>,
}

/// What one side saw.
#[derive(Clone, Debug, Serialize)]
pub struct TallyView {
    /// Requests and connections.
    pub calls: u64,
    /// Requests without response or with status 500 and more, connections with
    /// a response flag.
    pub errors: u64,
    /// Requests with status 400 to 499.
    pub client_errors: u64,
    /// How many of the calls are TCP connections.
    pub connections: u64,
    /// Latencies of requests, to the last byte to the caller.
    pub latency_ms: Option<LatencyView>,
}

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LatencyView {
    /// The median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
}

/// A note and how often it was made.
#[derive(Clone, Debug, Serialize)]
pub struct NoteView {
    /// The note.
    pub note: String,
    /// How often.
    pub count: u64,
}

impl EdgeView {
    /// Which sides saw the edge.
    #[must_use]
    pub fn seen_by(&self) -> &'static str {
        match (&self.client, &self.server) {
            (Some(_), Some(_)) => "both",
            (Some(_), None) => "client",
            _ => "server",
        }
    }

    /// What is shown of the edge, where only one figure is: the caller's view,
    /// or the callee's if the caller has none or saw less.
    #[must_use]
    pub fn main(&self) -> Option<&TallyView> {
        match (&self.client, &self.server) {
            (Some(client), Some(server)) if server.calls > client.calls => Some(server),
            (Some(client), _) => Some(client),
            (None, server) => server.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests;
