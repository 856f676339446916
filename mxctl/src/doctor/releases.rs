//! What reads peers and is not in every Envoy.

use serde_json::Value;

use super::dump::Manager;
use super::facts::Facts;
use super::finding::{Code, Finding};
use super::json::{list, text, typed};

/// A part of Envoy.
struct Part {
    /// How it is called.
    name: &'static str,
    /// In which minor version of Envoy 1 it came.
    since: u64,
    /// What Envoy names when it refuses it, if that distinguishes it from other refusals.
    refused: Option<&'static str>,
}

const STATS_LOGGER: Part = Part {
    name: "the access logger envoy.access_loggers.stats",
    since: 37,
    refused: Some("access_loggers.stats"),
};
const STATS_SCOPE: Part = Part {
    name: "`stats_scope` of the access logger envoy.access_loggers.stats",
    since: 39,
    refused: Some("'stats_scope'"),
};
const TAG_VALUE: Part = Part {
    name: "`value` in the custom tags of a span",
    since: 37,
    refused: None,
};

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    findings.extend(metrics_without_tags(facts));
    for manager in &facts.managers {
        for logger in stats_loggers(manager) {
            findings.extend(needs(facts, manager.listener, &STATS_LOGGER));
            if logger.get("stats_scope").is_some() {
                findings.extend(needs(facts, manager.listener, &STATS_SCOPE));
            }
        }
        let has_value = |tag: &Value| tag.get("value").is_some();
        if list(&manager.config["tracing"]["custom_tags"]).any(has_value) {
            findings.extend(needs(facts, manager.listener, &TAG_VALUE));
        }
    }
    for (listener, details) in &facts.resources.refused_listeners {
        for part in [&STATS_LOGGER, &STATS_SCOPE, &TAG_VALUE] {
            if part.refused.is_some_and(|name| details.contains(name)) {
                findings.extend(needs(facts, listener, part));
            }
        }
    }
}

/// The configurations of the access loggers of a manager that count.
pub(super) fn stats_loggers<'a>(manager: &Manager<'a>) -> impl Iterator<Item = &'a Value> {
    let logs = manager.access_logs.iter();
    let configs = logs.map(|log| typed(&log["typed_config"]));
    let are_it = configs.filter(|(kind, _)| kind.ends_with(".access_loggers.stats.v3.Config"));
    are_it.map(|(_, config)| config)
}

/// The labels of the filter's metrics are in their names, from which the bootstrap has to take them.
fn metrics_without_tags(facts: &Facts<'_>) -> Option<Finding> {
    let mut ours = facts.ours();
    let placed = ours.find(|placed| placed.plugin.records_metrics())?;
    let tags = &facts.resources.bootstrap?["stats_config"]["stats_tags"];
    let mut tags = list(tags);
    if tags.any(|tag| text(&tag["regex"]).contains("reporter=")) {
        return None;
    }
    Some(Finding::error(
        Code::MetricsWithoutTags,
        placed.listener,
        "the filter records metrics, and the bootstrap has no stats_tags that make labels of their \
         names: Prometheus sees one metric for each set of labels",
        "copy stats_config from examples/metrics/filter.yaml",
    ))
}

/// A version that is not known is not blamed: a file is read ahead of its Envoy.
fn needs(facts: &Facts<'_>, place: &str, part: &Part) -> Option<Finding> {
    let Part { name, since, .. } = part;
    let message = format!("{name} is in Envoy 1.{since} and newer");
    let remedy = format!(
        "run Envoy 1.{since} or newer, or take it out; docs/consumers.md says what else reads the \
         peer on which Envoy"
    );
    match facts.version {
        Some((1, minor)) if minor < *since => Some(Finding::error(
            Code::NeedsNewerEnvoy,
            place,
            format!("{message}; this is 1.{minor}, which refuses it"),
            remedy,
        )),
        Some(_) => None,
        None => Some(Finding::info(Code::NeedsNewerEnvoy, place, message, remedy)),
    }
}
