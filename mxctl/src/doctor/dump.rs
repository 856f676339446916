//! What matters of a `/config_dump`.

use anyhow::{Context as _, Result};
use base64::DecodeError;
use base64::Engine as _;
use metadata_exchange::config::Config;
use metadata_exchange::direction::Direction;
use serde_json::{Value, json};

use crate::decode::BASE64;

/// The configuration of an Envoy.
pub(super) struct Dump<'a> {
    /// Its node.
    pub(super) node: &'a Value,
    /// The HTTP connection manager of each filter chain.
    pub(super) managers: Vec<Manager<'a>>,
    /// Listeners whose last update was refused, and why.
    pub(super) refused_listeners: Vec<(&'a str, &'a str)>,
}

/// An HTTP connection manager.
pub(super) struct Manager<'a> {
    /// The name of its listener.
    pub(super) listener: &'a str,
    /// The listener's direction, if it has one.
    pub(super) direction: Option<Direction>,
    /// The HTTP filters that see requests, in their order.
    pub(super) filters: Vec<HttpFilter<'a>>,
    /// Whether the metadata exchange is among those that see none.
    pub(super) is_disabled: bool,
    /// The access logs.
    pub(super) access_logs: &'a [Value],
}

/// An HTTP filter.
#[allow(clippy::struct_excessive_bools)] // Each answers a question of its own.
pub(super) struct HttpFilter<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Whether it is the metadata exchange.
    pub(super) is_ours: bool,
    /// Which requests it sees.
    pub(super) sees: Sees,
    /// Whether it is Istio's own exchange.
    pub(super) is_native: bool,
    /// Whether it neither answers nor changes routes.
    pub(super) is_passive: bool,
    /// Whether it is the router.
    pub(super) is_router: bool,
    /// If it is ours, how it behaves, or why that is not known.
    pub(super) configuration: Result<Config, String>,
    /// If it is ours, the plugin's name, under which Envoy counts.
    pub(super) plugin: &'a str,
    /// Whether it comes by extension discovery.
    pub(super) is_discovered: bool,
}

/// Which requests an HTTP filter sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees {
    /// All, unless a route disables it.
    All,
    /// Those of routes that enable it.
    Some,
    /// None.
    None,
}

/// Of Istio's listeners for itself the routes lead to these.
const CLUSTERS_OF_ISTIO_ITSELF: [&str; 2] = ["prometheus_stats", "agent"];

/// Types of Istio's own exchange; the second is Envoy's since it moved there.
pub(super) const NATIVE_TYPES: [&str; 2] = [
    "io.istio.http.peer_metadata.Config",
    "envoy.extensions.filters.http.peer_metadata.v3.Config",
];

/// Names of Istio's own exchange.
const NATIVE_NAMES: [&str; 2] = [
    "istio.metadata_exchange",
    "envoy.filters.http.peer_metadata",
];

/// Filters that Istio puts beside, and that disturb nothing.
const PASSIVE: [&str; 5] = [
    "envoy.filters.http.cors",
    "envoy.filters.http.fault",
    "envoy.filters.http.grpc_stats",
    "istio.alpn",
    "istio.stats",
];

impl<'a> Dump<'a> {
    pub(super) fn read(dump: &'a Value, filter: &str) -> Result<Self> {
        let sections = || list(&dump["configs"]);
        let of_type =
            |name: &'static str| sections().filter(move |one| type_of(one).ends_with(name));
        // Every Envoy has one, and nothing else does.
        let node = of_type(".BootstrapConfigDump")
            .map(|section| &section["bootstrap"]["node"])
            .next()
            .context(
                "its /config_dump has no BootstrapConfigDump, and so is not that of an Envoy: \
                 ask Envoy's admin interface, in Istio's proxies 127.0.0.1:15000",
            )?;
        let discovered: Vec<&Value> = of_type(".EcdsConfigDump")
            .flat_map(|section| list(&section["ecds_filters"]))
            .map(|one| &one["ecds_filter"])
            .collect();
        let routes = of_type(".RoutesConfigDump")
            .flat_map(|section| {
                let of = |key: &str| list(&section[key]);
                of("static_route_configs").chain(of("dynamic_route_configs"))
            })
            .map(|one| &one["route_config"])
            .collect();
        let reader = Reader {
            filter,
            discovered,
            routes,
        };
        let mut managers = Vec::new();
        let mut refused_listeners = Vec::new();
        for section in of_type(".ListenersConfigDump") {
            let fixed = list(&section["static_listeners"]).map(|one| &one["listener"]);
            let dynamic = || list(&section["dynamic_listeners"]);
            let active = dynamic().map(|one| &one["active_state"]["listener"]);
            for listener in fixed.chain(active) {
                managers.extend(reader.managers(listener));
            }
            for one in dynamic() {
                let error = &one["error_state"];
                let Some(details) = error["details"].as_str() else {
                    continue;
                };
                // Envoy states it twice, once without the listener's name.
                let named = one.get("name");
                let name = text(named.unwrap_or(&error["failed_configuration"]["name"]));
                if !refused_listeners.contains(&(name, details)) {
                    refused_listeners.push((name, details));
                }
            }
        }
        Ok(Self {
            node,
            managers,
            refused_listeners,
        })
    }

