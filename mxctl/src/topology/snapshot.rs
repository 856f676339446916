//! The graph at one time, as all outputs show it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kind::Kind;

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
    /// Requests and connections; of the reading `skywalking`, requests only.
    pub calls: u64,
    /// `SkyWalking`'s success rate of the requests, in percent; of its reading only.
    /// Its failures are not [`Self::errors`]: what the client's side has seen fails
    /// with status 400 and more, the server's with 500 and more, and a request
    /// without response, code 0, has succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
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
