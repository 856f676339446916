//! The HTTP filters of a connection manager and the network filters of a chain, and which of them
//! are the metadata exchange.

use base64::{DecodeError, Engine as _};
use metadata_exchange::config::{Config, Protocol};
use serde_json::{Value, json};

use super::finding::{Code, Finding};
use super::json::{list, text, type_of, typed};
use crate::decode::BASE64;

/// An HTTP filter, or a network filter.
pub(super) struct Filter<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// What it is.
    pub(super) kind: Kind<'a>,
    /// Which requests it sees.
    pub(super) sees: Sees,
    /// Whether it comes from extension discovery.
    pub(super) is_discovered: bool,
    /// Its configuration.
    pub(super) config: &'a Value,
}

/// What a filter is.
pub(super) enum Kind<'a> {
    /// The metadata exchange.
    Ours(Box<Plugin<'a>>),
    /// What Istio's agent substitutes for the metadata exchange if it cannot
    /// fetch the module: an RBAC filter that allows everything.
    StandIn,
    /// Istio's own exchange.
    Native,
    /// One that neither answers requests nor changes their route; a network filter that does not
    /// read bytes.
    Passive,
    /// The router.
    Router,
    /// `tcp_proxy`.
    TcpProxy,
    /// A policy.
    Rbac,
    /// Any other.
    Other,
}

/// The metadata exchange as configured.
pub(super) struct Plugin<'a> {
    /// Its configuration, or why that is invalid; the defaults if no document
    /// has the configuration.
    pub(super) configuration: Result<Config, String>,
    /// The plugin's name, under which Envoy counts.
    pub(super) name: &'a str,
    /// The configuration as written, for comparison.
    pub(super) text: &'a Value,
    /// The plugin's `config`: an `envoy.extensions.wasm.v3.PluginConfig`.
    pub(super) config: &'a Value,
}

impl Plugin<'_> {
    /// Whether the filter records metrics by peer.
    pub(super) fn records_metrics(&self) -> bool {
        let configuration = self.configuration.as_ref();
        configuration.is_ok_and(|configuration| configuration.standard_metrics)
    }
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

/// Types of Istio's own exchange; the second is its type since it moved to
/// Envoy, the last that of its network filter.
pub(super) const NATIVE_TYPES: [&str; 3] = [
    "io.istio.http.peer_metadata.Config",
    "envoy.extensions.filters.http.peer_metadata.v3.Config",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
];

/// Names of Istio's own exchange.
const NATIVE_NAMES: [&str; 2] = [
    "istio.metadata_exchange",
    "envoy.filters.http.peer_metadata",
];

/// The runtime of plugins that are compiled into Envoy.
const NULL_RUNTIME: &str = "envoy.wasm.runtime.null";

/// The code of Istio's own exchange up to 1.17, a plugin in the null runtime.
const NATIVE_CODE: &str = "envoy.wasm.metadata_exchange";

/// How Istio's agent marks the filter that replaces a module.
const STAND_IN: &str = "wasm-default-allow";

/// Filters of Istio and others that may stand anywhere.
const PASSIVE_NAMES: [&str; 5] = [
    "envoy.filters.http.cors",
    "envoy.filters.http.fault",
    "envoy.filters.http.grpc_stats",
    "istio.alpn",
    "istio.stats",
];

/// Types of such filters, for those whose names vary.
const PASSIVE_TYPES: [&str; 10] = [
    ".Compressor",
    ".Decompressor",
    ".GrpcWeb",
    ".network.connection_limit.v3.ConnectionLimit",
    ".network.ext_authz.v3.ExtAuthz",
    ".network.local_ratelimit.v3.LocalRateLimit",
    ".network.ratelimit.v3.RateLimit",
    ".network.set_filter_state.v3.Config",
    ".network.sni_cluster.v3.SniCluster",
    ".network.sni_dynamic_forward_proxy.v3.FilterConfig",
];

