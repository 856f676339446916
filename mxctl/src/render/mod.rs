//! Renders the graph as a table, as pictures, and for other tools.

use crate::topology::{EdgeView, Snapshot, TallyView, TcpView};

pub mod dot;
pub mod html;
mod labels;
mod layout;
mod line;
pub mod mermaid;
pub mod svg;
pub mod text;

/// The label of an edge: `12 calls, 2 errors, p50 3.1 ms`, or
/// `tcp: 3 connections, 1 open, received 1.20 kB, sent 4.00 MB`, or both.
fn label(edge: &EdgeView) -> String {
    let Some(tally) = edge.main() else {
        return String::new();
    };
    let requests = (tally.calls > 0 || tally.tcp.is_none()).then(|| of_requests(tally));
    let connections = tally.tcp.as_ref().map(of_connections);
    let parts: Vec<_> = requests.into_iter().chain(connections).collect();
    parts.join("; ")
}

fn of_connections(tcp: &TcpView) -> String {
    let mut parts = Vec::new();
    parts.extend(tcp.connections.map(|count| counted(count, "connection")));
    parts.extend(tcp.open.map(|count| format!("{count} open")));
    let errors = tcp.errors.filter(|count| *count > 0);
    parts.extend(errors.map(|count| counted(count, "error")));
    parts.push(format!("received {}", bytes(tcp.received_bytes)));
    parts.push(format!("sent {}", bytes(tcp.sent_bytes)));
    format!("tcp: {}", parts.join(", "))
}

fn of_requests(tally: &TallyView) -> String {
    let mut label = counted(tally.calls, "call");
    if tally.errors > 0 {
        label.push_str(", ");
        label.push_str(&counted(tally.errors, "error"));
    }
    if let Some(latency) = &tally.latency_ms {
        label.push_str(", p50 ");
        label.push_str(&milliseconds(latency.p50));
    }
    label
}

/// What a table has of an edge's connections: the protocol, ended and open ones, errors, bytes received and sent.
fn tcp_figures(edge: &EdgeView) -> [String; 6] {
    let tallies = [&edge.client, &edge.server];
    let number = |count: Option<u64>| count.map(|count| count.to_string());
    [
        "tcp".to_owned(),
        sides(tallies, |tally| number(tally.tcp?.connections)),
        sides(tallies, |tally| number(tally.tcp?.open)),
        sides(tallies, |tally| number(tally.tcp?.errors)),
        sides(tallies, |tally| Some(bytes(tally.tcp?.received_bytes))),
        sides(tallies, |tally| Some(bytes(tally.tcp?.sent_bytes))),
    ]
}

/// A figure: a single number if the sides agree or only one saw the edge, else
/// the client's and the server's.
fn sides(tallies: [&Option<TallyView>; 2], of: impl Fn(&TallyView) -> Option<String>) -> String {
    match tallies.map(|tally| tally.as_ref().and_then(&of)) {
        [Some(client), Some(server)] if client != server => format!("{client} / {server}"),
        [Some(figure), _] | [None, Some(figure)] => figure,
        [None, None] => String::new(),
    }
}

/// The labels of all edges.
fn labels(snapshot: &Snapshot) -> Vec<String> {
    snapshot.edges.iter().map(label).collect()
}

/// `1 call`, `2 calls`
#[must_use]
pub fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Formats milliseconds with three significant digits.
fn milliseconds(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.2} ms"),
        ..100.0 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

