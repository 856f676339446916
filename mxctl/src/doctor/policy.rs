//! Policies, rate limits, request headers and metrics that depend on a peer.

use metadata_exchange::config::Config;
use metadata_exchange::trust::Trust;
use serde_json::Value;

use super::dump::Manager;
use super::facts::Facts;
use super::filter::Kind;
use super::finding::{Code, Finding};
use super::json::{any_text, list, text, type_of, typed};
use super::releases::stats_loggers;

const PEERS: [&str; 2] = ["wasm.downstream_peer", "wasm.upstream_peer"];

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    for manager in &facts.managers {
        let plugin = manager.filters.iter().find_map(|filter| filter.ours());
        let Some(Ok(configuration)) = plugin.map(|plugin| &plugin.configuration) else {
            continue;
        };
        let filters = manager.filters.iter();
        let of_filters = filters
            .filter(|filter| matches!(filter.kind, Kind::Rbac))
            .map(|filter| filter.config);
        let of_routes = manager
            .routes
            .iter()
            .flat_map(|routes| of_type(routes, ".RBACPerRoute"));
        let is_believed = |config: &Value| reads_believed(configuration, config);
        if rate_limits(manager).into_iter().any(is_believed) {
            findings.push(Finding::error(
                Code::PolicyWithoutTrust,
                manager.listener,
                "a rate limit counts by the peer, and the filter believes every peer: a client \
                 takes a new name, or another's, for each request",
                "configure the filter with \"trust\": \"spiffe\" or \"mtls\", and the listener \
                 with mutual TLS",
            ));
        }
        let is_unbounded = |logger: &&Value| {
            names(logger, PEERS[0])
                && ["max_counters", "max_histograms"]
                    .iter()
                    .any(|bound| logger["stats_scope"][bound].as_u64().unwrap_or(0) == 0)
        };
        if configuration.trust == Trust::Any && stats_loggers(manager).any(|one| is_unbounded(&one))
        {
            findings.push(Finding::warning(
                Code::UnboundedMetrics,
                manager.listener,
                "the access logger envoy.access_loggers.stats counts by the caller, and the filter \
                 believes every caller: each name that a client makes up takes memory of Envoy, \
                 which it never frees",
                "bound it by max_counters and max_histograms in stats_scope, from Envoy 1.39 on; \
                 else configure the filter with \"trust\": \"spiffe\" or \"mtls\"",
            ));
        }
        let headers = headers_by_peer(manager);
        if headers.iter().any(|header| is_believed(header.value)) {
            findings.push(Finding::error(
                Code::PolicyWithoutTrust,
                manager.listener,
                "a request header tells the app the peer, and the filter believes every peer: \
                 whoever sends the exchange's header chooses what the app is told",
                "configure the filter with \"trust\": \"spiffe\" or \"mtls\", and the listener \
                 with mutual TLS",
            ));
        }
        for header in headers.iter().filter(|header| !header.is_removed) {
            findings.push(Finding::error(
                Code::ForgeableHeader,
                manager.listener,
                format!(
                    "the request header {} tells the app the peer, and a client may send it, too: \
                     where the peer is not known, nothing overwrites the client's own",
                    header.name
                ),
                "list its name in request_headers_to_remove of the same virtual host or route: \
                 Envoy removes before it adds",
            ));
        }
        for policy in of_filters.chain(of_routes) {
            examine_policy(manager.listener, configuration, policy, findings);
        }
    }
    for chain in &facts.tcp_chains {
        let Some(Ok(configuration)) = chain.ours().map(|plugin| &plugin.configuration) else {
            continue;
        };
        let filters = chain.filters.iter();
        for policy in filters.filter(|filter| matches!(filter.kind, Kind::Rbac)) {
            examine_policy(chain.listener, configuration, policy.config, findings);
        }
    }
}

/// Whether it reads a peer that the filter believes whoever it is.
fn reads_believed(configuration: &Config, config: &Value) -> bool {
    names(config, PEERS[0]) && configuration.trust == Trust::Any
        || names(config, PEERS[1]) && configuration.upstream_trust == Trust::Any
}

