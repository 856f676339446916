//! The graph as an SVG picture.

use std::fmt::Write as _;

use super::layout::Layout;
use super::line::BOX;
use super::{is_failing, labels};
use crate::escape;
use crate::topology::{Kind, Snapshot, WorkloadView};

/// How many characters of a name fit into its box.
const NAME_LENGTH: usize = 26;

/// The style sheet of drawings, here and on the live page.
pub(super) const STYLE: &str = include_str!("graph.css");

/// The outline of a box around its centre, different for each kind. The live
/// page uses it as well.
pub(super) fn outline(kind: Kind) -> String {
    let (w, h) = (BOX.0 / 2.0, BOX.1 / 2.0);
    match kind {
        // The edges that give the VM's box depth.
        Kind::Vm => format!(
            "M-{w},-{h}H{w}V{h}H-{w}Z M-{w},-{h}l7,-7H{}L{w},-{h} M{},-{}V{}L{w},{h}",
            w + 7.0,
            w + 7.0,
            h + 7.0,
            h - 7.0
        ),
        Kind::Gateway => format!(
            "M-{w},0L-{},-{h}H{}L{w},0L{},{h}H-{}Z",
            w - 16.0,
            w - 16.0,
            w - 16.0,
            w - 16.0
        ),
        Kind::Pod => rounded(w, h, 14.0),
        Kind::Unknown => rounded(w, h, h),
        Kind::Mixed => format!(
            "{} {}",
            rounded(w, h, 14.0),
            rounded(w - 4.0, h - 4.0, 10.0)
        ),
    }
}

fn rounded(w: f64, h: f64, r: f64) -> String {
    format!(
        "M{},-{h}H{}a{r},{r} 0 0 1 {r},{r}V{}a{r},{r} 0 0 1 -{r},{r}H-{}a{r},{r} 0 0 1 -{r},-{r}V-{}a{r},{r} 0 0 1 {r},-{r}Z",
        r - w,
        w - r,
        h - r,
        w - r,
        h - r
    )
}

/// The name as shown in its box.
pub(super) fn short(name: &str) -> String {
    let name = escape::visible(name);
    if name.chars().count() <= NAME_LENGTH {
        return name;
    }
    let start: String = name.chars().take(NAME_LENGTH - 1).collect();
    format!("{start}\u{2026}")
}

/// The picture.
#[must_use]
pub fn draw(snapshot: &Snapshot) -> String {
    let labels = labels(snapshot);
    let layout = Layout::of(snapshot, &labels);
    let (width, height) = (layout.width, layout.height);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">\n<title>Call graph</title>\n\
         <style>{STYLE}</style>\n<rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n\
         <defs>{}{}</defs>\n",
        tip("tip"),
        tip("failing-tip"),
    );
    let edges = snapshot.edges.iter().zip(&layout.edges).zip(&labels);
    for ((edge, line), label) in edges {
        let failing = edge.main().is_some_and(is_failing);
        let (class, tip) = if failing {
            ("edge failing", "failing-tip")
        } else {
            ("edge", "tip")
        };
        let path = &line.path;
        let text = line.label.map_or_else(String::new, |(x, y)| {
            format!("<text x=\"{x:.1}\" y=\"{y:.1}\">{label}</text>")
        });
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<g class=\"{class}\"><title>{label}</title>\
             <path d=\"{path}\" marker-end=\"url(#{tip})\"/>{text}</g>"
        );
    }
    for (workload, position) in snapshot.workloads.iter().zip(&layout.workloads) {
        svg.push_str(&drawn(workload, *position));
    }
    svg.push_str("</svg>\n");
    svg
}

fn tip(id: &str) -> String {
    format!(
        "<marker id=\"{id}\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto\" markerUnits=\"userSpaceOnUse\"><path d=\"M0,0L8,4L0,8Z\"/></marker>"
    )
}

fn drawn(workload: &WorkloadView, (x, y): (f64, f64)) -> String {
    let kind = workload.kind;
    format!(
        "<g class=\"workload {class}\" transform=\"translate({x:.1},{y:.1})\"><title>{full}</title>\
         <path d=\"{outline}\"/><text y=\"-3\">{name}</text><text class=\"kind\" y=\"13\">{kind}</text></g>\n",
        class = class(kind),
        full = escape::html(&workload.name),
        outline = outline(kind),
        name = escape::entities(&short(&workload.name)),
        kind = kind.name(),
    )
}

pub(super) fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Pod => "pod",
        Kind::Vm => "vm",
        Kind::Mixed => "mixed",
        Kind::Gateway => "gateway",
        Kind::Unknown => "nobody",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_shortened_and_complete_in_the_title() {
        let long = "a".repeat(40);
        assert_eq!(short(&long).chars().count(), NAME_LENGTH);
        assert_eq!(short("\u{1b}"), "\\u{1b}");
    }

    #[test]
    fn equal_graphs_are_equal_pictures() {
        let snapshot = super::super::hostile();
        assert_eq!(draw(&snapshot), draw(&snapshot));
    }
}
