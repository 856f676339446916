//! Where the parts of the drawn graph stand: callers left of callees.

use std::collections::BTreeSet;

use rust_sugiyama::configure::{Config, RankingType};
use serde::Serialize;

use crate::topology::{EdgeView, Snapshot};

/// The size of a workload's box.
pub(super) const BOX: (f64, f64) = (216.0, 46.0);
/// Between layers, for the labels of edges.
const LAYER_GAP: f64 = 180.0;
/// Between boxes of a layer.
const ROW_GAP: f64 = 34.0;
const MARGIN: f64 = 30.0;
/// Beyond this, layers and crossings take too long, and tell nobody anything:
/// the workloads then stand in rows.
const MAX_LAYERED_EDGES: usize = 400;

/// The drawing's size and places.
#[derive(Debug, Serialize)]
pub(super) struct Layout {
    pub(super) width: f64,
    pub(super) height: f64,
    /// The centre of each workload's box.
    pub(super) workloads: Vec<(f64, f64)>,
    /// The line of each edge.
    pub(super) edges: Vec<Line>,
}

/// A line, as an SVG path, and where its label stands.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) path: String,
    pub(super) label: (f64, f64),
}

impl Layout {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let edges = edges_to_lay_out(&snapshot.edges);
        let mut places = if edges.len() > MAX_LAYERED_EDGES {
            in_rows(snapshot.workloads.len())
        } else {
            in_layers(snapshot.workloads.len(), &edges)
        };
        let (mut width, mut height) = (BOX.0, BOX.1);
        for (x, y) in &mut places {
            *x += MARGIN;
            *y += MARGIN;
            width = width.max(*x + BOX.0 / 2.0);
            height = height.max(*y + BOX.1 / 2.0);
        }
        let pairs: BTreeSet<_> = snapshot
            .edges
            .iter()
            .map(|edge| (edge.from, edge.to))
            .collect();
        let lines = snapshot.edges.iter().map(|edge| {
            let is_mutual = pairs.contains(&(edge.to, edge.from));
            line(places[edge.from], places[edge.to], is_mutual)
        });
        Self {
            width: width + MARGIN,
            // Room for the arcs below the lowest boxes.
            height: height + MARGIN + BOX.1,
            edges: lines.collect(),
            workloads: places,
        }
    }
}

/// Each pair once, none to itself.
fn edges_to_lay_out(edges: &[EdgeView]) -> Vec<(u32, u32)> {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let between = edges.iter().filter(|edge| edge.from != edge.to);
    let pairs: BTreeSet<_> = between
        .map(|edge| (number(edge.from), number(edge.to)))
        .collect();
    pairs.into_iter().collect()
}

fn in_layers(workloads: usize, edges: &[(u32, u32)]) -> Vec<(f64, f64)> {
    // The library's layers go from top to bottom; here they go from left to
    // right: so each box is turned.
    let size = (BOX.1 + ROW_GAP, BOX.0 + LAYER_GAP);
    let vertices: Vec<_> = (0..workloads)
        .filter_map(|number| Some((u32::try_from(number).ok()?, size)))
        .collect();
    let config = Config {
        vertex_spacing: 1.0,
        // The library's default, the shortest edges, never ends on some graphs with
        // cycles. Moved up, each stands right after the last of its callers.
        ranking_type: RankingType::Up,
        ..Config::default()
    };
    let parts = rust_sugiyama::from_vertices_and_edges(&vertices, edges, &config);
    let mut places = vec![(0.0, 0.0); workloads];
    let mut top = 0.0;
    for (part, _, _) in parts {
        let least = |of: fn(&(f64, f64)) -> f64| {
            let values = part.iter().map(|(_, place)| of(place));
            values.fold(f64::INFINITY, f64::min)
        };
        let (first_row, first_layer) = (least(|place| place.0), least(|place| place.1));
        let mut bottom: f64 = top;
        for (number, (row, layer)) in part {
            let y = top + row - first_row + BOX.1 / 2.0;
            let x = layer - first_layer + BOX.0 / 2.0;
            if let Some(place) = places.get_mut(number) {
                *place = (x, y);
            }
            bottom = bottom.max(y + BOX.1 / 2.0 + ROW_GAP);
        }
        top = bottom;
    }
    places
}

fn in_rows(workloads: usize) -> Vec<(f64, f64)> {
    let columns = workloads.isqrt().max(1);
    #[allow(clippy::cast_precision_loss)] // A few thousand.
    let place = |number: usize| {
        let (column, row) = ((number % columns) as f64, (number / columns) as f64);
        let x = column * (BOX.0 + LAYER_GAP / 2.0) + BOX.0 / 2.0;
        (x, row * (BOX.1 + ROW_GAP) + BOX.1 / 2.0)
    };
    (0..workloads).map(place).collect()
}

