//! The filter as a network filter ahead of `tcp_proxy`.

use metadata_exchange::config::{Config, Mode, Protocol};
use metadata_exchange::direction::Direction;
use metadata_exchange::exchange::clusters::is_passthrough;
use metadata_exchange::pattern::Pattern;
use serde_json::Value;

use super::direction::{Listener, effective, is_contradicted};
use super::dump::TcpChain;
use super::facts::Facts;
use super::filter::{Filter, Kind};
use super::finding::{Code, Finding};
use super::json::{list, text};

/// Where a cluster's own network filters are told from others by name.
const NATIVE_UPSTREAM: &str = "metadata_exchange";

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    for chain in &facts.tcp_chains {
        examine_chain(facts, chain, findings);
    }
}

fn examine_chain(facts: &Facts<'_>, chain: &TcpChain<'_>, findings: &mut Vec<Finding>) {
    let place = chain.listener;
    let is_ours = |filter: &Filter<'_>| filter.ours().is_some();
    let Some(position) = chain.filters.iter().position(is_ours) else {
        // Most TCP listeners have no need of it.
        return;
    };
    let (ahead, rest) = chain.filters.split_at(position);
    let Some((filter, behind)) = rest.split_first() else {
        return;
    };
    let count = 1 + behind.iter().filter(|filter| is_ours(filter)).count();
    if count > 1 {
        findings.push(Finding::error(
            Code::FilterTwice,
            place,
            format!(
                "the filter appears {count} times in one filter chain: the second finds no frame, \
                 and sends another one, which reaches the application"
            ),
            "keep one, directly ahead of tcp_proxy",
        ));
    }
    let configuration = match filter.ours().map(|plugin| &plugin.configuration) {
        Some(Ok(configuration)) => configuration,
        Some(Err(problem)) => {
            findings.push(filter.refused(problem));
            return;
        }
        None => return,
    };
    if configuration.protocol == Protocol::Http {
        findings.push(Finding::error(
            Code::FilterIdle,
            place,
            "the filter is loaded as a network filter, and its configuration does not have \
             \"protocol\": \"tcp\": it is idle here",
            "add \"protocol\": \"tcp\", and give the network filter another root_id than that of \
             the HTTP filter",
        ));
        return;
    }
    let direction = effective(facts, chain.direction, configuration);
    if is_contradicted(facts, &Listener::of_tcp(chain), direction) {
        // What is right depends on the direction, which is wrong.
        return;
    }
    findings.extend(order(place, direction, ahead, behind));
    findings.extend(native(place, configuration.mode, direction, ahead, behind));
    if direction != Direction::Inbound {
        clusters(facts, chain, configuration, findings);
    }
}

