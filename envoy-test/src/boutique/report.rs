//! Compares the topology with the known call graph.

use std::collections::BTreeMap;
use std::fmt;

use mxctl::render::text;
use mxctl::topology::{Kind, Snapshot, TallyView};
use serde::Serialize;

use super::graph::{self, Calls, GATEWAY, Host, OUTSIDE, SERVICES};

pub(super) const UNDISTURBED: &str = "undisturbed";
pub(super) const REPLACED: &str = "while each Envoy is replaced, VMs as v2";
pub(super) const KILLED: &str = "while each Envoy is killed and started again, VMs as v3";
pub(super) const AFTERWARDS: &str = "afterwards";

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Envoy's version.
    pub envoy: String,
    /// The number of Envoys.
    pub proxies: usize,
    /// How long they took to start, in seconds.
    pub started_after_s: f64,
    /// The phases.
    pub phases: Vec<Phase>,
    /// Requests with a header of the exchange that reached the outside, which
    /// must be 0.
    pub leaks: u64,
    /// The topology of the undisturbed phase.
    pub topology: Snapshot,
}

/// A phase, compared with the call graph.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// What happened during the phase.
    pub name: &'static str,
    /// The number of journeys through the shop.
    pub journeys: u64,
    /// How many of these did not end with an order.
    pub failed: u64,
    /// Edges that the callers' proxies saw.
    pub client: Edges,
    /// Edges that the callees' proxies saw.
    pub server: Edges,
    /// The cart's connections to its database; `None` without Redis.
    pub database: Option<Database>,
    /// Other problems.
    pub faults: Vec<String>,
}

/// The connections of the cart to its database that have ended.
#[derive(Debug, Serialize)]
pub struct Database {
    /// Those of the journeys.
    pub expected: u64,
    /// Those that the cart's proxy saw.
    pub client: u64,
    /// Those that the database's proxy saw.
    pub server: u64,
}

impl Database {
    /// What a phase shows of them.
    pub(super) fn of(snapshot: &Snapshot, journeys: u64) -> Self {
        let [cart, redis] = [graph::CART, graph::REDIS.name].map(graph::shown);
        let is = |number: usize, name: &str| {
            let workload = snapshot.workloads.get(number);
            workload.is_some_and(|workload| workload.name == name && workload.kind == Kind::Pod)
        };
        let mut edges = snapshot.edges.iter();
        let edge = edges.find(|edge| is(edge.from, &cart) && is(edge.to, &redis));
        let connections = |tally: Option<&TallyView>| {
            let tcp = tally.and_then(|tally| tally.tcp);
            tcp.and_then(|tcp| tcp.connections).unwrap_or_default()
        };
        Self {
            expected: graph::connections_of_journey() * journeys,
            client: connections(edge.and_then(|edge| edge.client.as_ref())),
            server: connections(edge.and_then(|edge| edge.server.as_ref())),
        }
    }

    /// Whether each side has logged all of them.
    pub(super) fn is_complete(&self) -> bool {
        self.client >= self.expected && self.server >= self.expected
    }

    /// `name` is the phase. Connections may be lost while Envoys are replaced, and some that end then are logged in the
    /// phase behind, because their entries have no path.
    pub(super) fn fault(&self, name: &str) -> Option<String> {
        let Self {
            expected,
            client,
            server,
        } = self;
        let is_right = match name {
            UNDISTURBED => client == expected && server == expected,
            AFTERWARDS => self.is_complete(),
            _ => *client > 0 && *server > 0,
        };
        (!is_right).then(|| {
            format!("the cart's connections to Redis: {client} and {server}, not {expected}")
        })
    }
}

/// The edges that one side saw.
#[derive(Debug, Serialize)]
pub struct Edges {
    /// The number of edges in the call graph.
    pub expected: usize,
    /// How many of these were found.
    pub found: usize,
    /// Those that were not found.
    pub missing: Vec<String>,
    /// Those that are not in the call graph.
    pub extra: Vec<String>,
    /// Those with a wrong count of calls.
    pub miscounted: Vec<String>,
}

/// Calls by edge, such as `pod frontend.boutique -> VM checkout.boutique`.
type Counts = BTreeMap<String, u64>;

/// The side that logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Client,
    Server,
}

impl View {
    /// What that side sees of this number of journeys.
    fn expected(self, journeys: u64) -> Counts {
        let calls: Calls = graph::calls_of_journey();
        let seen = calls.iter().filter(|((_, callee), _)| {
            // The outside has no proxy.
            self == Self::Client || *callee != OUTSIDE
        });
        let mut counts: Counts = seen
            .map(|((from, to), calls)| (edge(&end(from), &end(to)), calls * journeys))
            .collect();
        if self == Self::Server {
            // The visitors have no proxy.
            let requests = calls[&(GATEWAY, graph::FRONTEND)] * journeys;
            counts.insert(edge("unknown unknown", &end(GATEWAY)), requests);
        }
        counts
    }

