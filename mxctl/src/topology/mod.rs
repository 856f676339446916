//! The call graph of access-log entries, by this tool's rules (`mesh`) or by
//! `SkyWalking`'s (`skywalking`). Both add to a `graph`.

use access_log::Entry;

use crate::naming::Naming;
use crate::prometheus::Series;
use graph::Graph;

pub mod explain;
mod graph;
mod kind;
mod mesh;
mod metrics;
pub(crate) mod names;
pub(crate) mod sides;
mod skywalking;
mod snapshot;
mod tally;
mod workload;

pub use kind::{Kind, Role, kind_of};
pub(crate) use mesh::UNKNOWN_REPORTER;
pub use snapshot::{
    EdgeView, InstanceView, LatencyView, NoteView, Reading, Snapshot, TallyView, TcpView,
    WorkloadView,
};

/// The graph of the entries so far.
#[derive(Debug)]
pub struct Topology {
    graph: Graph,
    reading: Reading,
}

impl Topology {
    /// An empty graph.
    #[must_use]
    pub fn new(naming: Naming, reading: Reading) -> Self {
        let graph = Graph::new(named(naming, reading));
        Self { graph, reading }
    }

    /// How nodes are named.
    #[must_use]
    pub fn naming(&self) -> &Naming {
        self.graph.naming()
    }

    /// Adds an entry.
    pub fn record(&mut self, entry: &Entry) {
        self.graph.count_entries(1);
        match self.reading {
            Reading::Mesh => mesh::record(&mut self.graph, entry),
            Reading::Skywalking => skywalking::record(&mut self.graph, entry),
        }
    }

    /// Adds the calls that a series of `istio_requests_total` counts, by this tool's rules.
    pub fn record_series(&mut self, series: &Series) {
        self.graph.count_entries(series.total);
        metrics::record(&mut self.graph, series);
    }

    /// The graph as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.graph.snapshot(self.reading)
    }
}

/// `SkyWalking` truncates names.
fn named(naming: Naming, reading: Reading) -> Naming {
    match reading {
        Reading::Mesh => naming,
        Reading::Skywalking => naming.cut_to(skywalking::NAME_LENGTH),
    }
}

#[cfg(test)]
mod tests;
