//! What the connections have shown.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use access_log::Direction;
use serde::Serialize;

use super::connection::Done;
use super::plan::{Order, Plan};
use crate::tcp::pair::Naming;

/// How much memory both sidecars may have gained: buffers of connections, and fragments.
const MAX_GROWTH: u64 = 128 << 20;
/// How many faults are told.
const EXAMPLES: usize = 20;

/// Connections that have ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// All of them.
    pub connections: u64,
    /// Those that an end has reset.
    pub resets: u64,
    /// Those that were not reset, by who speaks when.
    pub by_order: BTreeMap<Order, u64>,
    /// Directions that look like a frame at the beginning.
    pub like_frames: u64,
    /// The bytes that servers have received, each compared.
    pub to_servers: u64,
    /// The bytes that clients have received, each compared.
    pub to_clients: u64,
    /// Connections without a reset on which the client has sent something.
    pub clients_heard: u64,
    /// Those of them on which the server has waited for it, and has answered.
    pub answered: u64,
    /// Connections with faults.
    pub faulty: u64,
    /// Some of them.
    pub examples: Vec<String>,
}

impl Tally {
    pub(super) fn count(&mut self, number: u64, plan: &Plan, done: &Done) {
        self.connections += 1;
        match plan.reset {
            Some(_) => self.resets += 1,
            None => *self.by_order.entry(plan.order).or_default() += 1,
        }
        let like_frames = [&plan.client, &plan.server];
        let like_frames = like_frames.iter().filter(|one| !one.opening.is_empty());
        self.like_frames += like_frames.count() as u64;
        self.to_servers += done.to_server;
        self.to_clients += done.to_client;
        if plan.reset.is_none() && plan.client.length > 0 {
            self.clients_heard += 1;
            let waits = matches!(plan.order, Order::ClientFirst | Order::TurnsOfClient);
            self.answered += u64::from(waits && plan.server.length > 0);
        }
        if !done.faults.is_empty() {
            self.faulty += 1;
            if self.examples.len() < EXAMPLES {
                let faults = done.faults.join("; ");
                let (order, reset) = (plan.order, plan.reset);
                let openings =
                    [&plan.client, &plan.server].map(|one| one.opening.escape_ascii().to_string());
                self.examples.push(format!(
                    "connection {number} ({order:?}, {reset:?}, openings {openings:?}): {faults}"
                ));
            }
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.resets += other.resets;
        for (order, count) in other.by_order {
            *self.by_order.entry(order).or_default() += count;
        }
        self.like_frames += other.like_frames;
        self.to_servers += other.to_servers;
        self.to_clients += other.to_clients;
        self.clients_heard += other.clients_heard;
        self.answered += other.answered;
        self.faulty += other.faulty;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }
}

/// The entries of both sidecars, by how they name the peer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Logged {
    /// The caller, at the server's.
    pub inbound: BTreeMap<Naming, u64>,
    /// The callee, at the client's.
    pub outbound: BTreeMap<Naming, u64>,
}

impl Logged {
    pub(super) fn add(&mut self, direction: Direction, naming: Naming) {
        let namings = match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        };
        *namings.entry(naming).or_default() += 1;
    }

    /// The entries of the sidecar that has sent fewer.
    pub(super) fn least(&self) -> u64 {
        let sum = |namings: &BTreeMap<Naming, u64>| namings.values().sum();
        u64::min(sum(&self.inbound), sum(&self.outbound))
    }
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Envoy's version.
    pub envoy: String,
    /// The seed.
    pub seed: u64,
    /// Whether the sidecars had the filter.
    pub with_filter: bool,
    /// The bytes that had to arrive.
    pub bytes: u64,
    /// From the first connection to the last.
    pub seconds: f64,
    /// The connections.
    pub tally: Tally,
    /// Their entries.
    pub logged: Logged,
    /// The memory of both sidecars, in bytes.
    pub resident_before: u64,
    /// The same at the end.
    pub resident_after: u64,
    /// Lines of the sidecars' logs that are errors.
    pub logged_errors: Vec<String>,
}

impl Report {
    /// What is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let tally = &self.tally;
        must(
            tally.faulty == 0,
            format!("{} connections are faulty", tally.faulty),
        );
        let arrived = tally.to_servers + tally.to_clients;
        must(
            arrived >= self.bytes,
            format!("{arrived} of {} bytes have arrived", self.bytes),
        );
        for (whose, logged, exchanged) in [
            ("callers", &self.logged.inbound, tally.clients_heard),
            ("callees", &self.logged.outbound, tally.answered),
        ] {
            let entries: u64 = logged.values().sum();
            let count = |naming| logged.get(&naming).copied().unwrap_or_default();
            must(
                entries == tally.connections,
                format!(
                    "{entries} entries with {whose}, {} connections",
                    tally.connections
                ),
            );
            let is_right = if self.with_filter {
                count(Naming::Wrong) == 0 && count(Naming::Exchanged) >= exchanged
            } else {
                count(Naming::None) == entries
            };
            must(
                is_right,
                format!("entries name {whose}: {logged:?}; {exchanged} must have exchanged"),
            );
        }
        let (before, after) = (self.resident_before, self.resident_after);
        must(
            after < before + MAX_GROWTH,
            format!("memory grew from {before} to {after} bytes"),
        );
        must(
            self.logged_errors.is_empty(),
            format!("Envoy logged errors: {:#?}", self.logged_errors),
        );
        faults
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = |f: &mut Formatter<'_>, what: &str, figures: &dyn Display| {
            writeln!(f, "{what:<20}{figures}")
        };
        let filter = if self.with_filter { "with" } else { "without" };
        let tally = &self.tally;
        line(
            f,
            "Envoy",
            &format_args!("{} {filter} filter, seed {}", self.envoy, self.seed),
        )?;
        line(
            f,
            "connections",
            &format_args!("{}, {} of them reset", tally.connections, tally.resets),
        )?;
        for (order, count) in &tally.by_order {
            line(f, "", &format_args!("{count} {order:?}"))?;
        }
        line(
            f,
            "like a frame",
            &format_args!("{} directions at their beginning", tally.like_frames),
        )?;
        #[allow(clippy::cast_precision_loss)] // For display.
        let rate = (tally.to_servers + tally.to_clients) as f64 / 1e6 / self.seconds;
        line(
            f,
            "bytes compared",
            &format_args!(
                "{} at servers, {} at clients, in {:.1} s, {rate:.0} MB/s",
                tally.to_servers, tally.to_clients, self.seconds
            ),
        )?;
        line(f, "faulty connections", &tally.faulty)?;
        for example in &tally.examples {
            line(f, "", example)?;
        }
        for (whose, logged) in [
            ("callers logged", &self.logged.inbound),
            ("callees logged", &self.logged.outbound),
        ] {
            line(f, whose, &format_args!("{logged:?}"))?;
        }
        let [before, after] = [self.resident_before, self.resident_after].map(|one| one >> 20);
        line(
            f,
            "resident MiB",
            &format_args!("{before} before, {after} at the end, of both sidecars"),
        )?;
        for fault in self.faults() {
            writeln!(f, "FAULT {fault}")?;
        }
        Ok(())
    }
}
