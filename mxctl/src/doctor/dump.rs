//! The listeners of an Envoy, as far as the exchange is concerned.

use metadata_exchange::config::Protocol;
use metadata_exchange::direction::Direction;
use serde_json::Value;

use super::filter::{Filter, Kind, Plugin, Sees};
use super::input::Resources;
use super::json::{list, text, typed};

/// An HTTP connection manager.
pub(super) struct Manager<'a> {
    /// The name of its listener.
    pub(super) listener: &'a str,
    /// The listener's direction, if it has one.
    pub(super) direction: Option<Direction>,
    /// The HTTP filters that see requests, in their order.
    pub(super) filters: Vec<Filter<'a>>,
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
    pub(super) upgrades: Vec<(&'a str, Vec<Filter<'a>>)>,
}

/// A filter chain that leads TCP connections.
pub(super) struct TcpChain<'a> {
    /// The name of its listener.
    pub(super) listener: &'a str,
    /// The listener's direction, if it has one.
    pub(super) direction: Option<Direction>,
    /// The network filters, in their order.
    pub(super) filters: Vec<Filter<'a>>,
    /// The access logs of `tcp_proxy` and of the listener.
    pub(super) access_logs: Vec<&'a Value>,
    /// Whether other hosts can connect without a certificate.
    pub(super) is_open: bool,
}

impl<'a> TcpChain<'a> {
    /// The metadata exchange, if it is among the filters.
    pub(super) fn ours(&self) -> Option<&Plugin<'a>> {
        self.filters.iter().find_map(Filter::ours)
    }

    /// The configuration of `tcp_proxy`.
    pub(super) fn proxy(&self) -> Option<&'a Value> {
        let mut filters = self.filters.iter();
        let proxy = filters.find(|filter| matches!(filter.kind, Kind::TcpProxy));
        proxy.map(|filter| filter.config)
    }

    /// The clusters that it leads to.
    pub(super) fn clusters(&self) -> Vec<&'a str> {
        let proxy = self.proxy().unwrap_or(&Value::Null);
        let weighted = list(&proxy["weighted_clusters"]["clusters"]);
        let weighted = weighted.filter_map(|one| one["name"].as_str());
        proxy["cluster"]
            .as_str()
            .into_iter()
            .chain(weighted)
            .collect()
    }

    /// Whether connections are logged before they end.
    pub(super) fn logs_in_progress(&self) -> Option<&'static str> {
        const SETTING: &str = "access_log_flush_interval";
        let proxy = self.proxy()?;
        let mut all = [proxy.get(SETTING), proxy["access_log_options"].get(SETTING)].into_iter();
        all.any(|value| value.is_some_and(|value| !value.is_null()))
            .then_some(SETTING)
    }
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

/// The filter chains of all listeners that end in `tcp_proxy` or have the metadata exchange among their network filters.
pub(super) fn tcp_chains<'a>(resources: &Resources<'a>, filter: &str) -> Vec<TcpChain<'a>> {
    let reader = Reader { filter, resources };
    let listeners = resources.listeners.iter().flatten();
    listeners
        .flat_map(|listener| reader.tcp_chains(listener))
        .collect()
}

fn direction(listener: &Value) -> Option<Direction> {
    match listener["traffic_direction"].as_str() {
        Some("INBOUND") => Some(Direction::Inbound),
        Some("OUTBOUND") => Some(Direction::Outbound),
        _ => None,
    }
}

fn chains(listener: &Value) -> impl Iterator<Item = &Value> {
    list(&listener["filter_chains"]).chain(listener.get("default_filter_chain"))
}

/// Whether other hosts can connect to a filter chain without a certificate.
fn is_open(listener: &Value, chain: &Value) -> bool {
    let tls = typed(&chain["transport_socket"]["typed_config"]).1;
    is_reachable(&listener["address"]) && tls["require_client_certificate"] != true
}

struct Reader<'r, 'a> {
    /// A name of the filter.
    filter: &'r str,
    resources: &'r Resources<'a>,
}

impl<'a> Reader<'_, 'a> {
    fn managers(&self, listener: &'a Value) -> Vec<Manager<'a>> {
        let direction = direction(listener);
        let managers = chains(listener).flat_map(|chain| {
            let is_open = is_open(listener, chain);
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

    fn tcp_chains(&self, listener: &'a Value) -> Vec<TcpChain<'a>> {
        let discovered = self.resources.known_extensions();
        let chains = chains(listener).map(|chain| {
            let filters = list(&chain["filters"])
                .map(|one| Filter::read(one, Protocol::Tcp, self.filter, discovered, &[]));
            let mut chain = TcpChain {
                listener: text(&listener["name"]),
                direction: direction(listener),
                filters: filters.collect(),
                access_logs: list(&listener["access_log"]).collect(),
                is_open: is_open(listener, chain),
            };
            let logs = chain.proxy().map(|proxy| list(&proxy["access_log"]));
            chain.access_logs.extend(logs.into_iter().flatten());
            chain
        });
        let is_one = |chain: &TcpChain<'_>| chain.ours().is_some() || chain.proxy().is_some();
        chains.filter(is_one).collect()
    }

    fn filters<'r>(
        &'r self,
        filters: &'a Value,
        routes: &'r [&'a Value],
    ) -> impl Iterator<Item = Filter<'a>> + 'r {
        let discovered = self.resources.known_extensions();
        list(filters).map(move |filter| {
            Filter::read(filter, Protocol::Http, self.filter, discovered, routes)
        })
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
