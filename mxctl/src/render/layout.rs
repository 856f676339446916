//! The layout of the graph: callers left of callees, or above them in narrow windows.

use std::collections::BTreeSet;

use rust_sugiyama::configure::{Config, RankingType};
use serde::Serialize;

use super::labels::{Placer, width_of};
use super::line::{BOX, Curve, Way};
use crate::topology::{EdgeView, Snapshot};

/// The minimum gap between layers, for the labels of edges.
const LAYER_GAP: f64 = 180.0;
/// The space beside a label between two layers.
const BESIDE_LABEL: f64 = 30.0;
/// The gap between boxes of a layer.
const ROW_GAP: f64 = 34.0;
/// Gaps between rows of a stacked drawing; the first with room for all labels is used.
const STACKED_GAPS: [f64; 4] = [64.0, 96.0, 144.0, 216.0];
/// The most boxes in a row of a stacked drawing: on a screen, and on a phone.
pub(super) const COLUMNS: [usize; 2] = [5, 2];
const MARGIN: f64 = 30.0;
/// Beyond this, the layered layout takes too long and is unreadable: workloads are then drawn in
/// rows, and edges without labels.
const MAX_LAYERED_EDGES: usize = 400;

/// The drawing's size and positions.
#[derive(Debug, Serialize)]
pub(super) struct Layout {
    pub(super) width: f64,
    pub(super) height: f64,
    /// The centre of each workload's box.
    pub(super) workloads: Vec<(f64, f64)>,
    /// The line of each edge.
    pub(super) edges: Vec<Line>,
}

/// A line as an SVG path, and the middle of its label's base line. A label that would overlap a box
/// or another label is left out.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) path: String,
    pub(super) label: Option<(f64, f64)>,
}

/// The position of each box, the direction of edges, and whether they have labels.
struct Places {
    boxes: Vec<(f64, f64)>,
    way: Way,
    has_labels: bool,
}

impl Layout {
    /// Callers left of callees.
    pub(super) fn of(snapshot: &Snapshot, labels: &[String]) -> Self {
        Self::new(snapshot, labels, wide(snapshot, labels))
    }

    /// Callers above callees, at most `columns` side by side, for narrow windows.
    pub(super) fn stacked(snapshot: &Snapshot, labels: &[String], columns: usize) -> Self {
        let wide = wide(snapshot, labels);
        let lay_out = |gap| {
            let boxes = stacked(&wide.boxes, columns, gap);
            let (way, has_labels) = (Way::Down, wide.has_labels);
            Self::new(
                snapshot,
                labels,
                Places {
                    boxes,
                    way,
                    has_labels,
                },
            )
        };
        let [first, rest @ ..] = STACKED_GAPS;
        let is_whole = |layout: &Self| layout.edges.iter().all(|line| line.label.is_some());
        rest.into_iter().fold(lay_out(first), |layout, gap| {
            if is_whole(&layout) || !wide.has_labels {
                layout
            } else {
                lay_out(gap)
            }
        })
    }

    fn new(snapshot: &Snapshot, labels: &[String], laid_out: Places) -> Self {
        let Places {
            boxes: mut positions,
            way,
            has_labels,
        } = laid_out;
        let (mut width, mut height) = (BOX.0, BOX.1);
        for (x, y) in &mut positions {
            *x += MARGIN;
            *y += MARGIN;
            width = width.max(*x + BOX.0 / 2.0);
            height = height.max(*y + BOX.1 / 2.0);
        }
        let width = width + MARGIN;
        // Room for the arcs below the lowest boxes.
        let height = height + MARGIN + BOX.1;
        let pairs: BTreeSet<_> = snapshot
            .edges
            .iter()
            .map(|edge| (edge.from, edge.to))
            .collect();
        let mut placer = Placer::new((width, height), &positions);
        let lines = snapshot.edges.iter().zip(labels).map(|(edge, label)| {
            let is_mutual = pairs.contains(&(edge.to, edge.from));
            let curve = Curve::new(way, positions[edge.from], positions[edge.to], is_mutual);
            Line {
                path: curve.path(),
                label: has_labels.then(|| placer.place(&curve, label)).flatten(),
            }
        });
        Self {
            width,
            height,
            edges: lines.collect(),
            workloads: positions,
        }
    }
}

