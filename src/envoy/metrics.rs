//! The counters in Envoy's stats.

use proxy_wasm::types::MetricType;

use super::imports;
use crate::counted_host::count_error;
use crate::counters::{CONFIGURATION_IDLE, Counter, Counters};

/// The metric ids of each counter and the gauge; `None` if Envoy did not define
/// it.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    counters: Vec<(Counter, u32)>,
    idle: Option<u32>,
    /// Whether the gauge includes this root context.
    is_idle: bool,
}

impl Metrics {
    /// Defines all metrics; Envoy shows them as
    /// `wasmcustom.metadata_exchange.<name>`.
    pub(super) fn define(counters: &Counters) -> Self {
        let define = |kind, name| {
            let id = imports::define_metric(kind, &format!("metadata_exchange.{name}"));
            count_error(&id, counters);
            id.ok()
        };
        let defined = |(counter, name)| Some((counter, define(MetricType::Counter, name)?));
        Self {
            counters: Counter::ALL.into_iter().filter_map(defined).collect(),
            idle: define(MetricType::Gauge, CONFIGURATION_IDLE),
            is_idle: false,
        }
    }

    /// Includes this root context in the gauge, or removes it.
    pub(super) fn set_idle(&mut self, is_idle: bool, counters: &Counters) {
        let offset = match (self.is_idle, is_idle) {
            (false, true) => 1,
            (true, false) => -1,
            _ => return,
        };
        if let Some(id) = self.idle
            && increment(id, offset, counters)
        {
            self.is_idle = is_idle;
        }
    }

    /// Publishes the counts since the last time.
    pub(super) fn publish(&self, counters: &Counters) {
        for &(counter, id) in &self.counters {
            let count = counters.take(counter);
            let offset = i64::try_from(count).unwrap_or(i64::MAX);
            if count > 0 && !increment(id, offset, counters) {
                // Kept for the next publication.
                counters.add(counter, count);
            }
        }
    }
}

/// Returns whether Envoy accepted it.
fn increment(id: u32, offset: i64, counters: &Counters) -> bool {
    let incremented = imports::increment_metric(id, offset);
    count_error(&incremented, counters);
    incremented.is_ok()
}
