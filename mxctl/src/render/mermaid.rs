//! The graph for Mermaid, as Markdown viewers draw it.

use std::fmt::Write as _;

use super::{is_failing, label};
use crate::escape;
use crate::topology::{Kind, Snapshot};

/// The graph as a flowchart.
#[must_use]
pub fn draw(snapshot: &Snapshot) -> String {
    let mut mermaid = String::from("flowchart LR\n");
    for (number, workload) in snapshot.workloads.iter().enumerate() {
        let [open, close] = match workload.kind {
            Kind::Pod => ["(", ")"],
            Kind::Vm => ["[", "]"],
            Kind::Mixed => ["[[", "]]"],
            Kind::Gateway => ["{{", "}}"],
            Kind::Unknown => ["([", "])"],
        };
        let (name, kind) = (escape::mermaid(&workload.name), workload.kind.name());
        // Writing to a String cannot fail.
        let _ = writeln!(mermaid, "  w{number}{open}\"{name}<br/>{kind}\"{close}");
    }
    for (number, edge) in snapshot.edges.iter().enumerate() {
        let (from, to, label) = (edge.from, edge.to, label(edge));
        let _ = writeln!(mermaid, "  w{from} -->|\"{label}\"| w{to}");
        if edge.main().is_some_and(is_failing) {
            let _ = writeln!(mermaid, "  linkStyle {number} stroke:red");
        }
    }
    mermaid
}
