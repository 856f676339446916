//! What a Prometheus has counted.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::admin;

/// A counter with its labels, and how far it has risen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// All labels, the name of the metric among them.
    pub labels: BTreeMap<String, String>,
    /// How far it has risen, over all restarts of its Envoy.
    pub total: u64,
}

/// The result of an instant query.
pub async fn query(url: &str, expression: &str) -> Result<Vec<Value>> {
    let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
    let mut answer = admin::get(url, &format!("/api/v1/query?query={encoded}"))
        .await
        .with_context(|| format!("the Prometheus at {url} does not answer {expression}"))?;
    ensure!(
        answer["status"] == "success",
        "the Prometheus at {url} answers {answer} to {expression}"
    );
    match answer["data"]["result"].take() {
        Value::Array(series) => Ok(series),
        other => anyhow::bail!("no series in the answer to {expression}: {other}"),
    }
}

/// How far each series of a counter has risen within `range`, such as `1h`. Raw samples are added up, because `increase()`
/// extrapolates, and does not see how far a new series has risen before its first sample.
pub async fn totals(url: &str, selector: &str, range: &str) -> Result<Vec<Series>> {
    let mut before = BTreeMap::new();
    for series in query(url, &format!("{selector} offset {range}")).await? {
        let value = number(&series["value"][1])?;
        before.insert(labels(&series)?, value);
    }
    let mut all = Vec::new();
    for series in query(url, &format!("{selector}[{range}]")).await? {
        let labels = labels(&series)?;
        let samples = series["values"].as_array().context("no samples")?;
        let samples = samples.iter().map(|sample| number(&sample[1]));
        let before = before.get(&labels).copied().unwrap_or_default();
        let total = risen(before, samples.collect::<Result<Vec<_>>>()?);
        all.push(Series { labels, total });
    }
    Ok(all)
}

/// How far a counter has risen over these samples. One that is less than that before it is of an Envoy that has started
/// anew.
fn risen(before: u64, samples: impl IntoIterator<Item = u64>) -> u64 {
    let mut total = 0_u64;
    let mut last = before;
    for sample in samples {
        let step = sample.checked_sub(last).unwrap_or(sample);
        total = total.saturating_add(step);
        last = sample;
    }
    total
}

fn labels(series: &Value) -> Result<BTreeMap<String, String>> {
    serde_json::from_value(series["metric"].clone()).context("no labels")
}

/// A sample of a counter.
fn number(sample: &Value) -> Result<u64> {
    let text = sample.as_str().context("no sample")?;
    let value: f64 = text.parse().with_context(|| format!("no number: {text}"))?;
    ensure!(value >= 0.0, "no counter: {text}");
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A count.
    Ok(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_begins_at_nothing() {
        assert_eq!(risen(0, [3, 3, 5]), 5);
        assert_eq!(risen(3, [3, 5]), 2);
        assert_eq!(risen(0, [3, 5, 2, 4]), 9);
        assert_eq!(risen(7, [1]), 1);
        assert_eq!(risen(7, []), 0);
    }

    #[test]
    fn samples_are_counts() {
        assert_eq!(number(&"12".into()).unwrap(), 12);
        assert_eq!(number(&"1e+06".into()).unwrap(), 1_000_000);
        for bad in ["NaN", "-1", "x"] {
            assert!(number(&bad.into()).is_err(), "{bad}");
        }
        assert!(number(&12.into()).is_err());
    }
}
