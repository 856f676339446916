//! The result of a soak, and its problems.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::traffic::{LOOKED_UP, Summary};

/// How much the sidecar's memory may grow from the first tenth of the requests
/// to the last: for connection buffers and heap fragmentation, not for peers.
const MAX_GROWTH: u64 = 64 << 20;

/// The most memory that the sidecar may use: about 120 MiB were measured with
/// four workers, and V8 may collect garbage late.
const MAX_RESIDENT: u64 = 512 << 20;

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Envoy's version.
    pub envoy: String,
    /// The seed.
    pub seed: u64,
    /// Callers.
    pub callers: usize,
    /// Distinct messages of the callers.
    pub messages: usize,
    /// Connections of each worker.
    pub connections_of_workers: Vec<u64>,
    /// Seconds from the first request to the last reply.
    pub seconds: f64,
    /// Requests, replies, entries.
    pub summary: Summary,
    /// Entries that Envoy dropped because the collector was too slow.
    pub dropped_by_envoy: u64,
    /// Requests that the app received.
    pub app_requests: u64,
    /// Of these, with headers of the exchange.
    pub app_leaks: u64,
    /// The sidecar's memory.
    pub resident: Resident,
    /// What the filter must have counted.
    pub expected_counts: BTreeMap<&'static str, u64>,
    /// What the filter counted.
    pub counts: BTreeMap<String, u64>,
    /// Envoy's statistics of VMs (created, ended, reloaded, failed) that have
    /// changed: before and after.
    pub vm_changes: BTreeMap<String, [u64; 2]>,
    /// Lines of Envoy's log that are errors.
    pub logged_errors: Vec<String>,
}

/// The resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Resident {
    /// Before the first request.
    pub idle: u64,
    /// After a tenth of the requests.
    pub early: u64,
    /// The peak.
    pub peak: u64,
    /// After the last request.
    pub end: u64,
}

impl Report {
    /// All problems.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let Summary {
            requests,
            statuses,
            unanswered,
            entries,
            unlogged,
            mismatches,
            ..
        } = &self.summary;
        must(
            statuses.get(&200) == Some(requests),
            format!("{requests} requests were answered {statuses:?}, {unanswered} not at all"),
        );
        must(
            *mismatches == 0,
            format!("{mismatches} replies or entries are wrong"),
        );
        let dropped = self.dropped_by_envoy;
        must(
            *unlogged == 0 && entries == requests,
            format!("{entries} entries, {unlogged} missing, {dropped} dropped by Envoy"),
        );
        let (received, leaks) = (self.app_requests, self.app_leaks);
        must(
            received == *requests && leaks == 0,
            format!("the app received {received} requests, {leaks} with peer headers"),
        );
        must(
            self.vm_changes.is_empty(),
            format!("VMs have changed: {:?}", self.vm_changes),
        );
        must(
            self.logged_errors.is_empty(),
            format!("Envoy logged errors: {:#?}", self.logged_errors),
        );
        must(
            !self.connections_of_workers.contains(&0),
            format!("a worker was idle: {:?}", self.connections_of_workers),
        );
        let Resident {
            early, peak, end, ..
        } = self.resident;
        must(
            end < early + MAX_GROWTH && peak < MAX_RESIDENT,
            format!("memory grew from {early} to {end} bytes, {peak} at most"),
        );
        faults.extend(miscounts(&self.expected_counts, &self.counts));
        faults
    }

    #[allow(clippy::cast_precision_loss)] // For display.
    fn rate(&self) -> f64 {
        self.summary.requests as f64 / self.seconds
    }
}

/// The counters that differ from their expected values.
pub(super) fn miscounts<'c>(
    expected: &'c BTreeMap<&str, u64>,
    counts: &'c BTreeMap<String, u64>,
) -> impl Iterator<Item = String> + 'c {
    let count = |name| counts.get(name).copied();
    expected.iter().filter_map(move |(name, expected)| {
        let count = match *name {
            LOOKED_UP => count("cache_hit")
                .zip(count("cache_miss"))
                .map(|(hits, misses)| hits + misses),
            name => count(name),
        };
        (count != Some(*expected)).then(|| format!("{name} is {count:?} instead of {expected}"))
    })
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = |f: &mut Formatter<'_>, what: &str, figures: &dyn Display| {
            writeln!(f, "{what:<20}{figures}")
        };
        let Summary {
            requests,
            statuses,
            unanswered,
            entries,
            unlogged,
            mismatches,
            examples,
        } = &self.summary;
        let [idle, early, peak, end] = [
            self.resident.idle,
            self.resident.early,
            self.resident.peak,
            self.resident.end,
        ]
        .map(|bytes| bytes >> 20);
        let (seconds, rate) = (self.seconds, self.rate());
        let (callers, messages) = (self.callers, self.messages);
        let dropped = self.dropped_by_envoy;
        let (received, leaks) = (self.app_requests, self.app_leaks);
        line(
            f,
            "Envoy",
            &format_args!("{}, seed {}", self.envoy, self.seed),
        )?;
        line(
            f,
            "callers",
            &format_args!("{callers} with {messages} different messages"),
        )?;
        line(
            f,
            "requests",
            &format_args!("{requests} in {seconds:.1} s, {rate:.0}/s"),
        )?;
        line(
            f,
            "replies checked",
            &format_args!("{statuses:?}, {unanswered} missing"),
        )?;
        line(
            f,
            "entries checked",
            &format_args!("{entries}, {unlogged} missing, {dropped} dropped by Envoy"),
        )?;
        line(f, "mismatches", &mismatches)?;
        for example in examples {
            line(f, "", example)?;
        }
        line(
            f,
            "received by the app",
            &format_args!("{received}, {leaks} with peer headers"),
        )?;
        line(
            f,
            "worker connections",
            &format_args!("{:?}", self.connections_of_workers),
        )?;
        line(
            f,
            "resident MiB",
            &format_args!("{idle} idle, {early} after a tenth, {peak} at most, {end} at the end"),
        )?;
        for (name, count) in &self.counts {
            writeln!(f, "  {name:<28} {count}")?;
        }
        for fault in self.faults() {
            writeln!(f, "FAULT {fault}")?;
        }
        Ok(())
    }
}
