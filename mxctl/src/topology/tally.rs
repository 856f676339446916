//! What one side saw of an edge: calls, errors and latencies; connections and their bytes.

use access_log::{Entry, Protocol};
use hdrhistogram::Histogram;

use super::snapshot::{LatencyView, Reading, TallyView, TcpView};

/// Latencies beyond an hour count as an hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;
/// Percentiles are exact to one percent.
const LATENCY_DIGITS: u8 = 2;

/// The end of an edge whose proxy saw the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    connections: Connections,
    /// Requests that `SkyWalking` counts as successful.
    succeeded: u64,
    latencies_us: Histogram<u32>,
}

/// TCP connections.
#[derive(Clone, Copy, Debug, Default)]
struct Connections {
    /// Those that have ended.
    ended: u64,
    /// Those of them with a response flag.
    errors: u64,
    bytes: Bytes,
    /// Those of which an entry was logged, and not the last one.
    open: u64,
    open_bytes: Bytes,
    /// Whether any entry of an open connection was logged.
    tells_open: bool,
}

/// Bytes of connections, as Envoy counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    /// From the caller.
    pub(super) received: u64,
    /// To the caller.
    pub(super) sent: u64,
}

impl Bytes {
    /// Those in an entry.
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            received: entry.received_bytes,
            sent: entry.sent_bytes,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            received: self.received.saturating_add(other.received),
            sent: self.sent.saturating_add(other.sent),
        }
    }

    fn less(self, other: Self) -> Self {
        Self {
            received: self.received.saturating_sub(other.received),
            sent: self.sent.saturating_sub(other.sent),
        }
    }
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
            connections: Connections::default(),
            succeeded: 0,
            latencies_us,
        }
    }

    pub(super) fn add(&mut self, entry: &Entry, seen: Seen) {
        if entry.protocol == Protocol::Tcp {
            // A connection's duration is not a latency.
            let connections = &mut self.connections;
            connections.ended += 1;
            connections.errors += u64::from(!entry.flags.is_empty());
            connections.bytes = connections.bytes.and(Bytes::of(entry));
            return;
        }
        self.calls += 1;
        self.judge(entry.status, seen, 1);
        if let Some(duration) = entry.duration_us {
            // The histogram can grow to any value within this bound.
            let _ = self.latencies_us.record(duration.min(MAX_LATENCY_US));
        }
    }

    /// Adds a connection that is open, with its bytes so far.
    pub(super) fn add_open(&mut self, bytes: Bytes) {
        let connections = &mut self.connections;
        connections.open += 1;
        connections.open_bytes = connections.open_bytes.and(bytes);
        connections.tells_open = true;
    }

    /// Removes one that [`Self::add_open`] has added.
    pub(super) fn remove_open(&mut self, bytes: Bytes) {
        let connections = &mut self.connections;
        connections.open = connections.open.saturating_sub(1);
        connections.open_bytes = connections.open_bytes.less(bytes);
    }

    /// Whether nothing is left in it: its connections turned out to be those of another edge.
    pub(super) fn is_empty(&self) -> bool {
        self.calls + self.connections.ended + self.connections.open == 0
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
        self.connections = self.connections.and(other.connections);
        self.succeeded += other.succeeded;
        // Both have the same precision and grow as needed, so this cannot fail.
        let _ = self.latencies_us.add(&other.latencies_us);
    }

    pub(super) fn view(&self, reading: Reading) -> TallyView {
        let success_rate = match reading {
            Reading::Mesh => None,
            Reading::Skywalking => rate(self.succeeded, self.calls),
        };
        let latency_ms = (!self.latencies_us.is_empty()).then(|| LatencyView {
            p50: self.percentile_ms(50.0),
            p90: self.percentile_ms(90.0),
            p99: self.percentile_ms(99.0),
        });
        TallyView {
            calls: self.calls,
            success_rate,
            errors: self.errors,
            client_errors: self.client_errors,
            tcp: self.connections.view(reading),
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

impl Connections {
    fn and(self, other: Self) -> Self {
        Self {
            ended: self.ended + other.ended,
            errors: self.errors + other.errors,
            bytes: self.bytes.and(other.bytes),
            open: self.open + other.open,
            open_bytes: self.open_bytes.and(other.open_bytes),
            tells_open: self.tells_open || other.tells_open,
        }
    }

    fn view(self, reading: Reading) -> Option<TcpView> {
        let Bytes { received, sent } = self.bytes.and(self.open_bytes);
        // SkyWalking counts bytes alone.
        let counted = |count: u64| (reading == Reading::Mesh).then_some(count);
        (self.ended + self.open > 0).then(|| TcpView {
            connections: counted(self.ended),
            open: counted(self.open).filter(|_| self.tells_open),
            errors: counted(self.errors),
            received_bytes: received,
            sent_bytes: sent,
        })
    }
}

/// In percent, truncated to two decimal places as `SkyWalking` does.
fn rate(succeeded: u64, calls: u64) -> Option<f64> {
    let rate = succeeded.saturating_mul(10_000).checked_div(calls)?;
    #[allow(clippy::cast_precision_loss)] // At most 10,000.
    let rate = rate as f64;
    Some(rate / 100.0)
}