    /// The filters in question.
    pub(super) fn ours(&self) -> impl Iterator<Item = &HttpFilter<'a>> {
        let filters = self.managers.iter().flat_map(|manager| &manager.filters);
        filters.filter(|filter| filter.is_ours)
    }
}

struct Reader<'a, 'f> {
    /// A name of the filter.
    filter: &'f str,
    /// The extension configurations that Envoy has discovered.
    discovered: Vec<&'a Value>,
    /// The route configurations that Envoy knows by name.
    routes: Vec<&'a Value>,
}

impl<'a> Reader<'a, '_> {
    fn managers(&self, listener: &'a Value) -> Vec<Manager<'a>> {
        let direction = match listener["traffic_direction"].as_str() {
            Some("INBOUND") => Some(Direction::Inbound),
            Some("OUTBOUND") => Some(Direction::Outbound),
            _ => None,
        };
        let chains = list(&listener["filter_chains"])
            .chain(listener.get("default_filter_chain"))
            .flat_map(|chain| list(&chain["filters"]));
        chains
            .map(|filter| typed(&filter["typed_config"]))
            .filter(|(kind, config)| {
                kind.ends_with(".HttpConnectionManager") && !is_of_istio_itself(config)
            })
            .map(|(_, config)| {
                let routes = self.routes(config);
                let filters = list(&config["http_filters"]);
                let (disabled, filters): (Vec<_>, Vec<_>) = filters
                    .map(|filter| self.http_filter(filter, &routes))
                    .partition(|filter| filter.sees == Sees::None);
                Manager {
                    listener: text(&listener["name"]),
                    direction,
                    filters,
                    is_disabled: disabled.iter().any(|filter| filter.is_ours),
                    access_logs: config["access_log"].as_array().map_or(&[], Vec::as_slice),
                }
            })
            .collect()
    }

    /// The routes of a connection manager. Where their name is not known, as
    /// those of scoped routes, they may be any.
    fn routes(&self, manager: &'a Value) -> Vec<&'a Value> {
        if let Some(routes) = manager.get("route_config") {
            return vec![routes];
        }
        let name = &manager["rds"]["route_config_name"];
        let routes = self.routes.iter().copied();
        routes
            .filter(|routes| name.is_null() || routes["name"] == *name)
            .collect()
    }

    fn http_filter(&self, filter: &'a Value, routes: &[&Value]) -> HttpFilter<'a> {
        let name = text(&filter["name"]);
        let is_discovered = filter.get("config_discovery").is_some();
        let config = if is_discovered {
            let found = self.discovered.iter().find(|one| one["name"] == name);
            found.map(|one| &one["typed_config"])
        } else {
            filter.get("typed_config")
        };
        let (kind, config) = config.map_or(("", &Value::Null), typed);
        let plugin = &config["config"];
        let is_wasm = kind.ends_with(".wasm.v3.Wasm");
        let names = [name, text(&plugin["name"]), text(&plugin["root_id"])];
        let is_named = names.into_iter().any(|name| self.names(name));
        // One that is discovered may have no configuration, or stand for it.
        let is_ours = is_named && (is_wasm || is_discovered);
        HttpFilter {
            name,
            is_ours,
            sees: sees(filter, routes),
            is_native: !is_ours
                && (NATIVE_NAMES.contains(&name)
                    || NATIVE_TYPES.iter().any(|native| kind.ends_with(native))),
            is_passive: PASSIVE.contains(&name),
            is_router: kind.ends_with(".router.v3.Router"),
            configuration: if is_wasm {
                configuration(&plugin["configuration"])
            } else {
                Err("there is none".to_owned())
            },
            plugin: text(&plugin["name"]),
            is_discovered,
        }
    }

    /// Whether that is a name of the filter. Istio's are
    /// `extensions.istio.io/wasmplugin/istio-system.metadata-exchange` and since
    /// 1.30 with a suffix.
    fn names(&self, name: &str) -> bool {
        let plain = name.split('~').next().unwrap_or(name);
        let resource = plain.rsplit('/').next().unwrap_or(plain);
        // The namespace has no dots; the plugin's name may.
        let (_, plugin) = resource.split_once('.').unwrap_or(("", resource));
        let (_, last) = plugin.rsplit_once('.').unwrap_or(("", plugin));
        // Names in Kubernetes have no underscores.
        let alike = |name: &str| name.replace('-', "_");
        let filter = alike(self.filter);
        [name, plain, resource, plugin, last]
            .into_iter()
            .any(|name| alike(name) == filter)
    }
}

/// A filter that is disabled sees the requests of those routes that have a
/// configuration of it, be it an empty one.
fn sees(filter: &Value, routes: &[&Value]) -> Sees {
    if filter["disabled"] != true {
        return Sees::All;
    }
    let name = text(&filter["name"]);
    let is_whole = |routes: &&Value| {
        let mut hosts = list(&routes["virtual_hosts"]).peekable();
        enables(routes, name) || hosts.peek().is_some() && hosts.all(|host| enables(host, name))
    };
    if !routes.is_empty() && routes.iter().all(is_whole) {
        Sees::All
    } else if routes.iter().any(|routes| enables_within(routes, name)) {
        Sees::Some
    } else {
        Sees::None
    }
}

/// Whether these routes, virtual host or route enable the filter.
fn enables(routes: &Value, filter: &str) -> bool {
    let configured = routes["typed_per_filter_config"].get(filter);
    configured.is_some_and(|config| config["disabled"] != true)
}

/// Whether they do, or anything in them.
fn enables_within(routes: &Value, filter: &str) -> bool {
    match routes {
        Value::Object(fields) => {
            enables(routes, filter) || fields.values().any(|one| enables_within(one, filter))
        }
        Value::Array(items) => items.iter().any(|one| enables_within(one, filter)),
        _ => false,
    }
}

fn is_of_istio_itself(manager: &Value) -> bool {
    let mut clusters = list(&manager["route_config"]["virtual_hosts"])
        .flat_map(|host| list(&host["routes"]))
        .map(|route| text(&route["route"]["cluster"]))
        .peekable();
    clusters.peek().is_some() && clusters.all(|cluster| CLUSTERS_OF_ISTIO_ITSELF.contains(&cluster))
}

/// The plugin's configuration, as Envoy hands it over: the text of a
/// `StringValue` or the bytes of a `BytesValue`. Any other message comes in
/// Protobuf's own encoding, in which only an empty one is a configuration.
fn configuration(any: &Value) -> Result<Config, String> {
    let (kind, value) = (type_of(any), text(&any["value"]));
    let json = if kind.ends_with(".BytesValue") {
        bytes(value).map_err(|error| format!("its BytesValue is no base64: {error}"))?
    } else if kind.ends_with(".StringValue") {
        value.as_bytes().to_vec()
    } else if is_empty(any) {
        Vec::new()
    } else {
        return Err(format!(
            "Envoy does not hand over {kind} as JSON: state it as text, in a \
             google.protobuf.StringValue"
        ));
    };
    Config::parse(&json).map_err(|error| error.to_string())
}

/// Bytes as JSON states them in Protobuf: in either alphabet, padded or not.
fn bytes(base64: &str) -> Result<Vec<u8>, DecodeError> {
    let plain = base64.replace('-', "+").replace('_', "/");
    BASE64.decode(plain.trim_end_matches('='))
}

fn is_empty(any: &Value) -> bool {
    let is_nothing = |value: &Value| *value == Value::Null || *value == json!({});
    let mut fields = any.as_object().into_iter().flatten();
    fields.all(|(name, value)| name == "@type" || is_nothing(value))
}

/// The type of a message and the message, also of one that `EnvoyFilter`s wrap.
pub(super) fn typed(any: &Value) -> (&str, &Value) {
    if type_of(any).ends_with(".TypedStruct") {
        (text(&any["type_url"]), &any["value"])
    } else {
        (type_of(any), any)
    }
}

pub(super) fn type_of(any: &Value) -> &str {
    text(&any["@type"])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
