//! The plugin configuration: parses JSON into a validated [`Config`].
//!
//! Parsing is strict, because an ignored misspelt key would be noticed only in
//! production: unknown or repeated keys, wrong types and values out of range
//! are rejected with the key, the value and what is allowed.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::direction::Direction;
use crate::header_limits::HeaderLimits;
use crate::local::identity::Identity;
use crate::local::share::Share;
use crate::pattern::Pattern;
use crate::peer::header::Limits;
use crate::trust::{SpiffePattern, Trust};

pub mod admission;
pub mod callee;
mod error;
mod node;
mod raw;

pub use error::ConfigError;
use raw::{ExternalClusters, Integer, Names, RawDirection};

/// Who exchanges metadata with the peers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// This filter.
    Exchange,
    /// Istio's own filter; this one only reads and stores.
    Observe,
}

/// What the filter is loaded into.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// An HTTP filter chain.
    Http,
    /// A network filter chain, ahead of `tcp_proxy`.
    Tcp,
}

/// The validated configuration; [`Default`] is that of an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Each is a switch of the operator's.
pub struct Config {
    /// `protocol`: what the filter is loaded into.
    pub protocol: Protocol,
    /// `tcp_clusters`: clusters that are sent a frame, in addition to those whose metadata says so.
    pub tcp_clusters: Vec<Pattern>,
    /// `tcp_endpoints`: addresses of endpoints that are sent a frame, in addition to those whose metadata says so.
    pub tcp_endpoints: Vec<Pattern>,
    /// `mode`: whether this filter exchanges metadata or only observes.
    pub mode: Mode,
    /// `direction`; `None` is `auto`: the listener's own.
    pub direction: Option<Direction>,
    /// `max_sent_bytes`: the longest `x-envoy-peer-metadata` that is sent.
    pub max_sent_bytes: usize,
    /// `max_request_headers_kb` and `max_request_headers_count`.
    pub request_headers: HeaderLimits,
    /// `max_response_headers_kb` and `max_response_headers_count`.
    pub response_headers: HeaderLimits,
    /// `max_peer_cache_size`: peers kept per VM and plugin; 0 keeps none.
    pub max_peer_cache_size: u32,
    /// `record_local_node`: also store the local node, under the opposite key.
    pub record_local_node: bool,
    /// `local_peer`: also store the local node, under a key of its own.
    pub local_peer: bool,
    /// `accept_own`: store a peer that is this proxy itself.
    pub accept_own: bool,
    /// `max_received_bytes`, `max_labels` and `max_id_bytes`.
    pub limits: Limits,
    /// `trust`: which callers are believed.
    pub trust: Trust,
    /// `upstream_trust`: which callees are believed.
    pub upstream_trust: Trust,
    /// `trust_domains`: those of `spiffe`; empty allows all.
    pub trust_domains: Vec<String>,
    /// `spiffe_patterns`: the forms of the SPIFFE IDs of peers.
    pub spiffe_patterns: Vec<SpiffePattern>,
    /// `name_from_certificate`: whether peers that send no metadata are named by their certificate.
    pub name_from_certificate: bool,
    /// `external_clusters`: whether nothing is sent to clusters outside the mesh.
    pub skip_external_clusters: bool,
    /// `external_cluster_names`: clusters outside the mesh, in addition to those whose metadata says so.
    pub external_cluster_names: Vec<Pattern>,
    /// `node`: what this proxy says of itself, over what the bootstrap says.
    pub node: Identity,
    /// `share`: which parts of the local node are sent.
    pub share: Share,
    /// `endpoint_fallback`: whether a callee that does not answer is named by its endpoint's metadata.
    pub endpoint_fallback: bool,
    /// `service_fallback`: whether a callee that no other source names is stored as the service of its cluster.
    pub service_fallback: bool,
    /// `callee`: how control planes other than Istio name callees.
    pub callee: Vec<callee::Rule>,
    /// `standard_metrics`: whether Istio's standard metrics are recorded.
    pub standard_metrics: bool,
    /// `max_metric_series`: the most sets of labels of the standard metrics, per worker.
    pub max_metric_series: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            protocol: Protocol::Http,
            tcp_clusters: Vec::new(),
            tcp_endpoints: Vec::new(),
            mode: Mode::Exchange,
            direction: None,
            max_sent_bytes: 16_384,
            request_headers: HeaderLimits::DEFAULT,
            response_headers: HeaderLimits::DEFAULT,
            max_peer_cache_size: 1_000,
            record_local_node: false,
            local_peer: false,
            accept_own: false,
            limits: Limits::DEFAULT,
            trust: Trust::Any,
            upstream_trust: Trust::Any,
            trust_domains: Vec::new(),
            spiffe_patterns: vec![SpiffePattern::istio()],
            name_from_certificate: false,
            skip_external_clusters: true,
            external_cluster_names: Vec::new(),
            node: Identity::default(),
            share: Share::All,
            endpoint_fallback: true,
            service_fallback: true,
            callee: Vec::new(),
            standard_metrics: false,
            max_metric_series: 1000,
        }
    }
}