fn examine_policy(
    place: &str,
    configuration: &Config,
    policy: &Value,
    findings: &mut Vec<Finding>,
) {
    if reads_believed(configuration, policy) {
        findings.push(Finding::error(
            Code::PolicyWithoutTrust,
            place,
            "an RBAC policy matches on the peer, and the filter believes every peer: a client can \
             claim any workload",
            "configure the filter with \"trust\": \"spiffe\" or \"mtls\" (upstream_trust for \
             callees), and the listener with mutual TLS",
        ));
    }
    if PEERS.iter().any(|peer| names(policy, peer)) && denies(policy) {
        findings.push(Finding::warning(
            Code::DenyByPeer,
            place,
            "an RBAC policy with the action DENY matches on the peer: a request or connection \
             without a known peer does not match, and passes",
            "rewrite it as a policy with the action ALLOW",
        ));
    }
}

fn names(policy: &Value, peer: &str) -> bool {
    any_text(policy, &mut |text| text.contains(peer))
}

/// Whether its rules deny, or any action of its matchers does.
fn denies(policy: &Value) -> bool {
    match policy {
        Value::Object(fields) => policy["action"] == "DENY" || fields.values().any(denies),
        Value::Array(values) => values.iter().any(denies),
        _ => false,
    }
}

/// The configurations of that type in the routes' per-filter configurations.
fn of_type<'a>(routes: &'a Value, kind: &str) -> Vec<&'a Value> {
    match routes {
        value if type_of(value).ends_with(kind) => vec![value],
        Value::Object(fields) => fields.values().flat_map(|one| of_type(one, kind)).collect(),
        Value::Array(values) => values.iter().flat_map(|one| of_type(one, kind)).collect(),
        _ => Vec::new(),
    }
}

/// What rate limits count by: their filters, and the `rate_limits` of routes.
fn rate_limits<'a>(manager: &Manager<'a>) -> Vec<&'a Value> {
    const TYPES: [&str; 2] = [".LocalRateLimit", ".RateLimit"];
    let is_limit = |filter: &&Value| {
        let (kind, _) = typed(&filter["typed_config"]);
        TYPES.iter().any(|limit| kind.ends_with(limit))
    };
    let mut all: Vec<_> = list(&manager.config["http_filters"])
        .filter(is_limit)
        .collect();
    for routes in &manager.routes {
        all.extend(of_type(routes, TYPES[0]));
        with_key(routes, "rate_limits", &mut |holder| {
            all.push(&holder["rate_limits"]);
        });
    }
    all
}

/// A request header that is added by what is known of a peer.
struct Header<'a> {
    name: &'a str,
    value: &'a Value,
    /// Whether what the client sent under its name goes first.
    is_removed: bool,
}

fn headers_by_peer<'a>(manager: &Manager<'a>) -> Vec<Header<'a>> {
    let mut headers = Vec::new();
    for routes in &manager.routes {
        with_key(routes, "request_headers_to_add", &mut |holder| {
            for added in list(&holder["request_headers_to_add"]) {
                let (name, value) = (text(&added["header"]["key"]), &added["header"]["value"]);
                if PEERS.iter().any(|peer| names(value, peer)) {
                    let mut removed = list(&holder["request_headers_to_remove"]);
                    let is_it = |one: &Value| text(one).eq_ignore_ascii_case(name);
                    let is_removed = removed.any(is_it);
                    headers.push(Header {
                        name,
                        value,
                        is_removed,
                    });
                }
            }
        });
    }
    headers
}

/// Calls `each` with every object that has the key.
fn with_key<'a>(value: &'a Value, key: &str, each: &mut dyn FnMut(&'a Value)) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key(key) {
                each(value);
            }
            fields.values().for_each(|one| with_key(one, key, each));
        }
        Value::Array(values) => values.iter().for_each(|one| with_key(one, key, each)),
        _ => {}
    }
}