/// Formats bytes with three significant digits.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let mut units = ["kB", "MB", "GB", "TB", "PB", "EB"].into_iter();
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    #[allow(clippy::cast_precision_loss)] // Three digits are shown.
    let mut value = bytes as f64 / 1000.0;
    let mut unit = units.next().unwrap_or_default();
    // What would be rounded to 1000 is 1 of the next unit.
    while value >= 999.5 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1000.0, next);
    }
    match value {
        ..9.995 => format!("{value:.2} {unit}"),
        ..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// Whether the edge is drawn as failing: at least one call or connection in twenty fails.
fn is_failing(tally: &TallyView) -> bool {
    let fails = |errors: u64, all: u64| errors > 0 && errors.saturating_mul(20) >= all;
    let tcp = tally.tcp.as_ref();
    let counts = tcp.and_then(|tcp| tcp.errors.zip(tcp.connections));
    fails(tally.errors, tally.calls) || counts.is_some_and(|(errors, all)| fails(errors, all))
}

/// A graph of names that try to break each output.
#[cfg(test)]
pub(crate) fn hostile() -> Snapshot {
    use crate::naming::Naming;
    use crate::topology::{Reading, Topology};
    use access_log::Entry;
    let mut topology = Topology::new(Naming::default(), Reading::Mesh);
    let line = serde_json::json!({
        "version": 1,
        "reporter": { "log": "x/outbound", "id": "sidecar~1~a~b", "metadata": {
            "NAME": "\u{1b}]0;owned\u{7}", "NAMESPACE": "shop",
            "LABELS": { "app": "\u{1b}[2J\u{202e}evil\u{ffff}" } } },
        "protocol": "http", "status": 503, "duration_us": 2_000,
        "state": { "wasm.upstream_peer": { "kind": "flat", "metadata": {
            "NAME": "\"><img src=x onerror=alert(2)>", "NAMESPACE": "shop",
            "LABELS": { "app": "<script>alert(1)</script>\"];`click`" } } } },
    });
    topology.record(&Entry::of_line(&line.to_string()).unwrap());
    topology.snapshot()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_contained_in_every_output() {
        let snapshot = hostile();
        for (name, output) in [
            ("text", text::table(&snapshot, None)),
            ("svg", svg::draw(&snapshot)),
            ("dot", dot::draw(&snapshot)),
            ("mermaid", mermaid::draw(&snapshot)),
            ("html", html::page(&snapshot).unwrap()),
        ] {
            assert!(
                !output.contains(['\x1b', '\u{7}', '\u{202e}']),
                "{name}: {output}"
            );
            assert!(output.contains("alert"), "{name} lacks the name: {output}");
            if name != "text" && name != "dot" {
                assert!(!output.contains("<script>alert"), "{name}: {output}");
                assert!(!output.contains("<img"), "{name}: {output}");
            }
        }
        let svg = svg::draw(&snapshot);
        assert!(roxmltree::Document::parse(&svg).is_ok(), "{svg}");
        assert!(dot::draw(&snapshot).contains("alert(1)</script>\\\"];`click`"));
    }

    #[test]
    fn labels_are_short() {
        let snapshot = hostile();
        // Percentiles are exact to one percent.
        assert_eq!(label(&snapshot.edges[0]), "1 call, 1 error, p50 2.01 ms");
        assert_eq!(milliseconds(12.34), "12.3 ms");
        assert_eq!(milliseconds(1234.5), "1234 ms");
        assert!(is_failing(snapshot.edges[0].main().unwrap()));
    }

    /// A graph of `lines` by these rules.
    fn graph(reading: crate::topology::Reading, lines: &[&str]) -> Snapshot {
        let mut topology =
            crate::topology::Topology::new(crate::naming::Naming::default(), reading);
        for line in lines {
            topology.record(&access_log::Entry::of_line(line).unwrap());
        }
        topology.snapshot()
    }

    #[test]
    fn connections_are_shown_by_every_output() {
        use crate::topology::Reading;
        let line = |protocol: &str, more: &str| {
            format!(
                r#"{{"version":1,"reporter":{{"log":"a/outbound","metadata":{{"NAMESPACE":"n","LABELS":{{"app":"a"}}}}}},
                "protocol":"{protocol}","status":200,{more}"state":{{"wasm.upstream_peer":{{"kind":"flat",
                "metadata":{{"NAMESPACE":"n","LABELS":{{"app":"db"}}}}}}}}}}"#
            )
        };
        let ended = line(
            "tcp",
            r#""stream_id":"1","received_bytes":1200,"sent_bytes":4000000,"#,
        );
        let open = line(
            "tcp",
            r#""stream_id":"2","intermediate":true,"sent_bytes":1,"#,
        );
        let failed = line("tcp", r#""flags":["UF"],"#);
        let http = line("http", "");
        for (reading, lines, expected) in [
            (
                Reading::Mesh,
                [&*ended, &*ended],
                "tcp: 2 connections, received 2.40 kB, sent 8.00 MB",
            ),
            (
                Reading::Mesh,
                [&*ended, &*open],
                "tcp: 1 connection, 1 open, received 1.20 kB, sent 4.00 MB",
            ),
            (
                Reading::Mesh,
                [&*failed, &*http],
                "1 call; tcp: 1 connection, 1 error, received 0 B, sent 0 B",
            ),
            (
                Reading::Skywalking,
                [&*ended, &*http],
                "1 call; tcp: received 1.20 kB, sent 4.00 MB",
            ),
        ] {
            let snapshot = graph(reading, &lines);
            assert_eq!(label(&snapshot.edges[0]), expected);
            for (name, output) in [
                ("svg", svg::draw(&snapshot)),
                ("dot", dot::draw(&snapshot)),
                ("mermaid", mermaid::draw(&snapshot)),
                ("html", html::page(&snapshot).unwrap()),
            ] {
                assert!(output.contains(expected), "{name}: {output}");
            }
        }
        let words = |reading, lines: &[&str]| -> Vec<String> {
            let table = text::table(&graph(reading, lines), None);
            let rows = table.lines().filter(|line| line.contains("a.n ("));
            let words = rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "));
            words.collect()
        };
        assert_eq!(
            words(Reading::Mesh, &[&ended, &open, &http]),
            [
                "a.n (unknown) db.n (unknown) client 1 0 0",
                "a.n (unknown) db.n (unknown) client tcp 1 1 0 1.20 kB 4.00 MB",
            ]
        );
        // Without entries of open connections there is no such column, and without requests no table of theirs.
        assert_eq!(
            words(Reading::Mesh, &[&ended]),
            ["a.n (unknown) db.n (unknown) client tcp 1 0 1.20 kB 4.00 MB"]
        );
        assert_eq!(
            words(Reading::Skywalking, &[&ended]),
            ["a.n (unknown) db.n (unknown) client tcp 1.20 kB 4.00 MB"]
        );
        let failing = graph(Reading::Mesh, &[&failed]);
        assert!(is_failing(failing.edges[0].main().unwrap()));
    }

    #[test]
    fn bytes_have_three_digits() {
        for (count, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_995, "10.0 kB"),
            (99_949, "99.9 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (12_345_678_900, "12.3 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }
}