/// A limit in bytes. The maximum leaves room for proxies that raise Envoy's own
/// limit on all headers of a request, 60 KiB by default.
type Bytes<const MIN: u32> = Integer<MIN, { 1 << 20 }>;

// The ranges that Envoy accepts for the limits of the same names.
type HeadersKb = Integer<1, 8192>;
type HeadersCount = Integer<1, 65_536>;

/// Every key of the configuration, with its allowed values.
pub const KEYS: [(&str, &str); 31] = [
    ("accept_own", BOOL),
    ("callee", callee::RULES),
    (
        "direction",
        "\"auto\", \"inbound\", \"outbound\" or \"gateway\"",
    ),
    ("endpoint_fallback", BOOL),
    ("external_cluster_names", NAMES),
    ("external_clusters", "\"skip\" or \"send\""),
    ("local_peer", BOOL),
    ("max_id_bytes", "an integer from 1 to 1048576"),
    ("max_labels", "an integer from 0 to 65536"),
    ("max_metric_series", "an integer from 1 to 100000"),
    ("max_peer_cache_size", "an integer from 0 to 10000000"),
    ("max_received_bytes", "an integer from 1 to 1048576"),
    ("max_request_headers_count", HEADERS_COUNT),
    ("max_request_headers_kb", HEADERS_KB),
    ("max_response_headers_count", HEADERS_COUNT),
    ("max_response_headers_kb", HEADERS_KB),
    ("max_sent_bytes", "an integer from 0 to 1048576"),
    ("mode", "\"exchange\" or \"observe\""),
    ("name_from_certificate", BOOL),
    ("node", node::FIELDS),
    ("protocol", "\"http\" or \"tcp\""),
    ("record_local_node", BOOL),
    ("service_fallback", BOOL),
    (
        "share",
        "\"all\", \"minimal\", or an object with \"fields\" (a list of node metadata keys) and \
         \"labels\" (a list of label keys, each exact or a prefix with \"*\" at its end)",
    ),
    (
        "spiffe_patterns",
        "a list of patterns such as \"spiffe://{trust_domain}/ns/{NAMESPACE}/sa/{_}\": between slashes \
         stands a text, {_}, or at least once {NAMESPACE}, {WORKLOAD_NAME}, {NAME}, {CLUSTER_ID} or \
         {MESH_ID}",
    ),
    ("standard_metrics", BOOL),
    ("tcp_clusters", NAMES),
    (
        "tcp_endpoints",
        "a list of addresses such as \"10.0.0.7:3306\", each exact or a prefix with \"*\" at its end",
    ),
    ("trust", TRUST),
    ("trust_domains", "a list of trust domains"),
    ("upstream_trust", TRUST),
];

const BOOL: &str = "true or false";
const HEADERS_COUNT: &str = "an integer from 1 to 65536";
const NAMES: &str = "a list of names, each exact or a prefix with \"*\" at its end";
const HEADERS_KB: &str = "an integer from 1 to 8192";
const TRUST: &str = "\"any\", \"mtls\", \"spiffe\" or \"none\"";

