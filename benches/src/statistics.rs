//! Medians with their spread, and ratios with their uncertainty.

use std::fmt;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

/// A middle value and the range around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Median and quartiles.
    pub(crate) fn of(values: &[f64]) -> Self {
        let values = sorted(values);
        Self {
            median: quantile(&values, 0.5),
            low: quantile(&values, 0.25),
            high: quantile(&values, 0.75),
        }
    }

    /// How many times the median of `numerators` is that of `denominators`, and between what it is with a
    /// probability of 95 %. Both are of the same rounds, which are drawn anew many times (bootstrap).
    pub(crate) fn of_ratio(numerators: &[f64], denominators: &[f64]) -> Self {
        const DRAWS: usize = 2_000;
        let rounds = numerators.len().min(denominators.len());
        let ratio = |rounds: &[usize]| {
            let median = |values: &[f64]| {
                let drawn: Vec<f64> = rounds.iter().map(|&round| values[round]).collect();
                quantile(&sorted(&drawn), 0.5)
            };
            median(numerators) / median(denominators)
        };
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let draws: Vec<f64> = (0..DRAWS)
            .map(|_| {
                let draw: Vec<usize> = (0..rounds)
                    .map(|_| random.random_range(0..rounds))
                    .collect();
                ratio(&draw)
            })
            .collect();
        let draws = sorted(&draws);
        Self {
            median: ratio(&(0..rounds).collect::<Vec<_>>()),
            low: quantile(&draws, 0.025),
            high: quantile(&draws, 0.975),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high } = self;
        write!(f, "{median:.2} ({low:.2} to {high:.2})")
    }
}

/// `minuends - subtrahends`, round by round.
pub(crate) fn differences(minuends: &[f64], subtrahends: &[f64]) -> Vec<f64> {
    let pairs = minuends.iter().zip(subtrahends);
    pairs
        .map(|(minuend, subtrahend)| minuend - subtrahend)
        .collect()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// Between its neighbours, where it falls between two values; not a number, where there are none.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place among values"
)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let (below, above) = (
        sorted[place.floor() as usize],
        sorted[place.ceil() as usize],
    );
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_fall_between_values() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            spread,
            Spread {
                median: 2.5,
                low: 1.75,
                high: 3.25
            }
        );
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn one_outlier_does_not_change_a_ratio() {
        let denominators: Vec<f64> = (0..15)
            .map(|round| 1.0 + f64::from(round) / 100.0)
            .collect();
        let mut numerators: Vec<f64> = denominators.iter().map(|value| 2.0 * value).collect();
        numerators[3] = 1_000.0;
        let ratio = Spread::of_ratio(&numerators, &denominators);
        assert!((ratio.median - 2.0).abs() < 0.03, "{ratio}");
        assert!(ratio.low > 1.9 && ratio.high < 2.2, "{ratio}");
    }

    #[test]
    fn the_confidence_interval_of_a_ratio_contains_the_true_value() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(2);
        let mut noisy = |middle: f64| -> Vec<f64> {
            (0..25)
                .map(|_| middle + random.random_range(-0.5..0.5))
                .collect()
        };
        let ratio = Spread::of_ratio(&noisy(3.0), &noisy(2.0));
        assert!(ratio.low < 1.5 && 1.5 < ratio.high, "{ratio}");
        assert!(ratio.low < ratio.median && ratio.median < ratio.high);
    }
}