impl<'a> Filter<'a> {
    /// Reads one of the filters of a list for `protocol`. The filter is ours if it has the name
    /// `ours`; `discovered` are the extension configurations, if they are known.
    pub(super) fn read(
        filter: &'a Value,
        protocol: Protocol,
        ours: &str,
        discovered: Option<&[&'a Value]>,
        routes: &[&Value],
    ) -> Self {
        let name = text(&filter["name"]);
        let is_discovered = filter.get("config_discovery").is_some();
        let config = if is_discovered {
            let mut known = discovered.into_iter().flatten();
            let found = known.find(|one| one["name"] == name);
            found.map(|one| &one["typed_config"])
        } else {
            filter.get("typed_config")
        };
        let is_unknown = is_discovered && discovered.is_none();
        let (kind, config) = config.map_or(("", &Value::Null), typed);
        let mut kind = Kind::of(name, kind, config, ours, is_discovered);
        if let Kind::Ours(plugin) = &mut kind
            && is_unknown
        {
            plugin.configuration = Ok(Config {
                protocol,
                ..Config::default()
            });
        }
        Self {
            name,
            kind,
            sees: sees(filter, routes),
            is_discovered,
            config,
        }
    }

    pub(super) fn ours(&self) -> Option<&Plugin<'a>> {
        match &self.kind {
            Kind::Ours(plugin) => Some(&**plugin),
            _ => None,
        }
    }

    /// It rejects its configuration.
    pub(super) fn refused(&self, problem: &str) -> Finding {
        Finding::error(
            Code::ConfigurationRefused,
            self.name,
            format!("the filter rejects its configuration: {problem}"),
            "correct it; `mxctl check-config` checks a configuration before a rollout. A \
             configuration that was accepted before stays in force",
        )
    }

    pub(super) fn is_native(&self) -> bool {
        matches!(self.kind, Kind::Native)
    }
}

impl<'a> Kind<'a> {
    fn of(name: &str, kind: &str, config: &'a Value, ours: &str, is_discovered: bool) -> Self {
        let plugin = &config["config"];
        let is_wasm = kind.ends_with(".wasm.v3.Wasm");
        let is_null = plugin["vm_config"]["runtime"] == NULL_RUNTIME;
        let is_native_code = plugin["vm_config"]["code"]["local"]["inline_string"] == NATIVE_CODE;
        if NATIVE_TYPES.iter().any(|native| kind.ends_with(native))
            || is_wasm && is_null && (is_native_code || NATIVE_NAMES.contains(&name))
        {
            return Self::Native;
        }
        // A plugin that is compiled into Envoy is not this filter, whatever its
        // name.
        if is_wasm && is_null {
            return Self::Other;
        }
        let names = [name, text(&plugin["name"]), text(&plugin["root_id"])];
        let is_named = names.into_iter().any(|name| names_filter(name, ours));
        if is_named && config["rules_stat_prefix"] == STAND_IN {
            return Self::StandIn;
        }
        // A discovered filter may have no configuration yet, or a stand-in.
        if is_named && (is_wasm || is_discovered) {
            return Self::Ours(Box::new(Plugin {
                configuration: if is_wasm {
                    configuration(&plugin["configuration"])
                } else {
                    Err("there is none".to_owned())
                },
                name: text(&plugin["name"]),
                text: &plugin["configuration"],
                config: plugin,
            }));
        }
        if NATIVE_NAMES.contains(&name) {
            Self::Native
        } else if kind.ends_with(".router.v3.Router") {
            Self::Router
        } else if kind.ends_with(".tcp_proxy.v3.TcpProxy") {
            Self::TcpProxy
        } else if kind.ends_with(".rbac.v3.RBAC") {
            Self::Rbac
        } else if PASSIVE_NAMES.contains(&name)
            || PASSIVE_TYPES.iter().any(|passive| kind.ends_with(passive))
        {
            Self::Passive
        } else {
            Self::Other
        }
    }
}

impl Plugin<'_> {
    /// Whether requests pass once its VM has died.
    pub(super) fn is_fail_open(&self) -> bool {
        self.config["failure_policy"] == "FAIL_OPEN" || self.config["fail_open"] == true
    }

    /// The environment of its VM. The values of Envoy's own variables are unknown,
    /// so their names stand for them.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let passed = &self.config["vm_config"]["environment_variables"];
        let of_host = list(&passed["host_env_keys"]).map(|name| (text(name), text(name)));
        let given = passed["key_values"].as_object().into_iter().flatten();
        let given = given.map(|(name, value)| (name.as_str(), text(value)));
        let all = of_host.chain(given);
        all.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// The id of its VM.
    pub(super) fn vm_id(&self) -> &str {
        text(&self.config["vm_config"]["vm_id"])
    }
}

