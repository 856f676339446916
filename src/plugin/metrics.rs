//! The counters in Envoy's stats.

use super::raw::{self, MetricId, MetricType};
use crate::counters::{CONFIGURATION_IDLE, Counter, Counters};
use crate::host::HostResult;
use alloc::format;
use alloc::vec::Vec;

/// The metric of each counter and the gauge; what Envoy did not take has none.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    counters: Vec<(Counter, MetricId)>,
    idle: Option<MetricId>,
    /// Whether the gauge counts this root context.
    is_idle: bool,
}

impl Metrics {
    /// Defines all counters; Envoy shows them as
    /// `wasmcustom.metadata_exchange.<name>`.
    pub(super) fn define(counters: &Counters) -> Self {
        let defined = |(counter, name)| {
            Some((
                counter,
                counters.survive(define(MetricType::Counter, name))?,
            ))
        };
        Self {
            counters: Counter::ALL.into_iter().filter_map(defined).collect(),
            idle: counters.survive(define(MetricType::Gauge, CONFIGURATION_IDLE)),
            is_idle: false,
        }
    }

    /// Has the gauge count this root context, or no longer.
    pub(super) fn set_idle(&mut self, is_idle: bool, counters: &Counters) {
        let offset = match (self.is_idle, is_idle) {
            (false, true) => 1,
            (true, false) => -1,
            _ => return,
        };
        let counted = self.idle.map(|id| raw::increment_metric(id, offset));
        if counted.is_some_and(|counted| counters.survive(counted).is_some()) {
            self.is_idle = is_idle;
        }
    }

    /// Adds what was counted since the last time.
    pub(super) fn publish(&self, counters: &Counters) {
        for &(counter, id) in &self.counters {
            let count = counters.take(counter);
            let offset = i64::try_from(count).unwrap_or(i64::MAX);
            if count > 0
                && counters
                    .survive(raw::increment_metric(id, offset))
                    .is_none()
            {
                // Kept for the next time.
                counters.add(counter, count);
            }
        }
    }
}

fn define(kind: MetricType, name: &str) -> HostResult<MetricId> {
    raw::define_metric(kind, &format!("metadata_exchange.{name}"))
}
