//! What is wrong with an Envoy, by its configuration and its statistics.
//!
//! [`Evidence`] is what an Envoy or a file says. `input` finds the resources in
//! it, `dump` and `filter` read the listeners, and each of the other modules
//! holds the rules about one thing: `chain` the order of filters, `direction` the
//! listeners' directions, `logs` access logs, `collector` where they go, `node`
//! the node, `policy` RBAC, `wasm` the VM, and `stats` the statistics.

mod chain;
mod collector;
mod direction;
mod dump;
mod filter;
mod finding;
pub mod gather;
mod input;
mod json;
mod logs;
mod node;
mod policy;
mod stats;
#[cfg(test)]
mod tests;
mod wasm;

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

pub use finding::{Code, Finding, Severity};
pub(crate) use input::with_declared_names;
pub use stats::has_to_wait;

use dump::{Manager, managers};
use filter::{HttpFilter, Plugin};
use input::Resources;
use json::text;
use stats::Stats;

/// What the filter is called, if it is given no other name.
pub const FILTER: &str = "metadata_exchange";

/// After what time statistics are looked at again: the filter ticks every second.
pub const LATER: Duration = Duration::from_secs(3);

/// What is known of an Envoy.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// `/config_dump`, whole or in parts; or a bootstrap.
    pub documents: Vec<Value>,
    /// `/stats?format=json`, if an Envoy was asked.
    pub stats: Option<Value>,
    /// The same [`LATER`], if there was need to wait.
    pub later: Option<Value>,
    /// `/server_info`, if an Envoy was asked.
    pub server_info: Option<Value>,
    /// `/clusters?format=json`, if an Envoy was asked.
    pub clusters: Option<Value>,
    /// Why `/config_dump` could not be read as a whole.
    pub unreadable: Option<String>,
}

/// The same, read.
struct Facts<'a> {
    /// The name of the filter.
    filter: &'a str,
    resources: Resources<'a>,
    managers: Vec<Manager<'a>>,
    /// The node; `None` if no document has it.
    node: Option<Node<'a>>,
    /// Major and minor version of Envoy.
    version: Option<(u64, u64)>,
    stats: Option<Stats<'a>>,
    later: Option<Stats<'a>>,
    /// `cluster_statuses` of `/clusters`.
    clusters: Option<&'a Value>,
}

/// The node of an Envoy.
struct Node<'a> {
    id: &'a str,
    metadata: &'a Value,
}

/// What is wrong with an Envoy. The filter is known by the name `filter` or by its
/// usual one.
///
/// # Errors
///
/// If the evidence is not that of an Envoy, whatever else it says.
pub fn examine(evidence: &Evidence, filter: &str) -> Result<Vec<Finding>> {
    let facts = Facts::read(evidence, filter)?;
    let mut findings = Vec::new();
    if let Some(why) = &evidence.unreadable {
        findings.push(Finding::error(
            Code::ConfigurationRefused,
            "/config_dump",
            format!(
                "it is no JSON ({why}): Envoy has refused a resource with a type that it does not \
                 know; it was read in parts"
            ),
            "take the type away from what the control plane sends; in Istio, look for what the \
             installed Envoy lacks, as with PILOT_ENABLE_METADATA_EXCHANGE",
        ));
    }
    for (listener, details) in &facts.resources.refused_listeners {
        findings.push(Finding::error(
            Code::ConfigurationRefused,
            listener,
            format!("Envoy refused the last update of this listener: {details}"),
            "correct it; `mxctl check-config` checks a configuration of the filter before a \
             rollout",
        ));
    }
    node::examine(&facts, &mut findings);
    chain::examine(&facts, &mut findings);
    direction::examine(&facts, &mut findings);
    logs::examine(&facts, &mut findings);
    collector::examine(&facts, &mut findings);
    policy::examine(&facts, &mut findings);
    wasm::examine(&facts, &mut findings);
    stats::examine(&facts, &mut findings);
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    // Several filter chains of a listener have the same fault.
    let mut told: Vec<Finding> = Vec::new();
    for finding in findings {
        if !told.contains(&finding) {
            told.push(finding);
        }
    }
    Ok(told)
}

