//! Policies that match on a peer.

use metadata_exchange::trust::Trust;
use serde_json::Value;

use super::facts::Facts;
use super::filter::Kind;
use super::finding::{Code, Finding};
use super::json::{any_text, type_of};

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
        let of_routes = manager.routes.iter().flat_map(|routes| of_routes(routes));
        for policy in of_filters.chain(of_routes) {
            let [names_caller, names_callee] = PEERS.map(|peer| names(policy, peer));
            let is_believed = names_caller && configuration.trust == Trust::Any
                || names_callee && configuration.upstream_trust == Trust::Any;
            if is_believed {
                findings.push(Finding::error(
                    Code::PolicyWithoutTrust,
                    manager.listener,
                    "an RBAC policy matches on the peer, and the filter believes every peer: a \
                     client can claim any workload",
                    "configure the filter with \"trust\": \"spiffe\" or \"mtls\" (upstream_trust \
                     for callees), and the listener with mutual TLS",
                ));
            }
            if (names_caller || names_callee) && denies(policy) {
                findings.push(Finding::warning(
                    Code::DenyByPeer,
                    manager.listener,
                    "an RBAC policy with the action DENY matches on the peer: a request without a \
                     known peer does not match, and passes",
                    "rewrite it as a policy with the action ALLOW",
                ));
            }
        }
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

/// The policies in the routes' per-filter configurations.
fn of_routes(routes: &Value) -> Vec<&Value> {
    match routes {
        value if type_of(value).ends_with(".RBACPerRoute") => vec![value],
        Value::Object(fields) => fields.values().flat_map(of_routes).collect(),
        Value::Array(values) => values.iter().flat_map(of_routes).collect(),
        _ => Vec::new(),
    }
}
