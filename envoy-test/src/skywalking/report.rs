//! Compares the calls that were made with those that are drawn.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::drawn::{Bytes, Drawn, Edge, Questions, Sides};
use super::expected::{Expectation, Expected};
use super::stories::Restart;

/// An edge of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The story.
    pub story: String,
    /// The caller, as the OAP names it.
    pub from: String,
    /// The callee.
    pub to: String,
    /// The calls that were made.
    pub made: Sides,
    /// The calls that are drawn, if the edge is.
    pub drawn: Option<Sides>,
    /// The calls that must be drawn.
    pub expected: Option<Sides>,
    /// Why these differ from those that were made.
    pub why: String,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The OAP's version.
    pub oap: String,
    /// The edges.
    pub edges: Vec<Row>,
    /// How many lists of services, instances and endpoints were compared.
    pub compared: usize,
    /// Other differences than those of edges.
    pub differences: Vec<String>,
    /// The OAP's internal counters before its restart: entries and their results.
    pub own_counters: BTreeMap<String, f64>,
    /// The restart of the OAP under load, if it was started here.
    pub restart: Option<Restart>,
    /// How to look at it.
    pub look: String,
}

impl Report {
    pub(super) async fn of(
        questions: &Questions,
        expected: &Expected,
        run: &str,
        is_ours: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let drawn = questions.drawn(is_ours).await?;
        let mut report = Self {
            oap: questions.version().await?,
            edges: rows(expected, &drawn),
            compared: 0,
            differences: Vec::new(),
            own_counters: BTreeMap::new(),
            restart: None,
            look: String::new(),
        };
        // For handmade entries, the listed services are not specified.
        let of_run = |services: BTreeSet<String>| -> BTreeSet<String> {
            let services = services.into_iter();
            services.filter(|name| name.contains(run)).collect()
        };
        report.compare(
            "services listed in layer MESH",
            &of_run(listed(expected)),
            &of_run(drawn.listed.clone()),
        );
        for (service, instances) in &expected.instances {
            let found = questions.instances(service).await?;
            // A service that only calls has none.
            if expected.is_called(service) {
                report.compare(&format!("instances of {service}"), instances, &found);
            }
        }
        for (service, endpoints) in &expected.endpoints {
            let found = questions.endpoints(service).await?;
            report.compare(&format!("endpoints of {service}"), endpoints, &found);
        }
        for (edge, expected) in &expected.bytes {
            let found = questions.bytes(edge).await?;
            report.compared += 1;
            if found != *expected {
                let (from, to) = edge;
                let difference = format!("bytes of {from} -> {to}: {found:?}, not {expected:?}");
                report.differences.push(difference);
            }
        }
        report.layer(&drawn);
        Ok(report)
    }

    fn compare(&mut self, what: &str, expected: &BTreeSet<String>, found: &BTreeSet<String>) {
        self.compared += 1;
        for (missing, sign) in [
            (expected.difference(found), "missing"),
            (found.difference(expected), "extra"),
        ] {
            for one in missing {
                self.differences.push(format!("{what}: {sign}: {one}"));
            }
        }
    }

    /// The layer's topology contains the edges with at least one listed end.
    fn layer(&mut self, drawn: &Drawn) {
        let is_there =
            |(from, to): &&Edge| drawn.listed.contains(from) || drawn.listed.contains(to);
        let edges: BTreeSet<Edge> = drawn.edges.keys().filter(is_there).cloned().collect();
        self.compare(
            "topology of layer MESH",
            &lines(&edges),
            &lines(&drawn.in_layer),
        );
    }

    /// All problems.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let wrong = self.edges.iter().filter(|row| row.drawn != row.expected);
        let wrong = wrong.map(|row| {
            let Row {
                story,
                from,
                to,
                drawn,
                expected,
                ..
            } = row;
            format!(
                "{story}: {from} -> {to}: drawn {}, not {}",
                text(drawn.as_ref()),
                text(expected.as_ref())
            )
        });
        let restart = self.restart.iter().flat_map(Restart::faults);
        wrong
            .chain(self.differences.iter().cloned())
            .chain(restart)
            .collect()
    }
}

