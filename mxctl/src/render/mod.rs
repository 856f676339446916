//! Renders the graph as a table, as pictures, and for other tools.

use crate::topology::{EdgeView, Snapshot, TallyView};

pub mod dot;
pub mod html;
mod labels;
mod layout;
mod line;
pub mod mermaid;
pub mod svg;
pub mod text;

/// The label of an edge: `12 calls, 2 errors, p50 3.1 ms`.
fn label(edge: &EdgeView) -> String {
    let Some(tally) = edge.main() else {
        return String::new();
    };
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

/// Whether the edge is drawn as failing: at least one call in twenty fails.
fn is_failing(tally: &TallyView) -> bool {
    tally.errors > 0 && tally.errors.saturating_mul(20) >= tally.calls
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
}
