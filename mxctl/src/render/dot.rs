//! The graph for Graphviz.

use std::fmt::Write as _;

use super::{is_failing, label};
use crate::escape;
use crate::topology::{Kind, Snapshot};

/// The graph in the DOT language.
#[must_use]
pub fn draw(snapshot: &Snapshot) -> String {
    let mut dot = String::from(
        "digraph mesh {\n  rankdir=LR;\n  node [fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n",
    );
    for (number, workload) in snapshot.workloads.iter().enumerate() {
        let style = match workload.kind {
            Kind::Pod => "shape=box, style=rounded",
            Kind::Vm => "shape=box3d",
            Kind::Mixed => "shape=box, style=rounded, peripheries=2",
            Kind::Gateway => "shape=hexagon",
            Kind::Unknown => "shape=ellipse, style=dashed",
        };
        let (name, kind) = (escape::dot(&workload.name), workload.kind.name());
        // Writing to a String cannot fail.
        let _ = writeln!(dot, "  w{number} [label=\"{name}\\n{kind}\", {style}];");
    }
    for edge in &snapshot.edges {
        let colour = if edge.main().is_some_and(is_failing) {
            ", color=red, fontcolor=red"
        } else {
            ""
        };
        let (from, to, label) = (edge.from, edge.to, label(edge));
        let _ = writeln!(dot, "  w{from} -> w{to} [label=\"{label}\"{colour}];");
    }
    dot.push_str("}\n");
    dot
}
