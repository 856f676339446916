//! The listeners of an Envoy, as far as the exchange is concerned.

use metadata_exchange::direction::Direction;
use serde_json::Value;

use super::filter::{HttpFilter, Sees};
use super::input::Resources;
use super::json::{list, text, typed};

/// An HTTP connection manager.
pub(super) struct Manager<'a> {
    /// The name of its listener.
    pub(super) listener: &'a str,
    /// The listener's direction, if it has one.
    pub(super) direction: Option<Direction>,
    /// The HTTP filters that see requests, in their order.
    pub(super) filters: Vec<HttpFilter<'a>>,
    /// Whether the metadata exchange is among the disabled filters.
    pub(super) is_disabled: bool,
    /// Its configuration.
    pub(super) config: &'a Value,
    /// The access logs.
    pub(super) access_logs: &'a [Value],
    /// The setting that logs requests before they end.
    pub(super) logs_in_progress: Option<&'static str>,
    /// The route configurations that it may use.
    pub(super) routes: Vec<&'a Value>,
    /// Whether other hosts can connect without a certificate.
    pub(super) is_open: bool,
    /// The filter lists of its upgrades.
    pub(super) upgrades: Vec<(&'a str, Vec<HttpFilter<'a>>)>,
}

/// The setting by which a connection manager logs requests in progress, in the current or a
/// deprecated field.
fn logs_in_progress(manager: &Value) -> Option<&'static str> {
    const SETTINGS: [&str; 3] = [
        "access_log_flush_interval",
        "flush_access_log_on_new_request",
        "flush_log_on_tunnel_successfully_established",
    ];
    let is_set = |value: Option<&Value>| {
        value.is_some_and(|value| !value.is_null() && *value != Value::Bool(false))
    };
    SETTINGS.into_iter().find(|setting| {
        is_set(manager["access_log_options"].get(setting)) || is_set(manager.get(setting))
    })
}

/// The HTTP connection managers of all listeners.
pub(super) fn managers<'a>(resources: &Resources<'a>, filter: &str) -> Vec<Manager<'a>> {
    let reader = Reader { filter, resources };
    let listeners = resources.listeners.iter().flatten();
    listeners
        .flat_map(|listener| reader.managers(listener))
        .collect()
}

struct Reader<'r, 'a> {
    /// A name of the filter.
    filter: &'r str,
    resources: &'r Resources<'a>,
}

impl<'a> Reader<'_, 'a> {
    fn managers(&self, listener: &'a Value) -> Vec<Manager<'a>> {
        let direction = match listener["traffic_direction"].as_str() {
            Some("INBOUND") => Some(Direction::Inbound),
            Some("OUTBOUND") => Some(Direction::Outbound),
            _ => None,
        };
        let is_reachable = is_reachable(&listener["address"]);
        let chains = list(&listener["filter_chains"]).chain(listener.get("default_filter_chain"));
        let managers = chains.flat_map(|chain| {
            let tls = typed(&chain["transport_socket"]["typed_config"]).1;
            let is_open = is_reachable && tls["require_client_certificate"] != true;
            list(&chain["filters"]).map(move |filter| (typed(&filter["typed_config"]), is_open))
        });
        managers
            .filter(|((kind, _), _)| kind.ends_with(".HttpConnectionManager"))
            .map(|((_, config), is_open)| {
                let routes = self.routes(config);
                let (disabled, filters): (Vec<_>, Vec<_>) = self
                    .filters(&config["http_filters"], &routes)
                    .partition(|filter| filter.sees == Sees::None);
                let upgrades = list(&config["upgrade_configs"])
                    .filter(|upgrade| list(&upgrade["filters"]).next().is_some())
                    .map(|upgrade| {
                        let filters = self.filters(&upgrade["filters"], &routes);
                        (text(&upgrade["upgrade_type"]), filters.collect())
                    })
                    .collect();
                Manager {
                    listener: text(&listener["name"]),
                    direction,
                    filters,
                    config,
                    is_disabled: disabled.iter().any(|filter| filter.ours().is_some()),
                    access_logs: config["access_log"].as_array().map_or(&[], Vec::as_slice),
                    logs_in_progress: logs_in_progress(config),
                    upgrades,
                    routes,
                    is_open,
                }
            })
            .collect()
    }

    fn filters<'r>(
        &'r self,
        filters: &'a Value,
        routes: &'r [&'a Value],
    ) -> impl Iterator<Item = HttpFilter<'a>> + 'r {
        let discovered = self.resources.known_extensions();
        list(filters).map(move |filter| HttpFilter::read(filter, self.filter, discovered, routes))
    }

    /// The routes of a connection manager. If their name is unknown, as with scoped routes, they
    /// may be any.
    fn routes(&self, manager: &'a Value) -> Vec<&'a Value> {
        if let Some(routes) = manager.get("route_config") {
            return vec![routes];
        }
        let name = &manager["rds"]["route_config_name"];
        let routes = self.resources.routes.iter().copied();
        routes
            .filter(|routes| name.is_null() || routes["name"] == *name)
            .collect()
    }
}

/// Whether other hosts can connect to a listener at this address.
fn is_reachable(address: &Value) -> bool {
    let Some(address) = address["socket_address"]["address"].as_str() else {
        return false;
    };
    let ip: Option<std::net::IpAddr> = address.parse().ok();
    ip.is_some_and(|ip| !ip.is_loopback())
}

impl<'a> Manager<'a> {
    /// The clusters that its routes name.
    pub(super) fn clusters(&self) -> Vec<&'a str> {
        let mut clusters = Vec::new();
        let hosts = self
            .routes
            .iter()
            .flat_map(|routes| list(&routes["virtual_hosts"]));
        for route in hosts.flat_map(|host| list(&host["routes"])) {
            let action = &route["route"];
            clusters.extend(action["cluster"].as_str());
            let weighted = list(&action["weighted_clusters"]["clusters"]);
            clusters.extend(weighted.filter_map(|one| one["name"].as_str()));
        }
        clusters
    }

    /// Whether Envoy answers all of its requests itself, with redirects or direct responses.
    pub(super) fn leads_nowhere(&self) -> bool {
        let hosts = self
            .routes
            .iter()
            .flat_map(|routes| list(&routes["virtual_hosts"]));
        let mut routes = hosts.flat_map(|host| list(&host["routes"])).peekable();
        routes.peek().is_some() && routes.all(|route| route.get("route").is_none())
    }
}