fn wide(snapshot: &Snapshot, labels: &[String]) -> Places {
    let edges = edges_to_lay_out(&snapshot.edges);
    let has_labels = edges.len() <= MAX_LAYERED_EDGES;
    let widest = labels.iter().map(|label| width_of(label));
    let gap = widest.fold(LAYER_GAP, |gap, width| gap.max(width + BESIDE_LABEL));
    let boxes = if has_labels {
        in_layers(snapshot.workloads.len(), &edges, gap)
    } else {
        in_rows(snapshot.workloads.len())
    };
    Places {
        boxes,
        way: Way::Right,
        has_labels,
    }
}

/// The boxes of each layer in rows, one below the other with `gap` between.
fn stacked(positions: &[(f64, f64)], columns: usize, gap: f64) -> Vec<(f64, f64)> {
    let mut order: Vec<_> = positions.iter().copied().zip(0_usize..).collect();
    order.sort_by(|((x, y), _), ((x2, y2), _)| x.total_cmp(x2).then(y.total_cmp(y2)));
    let mut stacked = vec![(0.0, 0.0); positions.len()];
    let mut top = BOX.1 / 2.0;
    #[allow(clippy::float_cmp)] // Boxes of a layer have exactly the same coordinate.
    let layers = order.chunk_by(|((x, _), _), ((x2, _), _)| x == x2);
    let rows: Vec<_> = layers.flat_map(|layer| layer.chunks(columns)).collect();
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or_default();
    for row in rows {
        // Shorter rows are centred.
        #[allow(clippy::cast_precision_loss)] // Some columns.
        let missing = (longest - row.len()) as f64;
        let mut x = BOX.0 / 2.0 + missing * (BOX.0 + ROW_GAP) / 2.0;
        for (_, number) in row {
            if let Some(position) = stacked.get_mut(*number) {
                *position = (x, top);
            }
            x += BOX.0 + ROW_GAP;
        }
        top += BOX.1 + gap;
    }
    stacked
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

fn in_layers(workloads: usize, edges: &[(u32, u32)], gap: f64) -> Vec<(f64, f64)> {
    // The library arranges layers from top to bottom; here they go from left to right, so x and y
    // are swapped.
    let size = (BOX.1 + ROW_GAP, BOX.0 + gap);
    let vertices: Vec<_> = (0..workloads)
        .filter_map(|number| Some((u32::try_from(number).ok()?, size)))
        .collect();
    let config = Config {
        vertex_spacing: 1.0,
        // The library's default, shortest edges, does not terminate on some graphs with cycles.
        // `Up` places each box right after the last of its callers.
        ranking_type: RankingType::Up,
        ..Config::default()
    };
    let parts = rust_sugiyama::from_vertices_and_edges(&vertices, edges, &config);
    let mut positions = vec![(0.0, 0.0); workloads];
    let mut top = 0.0;
    for (part, _, _) in parts {
        let least = |of: fn(&(f64, f64)) -> f64| {
            let values = part.iter().map(|(_, position)| of(position));
            values.fold(f64::INFINITY, f64::min)
        };
        let (first_row, first_layer) = (least(|position| position.0), least(|position| position.1));
        let mut bottom: f64 = top;
        for (number, (row, layer)) in part {
            let y = top + row - first_row + BOX.1 / 2.0;
            let x = layer - first_layer + BOX.0 / 2.0;
            if let Some(position) = positions.get_mut(number) {
                *position = (x, y);
            }
            bottom = bottom.max(y + BOX.1 / 2.0 + ROW_GAP);
        }
        top = bottom;
    }
    positions
}

fn in_rows(workloads: usize) -> Vec<(f64, f64)> {
    let columns = workloads.isqrt().max(1);
    #[allow(clippy::cast_precision_loss)] // A few thousand.
    let position = |number: usize| {
        let (column, row) = ((number % columns) as f64, (number / columns) as f64);
        let x = column * (BOX.0 + LAYER_GAP / 2.0) + BOX.0 / 2.0;
        (x, row * (BOX.1 + ROW_GAP) + BOX.1 / 2.0)
    };
    (0..workloads).map(position).collect()
}

#[cfg(test)]
mod tests {
    use super::super::labels::Rect;
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
        let positions = &layout.workloads;
        for (number, (x, y)) in positions.iter().enumerate() {
            let inside = (0.0..layout.width).contains(x) && (0.0..layout.height).contains(y);
            assert!(inside, "{number} at {x},{y} is outside");
            for (other, (x2, y2)) in positions.iter().enumerate().skip(number + 1) {
                let apart = (x - x2).abs() >= BOX.0 || (y - y2).abs() >= BOX.1;
                assert!(apart, "{number} at {x},{y} is on {other} at {x2},{y2}");
            }
        }
    }

    fn labels(snapshot: &Snapshot) -> Vec<String> {
        let label = |number: usize| format!("{} calls, {number} errors, p50 3.12 ms", number * 977);
        (0..snapshot.edges.len()).map(label).collect()
    }

    /// Checks boxes and labels of all drawings; returns the number of labels.
    fn assert_labels_apart(snapshot: &Snapshot) -> Vec<usize> {
        let labels = labels(snapshot);
        let stacked = COLUMNS.map(|columns| Layout::stacked(snapshot, &labels, columns));
        let layouts = [Layout::of(snapshot, &labels)].into_iter().chain(stacked);
        let apart = layouts.map(|layout| {
            assert_apart(&layout);
            let placed = layout.edges.iter().zip(&labels);
            let placed: Vec<_> = placed
                .filter_map(|(line, label)| Some(Rect::of_label(line.label?, label)))
                .collect();
            let whole = Rect::new((0.0, 0.0), (layout.width, layout.height));
            for (number, label) in placed.iter().enumerate() {
                assert!(whole.contains(label), "{label:?} is outside");
                for position in &layout.workloads {
                    assert!(
                        !label.overlaps(&Rect::of_box(*position)),
                        "{label:?} is on a box"
                    );
                }
                for other in &placed[number + 1..] {
                    assert!(!label.overlaps(other), "{label:?} is on {other:?}");
                }
            }
            placed.len()
        });
        apart.collect()
    }

    #[test]
    fn a_mesh_of_usual_size_has_all_its_labels() {
        // The Online Boutique behind a gateway, and two workloads that call each other.
        #[rustfmt::skip]
        let edges = [
            (0, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (1, 8), (7, 3), (7, 4),
            (7, 2), (7, 6), (7, 9), (7, 10), (8, 4), (9, 11), (11, 9), (3, 3),
        ];
        let snapshot = graph(12, edges.into_iter());
        assert_eq!(assert_labels_apart(&snapshot), [edges.len(); 3]);
    }

    #[test]
    fn a_stacked_drawing_has_so_many_columns_at_most() {
        let snapshot = graph(40, (1..40).map(|number| (0, number)));
        let layout = Layout::stacked(&snapshot, &labels(&snapshot), 2);
        assert!(
            layout.width <= 2.0 * BOX.0 + ROW_GAP + 2.0 * MARGIN,
            "{}",
            layout.width
        );
    }

    #[test]
    fn boxes_never_overlap() {
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
            assert_labels_apart(&snapshot);
        }
    }

    /// Draws on a thread, so that a layout that does not terminate fails the test.
    fn assert_ends(graphs: Vec<(usize, Vec<(usize, usize)>)>) {
        let (drawn, is_drawn) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (workloads, edges) in graphs {
                let snapshot = graph(workloads, edges.iter().copied());
                assert_labels_apart(&snapshot);
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
        // A linear congruential generator is random enough and reproducible.
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
    fn callers_are_left_of_callees() {
        let chain = graph(4, [(0, 1), (1, 2), (2, 3)].into_iter());
        let layout = Layout::of(&chain, &labels(&chain));
        let xs: Vec<_> = layout.workloads.iter().map(|(x, _)| *x).collect();
        assert!(xs.is_sorted_by(|a, b| a < b), "{xs:?}");
    }
}