/// The frames are between the callers' proxies and this filter inbound, and between this filter and `tcp_proxy` outbound.
fn order(
    place: &str,
    direction: Direction,
    ahead: &[Filter<'_>],
    behind: &[Filter<'_>],
) -> Option<Finding> {
    let is_proxy = |filter: &Filter<'_>| matches!(filter.kind, Kind::TcpProxy);
    let remedy = "put the filter directly ahead of tcp_proxy";
    if ahead.iter().any(is_proxy) {
        return Some(Finding::error(
            Code::WrongOrder,
            place,
            "the filter is behind tcp_proxy, which ends the chain: it is never called",
            remedy,
        ));
    }
    let Some(proxy) = behind.iter().position(is_proxy) else {
        return Some(Finding::warning(
            Code::WrongOrder,
            place,
            "no tcp_proxy follows the filter: nothing logs its peers, and it cannot tell to whom \
             the connection leads",
            remedy,
        ));
    };
    let reads_bytes = |filter: &&Filter<'_>| matches!(filter.kind, Kind::Other | Kind::StandIn);
    if direction != Direction::Outbound
        && let Some(first) = ahead.iter().find(reads_bytes)
    {
        return Some(Finding::warning(
            Code::WrongOrder,
            place,
            format!(
                "{} is ahead of the filter: it takes the frame of the caller's proxy for the \
                 client's first bytes",
                first.name
            ),
            remedy,
        ));
    }
    let between = behind.iter().take(proxy).find(reads_bytes)?;
    (direction != Direction::Inbound).then(|| {
        Finding::warning(
            Code::WrongOrder,
            place,
            format!(
                "{} is between the filter and tcp_proxy: it takes the frame that the filter sends \
                 for the client's first bytes",
                between.name
            ),
            remedy,
        )
    })
}

/// Istio's own network filter writes and removes the same frame.
fn native(
    place: &str,
    mode: Mode,
    direction: Direction,
    ahead: &[Filter<'_>],
    behind: &[Filter<'_>],
) -> Option<Finding> {
    let find = |filters: &[Filter<'_>]| filters.iter().position(Filter::is_native);
    match (mode, find(ahead), find(behind)) {
        (Mode::Exchange, None, None) => None,
        (Mode::Exchange, ..) => Some(Finding::error(
            Code::NativeExchange,
            place,
            "Istio's own TCP exchange is also in the chain: both remove the caller's frame and \
             answer it, so that the second finds none, or the client receives two",
            "remove it from the listeners and from the clusters together, or configure this filter \
             with \"mode\": \"observe\", ahead of it",
        )),
        // Outbound, Istio's filter is in the cluster.
        _ if direction != Direction::Inbound => None,
        (Mode::Observe, Some(_), _) => Some(Finding::error(
            Code::WrongOrder,
            place,
            "Istio's own TCP exchange removes the frame before this filter sees it",
            "put the filter ahead of it",
        )),
        (Mode::Observe, None, Some(_)) => None,
        (Mode::Observe, None, None) => Some(Finding::error(
            Code::NothingToObserve,
            place,
            "the filter only observes, and Istio's own TCP exchange is not there: frames reach the \
             application",
            "configure the filter with \"mode\": \"exchange\", or keep Istio's exchange",
        )),
    }
}

/// What the filter does with the clusters that are to be sent a frame.
fn clusters(
    facts: &Facts<'_>,
    chain: &TcpChain<'_>,
    configuration: &Config,
    findings: &mut Vec<Finding>,
) {
    let Some(known) = &facts.resources.clusters else {
        return;
    };
    for pattern in &configuration.tcp_clusters {
        let is_it = |cluster: &&Value| pattern.matches(text(&cluster["name"]));
        if !known.iter().any(is_it) {
            let (Pattern::Exact(name) | Pattern::Prefix(name)) = pattern;
            let star = if matches!(pattern, Pattern::Prefix(_)) {
                "*"
            } else {
                ""
            };
            findings.push(Finding::warning(
                Code::UnknownCluster,
                chain.listener,
                format!("tcp_clusters has {name}{star}, and no cluster has this name"),
                "correct the name; /clusters of Envoy's admin interface lists those that exist",
            ));
        }
    }
    let reached = chain.clusters();
    for cluster in known {
        let name = text(&cluster["name"]);
        let is_named = configuration
            .tcp_clusters
            .iter()
            .any(|one| one.matches(name));
        let is_marked = reached.contains(&name)
            && metadata(cluster, "metadata_exchange")["tcp"] == Value::Bool(true);
        if !is_named && !is_marked {
            continue;
        }
        if is_outside(cluster, configuration) {
            findings.push(Finding::warning(
                Code::FrameNotSent,
                name,
                format!(
                    "{} says that this cluster is sent a frame, but it counts as outside the mesh, \
                     or Istio disables the exchange for it: the filter sends nothing there",
                    if is_named { "tcp_clusters" } else { "its metadata" }
                ),
                "if it is inside the mesh, remove istio.external from its metadata or its name from \
                 external_cluster_names; otherwise remove the mark",
            ));
        } else if configuration.mode == Mode::Exchange && has_native(cluster) {
            findings.push(Finding::error(
                Code::NativeExchange,
                name,
                "Istio's own TCP exchange is a filter of this cluster, and this filter sends it a \
                 frame as well: over mutual TLS with Istio's ALPN the callee's proxy removes one, \
                 and the application receives the other",
                "remove Istio's filter from the cluster, or do not name the cluster in tcp_clusters \
                 or its metadata",
            ));
        }
    }
}

/// The metadata of a filter.
fn metadata<'a>(cluster: &'a Value, filter: &str) -> &'a Value {
    let all = &cluster["metadata"];
    // istiod's dump has JSON names.
    let all = all.get("filter_metadata").unwrap_or(&all["filterMetadata"]);
    &all[filter]
}

/// Whether the filter sends nothing to this cluster.
fn is_outside(cluster: &Value, configuration: &Config) -> bool {
    let name = text(&cluster["name"]);
    let istio = metadata(cluster, "istio");
    let names = &configuration.external_cluster_names;
    let is_external = istio["external"] == true
        || is_passthrough(name.as_bytes())
        || names.iter().any(|one| one.matches(name));
    istio["disable_mx"] == true || configuration.skip_external_clusters && is_external
}

/// Istio names it `istio.metadata_exchange` or `envoy.filters.network.upstream.metadata_exchange`.
fn has_native(cluster: &Value) -> bool {
    list(&cluster["filters"]).any(|filter| text(&filter["name"]).ends_with(NATIVE_UPSTREAM))
}
