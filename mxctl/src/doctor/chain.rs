//! The position of the filter among the HTTP filters.

use metadata_exchange::config::{Mode, Protocol};
use metadata_exchange::direction::Direction;
use serde_json::Value;

use super::direction::{Listener, effective, is_contradicted};
use super::dump::Manager;
use super::facts::Facts;
use super::filter::{Filter, Kind, Sees, disables_within, is_stand_in};
use super::finding::{Code, Finding};
use super::json::text;

/// The listener of a waypoint that terminates HBONE; the tunnelled requests go to another listener.
const HBONE: &str = "connect_terminate";

/// Clusters of the control plane's own listeners, for probes and statistics.
const OWN_CLUSTERS: [&str; 2] = ["prometheus_stats", "agent"];

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    if facts
        .resources
        .listeners
        .as_ref()
        .is_some_and(Vec::is_empty)
    {
        findings.push(Finding::error(
            Code::FilterMissing,
            "all listeners",
            "there is no listener",
            "configure the proxy's listeners, with the filter in each",
        ));
    }
    for extension in &facts.resources.extensions {
        if is_stand_in(extension, facts.filter) {
            findings.push(Finding::error(
                Code::ModuleReplaced,
                text(&extension["name"]),
                "Istio's agent could not fetch the module and replaced it with a filter that \
                 allows everything (wasm-default-allow): requests pass, and no peer is stored",
                "look for the module's URL in the log of istio-proxy; correct `url`, `sha256` or \
                 `imagePullSecret` of the WasmPlugin",
            ));
        }
    }
    for manager in &facts.managers {
        examine_manager(facts, manager, findings);
    }
}

fn examine_manager(facts: &Facts<'_>, manager: &Manager<'_>, findings: &mut Vec<Finding>) {
    let place = manager.listener;
    let mut positions = (0..).zip(&manager.filters).filter_map(|(index, filter)| {
        let is_ours = filter.ours().is_some();
        is_ours.then_some(index)
    });
    let Some(position) = positions.next() else {
        findings.extend(missing(facts, manager));
        return;
    };
    let count = 1 + positions.count();
    if count > 1 {
        findings.push(Finding::error(
            Code::FilterTwice,
            place,
            format!(
                "the filter appears {count} times in one filter chain: the first removes the \
                 headers that the second needs"
            ),
            "keep one; look for a second WasmPlugin, EnvoyFilter or policy that selects this proxy",
        ));
    }
    let (ahead, rest) = manager.filters.split_at(position);
    let Some((filter, behind)) = rest.split_first() else {
        return;
    };
    let Some(plugin) = filter.ours() else {
        return;
    };
    bypasses(manager, filter, findings);
    let configuration = match &plugin.configuration {
        Ok(configuration) => configuration,
        Err(problem) => {
            findings.push(filter.refused(problem));
            return;
        }
    };
    if configuration.protocol == Protocol::Tcp {
        findings.push(Finding::error(
            Code::FilterIdle,
            place,
            "the filter is loaded as an HTTP filter, and its configuration has \"protocol\": \
             \"tcp\": it is idle here",
            "give the HTTP filter its own configuration, without \"protocol\", and another root_id \
             than that of the network filter",
        ));
        return;
    }
    let direction = effective(facts, manager.direction, configuration);
    if is_contradicted(facts, &Listener::of_manager(manager), direction) {
        // The right order depends on the direction, which is wrong.
        return;
    }
    findings.extend(match configuration.mode {
        // A second filter has already been reported.
        Mode::Exchange => exchange_order(place, direction, ahead, behind),
        Mode::Observe => observe_order(place, direction, ahead, behind),
    });
}

fn missing(facts: &Facts<'_>, manager: &Manager<'_>) -> Option<Finding> {
    let place = manager.listener;
    let has_stand_in = |filter: &Filter<'_>| matches!(filter.kind, Kind::StandIn);
    if manager.filters.iter().any(has_stand_in) || facts.is_waypoint() {
        // Already reported.
        return None;
    }
    if manager.is_disabled {
        return Some(Finding::error(
            Code::FilterMissing,
            place,
            "the filter is disabled among the HTTP filters, and no route enables it",
            "remove `disabled`, or enable the filter in the routes' typed_per_filter_config, with \
             an empty `config` in an envoy.config.route.v3.FilterConfig",
        ));
    }
    if place == HBONE || manager.leads_nowhere() || leads_to_the_proxy_itself(facts, manager) {
        return None;
    }
    Some(Finding::error(
        Code::FilterMissing,
        place,
        "the filter is not among the HTTP filters",
        "add it: first on inbound listeners, directly before the router on others; if it has \
         another name, give the name with --filter",
    ))
}

