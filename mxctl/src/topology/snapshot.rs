//! A snapshot of the graph, from which all outputs are made.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kind::Kind;

/// The rules by which entries become edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::doc_markdown)] // These comments are help texts, too.
pub enum Reading {
    /// As the entries state them
    #[default]
    Mesh,
    /// As SkyWalking's mx-mesh analyser reads them
    Skywalking,
}

/// A snapshot of the graph.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// The rules that were applied.
    pub reading: Reading,
    /// The number of entries.
    pub entries: u64,
    /// The workloads, by name.
    pub workloads: Vec<WorkloadView>,
    /// The edges, by the names of their ends.
    pub edges: Vec<EdgeView>,
    /// Notes about entries without an edge, and other facts.
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
    /// How often instances beyond those kept were seen.
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
    /// Those of its node's metadata that are exchanged.
    pub metadata: Map<String, Value>,
}

/// Calls from one workload to another.
#[derive(Clone, Debug, Serialize)]
pub struct EdgeView {
    /// The caller's index among the workloads.
    pub from: usize,
    /// The callee's index.
    pub to: usize,
    /// What the caller's proxy saw.
    pub client: Option<TallyView>,
    /// What the callee's proxy saw.
    pub server: Option<TallyView>,
}

/// What one side saw.
#[derive(Clone, Debug, Serialize)]
pub struct TallyView {
    /// Requests.
    pub calls: u64,
    /// `SkyWalking`'s success rate of the requests in percent, only with its rules. Its failures are not [`Self::errors`]: on the client's side, status 400 and above fails, on the server's 500 and above, and a request without a response, code 0, succeeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
    /// Requests without a response or with status 500 and above.
    pub errors: u64,
    /// Requests with status 400 to 499.
    pub client_errors: u64,
    /// Latencies of requests, up to the last byte sent to the caller.
    pub latency_ms: Option<LatencyView>,
    /// TCP connections, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpView>,
}

/// TCP connections; with `SkyWalking`'s rules, only their bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TcpView {
    /// Those that have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// Those that are open, if the log has entries of open connections, with their ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<u64>,
    /// Those that have ended with a response flag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<u64>,
    /// The bytes that the proxy has received from the caller.
    pub received_bytes: u64,
    /// The bytes that it has sent to the caller.
    pub sent_bytes: u64,
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

/// A note and how often it applies.
#[derive(Clone, Debug, Serialize)]
pub struct NoteView {
    /// The note.
    pub note: String,
    /// How often.
    pub count: u64,
}

impl EdgeView {
    /// The sides that saw the edge.
    #[must_use]
    pub fn seen_by(&self) -> &'static str {
        match (&self.client, &self.server) {
            (Some(_), Some(_)) => "both",
            (Some(_), None) => "client",
            _ => "server",
        }
    }

    /// Whether there were requests. An edge of neither protocol counts as one of requests.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        let mut sides = [&self.client, &self.server].into_iter().flatten();
        sides.any(|tally| tally.calls > 0) || !self.has_connections()
    }

    /// Whether there were TCP connections.
    #[must_use]
    pub fn has_connections(&self) -> bool {
        let mut sides = [&self.client, &self.server].into_iter().flatten();
        sides.any(|tally| tally.tcp.is_some())
    }

    /// The tally to show where there is room for only one: the caller's, or the callee's if the
    /// caller has none or saw fewer calls.
    #[must_use]
    pub fn main(&self) -> Option<&TallyView> {
        match (&self.client, &self.server) {
            (Some(client), Some(server)) if server.count() > client.count() => Some(server),
            (Some(client), _) => Some(client),
            (None, server) => server.as_ref(),
        }
    }
}

impl TallyView {
    /// Requests and connections.
    fn count(&self) -> u64 {
        let connections = self.tcp.map_or(0, |tcp| {
            tcp.connections.unwrap_or_default() + tcp.open.unwrap_or_default()
        });
        self.calls + connections
    }
}