    fn found(self, snapshot: &Snapshot) -> Counts {
        let end = |number: usize| {
            let workload = snapshot.workloads.get(number);
            workload.map_or_else(String::new, |workload| {
                format!("{} {}", workload.kind.name(), workload.name)
            })
        };
        let requests = snapshot.edges.iter().filter(|edge| edge.has_requests());
        let edges = requests.filter_map(|view| {
            let tally: &Option<TallyView> = match self {
                Self::Client => &view.client,
                Self::Server => &view.server,
            };
            let calls = tally.as_ref()?.calls;
            Some((edge(&end(view.from), &end(view.to)), calls))
        });
        edges.collect()
    }
}

fn edge(from: &str, to: &str) -> String {
    format!("{from} -> {to}")
}

fn end(service: &str) -> String {
    let known = SERVICES.iter().find(|one| one.name == service);
    let kind = match known.map(|service| service.host) {
        Some(Host::Pod) => Kind::Pod,
        Some(Host::Vm) => Kind::Vm,
        None if service == GATEWAY => Kind::Gateway,
        None => Kind::Unknown,
    };
    format!("{} {}", kind.name(), graph::shown(service))
}

/// Whether all calls of this number of journeys are in `snapshot`.
pub(super) fn has_all_calls(snapshot: &Snapshot, journeys: u64) -> bool {
    [View::Client, View::Server].into_iter().all(|view| {
        let found = view.found(snapshot);
        let mut expected = view.expected(journeys).into_iter();
        expected.all(|(edge, calls)| found.get(&edge).is_some_and(|found| *found >= calls))
    })
}

impl Edges {
    /// Compares the edges of one side. Calls are compared only if none can have
    /// been lost.
    pub(super) fn compared(
        view: View,
        snapshot: &Snapshot,
        journeys: u64,
        with_counts: bool,
    ) -> Self {
        let (expected, found) = (view.expected(journeys), view.found(snapshot));
        let not_in = |these: &Counts, those: &Counts| -> Vec<String> {
            let rest = these.keys().filter(|edge| !those.contains_key(*edge));
            rest.cloned().collect()
        };
        let missing = not_in(&expected, &found);
        let miscounted = expected.iter().filter_map(|(edge, calls)| {
            let found = found.get(edge)?;
            (with_counts && found != calls).then(|| format!("{edge}: {found} calls, not {calls}"))
        });
        Self {
            expected: expected.len(),
            found: expected.len() - missing.len(),
            extra: not_in(&found, &expected),
            miscounted: miscounted.collect(),
            missing,
        }
    }

    fn faults(&self, seen_by: &str) -> Vec<String> {
        let of = |what: &str, edges: &[String]| -> Vec<String> {
            let line = |edge: &String| format!("{what}, seen by {seen_by}: {edge}");
            edges.iter().map(line).collect()
        };
        [
            of("missing", &self.missing),
            of("extra", &self.extra),
            of("miscounted", &self.miscounted),
        ]
        .concat()
    }
}

impl Phase {
    fn all_faults(&self) -> impl Iterator<Item = String> {
        let faults = [
            self.client.faults("client"),
            self.server.faults("server"),
            self.faults.clone(),
        ];
        let name = self.name;
        let faults = faults.into_iter().flatten();
        faults.map(move |fault| format!("{name}: {fault}"))
    }
}

impl Report {
    /// All problems.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.phases.iter().flat_map(Phase::all_faults).collect();
        if self.leaks > 0 {
            faults.push(format!(
                "{} requests took headers of the exchange outside",
                self.leaks
            ));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            envoy,
            proxies,
            started_after_s,
            ..
        } = self;
        writeln!(
            f,
            "The Online Boutique behind {proxies} Envoys {envoy}, started in {started_after_s:.1} s\n"
        )?;
        write!(f, "{}", text::table(&self.topology, None))?;
        for phase in &self.phases {
            let Phase {
                name,
                journeys,
                failed,
                client,
                server,
                database,
                ..
            } = phase;
            writeln!(f, "\n{name}: {journeys} journeys, {failed} failed")?;
            for (seen_by, edges) in [("client", client), ("server", server)] {
                let Edges {
                    expected, found, ..
                } = edges;
                let extra = edges.extra.len();
                writeln!(
                    f,
                    "  edges seen by {seen_by}: expected {expected}, found {found}, {extra} extra"
                )?;
            }
            if let Some(Database {
                expected,
                client,
                server,
            }) = database
            {
                writeln!(
                    f,
                    "  connections of the cart to Redis: {client} seen by client, {server} by server, {expected} of all journeys"
                )?;
            }
        }
        if self.phases.iter().any(|phase| phase.database.is_none()) {
            writeln!(
                f,
                "SKIPPED  the cart's database: redis-server is not installed"
            )?;
        }
        for fault in self.faults() {
            writeln!(f, "WRONG  {fault}")?;
        }
        Ok(())
    }
}