impl Expected {
    /// Whether a proxy of the service itself has seen calls to it.
    fn is_called(&self, service: &str) -> bool {
        listed(self).contains(service)
    }
}

/// Services are listed once calls or connections to them were seen by their own proxies.
fn listed(expected: &Expected) -> BTreeSet<String> {
    let edges = expected.edges.iter();
    let seen = edges.filter(|(_, edge)| edge.drawn.is_some_and(|sides| sides.server.calls > 0));
    let called = seen.map(|(edge, _)| edge);
    let connections = expected.bytes.iter();
    let connected = connections.filter(|(_, [_, server])| *server != Bytes::default());
    let edges = called.chain(connected.map(|(edge, _)| edge));
    edges.map(|(_, to)| to.clone()).collect()
}

fn lines(edges: &BTreeSet<Edge>) -> BTreeSet<String> {
    edges
        .iter()
        .map(|(from, to)| format!("{from} -> {to}"))
        .collect()
}

fn rows(expected: &Expected, drawn: &Drawn) -> Vec<Row> {
    let mut edges: BTreeMap<&Edge, (Option<&Expectation>, Option<&Sides>)> = BTreeMap::new();
    for (edge, expectation) in &expected.edges {
        edges.entry(edge).or_default().0 = Some(expectation);
    }
    for (edge, sides) in &drawn.edges {
        edges.entry(edge).or_default().1 = Some(sides);
    }
    let mut rows: Vec<Row> = edges
        .into_iter()
        .map(|((from, to), (expectation, drawn))| Row {
            story: expectation
                .map_or("NOT EXPECTED", |edge| edge.story)
                .to_owned(),
            from: from.clone(),
            to: to.clone(),
            made: expectation.map(|edge| edge.made).unwrap_or_default(),
            drawn: drawn.copied(),
            expected: expectation.and_then(|edge| edge.drawn),
            why: expectation.map_or("", |edge| edge.why).to_owned(),
        })
        .collect();
    rows.sort_by(|one, other| one.story.cmp(&other.story));
    rows
}

fn text(sides: Option<&Sides>) -> String {
    match sides {
        None => "no edge".to_owned(),
        Some(Sides { client, server }) => format!("client {client}, server {server}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Apache SkyWalking {}\n", self.oap)?;
        let heads = ["made: client", "server", "drawn: client", "server"];
        write!(f, "{:38} {:72}", "story", "edge")?;
        for head in heads {
            write!(f, " {head:>13}")?;
        }
        writeln!(f)?;
        for row in &self.edges {
            let Row {
                story,
                from,
                to,
                made,
                drawn,
                ..
            } = row;
            write!(f, "{story:38} {:72}", format!("{from} -> {to}"))?;
            let drawn_or_none = drawn.unwrap_or_default();
            for calls in [
                made.client,
                made.server,
                drawn_or_none.client,
                drawn_or_none.server,
            ] {
                write!(f, " {calls:>13}")?;
            }
            match drawn {
                _ if *drawn != row.expected => {
                    writeln!(f, "  WRONG: {} is expected", text(row.expected.as_ref()))?;
                }
                None => writeln!(f, "  no edge: {}", row.why)?,
                Some(_) if !row.why.is_empty() => writeln!(f, "  {}", row.why)?,
                Some(_) => writeln!(f)?,
            }
        }
        writeln!(
            f,
            "\n{} lists of services, instances and endpoints compared",
            self.compared
        )?;
        for (name, value) in &self.own_counters {
            writeln!(f, "the OAP's own {name}: {value}")?;
        }
        if let Some(restart) = &self.restart {
            write!(f, "{restart}")?;
        }
        for fault in self.faults() {
            writeln!(f, "WRONG  {fault}")?;
        }
        writeln!(f, "\n{}", self.look)
    }
}
