//! Whether a listener's direction is that of what it leads to.

use metadata_exchange::config::Config;
use metadata_exchange::direction::Direction;
use metadata_exchange::trust::Trust;
use serde_json::Value;

use super::dump::Manager;
use super::facts::Facts;
use super::finding::{Code, Finding};
use super::json::text;
use super::routes::headers_not_removed;

/// What a name or a node says of a listener's direction.
pub(super) struct Hint {
    /// Inbound if it leads to the app, outbound if it leads to other workloads.
    pub(super) direction: Direction,
    /// By what that is known.
    pub(super) reason: String,
}

/// The direction that the filter takes the listener for.
pub(super) fn effective(
    facts: &Facts<'_>,
    manager: &Manager<'_>,
    configuration: &Config,
) -> Direction {
    let listeners = || {
        // A waypoint's listener is marked INBOUND, and leads to others.
        let own = manager.direction.filter(|_| !facts.is_waypoint());
        own.unwrap_or(Direction::Gateway)
    };
    configuration.direction.unwrap_or_else(listeners)
}

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    if facts.is_waypoint() {
        findings.push(Finding::warning(
            Code::Waypoint,
            "node",
            "this proxy is a waypoint: the filter takes its listeners for a gateway's, whatever \
             their direction, and sends nothing to clusters reached by HBONE, of which Istio \
             disables the exchange",
            "look for peers in the logs of the workloads' own proxies; under Istio a standard \
             Envoy does not serve as a waypoint",
        ));
    }
    for manager in &facts.managers {
        let plugin = manager.filters.iter().find_map(|filter| filter.ours());
        let configuration = plugin.and_then(|plugin| plugin.configuration.as_ref().ok());
        if let Some(configuration) = configuration {
            examine_manager(facts, manager, configuration, findings);
        }
    }
}

fn examine_manager(
    facts: &Facts<'_>,
    manager: &Manager<'_>,
    configuration: &Config,
    findings: &mut Vec<Finding>,
) {
    let place = manager.listener;
    let direction = effective(facts, manager, configuration);
    let hint = hint(facts, manager);
    let is_marked = configuration.direction.is_some() || manager.direction.is_some();
    if !is_marked && !facts.is_waypoint() {
        findings.push(no_direction(place, hint.as_ref()));
    } else if let Some(finding) = hint
        .as_ref()
        .and_then(|hint| wrong(place, direction, configuration, hint))
    {
        findings.push(finding);
        return;
    }
    let is_believed = configuration.trust == Trust::Any;
    if direction == Direction::Gateway && is_believed && manager.is_open {
        findings.push(Finding::warning(
            Code::StrangersBelieved,
            place,
            "the filter takes this listener for a gateway's, and others can connect to it without \
             a certificate: it believes every caller, and tells every caller that asks who it is",
            "at the edge of the mesh configure the filter with \"direction\": \"outbound\"; inside \
             it, with \"trust\": \"mtls\" or \"spiffe\"",
        ));
    }
    if direction == Direction::Inbound {
        findings.extend(headers_not_removed(manager));
    }
}

fn no_direction(place: &str, hint: Option<&Hint>) -> Finding {
    let (message, remedy) = match hint {
        Some(hint) if hint.direction == Direction::Inbound => (
            format!(
                "it has no traffic_direction, so that the filter takes it for a gateway: the app \
                 is sent the headers; by {} it is inbound",
                hint.reason
            ),
            "set traffic_direction to INBOUND, or configure the filter with \"direction\": \
             \"inbound\"",
        ),
        _ => (
            "it has no traffic_direction, so that the filter takes it for a gateway".to_owned(),
            "set traffic_direction to INBOUND or OUTBOUND; on a gateway, configure the filter with \
             \"direction\": \"gateway\", or \"outbound\" at the edge of the mesh",
        ),
    };
    Finding::error(Code::NoDirection, place, message, remedy)
}

fn wrong(
    place: &str,
    direction: Direction,
    configuration: &Config,
    hint: &Hint,
) -> Option<Finding> {
    let by = if configuration.direction.is_some() {
        "configured"
    } else {
        "marked"
    };
    let reason = &hint.reason;
    let (message, remedy) = match (direction, hint.direction) {
        (Direction::Inbound, Direction::Outbound) => (
            format!(
                "it is {by} as inbound, but by {reason} it leads to other workloads: they are not \
                 told who calls, and stay unknown"
            ),
            "set traffic_direction to OUTBOUND; on a gateway whose control plane says INBOUND, \
             configure the filter with \"direction\": \"outbound\" at the edge of the mesh, or \
             \"gateway\" inside it",
        ),
        (Direction::Outbound | Direction::Gateway, Direction::Inbound) => (
            format!(
                "it is {by} as {}, but by {reason} it leads to the app: the app is sent the headers",
                if direction == Direction::Gateway {
                    "a gateway"
                } else {
                    "outbound"
                }
            ),
            "set traffic_direction to INBOUND; look for the key `direction` in the plugin's \
             configuration, too, which goes before it",
        ),
        _ => return None,
    };
    Some(Finding::error(Code::WrongDirection, place, message, remedy))
}

/// What names say, the clusters' before the listener's.
pub(super) fn hint(facts: &Facts<'_>, manager: &Manager<'_>) -> Option<Hint> {
    let clusters = manager.clusters();
    let by_cluster = || {
        let hints = clusters
            .iter()
            .filter_map(|cluster| Some((cluster, of_cluster(cluster)?)));
        let hints: Vec<_> = hints.collect();
        let (cluster, direction) = *hints.first()?;
        // Of several that contradict each other none counts.
        let is_same = hints.iter().all(|(_, other)| *other == direction);
        is_same.then(|| Hint {
            direction,
            reason: format!("its cluster {cluster}"),
        })
    };
    let by_node = || {
        is_gateway(facts).then(|| Hint {
            direction: Direction::Outbound,
            reason: "its node, a gateway,".to_owned(),
        })
    };
    let by_listener = || {
        Some(Hint {
            direction: of_listener(manager.listener)?,
            reason: "its name".to_owned(),
        })
    };
    by_cluster().or_else(by_node).or_else(by_listener)
}

/// Istio's and Kuma's names of clusters.
fn of_cluster(name: &str) -> Option<Direction> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if begins(&[
        "inbound|",
        "InboundPassthroughCluster",
        "localhost:",
        "self_inbound_",
        "inbound:",
    ]) {
        Some(Direction::Inbound)
    } else if begins(&[
        "outbound|",
        "outbound_.",
        "inbound-vip|",
        "PassthroughCluster",
        "kri_",
        "outbound:",
    ]) {
        Some(Direction::Outbound)
    } else {
        None
    }
}

/// `virtualInbound`, `inbound:127.0.0.1:8080`, `self_inbound_http`.
fn of_listener(name: &str) -> Option<Direction> {
    let name = name.to_ascii_lowercase();
    match (name.contains("inbound"), name.contains("outbound")) {
        (true, false) => Some(Direction::Inbound),
        (false, true) => Some(Direction::Outbound),
        _ => None,
    }
}

/// Whether the node says that it is a gateway: in its id as Istio's do, or as
/// Kuma's.
pub(super) fn is_gateway(facts: &Facts<'_>) -> bool {
    let Some(node) = &facts.node else {
        return false;
    };
    let kumas = || {
        let resource: Value =
            serde_json::from_str(text(&node.metadata["dataplane.resource"])).ok()?;
        resource["networking"].get("gateway").map(|_| ())
    };
    node.id.starts_with("router~") || kumas().is_some()
}