/// Whether an extension configuration is the stand-in for the filter `ours`.
pub(super) fn is_stand_in(extension: &Value, ours: &str) -> bool {
    let (_, config) = typed(&extension["typed_config"]);
    config["rules_stat_prefix"] == STAND_IN && names_filter(text(&extension["name"]), ours)
}

/// Whether `name` names the filter `filter`, or the one for TCP, which ends in `_tcp`. Istio writes
/// `extensions.istio.io/wasmplugin/istio-system.metadata-exchange`, since 1.30
/// with a suffix.
fn names_filter(name: &str, filter: &str) -> bool {
    let plain = name.split('~').next().unwrap_or(name);
    let resource = plain.rsplit('/').next().unwrap_or(plain);
    // The namespace has no dots; the plugin's name may.
    let (_, plugin) = resource.split_once('.').unwrap_or(("", resource));
    let (_, last) = plugin.rsplit_once('.').unwrap_or(("", plugin));
    // Names in Kubernetes have no underscores.
    let alike = |name: &str| name.replace('-', "_");
    let filter = alike(filter);
    [name, plain, resource, plugin, last]
        .into_iter()
        .map(alike)
        .any(|name| name == filter || name.strip_suffix("_tcp") == Some(&filter))
}

/// A disabled filter sees the requests of routes that configure it, even with
/// an empty configuration.
fn sees(filter: &Value, routes: &[&Value]) -> Sees {
    if filter["disabled"] != true {
        return Sees::All;
    }
    let name = text(&filter["name"]);
    let host_enables = |host: &Value| {
        let mut routes = list(&host["routes"]).peekable();
        enables(host, name) || routes.peek().is_some() && routes.all(|route| enables(route, name))
    };
    let is_whole = |routes: &&Value| {
        let mut hosts = list(&routes["virtual_hosts"]).peekable();
        enables(routes, name) || hosts.peek().is_some() && hosts.all(host_enables)
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

/// Whether these or anything inside them enable it.
fn enables_within(routes: &Value, filter: &str) -> bool {
    match routes {
        Value::Object(fields) => {
            enables(routes, filter) || fields.values().any(|one| enables_within(one, filter))
        }
        Value::Array(items) => items.iter().any(|one| enables_within(one, filter)),
        _ => false,
    }
}

/// Whether a virtual host, a route or a cluster of a route disables the filter.
pub(super) fn disables_within(routes: &Value, filter: &str) -> bool {
    match routes {
        Value::Object(fields) => {
            let settings = &routes["typed_per_filter_config"][filter];
            settings["disabled"] == true || fields.values().any(|one| disables_within(one, filter))
        }
        Value::Array(items) => items.iter().any(|one| disables_within(one, filter)),
        _ => false,
    }
}

/// The plugin configuration as Envoy passes it on: the text of a `StringValue`
/// or the bytes of a `BytesValue`. Any other message arrives in Protobuf's
/// binary encoding, which is a valid configuration only if it is empty.
fn configuration(any: &Value) -> Result<Config, String> {
    let (kind, value) = (type_of(any), text(&any["value"]));
    let json = if kind.ends_with(".BytesValue") {
        bytes(value).map_err(|error| format!("its BytesValue is not base64: {error}"))?
    } else if kind.ends_with(".StringValue") {
        value.as_bytes().to_vec()
    } else if is_empty(any) {
        Vec::new()
    } else {
        return Err(format!(
            "Envoy does not pass {kind} on as JSON: write the configuration as text in a \
             google.protobuf.StringValue"
        ));
    };
    Config::parse(&json).map_err(|error| error.to_string())
}

/// Bytes in Protobuf's JSON form: either alphabet, padded or not.
fn bytes(base64: &str) -> Result<Vec<u8>, DecodeError> {
    let plain = base64.replace('-', "+").replace('_', "/");
    BASE64.decode(plain.trim_end_matches('='))
}

fn is_empty(any: &Value) -> bool {
    let is_nothing = |value: &Value| *value == Value::Null || *value == json!({});
    let mut fields = any.as_object().into_iter().flatten();
    fields.all(|(name, value)| name == "@type" || is_nothing(value))
}
