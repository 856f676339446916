//! Places the labels of edges: on their curve or near it, but not on a box or another label.

use super::line::{BOX, Curve};

/// An upper bound for the average width of a label's characters: digits and a few words, at 11
/// pixels.
const CHARACTER_WIDTH: f64 = 6.8;
/// The height above and below a label's base line.
const ASCENT: f64 = 11.0;
const DESCENT: f64 = 4.0;
/// The margin around boxes: an outline may extend beyond its box, such as a VM's.
const AROUND_BOX: f64 = 8.0;
/// Positions along the curve where a label may be, the best first.
const ALONG: [f64; 13] = [
    0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73, 0.2, 0.8, 0.14, 0.86, 0.08, 0.92,
];
/// Distances above (negative) or below the curve, the best first.
const BESIDE: [f64; 7] = [-5.0, 4.0, 13.0, -14.0, 22.0, -23.0, 31.0];

/// The width of a label.
#[allow(clippy::cast_precision_loss)] // A few dozen characters.
pub(super) fn width_of(label: &str) -> f64 {
    label.chars().count() as f64 * CHARACTER_WIDTH
}

/// A rectangle, given by two corners.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rect {
    least: (f64, f64),
    most: (f64, f64),
}

impl Rect {
    pub(super) fn new(least: (f64, f64), most: (f64, f64)) -> Self {
        Self { least, most }
    }

    /// The area of a box with this centre.
    pub(super) fn of_box((x, y): (f64, f64)) -> Self {
        let (w, h) = (BOX.0 / 2.0 + AROUND_BOX, BOX.1 / 2.0 + AROUND_BOX);
        Self::new((x - w, y - h), (x + w, y + h))
    }

    /// The area of a label, given the middle of its base line.
    pub(super) fn of_label((x, y): (f64, f64), label: &str) -> Self {
        let half = width_of(label) / 2.0;
        Self::new((x - half, y - ASCENT), (x + half, y + DESCENT))
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.least.0 < other.most.0
            && other.least.0 < self.most.0
            && self.least.1 < other.most.1
            && other.least.1 < self.most.1
    }

    pub(super) fn contains(&self, other: &Self) -> bool {
        self.least.0 <= other.least.0
            && self.least.1 <= other.least.1
            && other.most.0 <= self.most.0
            && other.most.1 <= self.most.1
    }
}

/// Places labels one after the other.
pub(super) struct Placer {
    whole: Rect,
    taken: Vec<Rect>,
}

impl Placer {
    /// Prepares a drawing of this size with these boxes.
    pub(super) fn new(size: (f64, f64), boxes: &[(f64, f64)]) -> Self {
        Self {
            whole: Rect::new((0.0, 0.0), size),
            taken: boxes.iter().copied().map(Rect::of_box).collect(),
        }
    }

    /// The best free position; `None` if all are occupied.
    pub(super) fn place(&mut self, curve: &Curve, label: &str) -> Option<(f64, f64)> {
        let near = BESIDE.into_iter().flat_map(|beside| {
            ALONG.into_iter().map(move |along| {
                let (x, y) = curve.at(along);
                (x, y + beside)
            })
        });
        let (position, rect) = near
            .map(|position| (position, Rect::of_label(position, label)))
            .find(|(_, rect)| self.is_free(rect))?;
        self.taken.push(rect);
        Some(position)
    }

    fn is_free(&self, rect: &Rect) -> bool {
        self.whole.contains(rect) && !self.taken.iter().any(|taken| taken.overlaps(rect))
    }
}
