//! Records the standard metrics of a call that has ended.

use super::Exchange;
use crate::counters::Counter;
use crate::direction::Direction;
use crate::host::{Host, Property};
use crate::standard_metrics::{Reporter, of_service};

impl Exchange {
    pub(super) fn record_call(&self, host: &impl Host, direction: Direction) {
        let Some(metrics) = &self.metrics else {
            return;
        };
        let reporter = match direction {
            Direction::Inbound => Reporter::Destination,
            Direction::Outbound | Direction::Gateway => Reporter::Source,
        };
        let service = self.destination_service(host, reporter);
        if !metrics.borrow_mut().record(host, reporter, service) {
            self.counters.count(Counter::MetricSeriesOverLimit);
        }
    }

    /// The service of the request's cluster. A source names a cluster without one by the host that it asked for; a
    /// destination does not, because there the caller would choose the label.
    fn destination_service(&self, host: &impl Host, reporter: Reporter) -> String {
        let name = host.property(Property::ClusterName).ok().flatten();
        let cluster = name.map(|name| self.look_up(host, &name));
        let clusters = self.clusters.borrow();
        let cluster = cluster.and_then(|cluster| clusters.get(cluster));
        if let Some(service) = cluster.and_then(|cluster| cluster.destination.clone()) {
            return service;
        }
        let requested = match reporter {
            Reporter::Source => host.property(Property::RequestHost).ok().flatten(),
            Reporter::Destination => None,
        };
        let requested = requested.unwrap_or_default();
        let requested = String::from_utf8_lossy(&requested);
        of_service(&requested, &requested, "")
    }
}
