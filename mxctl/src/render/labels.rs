//! Where the labels of edges stand: on their curve or near it, never on a box and
//! never on another label.

use super::line::{BOX, Curve};

/// What a character of a label takes at most on average: labels have digits and a few
/// words, at 11 pixels.
const CHARACTER_WIDTH: f64 = 6.8;
/// Above and below the line that a label stands on.
const ASCENT: f64 = 11.0;
const DESCENT: f64 = 4.0;
/// Around boxes: an outline may stand out, as the depth of a VM's.
const AROUND_BOX: f64 = 8.0;
/// Where along its curve a label may stand, the best place first.
const ALONG: [f64; 13] = [
    0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73, 0.2, 0.8, 0.14, 0.86, 0.08, 0.92,
];
/// How far above (less than 0) or below its curve, the best first.
const BESIDE: [f64; 7] = [-5.0, 4.0, 13.0, -14.0, 22.0, -23.0, 31.0];

/// How wide a label is.
#[allow(clippy::cast_precision_loss)] // Some dozen characters.
pub(super) fn width_of(label: &str) -> f64 {
    label.chars().count() as f64 * CHARACTER_WIDTH
}

/// A rectangle by two corners.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rect {
    least: (f64, f64),
    most: (f64, f64),
}

impl Rect {
    pub(super) fn new(least: (f64, f64), most: (f64, f64)) -> Self {
        Self { least, most }
    }

    /// What a box takes whose centre stands there.
    pub(super) fn of_box((x, y): (f64, f64)) -> Self {
        let (w, h) = (BOX.0 / 2.0 + AROUND_BOX, BOX.1 / 2.0 + AROUND_BOX);
        Self::new((x - w, y - h), (x + w, y + h))
    }

    /// What a label takes, the middle of whose foot stands there.
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

/// Gives labels their places, one after the other.
pub(super) struct Placer {
    whole: Rect,
    taken: Vec<Rect>,
}

impl Placer {
    /// For a drawing of that size with boxes there.
    pub(super) fn new(size: (f64, f64), boxes: &[(f64, f64)]) -> Self {
        Self {
            whole: Rect::new((0.0, 0.0), size),
            taken: boxes.iter().copied().map(Rect::of_box).collect(),
        }
    }

    /// The best place that is free; none if all are taken.
    pub(super) fn place(&mut self, curve: &Curve, label: &str) -> Option<(f64, f64)> {
        let near = BESIDE.into_iter().flat_map(|beside| {
            ALONG.into_iter().map(move |along| {
                let (x, y) = curve.at(along);
                (x, y + beside)
            })
        });
        let (place, rect) = near
            .map(|place| (place, Rect::of_label(place, label)))
            .find(|(_, rect)| self.is_free(rect))?;
        self.taken.push(rect);
        Some(place)
    }

    fn is_free(&self, rect: &Rect) -> bool {
        self.whole.contains(rect) && !self.taken.iter().any(|taken| taken.overlaps(rect))
    }
}
