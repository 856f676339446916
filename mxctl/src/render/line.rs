//! The curve of an edge between two boxes.

/// The size of a workload's box.
pub(super) const BOX: (f64, f64) = (216.0, 46.0);

/// The direction of edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From left to right.
    Right,
    /// From top to bottom.
    Down,
}

/// A cubic Bezier curve, given by its four points.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curve([(f64, f64); 4]);

impl Curve {
    /// The curve from one box to another, either along the direction of edges or in an arc below
    /// the boxes. Opposite edges between two boxes are drawn apart.
    pub(super) fn new(way: Way, from: (f64, f64), to: (f64, f64), is_mutual: bool) -> Self {
        match way {
            Way::Right if to.0 > from.0 + BOX.0 => Self::right(from, to, is_mutual),
            Way::Down if to.1 > from.1 + BOX.1 => Self::down(from, to, is_mutual),
            Way::Down if to.1 < from.1 - BOX.1 => Self::up(from, to),
            Way::Right | Way::Down => Self::below(from, to),
        }
    }

    fn right(from: (f64, f64), to: (f64, f64), is_mutual: bool) -> Self {
        let half = BOX.0 / 2.0;
        let (x1, x2) = (from.0 + half, to.0 - half);
        let bend = (x2 - x1) / 2.0;
        let shift = if is_mutual { -6.0 } else { 0.0 };
        let (y1, y2) = (from.1 + shift, to.1 + shift);
        Self([(x1, y1), (x1 + bend, y1), (x2 - bend, y2), (x2, y2)])
    }

    fn down(from: (f64, f64), to: (f64, f64), is_mutual: bool) -> Self {
        let half = BOX.1 / 2.0;
        let (y1, y2) = (from.1 + half, to.1 - half);
        let bend = (y2 - y1) / 2.0;
        let shift = if is_mutual { BOX.0 / 6.0 } else { 0.0 };
        let (x1, x2) = (from.0 + shift, to.0 + shift);
        Self([(x1, y1), (x1, y1 + bend), (x2, y2 - bend), (x2, y2)])
    }

    fn up(from: (f64, f64), to: (f64, f64)) -> Self {
        let (half, shift) = (BOX.1 / 2.0, BOX.0 / 6.0);
        let (y1, y2) = (from.1 - half, to.1 + half);
        let bend = (y2 - y1) / 2.0;
        let (x1, x2) = (from.0 - shift, to.0 - shift);
        Self([(x1, y1), (x1, y1 + bend), (x2, y2 - bend), (x2, y2)])
    }

    /// Backwards, within a layer, or to itself.
    fn below(from: (f64, f64), to: (f64, f64)) -> Self {
        let (quarter, foot) = (BOX.0 / 4.0, BOX.1 / 2.0);
        let (x1, y1) = (from.0 + quarter, from.1 + foot);
        let (x2, y2) = (to.0 - quarter, to.1 + foot);
        let low = y1.max(y2) + BOX.1;
        Self([(x1, y1), (x1, low), (x2, low), (x2, y2)])
    }

    /// As an SVG path.
    pub(super) fn path(&self) -> String {
        let [start, first, second, end] = self.0.map(|(x, y)| format!("{x:.1},{y:.1}"));
        format!("M{start} C{first} {second} {end}")
    }

    /// The point at `t`, from 0, the start, to 1.
    pub(super) fn at(&self, t: f64) -> (f64, f64) {
        let s = 1.0 - t;
        let weights = [s * s * s, 3.0 * s * s * t, 3.0 * s * t * t, t * t * t];
        let points = self.0.iter().zip(weights);
        points.fold((0.0, 0.0), |(x, y), (point, weight)| {
            (x + point.0 * weight, y + point.1 * weight)
        })
    }
}
