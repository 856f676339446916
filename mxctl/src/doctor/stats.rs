//! What the statistics tell.

use anyhow::{Result, bail};
use serde_json::Value;

use super::dump::{Dump, HttpFilter, list};
use super::{Code, Finding};

/// Under which the filter counts, whatever its names.
const COUNTERS: &str = "wasmcustom.metadata_exchange.";

pub(super) fn examine(stats: &Value, later: &Value, dump: &Dump<'_>) -> Result<Vec<Finding>> {
    let is_asked = |stats: &&Value| !stats.is_null();
    for answer in std::iter::once(stats).chain(Some(later).filter(is_asked)) {
        if !answer["stats"].is_array() {
            bail!(
                "its /stats?format=json has no list of stats, and so is not that of an Envoy: ask \
                 Envoy's admin interface, in Istio's proxies 127.0.0.1:15000"
            );
        }
    }
    let stats = Stats::read(stats);
    let mut findings = stats.of_counters();
    let mut is_configured = false;
    for filter in dump.ours() {
        findings.extend(stats.refused_configurations(filter));
        findings.extend(stats.reloads(filter));
        is_configured |= filter.configuration.is_ok();
    }
    // They are there from the start of the first VM on.
    if is_configured && !stats.0.iter().any(|(name, _)| name.starts_with(COUNTERS)) {
        findings.push(Finding::error(
            Code::VmFailed,
            "wasmcustom",
            "the filter is configured, but its counters are not there: its module was not loaded, \
             did not start, or is another one"
                .to_owned(),
            "look for wasm in Envoy's log, and check vm_config.code; or Envoy is told to keep no \
             such statistics (stats_config)",
        ));
    }
    if is_configured {
        findings.extend(stats.standstill(&Stats::read(later)));
    }
    Ok(findings)
}

/// Whether these `/stats?format=json` are worth a look [`super::LATER`].
#[must_use]
pub fn has_to_wait(stats: &Value) -> bool {
    Stats::read(stats).ticks().is_some()
}

struct Stats<'a>(Vec<(&'a str, u64)>);

impl<'a> Stats<'a> {
    /// Counters and gauges; histograms have no single value.
    fn read(stats: &'a Value) -> Self {
        let value_of = |stat: &'a Value| Some((stat["name"].as_str()?, stat["value"].as_u64()?));
        Self(list(&stats["stats"]).filter_map(value_of).collect())
    }

    fn get(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(stat, _)| *stat == name);
        found.map_or(0, |(_, value)| *value)
    }

    fn of_counters(&self) -> Vec<Finding> {
        let counted = self.0.iter().filter(|(_, value)| *value > 0);
        let finding = |(place, value): &(&str, u64)| {
            let name = place.strip_prefix(COUNTERS)?;
            if let Some(reason) = name.strip_prefix("refused_") {
                let what = format!("{value} times a peer was refused: {reason}");
                let cure = cure_of_refusal(reason);
                return Some(Finding::warning(Code::PeersRefused, place, what, cure));
            }
            (name == "host_error").then(|| {
                let what = format!("{value} times Envoy did not answer the filter as it should");
                let cure =
                    "look for metadata_exchange in Envoy's log, and report it with Envoy's version";
                Finding::warning(Code::HostErrors, place, what, cure)
            })
        };
        counted.filter_map(finding).collect()
    }

    /// Envoy's dump shows the last configuration, refused or not. Where that one
    /// is valid the count is of those before, or of what else is refused.
    fn refused_configurations(&self, filter: &HttpFilter<'_>) -> Option<Finding> {
        if !filter.is_discovered || filter.configuration.is_err() {
            return None;
        }
        let refused = self.get(&format!(
            "extension_config_discovery.http_filter.{}.update_rejected",
            filter.name
        ));
        (refused > 0).then(|| {
            Finding::warning(
                Code::ConfigurationRefused,
                filter.name,
                format!("{refused} times since its start Envoy has refused what it discovered; the filter does not refuse the last configuration"),
                "if that is mended, nothing; else Envoy's log says why, as a module that cannot be read",
            )
        })
    }

    /// The seconds that those VMs of the filter have lived that have served
    /// requests. None before, and of a release without such a count.
    fn ticks(&self) -> Option<u64> {
        let ticks = format!("{COUNTERS}ticks");
        Some(self.get(&ticks)).filter(|ticks| *ticks > 0)
    }

    fn standstill(&self, later: &Self) -> Option<Finding> {
        let ticks = self.ticks()?;
        (later.ticks() == Some(ticks)).then(|| {
            let seconds = super::LATER.as_secs();
            Finding::error(
                Code::VmFailed,
                "wasmcustom",
                format!(
                    "the filter has served, but no VM of it has ticked for {seconds} s: all have \
                     died, or others have taken their places and had no request yet"
                ),
                "look for wasm in Envoy's log, restart the proxy, and report what kills the \
                 filter as SECURITY.md says",
            )
        })
    }

    /// Envoy counts what it reloads; with other policies a VM that died is not
    /// counted.
    fn reloads(&self, filter: &HttpFilter<'_>) -> Option<Finding> {
        let count = |name: &str| self.get(&format!("wasm.{}.vm_reload_{name}", filter.plugin));
        let (good, bad) = (count("success"), count("failure"));
        (good + bad > 0).then(|| {
            Finding::error(
                Code::VmFailed,
                filter.name,
                format!(
                    "the VM died; it was loaded again {good} times, and {bad} times that failed"
                ),
                "look for wasm in Envoy's log; prefer the failure_policy FAIL_OPEN, and report \
                 what kills the filter as SECURITY.md says",
            )
        })
    }
}

fn cure_of_refusal(reason: &str) -> &'static str {
    match reason {
        "trust_none" | "trust_mtls" | "trust_spiffe" => {
            "if these peers are to be believed, give them certificates, or configure trust and \
             upstream_trust by SECURITY.md"
        }
        "too_long" => {
            "raise max_received_bytes, or let the peers share less: share, max_sent_bytes"
        }
        "too_many_labels" => "raise max_labels, or let the peers share fewer labels",
        "id_too_long" => "raise max_id_bytes, or shorten the node ids of the peers",
        "control_character" | "utf8" => {
            "mend the node metadata of the peers, or find who forges them"
        }
        _ => "find who sends these headers: they are not those of a metadata exchange",
    }
}
