//! Parsed statistics of an Envoy.

use anyhow::{Result, bail};
use serde_json::Value;

use super::json::list;

/// Counters and gauges by name; histograms have no single value.
pub(super) struct Stats<'a>(pub(super) Vec<(&'a str, u64)>);

impl<'a> Stats<'a> {
    pub(super) fn read(answer: &'a Value) -> Result<Self> {
        if !answer["stats"].is_array() {
            bail!(
                "its /stats?format=json has no list of stats, and so is not an Envoy's: ask \
                 Envoy's admin interface, in Istio's proxies 127.0.0.1:15000"
            );
        }
        let value_of = |stat: &'a Value| Some((stat["name"].as_str()?, stat["value"].as_u64()?));
        Ok(Self(list(&answer["stats"]).filter_map(value_of).collect()))
    }

    pub(super) fn get(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(stat, _)| *stat == name);
        found.map_or(0, |(_, value)| *value)
    }

    /// Those that are not zero.
    pub(super) fn counted(&self) -> impl Iterator<Item = (&'a str, u64)> {
        self.0.iter().copied().filter(|(_, value)| *value > 0)
    }
}