/// What the evidence has no word on, so that nothing was examined there.
#[must_use]
pub fn unexamined(evidence: &Evidence) -> Vec<&'static str> {
    let resources = Resources::read(&evidence.documents);
    let listeners = resources.listeners.iter().flatten();
    let is_discovered = |listener: &&Value| listener.to_string().contains("config_discovery");
    let has_discovered = listeners.copied().any(|listener| is_discovered(&listener));
    let lacks = [
        (resources.node().is_none(), "the node"),
        (resources.listeners.is_none(), "listeners"),
        (
            has_discovered && resources.known_extensions().is_none(),
            "configurations of discovered filters",
        ),
        (resources.clusters.is_none(), "clusters"),
        (evidence.stats.is_none(), "statistics"),
    ];
    let lacks = lacks.into_iter().filter(|(is_lacking, _)| *is_lacking);
    lacks.map(|(_, what)| what).collect()
}

impl<'a> Facts<'a> {
    fn read(evidence: &'a Evidence, filter: &'a str) -> Result<Self> {
        let resources = Resources::read(&evidence.documents);
        if resources.is_empty() {
            bail!(
                "neither a config_dump nor a bootstrap of an Envoy: ask Envoy's admin interface for \
                 /config_dump, in Istio's proxies at 127.0.0.1:15000"
            );
        }
        let managers = managers(&resources, filter);
        let stats = |answer: &'a Option<Value>| answer.as_ref().map(Stats::read).transpose();
        let told = evidence.server_info.as_ref().map(|info| &info["node"]);
        let node = resources.node().map(|node| Node {
            // It may come from the command line, which the bootstrap does not show.
            id: [told.map(|node| &node["id"]), node.get("id")]
                .into_iter()
                .flatten()
                .map(text)
                .find(|id| !id.is_empty())
                .unwrap_or_default(),
            metadata: &node["metadata"],
        });
        Ok(Self {
            filter,
            version: version(evidence.server_info.as_ref(), resources.node()),
            stats: stats(&evidence.stats)?,
            later: stats(&evidence.later)?,
            clusters: evidence
                .clusters
                .as_ref()
                .map(|all| &all["cluster_statuses"]),
            resources,
            managers,
            node,
        })
    }

    /// The filters in question with their connection managers.
    fn ours(&self) -> impl Iterator<Item = (&Manager<'a>, &HttpFilter<'a>, &Plugin<'a>)> {
        self.managers.iter().flat_map(|manager| {
            let filters = manager.filters.iter();
            filters.filter_map(move |filter| Some((manager, filter, filter.ours()?)))
        })
    }

    fn node_id(&self) -> &'a str {
        self.node.as_ref().map_or("", |node| node.id)
    }

    /// By its node id, or by the listener that all of its traffic passes.
    fn is_waypoint(&self) -> bool {
        let mut listeners = self.resources.listeners.iter().flatten();
        let is_main = |listener: &Value| {
            listener["name"] == "main_internal" && listener.get("internal_listener").is_some()
        };
        self.node_id().starts_with("waypoint~") || listeners.any(|listener| is_main(listener))
    }
}

/// Envoy's version, as `/server_info` has it (`HASH/1.36.2/Clean/...`), or else the
/// node.
fn version(server_info: Option<&Value>, node: Option<&Value>) -> Option<(u64, u64)> {
    let told = server_info.and_then(|info| info["version"].as_str());
    if let Some(version) = told.and_then(|version| version.split('/').nth(1)) {
        let mut numbers = version.split('.').map(str::parse);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            return Some((major, minor));
        }
    }
    let version = &node?["user_agent_build_version"]["version"];
    // Zero is left out.
    let minor = version["minor_number"].as_u64().unwrap_or_default();
    Some((version["major_number"].as_u64()?, minor))
}