/// From the right of one box to the left of another, or in an arc below them.
fn line(from: (f64, f64), to: (f64, f64), is_mutual: bool) -> Line {
    let half = BOX.0 / 2.0;
    if to.0 > from.0 + BOX.0 {
        let (x1, x2) = (from.0 + half, to.0 - half);
        let bend = (x2 - x1) / 2.0;
        let shift = if is_mutual { -6.0 } else { 0.0 };
        let (y1, y2) = (from.1 + shift, to.1 + shift);
        return Line {
            path: format!(
                "M{x1:.1},{y1:.1} C{:.1},{y1:.1} {:.1},{y2:.1} {x2:.1},{y2:.1}",
                x1 + bend,
                x2 - bend
            ),
            label: (x1 + bend, f64::midpoint(y1, y2) - 5.0),
        };
    }
    // Backwards, within a layer, or to itself.
    let foot = BOX.1 / 2.0;
    let (x1, y1) = (from.0 + half / 2.0, from.1 + foot);
    let (x2, y2) = (to.0 - half / 2.0, to.1 + foot);
    let low = y1.max(y2) + BOX.1;
    Line {
        path: format!("M{x1:.1},{y1:.1} C{x1:.1},{low:.1} {x2:.1},{low:.1} {x2:.1},{y2:.1}"),
        // Below the lowest point of the arc.
        label: (
            f64::midpoint(x1, x2),
            f64::midpoint(y1, y2) * 0.25 + low * 0.75 + 13.0,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Kind, Reading, WorkloadView};

    fn graph(workloads: usize, edges: impl Iterator<Item = (usize, usize)>) -> Snapshot {
        let workload = |number: usize| WorkloadView {
            name: format!("w{number}"),
            kind: Kind::Pod,
            instances: Vec::new(),
            further_instances: 0,
        };
        let edge = |(from, to)| EdgeView {
            from,
            to,
            client: None,
            server: None,
        };
        Snapshot {
            reading: Reading::Mesh,
            entries: 0,
            workloads: (0..workloads).map(workload).collect(),
            edges: edges.map(edge).collect(),
            notes: Vec::new(),
        }
    }

    fn assert_apart(layout: &Layout) {
        let places = &layout.workloads;
        for (number, (x, y)) in places.iter().enumerate() {
            let inside = (0.0..layout.width).contains(x) && (0.0..layout.height).contains(y);
            assert!(inside, "{number} at {x},{y} is outside");
            for (other, (x2, y2)) in places.iter().enumerate().skip(number + 1) {
                let apart = (x - x2).abs() >= BOX.0 || (y - y2).abs() >= BOX.1;
                assert!(apart, "{number} at {x},{y} is on {other} at {x2},{y2}");
            }
        }
    }

    #[test]
    fn boxes_stand_apart_whatever_the_graph() {
        let ring = (0..7).map(|number| (number, (number + 1) % 7));
        let star = (1..40).map(|number| (0, number));
        let dense = (0..400).map(|number| (number % 29, (number * 7 + number / 29) % 31));
        let parts = (0..20).map(|number| (2 * number, 2 * number + 1));
        let crowd = (0..5000).map(|number| (number % 1999, (number * 31) % 2000));
        for snapshot in [
            graph(0, std::iter::empty()),
            graph(3, std::iter::empty()),
            graph(2, [(0, 1), (1, 0), (0, 0)].into_iter()),
            graph(7, ring),
            graph(40, star),
            graph(31, dense),
            graph(40, parts),
            graph(2000, crowd),
        ] {
            assert_apart(&Layout::of(&snapshot));
        }
    }

    /// Draws them on a thread: one that never ends is a failure, not a wait.
    fn assert_ends(graphs: Vec<(usize, Vec<(usize, usize)>)>) {
        let (drawn, is_drawn) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (workloads, edges) in graphs {
                let snapshot = graph(workloads, edges.iter().copied());
                assert_apart(&Layout::of(&snapshot));
                // The test may have ended.
                let _ = drawn.send(Some(edges));
            }
            let _ = drawn.send(None);
        });
        let mut last = None;
        loop {
            match is_drawn.recv_timeout(std::time::Duration::from_mins(1)) {
                Ok(Some(edges)) => last = Some(edges),
                Ok(None) => return,
                Err(error) => panic!("{error}: the graph after {last:?} is not drawn"),
            }
        }
    }

    #[test]
    fn a_graph_with_cycles_is_drawn() {
        #[rustfmt::skip]
        let edges = vec![
            (0, 19), (4, 2), (7, 0), (2, 5), (26, 19), (12, 26), (17, 28), (2, 12), (0, 7),
            (19, 15), (29, 9), (9, 8), (5, 16), (2, 0), (8, 29), (15, 8), (5, 21), (21, 7),
        ];
        assert_ends(vec![(30, edges)]);
    }

    #[test]
    fn random_graphs_with_cycles_are_drawn() {
        // A linear congruential generator is random enough, and the same each time.
        let mut state = 1_u64;
        let mut below = |bound: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % bound
        };
        let graphs = (0..150).map(|number| {
            let (workloads, calls) = [(30, 60), (12, 40), (50, 55)][number % 3];
            let edges = (0..calls).map(|_| (below(workloads), below(workloads)));
            (workloads, edges.collect())
        });
        assert_ends(graphs.collect());
    }

    #[test]
    fn callers_stand_left_of_callees() {
        let chain = graph(4, [(0, 1), (1, 2), (2, 3)].into_iter());
        let layout = Layout::of(&chain);
        let xs: Vec<_> = layout.workloads.iter().map(|(x, _)| *x).collect();
        assert!(xs.is_sorted_by(|a, b| a < b), "{xs:?}");
    }
}
