//! Edges as Istio's standard metrics state them.

use std::borrow::Cow;

use access_log::{Named, is_unanswered};
use serde_json::{Value, json};

use super::graph::{End, Graph, Seen};
use super::mesh::{UNKNOWN, UNKNOWN_REPORTER};
use super::names;
use crate::naming::Naming;
use crate::prometheus::Series;

/// Adds the edge of a series.
pub(super) fn record(graph: &mut Graph, series: &Series) {
    if series.total == 0 {
        return;
    }
    let seen = match label(series, "reporter") {
        Some("source") => Seen::Client,
        Some("destination") => Seen::Server,
        _ => {
            return graph
                .note("a series without the label reporter, source or destination: no edge");
        }
    };
    let status = label(series, "response_code").and_then(|code| code.parse().ok());
    let Some(status) = status else {
        return graph.note("a series without the label response_code: no edge");
    };
    let [source, destination] = ["source", "destination"].map(|end| metadata(series, end));
    let from = match (workload(graph.naming(), &source), seen) {
        (Some(_), _) => End::Workload(&source),
        (None, Seen::Client) => End::Unknown(UNKNOWN_REPORTER),
        (None, Seen::Server) => End::Unknown(UNKNOWN),
    };
    let host = label(series, "destination_service");
    let to = match (workload(graph.naming(), &destination), seen, host) {
        (Some(service), Seen::Client, Some(host)) => {
            graph.answers(host, &service);
            End::Workload(&destination)
        }
        (Some(_), ..) => End::Workload(&destination),
        (None, Seen::Server, _) => End::Unknown(UNKNOWN_REPORTER),
        (None, Seen::Client, host) => {
            let flags = label(series, "response_flags").unwrap_or_default();
            match host {
                Some(host) if is_unanswered(status, flags.split(',')) => End::Unresolved(host),
                host => End::Unknown(host.unwrap_or(UNKNOWN)),
            }
        }
    };
    if let Some(tally) = graph.tally(&from, &to, seen) {
        tally.add_requests(status, seen, series.total);
    }
}

/// A label that is known.
fn label<'s>(series: &'s Series, name: &str) -> Option<&'s str> {
    let value = series.labels.get(name).map(String::as_str);
    value.filter(|value| !value.is_empty() && *value != UNKNOWN)
}

/// The node metadata that the labels of one end contain.
fn metadata(series: &Series, end: &str) -> Value {
    let of = |name: &str| label(series, &format!("{end}_{name}"));
    let mut labels = json!({});
    for (key, name) in [
        ("service.istio.io/canonical-name", "canonical_service"),
        ("service.istio.io/canonical-revision", "canonical_revision"),
        ("app", "app"),
        ("version", "version"),
    ] {
        if let Some(value) = of(name) {
            labels[key] = value.into();
        }
    }
    let mut metadata = json!({ "LABELS": labels });
    for (key, name) in [
        ("WORKLOAD_NAME", "workload"),
        ("NAMESPACE", "workload_namespace"),
        ("CLUSTER_ID", "cluster"),
    ] {
        if let Some(value) = of(name) {
            metadata[key] = value.into();
        }
    }
    let node = Named {
        id: None,
        metadata: Cow::Borrowed(&metadata),
    };
    names::filled(&node).into_owned()
}

/// The name of the service with this metadata, if anything names it.
fn workload(naming: &Naming, metadata: &Value) -> Option<String> {
    let node = Named {
        id: None,
        metadata: Cow::Borrowed(metadata),
    };
    let (service, _) = names::of_node(naming, &node).ok()?;
    Some(service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Reading, Topology};

    fn series(total: u64, labels: &[(&str, &str)]) -> Series {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Series {
            labels: labels.collect(),
            total,
        }
    }

    /// `caller -> callee: client/server calls, client/server errors`
    fn edges(all: &[Series]) -> (Vec<String>, Vec<String>) {
        let mut topology = Topology::new(Naming::default(), Reading::Mesh);
        for series in all {
            topology.record_series(series);
        }
        let snapshot = topology.snapshot();
        let name = |number: usize| snapshot.workloads[number].name.as_str();
        let edges = snapshot.edges.iter().map(|edge| {
            let of = |tally: &Option<crate::topology::TallyView>| {
                tally
                    .as_ref()
                    .map_or((0, 0), |tally| (tally.calls, tally.errors))
            };
            let (client, server) = (of(&edge.client), of(&edge.server));
            format!(
                "{} -> {}: {}/{} {}/{}",
                name(edge.from),
                name(edge.to),
                client.0,
                server.0,
                client.1,
                server.1
            )
        });
        let notes = snapshot.notes.iter().map(|note| note.note.clone());
        (edges.collect(), notes.collect())
    }

    const A: [(&str, &str); 3] = [
        ("source_workload", "a-v1"),
        ("source_workload_namespace", "n"),
        ("source_canonical_service", "a"),
    ];
    const B: [(&str, &str); 2] = [
        ("destination_workload", "b"),
        ("destination_workload_namespace", "n"),
    ];
    const CLIENT: [(&str, &str); 2] = [("reporter", "source"), ("destination_service", "b.n.svc")];

    #[test]
    fn both_reporters_tell_one_edge() {
        let ok = ("response_code", "200");
        let failed = ("response_code", "503");
        let server = ("reporter", "destination");
        let (edges, notes) = edges(&[
            series(3, &[&A[..], &B, &CLIENT, &[ok]].concat()),
            series(2, &[&A[..], &B, &CLIENT, &[failed]].concat()),
            series(4, &[&A[..], &B, &[server, ok]].concat()),
            // It was not answered: the callee is known from the other calls.
            series(
                1,
                &[
                    &A[..],
                    &CLIENT,
                    &[failed, ("response_flags", "UF,URX")],
                    &[("destination_workload", "unknown")],
                ]
                .concat(),
            ),
            series(
                7,
                &[&B[..], &[server, ok, ("source_workload", "unknown")]].concat(),
            ),
            series(
                5,
                &[
                    &A[..],
                    &[
                        ("reporter", "source"),
                        ok,
                        ("destination_service", "x.example"),
                    ],
                ]
                .concat(),
            ),
        ]);
        assert_eq!(
            edges,
            [
                "a.n -> b.n: 6/4 3/0",
                "a.n -> x.example: 5/0 0/0",
                "unknown -> b.n: 0/7 0/0",
            ]
        );
        assert_eq!(notes, Vec::<String>::new());
    }

    #[test]
    fn what_is_no_standard_series_is_noted() {
        let (edges, notes) = edges(&[
            series(1, &A),
            series(1, &[("reporter", "source")]),
            // It has not risen.
            series(0, &[]),
        ]);
        assert_eq!(edges, Vec::<String>::new());
        assert_eq!(notes.len(), 2, "{notes:?}");
    }
}
