//! `callee`: where a control plane other than Istio's writes who a callee is.

use serde_json::Value;

use super::node::{self, Texts};
use super::{ConfigError, raw};
use crate::local::identity::Stated;
use crate::template::{Allowed, Source};

/// A rule: the fields of the callee. The first rule that names a workload or a service counts.
pub type Rule = Vec<Stated>;

/// The sources that references in rules may have.
const SOURCES: &Allowed = &Allowed {
    sources: &[
        Source::Endpoint,
        Source::EndpointLocality,
        Source::Cluster,
        Source::Route,
        Source::Listener,
        Source::ClusterName,
    ],
    usage: "allowed are text, ${cluster_name:}, and JSON Pointers into filter metadata: \
            ${endpoint:/FILTER/KEY}, endpoint_locality, cluster, route, listener; all with a default",
};

/// The rules for a control plane, by its name in the configuration, as JSON.
const PRESETS: [(&str, &str); 2] = [
    (
        "kuma",
        r#"[{"WORKLOAD_NAME": "${endpoint:/io.kuma.labels/kuma.io~1workload}",
            "NAMESPACE": "${endpoint:/io.kuma.labels/k8s.kuma.io~1namespace}",
            "MESH_ID": "${endpoint:/io.kuma.labels/kuma.io~1mesh}",
            "CLUSTER_ID": "${endpoint:/io.kuma.labels/kuma.io~1zone}",
            "LABELS": {"service.istio.io/canonical-name": "${endpoint:/io.kuma.labels/kuma.io~1workload}", "version": "${endpoint:/envoy.lb/version}"}},
            {"WORKLOAD_NAME": "${listener:/io.kuma.tags/kuma.io~1service}"}]"#,
    ),
    (
        "envoy-gateway",
        r#"[{"WORKLOAD_NAME": "${endpoint_locality:/envoy-gateway/resources/0/name}",
            "NAMESPACE": "${endpoint_locality:/envoy-gateway/resources/0/namespace}"}]"#,
    ),
];

/// What is allowed for the key.
pub(super) const RULES: &str = "\"kuma\", \"envoy-gateway\", or a list of objects with keys of node \
                                metadata, as \"node\" has them";

const RULE: &str = "an object with keys of node metadata, without id";

/// Reads the value of `callee`.
pub(super) fn read(json: &Value) -> Result<Vec<Rule>, ConfigError> {
    let refused = || ConfigError::invalid("callee", json);
    let named = json.as_str();
    let preset = PRESETS.into_iter().find(|(name, _)| Some(*name) == named);
    let preset = preset.and_then(|(_, rules)| raw::read(rules.as_bytes()).ok());
    let rules = preset
        .as_ref()
        .unwrap_or(json)
        .as_array()
        .ok_or_else(refused)?;
    let texts = Texts {
        key: "callee",
        fields: RULE,
        has_id: false,
        sources: SOURCES,
    };
    let rule = |rule: &Value| node::read_texts(rule, &texts);
    rules.iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_rules_of_every_preset_are_valid() {
        for (name, _) in PRESETS {
            assert!(!read(&name.into()).unwrap().is_empty(), "{name}");
        }
    }

    #[test]
    fn an_error_names_the_key_the_value_and_what_is_allowed() {
        for (json, start) in [
            (
                json!("consul"),
                r#""callee" is "consul"; allowed is "kuma", "envoy-gateway", or a list of objects"#,
            ),
            (
                json!([{"NAME": "${env:A}"}]),
                r#""callee.NAME" is "${env:A}"; allowed are text, ${cluster_name:}, and JSON Pointers"#,
            ),
            (
                json!([{"NAME": "${endpoint:name}"}]),
                r#""callee.NAME" is "${endpoint:name}"; allowed are text"#,
            ),
            (
                json!([{"id": "a"}]),
                r#""callee.id" is "a"; allowed is an object with keys of node metadata, without id"#,
            ),
        ] {
            let error = read(&json).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
