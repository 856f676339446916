//! The calls that were made beside those that a consumer reports.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Consumer, Outcome};

/// How many calls of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Were made.
    pub made: u64,
    /// The consumer reports correctly.
    pub found: u64,
}

/// Calls by their kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<String, Count>);

impl Counts {
    /// A call of the kind `what` was made.
    pub fn made(&mut self, what: &(impl ToString + ?Sized)) {
        self.0.entry(what.to_string()).or_default().made += 1;
    }

    /// The consumer reports a call of the kind `what`.
    pub fn found(&mut self, what: &(impl ToString + ?Sized)) {
        self.0.entry(what.to_string()).or_default().found += 1;
    }

    /// A call of the kind `what` was made, and the consumer is right about it or not.
    pub fn judged(&mut self, what: &(impl ToString + ?Sized), is_right: bool) {
        let count = self.0.entry(what.to_string()).or_default();
        count.made += 1;
        count.found += u64::from(is_right);
    }

    /// Each kind with its calls.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Count)> {
        self.0.iter().map(|(what, count)| (what.as_str(), *count))
    }

    /// All calls.
    #[must_use]
    pub fn total(&self) -> Count {
        let add = |sum: Count, (_, count): (&str, Count)| Count {
            made: sum.made + count.made,
            found: sum.found + count.found,
        };
        self.iter().fold(Count::default(), add)
    }
}

/// A consumer on an Envoy.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The consumer.
    pub consumer: Consumer,
    /// Its bootstrap.
    pub file: &'static str,
    /// Envoy's version.
    pub envoy: String,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Row {
    /// What is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let Outcome::Ran { counts } = &self.outcome else {
            return Vec::new();
        };
        let who = format!("{}, Envoy {}", self.consumer, self.envoy);
        let wrong = counts.iter().filter(|(_, count)| count.made != count.found);
        let mut faults: Vec<_> = wrong
            .map(|(what, Count { made, found })| {
                format!("{who}: {what}: {made} calls made, {found} found")
            })
            .collect();
        if counts.total().made == 0 {
            faults.push(format!("{who}: no call was made"));
        }
        faults
    }
}

/// All consumers on all Envoys.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Sorted by consumer and Envoy.
    pub rows: Vec<Row>,
}

impl Report {
    /// What is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.rows.iter().flat_map(Row::faults).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<22} {:<8} {:>5} {:>6}  file",
            "consumer", "Envoy", "made", "found"
        )?;
        for row in &self.rows {
            let (consumer, envoy, file) = (row.consumer, &row.envoy, row.file);
            match &row.outcome {
                Outcome::Ran { counts } => {
                    let Count { made, found } = counts.total();
                    writeln!(f, "{consumer:<22} {envoy:<8} {made:>5} {found:>6}  {file}")?;
                    for (what, Count { made, found }) in counts.iter() {
                        writeln!(f, "{:<31} {made:>5} {found:>6}    {what}", "")?;
                    }
                }
                Outcome::NotClaimed { envoy_needed } => {
                    writeln!(
                        f,
                        "{consumer:<22} {envoy:<8} {:>5} {:>6}  {file}: for Envoy {envoy_needed}",
                        "-", "-"
                    )?;
                }
                Outcome::Skipped { reason } => {
                    writeln!(
                        f,
                        "{consumer:<22} {envoy:<8} {:>5} {:>6}  {file}: SKIPPED, {reason}",
                        "-", "-"
                    )?;
                }
            }
        }
        for fault in self.faults() {
            writeln!(f, "wrong: {fault}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_extra_calls_are_faults() {
        let mut counts = Counts::default();
        counts.made("lost");
        counts.found("made up");
        counts.judged("right", true);
        counts.judged("wrong", false);
        let row = |counts| Row {
            consumer: Consumer::JsonLog,
            file: "",
            envoy: "1.40.0".to_owned(),
            outcome: Outcome::Ran { counts },
        };
        assert_eq!(
            row(counts).faults(),
            [
                "JSON log, Envoy 1.40.0: lost: 1 calls made, 0 found",
                "JSON log, Envoy 1.40.0: made up: 0 calls made, 1 found",
                "JSON log, Envoy 1.40.0: wrong: 1 calls made, 0 found",
            ]
        );
        assert_eq!(
            row(Counts::default()).faults(),
            ["JSON log, Envoy 1.40.0: no call was made"]
        );
    }
}
