//! Checks each listener's direction against where it routes to.

use metadata_exchange::config::{Config, Protocol};
use metadata_exchange::direction::Direction;
use metadata_exchange::trust::Trust;
use serde_json::Value;

use super::dump::{Manager, TcpChain};
use super::facts::Facts;
use super::finding::{Code, Finding};
use super::json::text;
use super::routes::headers_not_removed;

/// What a name or the node indicates about a listener's direction.
pub(super) struct Hint {
    /// Inbound if it leads to the app, outbound if it leads to other workloads.
    pub(super) direction: Direction,
    /// What indicates it.
    pub(super) reason: String,
}

/// The direction that the filter assumes for the listener.
pub(super) fn effective(
    facts: &Facts<'_>,
    marked: Option<Direction>,
    configuration: &Config,
) -> Direction {
    let listeners = || {
        // A waypoint's listener is marked INBOUND but routes to other
        // workloads.
        let direction = marked.filter(|_| !facts.is_waypoint());
        direction.unwrap_or(Direction::Gateway)
    };
    configuration.direction.unwrap_or_else(listeners)
}

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    if facts.is_waypoint() {
        findings.push(Finding::warning(
            Code::Waypoint,
            "node",
            "this proxy is a waypoint: the filter treats its listeners as a gateway's, whatever \
             their direction, and sends nothing to clusters reached over HBONE, for which Istio \
             disables the exchange",
            "look for peers in the logs of the workloads' own proxies; Istio does not run a \
             standard Envoy as a waypoint",
        ));
    }
    for manager in &facts.managers {
        let plugin = manager.filters.iter().find_map(|filter| filter.ours());
        let configuration = plugin.and_then(|plugin| plugin.configuration.as_ref().ok());
        if let Some(configuration) = configuration {
            let listener = Listener::of_manager(manager);
            examine_listener(facts, &listener, configuration, findings);
            let direction = effective(facts, manager.direction, configuration);
            if direction == Direction::Inbound && !is_contradicted(facts, &listener, direction) {
                findings.extend(headers_not_removed(manager));
            }
        }
    }
    for chain in &facts.tcp_chains {
        let configuration = chain.ours().map(|plugin| &plugin.configuration);
        if let Some(Ok(configuration)) = configuration {
            examine_listener(facts, &Listener::of_tcp(chain), configuration, findings);
        }
    }
}

/// A listener with the filter, for HTTP or TCP.
pub(super) struct Listener<'a> {
    name: &'a str,
    direction: Option<Direction>,
    clusters: Vec<&'a str>,
    is_open: bool,
    protocol: Protocol,
}

impl<'a> Listener<'a> {
    pub(super) fn of_manager(manager: &Manager<'a>) -> Self {
        Self {
            name: manager.listener,
            direction: manager.direction,
            clusters: manager.clusters(),
            is_open: manager.is_open,
            protocol: Protocol::Http,
        }
    }

    pub(super) fn of_tcp(chain: &TcpChain<'a>) -> Self {
        Self {
            name: chain.listener,
            direction: chain.direction,
            clusters: chain.clusters(),
            is_open: chain.is_open,
            protocol: Protocol::Tcp,
        }
    }
}

/// Whether names contradict a direction other than a gateway's.
pub(super) fn is_contradicted(
    facts: &Facts<'_>,
    listener: &Listener<'_>,
    direction: Direction,
) -> bool {
    let hint = hint(facts, listener);
    direction != Direction::Gateway && hint.is_some_and(|hint| hint.direction != direction)
}