impl Config {
    /// Reads the plugin configuration; empty gives the defaults.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        match json.trim_ascii() {
            [] => return Ok(Self::default()),
            [b'{', ..] => {}
            _ => return Err(ConfigError::NotJson("no {".to_owned())),
        }
        let config = Self::validate(&raw::read(json)?)?;
        config.check()?;
        Ok(config)
    }

    /// Checks what one key needs of others.
    fn check(&self) -> Result<(), ConfigError> {
        let trusts = [self.trust, self.upstream_trust];
        let uses_certificates = trusts.contains(&Trust::Spiffe) || self.name_from_certificate;
        let has_patterns = self.spiffe_patterns != Self::default().spiffe_patterns;
        let conflict = if !self.trust_domains.is_empty() && !uses_certificates {
            "\"trust_domains\" needs \"trust\" or \"upstream_trust\" to be \"spiffe\", or \
             \"name_from_certificate\", because nothing else uses it"
        } else if has_patterns && !uses_certificates {
            "\"spiffe_patterns\" needs \"trust\" or \"upstream_trust\" to be \"spiffe\", or \
             \"name_from_certificate\""
        } else if self.spiffe_patterns.is_empty() {
            "\"spiffe_patterns\" is empty; it needs a pattern, or leave it out for Istio's form"
        } else if self.name_from_certificate && !trusts.into_iter().any(Trust::needs_certificate) {
            "\"name_from_certificate\" needs \"trust\" or \"upstream_trust\" to be \"mtls\" or \
             \"spiffe\", because a certificate that nobody demands proves nothing"
        } else if self.name_from_certificate
            && !self
                .spiffe_patterns
                .iter()
                .any(SpiffePattern::names_workload)
        {
            "\"name_from_certificate\" needs a pattern with {WORKLOAD_NAME} or {NAME} in \
             \"spiffe_patterns\": Istio's form has only the namespace"
        } else if self.protocol == Protocol::Http
            && !(self.tcp_clusters.is_empty() && self.tcp_endpoints.is_empty())
        {
            "\"tcp_clusters\" and \"tcp_endpoints\" need \"protocol\" to be \"tcp\""
        } else if self.protocol == Protocol::Tcp && self.standard_metrics {
            "\"standard_metrics\" needs \"protocol\" to be \"http\", because its metrics are those of requests"
        } else {
            return Ok(());
        };
        Err(ConfigError::Conflict(conflict))
    }

    fn validate(raw: &Value) -> Result<Self, ConfigError> {
        let is_known = |key: &str| KEYS.iter().any(|(known, _)| *known == key);
        let mut keys = raw.as_object().into_iter().flatten();
        if let Some((key, _)) = keys.find(|(key, _)| !is_known(key)) {
            return Err(ConfigError::UnknownKey(key.clone()));
        }
        let mut config = Self::default();
        set::<Protocol, _>(raw, "protocol", &mut config.protocol)?;
        set::<Vec<Pattern>, _>(raw, "tcp_clusters", &mut config.tcp_clusters)?;
        set::<Vec<Pattern>, _>(raw, "tcp_endpoints", &mut config.tcp_endpoints)?;
        set::<Mode, _>(raw, "mode", &mut config.mode)?;
        set::<RawDirection, _>(raw, "direction", &mut config.direction)?;
        set::<Bytes<0>, _>(raw, "max_sent_bytes", &mut config.max_sent_bytes)?;
        set::<HeadersKb, _>(
            raw,
            "max_request_headers_kb",
            &mut config.request_headers.max_kb,
        )?;
        set::<HeadersCount, _>(
            raw,
            "max_request_headers_count",
            &mut config.request_headers.max_count,
        )?;
        set::<HeadersKb, _>(
            raw,
            "max_response_headers_kb",
            &mut config.response_headers.max_kb,
        )?;
        set::<HeadersCount, _>(
            raw,
            "max_response_headers_count",
            &mut config.response_headers.max_count,
        )?;
        set::<Integer<0, 10_000_000>, _>(
            raw,
            "max_peer_cache_size",
            &mut config.max_peer_cache_size,
        )?;
        set::<bool, _>(raw, "record_local_node", &mut config.record_local_node)?;
        set::<bool, _>(raw, "local_peer", &mut config.local_peer)?;
        set::<bool, _>(raw, "accept_own", &mut config.accept_own)?;
        set::<Bytes<1>, _>(
            raw,
            "max_received_bytes",
            &mut config.limits.max_received_bytes,
        )?;
        set::<Integer<0, 65_536>, _>(raw, "max_labels", &mut config.limits.max_labels)?;
        set::<Bytes<1>, _>(raw, "max_id_bytes", &mut config.limits.max_id_bytes)?;
        set::<Trust, _>(raw, "trust", &mut config.trust)?;
        set::<Trust, _>(raw, "upstream_trust", &mut config.upstream_trust)?;
        set::<Names, _>(raw, "trust_domains", &mut config.trust_domains)?;
        set::<Vec<SpiffePattern>, _>(raw, "spiffe_patterns", &mut config.spiffe_patterns)?;
        set::<bool, _>(
            raw,
            "name_from_certificate",
            &mut config.name_from_certificate,
        )?;
        set::<ExternalClusters, _>(raw, "external_clusters", &mut config.skip_external_clusters)?;
        set::<Vec<Pattern>, _>(
            raw,
            "external_cluster_names",
            &mut config.external_cluster_names,
        )?;
        set::<bool, _>(raw, "service_fallback", &mut config.service_fallback)?;
        set::<bool, _>(raw, "standard_metrics", &mut config.standard_metrics)?;
        set::<Integer<1, 100_000>, _>(raw, "max_metric_series", &mut config.max_metric_series)?;
        if let Some(json) = raw.get("node") {
            config.node = node::read(json)?;
        }
        if let Some(json) = raw.get("callee") {
            config.callee = callee::read(json)?;
        }
        if let Some(json) = raw.get("share") {
            config.share = raw::share(json).map_err(|_| ConfigError::invalid("share", json))?;
        }
        set::<bool, _>(raw, "endpoint_fallback", &mut config.endpoint_fallback)?;
        Ok(config)
    }
}

