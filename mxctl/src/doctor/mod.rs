//! Finds problems in an Envoy's configuration and statistics.
//!
//! [`Evidence`] is what an Envoy or a file provides. `input` finds the
//! resources in it, `dump` and `filter` parse the listeners, `statistics` the
//! statistics, and `facts` holds the result. Each of the other modules holds
//! the rules about one subject: `chain` the order of HTTP filters, `tcp` the
//! network filter, `direction` the listeners' directions, `routes` virtual hosts, `logs` access logs,
//! `collector` their destination, `node` the node, `policy` what decides by a
//! peer, `releases` what an Envoy lacks, `wasm` the VM, and `stats` the
//! statistics.

mod chain;
mod collector;
mod direction;
mod dump;
mod evidence;
mod facts;
mod filter;
mod finding;
pub mod gather;
mod input;
mod json;
mod logs;
mod node;
mod policy;
mod releases;
mod routes;
mod statistics;
mod stats;
mod tcp;
#[cfg(test)]
mod tests;
mod wasm;

use anyhow::Result;
use serde_json::Value;

pub use evidence::{Evidence, LATER};
pub use finding::{Code, Finding, Severity};
pub use stats::has_to_wait;

use facts::Facts;
use input::Resources;

/// The filter's name, unless another one is given.
pub const FILTER: &str = "metadata_exchange";

/// Examines an Envoy. The filter is known by the name `filter` or by its usual
/// one.
///
/// # Errors
///
/// If the evidence is not an Envoy's.
pub fn examine(evidence: &Evidence, filter: &str) -> Result<Vec<Finding>> {
    let facts = Facts::read(evidence, filter)?;
    let mut findings = Vec::new();
    if let Some(why) = &evidence.unreadable {
        findings.push(Finding::error(
            Code::ConfigurationRefused,
            "/config_dump",
            format!(
                "it is not JSON ({why}): Envoy has refused a resource with a type that it does not \
                 know; it was read in parts"
            ),
            "remove the type from what the control plane sends; in Istio, look for what the \
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
    tcp::examine(&facts, &mut findings);
    direction::examine(&facts, &mut findings);
    logs::examine(&facts, &mut findings);
    collector::examine(&facts, &mut findings);
    policy::examine(&facts, &mut findings);
    releases::examine(&facts, &mut findings);
    wasm::examine(&facts, &mut findings);
    stats::examine(&facts, &mut findings);
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    // Several filter chains of a listener may have the same problem.
    let mut unique: Vec<Finding> = Vec::new();
    for finding in findings {
        if !unique.contains(&finding) {
            unique.push(finding);
        }
    }
    Ok(unique)
}

/// What the evidence does not contain, and so was not examined.
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