fn examine_listener(
    facts: &Facts<'_>,
    listener: &Listener<'_>,
    configuration: &Config,
    findings: &mut Vec<Finding>,
) {
    let place = listener.name;
    let direction = effective(facts, listener.direction, configuration);
    let hint = hint(facts, listener);
    let is_marked = configuration.direction.is_some() || listener.direction.is_some();
    if !is_marked && !facts.is_waypoint() {
        findings.push(no_direction(listener, hint.as_ref()));
    } else if let Some(finding) = hint
        .as_ref()
        .and_then(|hint| wrong(listener, direction, configuration, hint))
    {
        findings.push(finding);
        return;
    }
    // Without direction, only callers with a certificate are believed.
    let is_stated = configuration.direction.is_some() || facts.is_waypoint();
    let is_believed = configuration.trust == Trust::Any && is_stated;
    if direction == Direction::Gateway && is_believed && listener.is_open {
        findings.push(Finding::warning(
            Code::StrangersBelieved,
            place,
            "the filter treats this listener as a gateway's, and clients can connect to it without \
             a certificate: it believes every caller, and sends its own metadata to every caller \
             that asks",
            "at the edge of the mesh, configure the filter with \"direction\": \"outbound\"; \
             inside it, with \"trust\": \"mtls\" or \"spiffe\"",
        ));
    }
}

fn no_direction(listener: &Listener<'_>, hint: Option<&Hint>) -> Finding {
    let (message, remedy) = match hint {
        _ if listener.protocol == Protocol::Tcp => (
            "it has no traffic_direction, so the filter treats it as a gateway that neither \
             believes nor answers callers without a certificate, and may send frames to the server"
                .to_owned(),
            "set traffic_direction to INBOUND or OUTBOUND, or configure the filter with \
             \"direction\"",
        ),
        Some(hint) if hint.direction == Direction::Inbound => (
            format!(
                "it has no traffic_direction, so the filter treats it as a gateway and sends the \
                 headers to the app; judging by {}, it is inbound",
                hint.reason
            ),
            "set traffic_direction to INBOUND, or configure the filter with \"direction\": \
             \"inbound\"",
        ),
        _ => (
            "it has no traffic_direction, so the filter treats it as a gateway that neither \
             believes nor answers callers without a certificate"
                .to_owned(),
            "set traffic_direction to INBOUND or OUTBOUND; on a gateway, configure the filter with \
             \"direction\": \"gateway\", or \"outbound\" at the edge of the mesh",
        ),
    };
    Finding::error(Code::NoDirection, listener.name, message, remedy)
}

fn wrong(
    listener: &Listener<'_>,
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
    let leak = match listener.protocol {
        Protocol::Http => "the filter sends the headers to the app",
        Protocol::Tcp => "the filter does not remove the frames of callers, which reach the app",
    };
    let (message, remedy) = match (direction, hint.direction) {
        (Direction::Inbound, Direction::Outbound) => (
            format!(
                "it is {by} as inbound, but judging by {reason} it leads to other workloads: the \
                 filter sends them no metadata, and they stay unknown"
            ),
            "set traffic_direction to OUTBOUND; on a gateway whose control plane says INBOUND, \
             configure the filter with \"direction\": \"outbound\" at the edge of the mesh, or \
             \"gateway\" inside it",
        ),
        (Direction::Outbound | Direction::Gateway, Direction::Inbound) => (
            format!(
                "it is {by} as {}, but judging by {reason} it leads to the app: {leak}",
                if direction == Direction::Gateway {
                    "a gateway"
                } else {
                    "outbound"
                }
            ),
            "set traffic_direction to INBOUND; also check the key `direction` in the plugin \
             configuration, which takes precedence",
        ),
        _ => return None,
    };
    Some(Finding::error(
        Code::WrongDirection,
        listener.name,
        message,
        remedy,
    ))
}

/// What names indicate: clusters first, then the node, then the listener.
pub(super) fn hint(facts: &Facts<'_>, listener: &Listener<'_>) -> Option<Hint> {
    let by_cluster = || {
        let hints = listener
            .clusters
            .iter()
            .filter_map(|cluster| Some((cluster, of_cluster(cluster)?)));
        let hints: Vec<_> = hints.collect();
        let (cluster, direction) = *hints.first()?;
        // If the clusters contradict each other, none counts.
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
            direction: of_listener(listener.name)?,
            reason: "its name".to_owned(),
        })
    };
    by_cluster().or_else(by_node).or_else(by_listener)
}

/// Cluster names as Istio and Kuma form them.
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

/// Whether the node is a gateway, by its id in Istio or its metadata in Kuma.
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