/// Sets the value of `key`, if the configuration has the key.
fn set<R: DeserializeOwned + Into<T>, T>(
    raw: &Value,
    key: &'static str,
    configured: &mut T,
) -> Result<(), ConfigError> {
    let Some(json) = raw.get(key) else {
        return Ok(());
    };
    match R::deserialize(json) {
        Ok(value) => {
            *configured = value.into();
            Ok(())
        }
        Err(_) => Err(ConfigError::invalid(key, json)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::identity::Stated;
    use crate::template::Template;

    fn error(json: &str) -> String {
        Config::parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_configuration_gives_the_defaults() {
        for json in ["", " \n", "{}"] {
            assert_eq!(Config::parse(json.as_bytes()), Ok(Config::default()));
        }
    }

    #[test]
    fn every_key_is_read() {
        let json = r#"{
            "accept_own": true, "direction": "gateway", "endpoint_fallback": false,
            "external_cluster_names": ["db", "ext-*"], "external_clusters": "send",
            "local_peer": true, "max_id_bytes": 7, "max_labels": 8, "max_peer_cache_size": 9.0,
            "max_received_bytes": 10, "max_request_headers_count": 11, "max_request_headers_kb": 12,
            "max_response_headers_count": 13, "max_response_headers_kb": 14, "max_sent_bytes": 0, "mode": "observe", "node": {"id": "a"}, "callee": [{"NAME": "${cluster_name:}"}], "record_local_node": true,
            "protocol": "http", "tcp_clusters": [], "tcp_endpoints": [],
            "service_fallback": false, "standard_metrics": true, "max_metric_series": 15, "share": "minimal", "trust": "spiffe", "trust_domains": ["cluster.local"], "spiffe_patterns": ["spiffe://{_}/{NAME}"], "name_from_certificate": true,
            "upstream_trust": "mtls"}"#;
        let config = Config {
            protocol: Protocol::Http,
            tcp_clusters: Vec::new(),
            tcp_endpoints: Vec::new(),
            mode: Mode::Observe,
            direction: Some(Direction::Gateway),
            max_sent_bytes: 0,
            request_headers: HeaderLimits {
                max_kb: 12,
                max_count: 11,
            },
            response_headers: HeaderLimits {
                max_kb: 14,
                max_count: 13,
            },
            max_peer_cache_size: 9,
            record_local_node: true,
            local_peer: true,
            accept_own: true,
            limits: Limits {
                max_received_bytes: 10,
                max_labels: 8,
                max_id_bytes: 7,
            },
            trust: Trust::Spiffe,
            upstream_trust: Trust::Mtls,
            trust_domains: vec!["cluster.local".into()],
            spiffe_patterns: vec![SpiffePattern::parse("spiffe://{_}/{NAME}").unwrap()],
            callee: callee::read(&serde_json::json!([{"NAME": "${cluster_name:}"}])).unwrap(),
            name_from_certificate: true,
            skip_external_clusters: false,
            node: Identity(vec![Stated {
                path: "id".into(),
                field: None,
                text: Template::parse("a", Identity::SOURCES).unwrap(),
            }]),
            external_cluster_names: vec![
                Pattern::Exact("db".into()),
                Pattern::Prefix("ext-".into()),
            ],
            share: Share::Minimal,
            endpoint_fallback: false,
            service_fallback: false,
            standard_metrics: true,
            max_metric_series: 15,
        };
        assert_eq!(Config::parse(json.as_bytes()), Ok(config));
        for (key, _) in KEYS {
            assert!(json.contains(&format!("{key:?}")), "{key} is not tested");
        }
    }

    #[test]
    fn an_error_names_the_key_the_value_and_what_is_allowed() {
        assert_eq!(
            error(r#"{"direction": "sideways"}"#),
            r#""direction" is "sideways"; allowed is "auto", "inbound", "outbound" or "gateway""#
        );
        let unknown = error(r#"{"max_peer_cache": 1}"#);
        assert!(unknown.starts_with(r#"unknown key "max_peer_cache"; allowed are accept_own, "#));
        for (json, start) in [
            (
                r#"{"max_sent_bytes": -1}"#,
                r#""max_sent_bytes" is -1; allowed is an integer"#,
            ),
            (
                r#"{"max_sent_bytes": 1.5}"#,
                r#""max_sent_bytes" is 1.5; allowed"#,
            ),
            (r#"{"max_sent_bytes": 1e30}"#, r#""max_sent_bytes" is 1e"#),
            (r#"{"max_labels": "8"}"#, r#""max_labels" is "8"; allowed"#),
            (
                r#"{"record_local_node": 1}"#,
                r#""record_local_node" is 1; allowed is true"#,
            ),
            (
                r#"{"mode": "Observe"}"#,
                r#""mode" is "Observe"; allowed is "exchange" or "observe""#,
            ),
            (r#"{"trust": null}"#, r#""trust" is null; allowed is "any""#),
            (
                r#"{"trust_domains": ["a", 1]}"#,
                r#""trust_domains" is ["a",1]; allowed"#,
            ),
            (
                r#"{"trust_domains": ["a"]}"#,
                r#""trust_domains" needs "trust""#,
            ),
            (
                r#"{"spiffe_patterns": ["spiffe://{_}/{NAME}"]}"#,
                r#""spiffe_patterns" needs "trust""#,
            ),
            (
                r#"{"trust": "spiffe", "spiffe_patterns": ["spiffe://{_}/{POD}"]}"#,
                r#""spiffe_patterns" is ["spiffe://{_}/{POD}"]; allowed is a list of patterns such as "spiffe"#,
            ),
            (
                r#"{"name_from_certificate": true, "spiffe_patterns": ["spiffe://{_}/{NAME}"]}"#,
                r#""name_from_certificate" needs "trust" or"#,
            ),
            (
                r#"{"name_from_certificate": true, "trust": "mtls"}"#,
                r#""name_from_certificate" needs a pattern with {WORKLOAD_NAME}"#,
            ),
            (
                r#"{"external_cluster_names": ["a*b"]}"#,
                r#""external_cluster_names" is"#,
            ),
            (
                r#"{"share": {"fields": ["NAMES"]}}"#,
                r#""share" is {"fields":["NAMES"]}; allo"#,
            ),
            (
                r#"{"node": "a"}"#,
                r#""node" is "a"; allowed is an object with id and keys of"#,
            ),
            (
                r#"{"node": {"Name": "a"}}"#,
                r#""node.Name" is "a"; allowed is an object with id and keys of"#,
            ),
            (
                r#"{"node": {"NAME": 5}}"#,
                r#""node.NAME" is 5; allowed is a text, which may have references"#,
            ),
            (
                r#"{"node": {"LABELS": ["a"]}}"#,
                r#""node.LABELS" is ["a"]; allowed is an object of texts"#,
            ),
            (
                r#"{"node": {"NAME": "a", "LABELS": {"app": "${evn:APP}"}}}"#,
                r#""node.LABELS.app" is "${evn:APP}"; allowed are text, ${env:NAME}, and"#,
            ),
            (
                r#"{"node": {"id": "$POD_NAME"}}"#,
                r#""node.id" is "$POD_NAME"; a $ begins a reference"#,
            ),
            ("[]", "not a JSON object: "),
            ("trust=any", "not a JSON object: "),
            ("{} x", "not a JSON object: trailing characters"),
            ("\u{feff}{}", "not a JSON object: "),
        ] {
            let error = error(json);
            assert!(error.starts_with(start), "{json}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn a_repeated_key_is_refused_at_any_depth() {
        for (json, path) in [
            (r#"{"trust": "any", "trust": "any"}"#, "trust"),
            (
                r#"{"node": {"NAME": "a", "id": "b", "NAME": "a"}}"#,
                "node.NAME",
            ),
            (
                r#"{"node": {"NAME": "a", "LABELS": {"app": "a", "app": "b"}}}"#,
                "node.LABELS.app",
            ),
            (
                r#"{"callee": [{"NAME": "a"}, {"NAME": "b", "NAME": "c"}]}"#,
                "callee.NAME",
            ),
            (
                r#"{"share": {"fields": [], "fields": ["NAME"]}}"#,
                "share.fields",
            ),
        ] {
            let expected = format!("not a JSON object: {path:?} stands twice");
            assert_eq!(error(json), expected);
        }
    }

    #[test]
    fn a_long_value_is_shortened() {
        let long = error(&format!(r#"{{"trust": "{}"}}"#, "ä".repeat(5000)));
        assert!(long.chars().count() < 200, "{long}");
    }
}