/// Whether all requests go to Envoy's own admin interface, or to Istio's agent.
fn leads_to_the_proxy_itself(facts: &Facts<'_>, manager: &Manager<'_>) -> bool {
    let clusters = manager.clusters();
    let is_own = |name: &&str| {
        OWN_CLUSTERS.contains(name) || facts.admin_clusters().any(|cluster| cluster == *name)
    };
    !clusters.is_empty() && clusters.iter().all(is_own)
}

impl Facts<'_> {
    /// The clusters whose endpoint is Envoy's own admin interface.
    fn admin_clusters(&self) -> impl Iterator<Item = &str> {
        let bootstrap = self.resources.bootstrap;
        let admin = bootstrap.map(|bootstrap| &bootstrap["admin"]["address"]);
        let clusters = self.resources.clusters.iter().flatten();
        clusters.filter_map(move |cluster| {
            let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";
            let address = cluster.pointer(address)?;
            let is_same = |key: &str| {
                let admin = admin.map_or(&Value::Null, |admin| &admin[key]);
                // A pipe also has a mode.
                let part = if key == "pipe" { "/path" } else { "" };
                let of = |value: &Value| value.pointer(part).cloned().unwrap_or_default();
                !admin.is_null() && of(admin) == of(&address[key])
            };
            (is_same("socket_address") || is_same("pipe")).then(|| cluster["name"].as_str())?
        })
    }
}

/// Requests that bypass the filter.
fn bypasses(manager: &Manager<'_>, filter: &Filter<'_>, findings: &mut Vec<Finding>) {
    let place = manager.listener;
    if filter.sees == Sees::Some {
        findings.push(Finding::warning(
            Code::FilterMissing,
            place,
            "the filter is disabled among the HTTP filters, and only some routes enable it",
            "remove `disabled` if the requests of other routes matter",
        ));
    }
    if manager
        .routes
        .iter()
        .any(|routes| disables_within(routes, filter.name))
    {
        findings.push(Finding::warning(
            Code::FilterBypassed,
            place,
            "a route disables the filter: the peers of its requests stay unknown, and the headers \
             pass through",
            "remove `disabled` from the route's typed_per_filter_config, or remove the headers \
             there with request_headers_to_remove and response_headers_to_remove",
        ));
    }
    for (upgrade, filters) in &manager.upgrades {
        if filters.iter().all(|filter| filter.ours().is_none()) {
            findings.push(Finding::warning(
                Code::FilterBypassed,
                place,
                format!("the upgrade {upgrade} has its own filter list, without the filter"),
                "add the filter to `filters` of that upgrade",
            ));
        }
    }
}

/// Istio's own exchange in the same chain removes the headers, or sends its own.
fn exchange_order(
    place: &str,
    direction: Direction,
    ahead: &[Filter<'_>],
    behind: &[Filter<'_>],
) -> Option<Finding> {
    if let Some(native) = ahead.iter().chain(behind).find(|one| one.is_native()) {
        return Some(Finding::error(
            Code::NativeExchange,
            place,
            format!(
                "Istio's own exchange, {}, is also in the chain",
                native.name
            ),
            "remove it, or configure this filter with \"mode\": \"observe\"",
        ));
    }
    if direction == Direction::Inbound {
        let first = ahead
            .iter()
            .find(|one| !matches!(one.kind, Kind::Passive | Kind::Ours(_)))?;
        return Some(Finding::warning(
            Code::WrongOrder,
            place,
            format!(
                "{} is ahead of the filter: the filter does not see what it answers or changes",
                first.name
            ),
            "put the filter first",
        ));
    }
    let between = behind
        .iter()
        .find(|one| !matches!(one.kind, Kind::Passive | Kind::Router | Kind::Ours(_)))?;
    Some(Finding::warning(
        Code::WrongOrder,
        place,
        format!(
            "{} is between the filter and the router: if it changes the route, the filter has sent \
             its headers to the wrong cluster",
            between.name
        ),
        "put the filter directly before the router",
    ))
}

/// The filter must see the headers before Istio's exchange removes them.
fn observe_order(
    place: &str,
    direction: Direction,
    ahead: &[Filter<'_>],
    behind: &[Filter<'_>],
) -> Option<Finding> {
    let has_native = |filters: &[Filter<'_>]| filters.iter().any(Filter::is_native);
    let (right, wrong, remedy) = if direction == Direction::Inbound {
        (behind, ahead, "put the filter first")
    } else {
        (ahead, behind, "put the filter directly before the router")
    };
    if has_native(wrong) {
        return Some(Finding::error(
            Code::WrongOrder,
            place,
            "Istio's own exchange removes the headers before this filter sees them",
            remedy,
        ));
    }
    (!has_native(right)).then(|| {
        Finding::error(
            Code::NothingToObserve,
            place,
            "the filter only observes, and Istio's own exchange is not there",
            "configure the filter with \"mode\": \"exchange\", or keep Istio's exchange",
        )
    })
}
