//! The counters in Envoy's stats.

use super::raw::{self, MetricId};
use crate::counters::{Counter, Counters};
use alloc::format;
use alloc::vec::Vec;

/// The metric of each counter; a counter that Envoy did not take has none.
#[derive(Debug, Default)]
pub(super) struct Metrics(Vec<(Counter, MetricId)>);

impl Metrics {
    /// Defines all counters; Envoy shows them as
    /// `wasmcustom.metadata_exchange.<name>`.
    pub(super) fn define(counters: &Counters) -> Self {
        let define = |(counter, name)| {
            let id = raw::define_counter(&format!("metadata_exchange.{name}"));
            Some((counter, counters.survive(id)?))
        };
        Self(Counter::ALL.into_iter().filter_map(define).collect())
    }

    /// Adds what was counted since the last time.
    pub(super) fn publish(&self, counters: &Counters) {
        for &(counter, id) in &self.0 {
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
