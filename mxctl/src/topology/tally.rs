//! What one side saw of an edge: calls, errors and latencies.

use access_log::{Entry, Protocol};
use hdrhistogram::Histogram;

use super::snapshot::{LatencyView, Reading, TallyView};

/// Latencies beyond an hour count as an hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;
/// Percentiles are exact to one percent.
const LATENCY_DIGITS: u8 = 2;

/// The end of an edge whose proxy saw the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The caller's.
    Client,
    /// The callee's.
    Server,
}

/// What one side saw of an edge.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    calls: u64,
    errors: u64,
    client_errors: u64,
    connections: u64,
    /// Requests that `SkyWalking` counts as successful.
    succeeded: u64,
    latencies_us: Histogram<u32>,
}

impl Tally {
    pub(super) fn new() -> Self {
        // The histogram grows as needed.
        let latencies_us =
            Histogram::new(LATENCY_DIGITS).expect("two digits are within the histogram's bounds");
        Self {
            calls: 0,
            errors: 0,
            client_errors: 0,
            connections: 0,
            succeeded: 0,
            latencies_us,
        }
    }

    pub(super) fn add(&mut self, entry: &Entry, seen: Seen) {
        self.calls += 1;
        if entry.protocol == Protocol::Tcp {
            self.connections += 1;
            // A connection's duration is not a latency.
            self.errors += u64::from(!entry.flags.is_empty());
            return;
        }
        self.judge(entry.status, seen, 1);
        if let Some(duration) = entry.duration_us {
            // The histogram can grow to any value within this bound.
            let _ = self.latencies_us.record(duration.min(MAX_LATENCY_US));
        }
    }

    /// Adds requests of which only the status is known.
    pub(super) fn add_requests(&mut self, status: u32, seen: Seen, count: u64) {
        self.calls += count;
        self.judge(status, seen, count);
    }

    fn judge(&mut self, status: u32, seen: Seen, count: u64) {
        // Code 0, no response, is below both thresholds.
        let failure = match seen {
            Seen::Client => 400,
            Seen::Server => 500,
        };
        let counted = |is: bool| if is { count } else { 0 };
        self.errors += counted(status == 0 || status >= 500);
        self.succeeded += counted(status < failure);
        self.client_errors += counted((400..500).contains(&status));
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.client_errors += other.client_errors;
        self.connections += other.connections;
        self.succeeded += other.succeeded;
        // Both have the same precision and grow as needed, so this cannot fail.
        let _ = self.latencies_us.add(&other.latencies_us);
    }

    pub(super) fn view(&self, reading: Reading) -> TallyView {
        let requests = self.calls.saturating_sub(self.connections);
        let (calls, success_rate) = match reading {
            Reading::Mesh => (self.calls, None),
            // SkyWalking does not count a connection as a call.
            Reading::Skywalking => (requests, rate(self.succeeded, requests)),
        };
        let latency_ms = (!self.latencies_us.is_empty()).then(|| LatencyView {
            p50: self.percentile_ms(50.0),
            p90: self.percentile_ms(90.0),
            p99: self.percentile_ms(99.0),
        });
        TallyView {
            calls,
            success_rate,
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

/// In percent, truncated to two decimal places as `SkyWalking` does.
fn rate(succeeded: u64, calls: u64) -> Option<f64> {
    let rate = succeeded.saturating_mul(10_000).checked_div(calls)?;
    #[allow(clippy::cast_precision_loss)] // At most 10,000.
    let rate = rate as f64;
    Some(rate / 100.0)
}
