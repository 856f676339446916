//! The plugin configuration: JSON into a validated [`Config`].
//!
//! Strict, for a misspelt key that is silently ignored is found only in
//! production: unknown keys, keys that stand twice at the top, wrong types and values out of range
//! are refused with the key, the value and what is allowed.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::direction::Direction;
use crate::header_limits::HeaderLimits;
use crate::json::{Json, Quoted};
use crate::local::share::Share;
use crate::pattern::Pattern;
use crate::peer::Field;
use crate::peer::header::Limits;
use crate::trust::Trust;

pub mod admission;

/// Who exchanges metadata with the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// This filter.
    Exchange,
    /// Istio's own filter, beside which this one only reads and stores.
    Observe,
}

/// How the filter behaves; [`Default`] is what an empty configuration gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Each is a switch of the operator's.
pub struct Config {
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
    /// `accept_own`: take a peer that is this very proxy for a peer.
    pub accept_own: bool,
    /// `max_received_bytes`, `max_labels` and `max_id_bytes`.
    pub limits: Limits,
    /// `trust`: which callers are believed.
    pub trust: Trust,
    /// `upstream_trust`: which callees are believed.
    pub upstream_trust: Trust,
    /// `trust_domains`: those of `spiffe`; empty allows all.
    pub trust_domains: Vec<String>,
    /// `external_clusters`: whether nothing is sent to clusters outside the mesh.
    pub skip_external_clusters: bool,
    /// `external_cluster_names`: clusters outside the mesh, besides those that
    /// say so in their metadata.
    pub external_cluster_names: Vec<Pattern>,
    /// `share`: what of the local node is sent.
    pub share: Share,
    /// `endpoint_fallback`: whether a callee that does not answer is stored from
    /// its endpoint's metadata.
    pub endpoint_fallback: bool,
    /// `service_fallback`: whether a callee that nobody names better is stored as
    /// of the service that its cluster stands for.
    pub service_fallback: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Exchange,
            direction: None,
            max_sent_bytes: 16_384,
            request_headers: HeaderLimits::DEFAULT,
            response_headers: HeaderLimits::DEFAULT,
            max_peer_cache_size: 500,
            record_local_node: false,
            accept_own: false,
            limits: Limits::DEFAULT,
            trust: Trust::Any,
            upstream_trust: Trust::Any,
            trust_domains: Vec::new(),
            skip_external_clusters: true,
            external_cluster_names: Vec::new(),
            share: Share::All,
            endpoint_fallback: true,
            service_fallback: true,
        }
    }
}

/// The most that any limit in bytes may be: Envoy's own limit of all headers
/// of a request (60 KiB by default), with room for a raised one.
const MAX_BYTES: u64 = 1 << 20;

/// What may stand in the configuration: each key with what it allows.
pub const KEYS: [(&str, &str); 21] = [
    ("accept_own", BOOL),
    (
        "direction",
        "\"auto\", \"inbound\", \"outbound\" or \"gateway\"",
    ),
    ("endpoint_fallback", BOOL),
    (
        "external_cluster_names",
        "a list of names, each exact or a prefix with \"*\" at its end",
    ),
    ("external_clusters", "\"skip\" or \"send\""),
    ("max_id_bytes", "an integer from 1 to 1048576"),
    ("max_labels", "an integer from 0 to 65536"),
    ("max_peer_cache_size", "an integer from 0 to 10000000"),
    ("max_received_bytes", "an integer from 1 to 1048576"),
    ("max_request_headers_count", HEADERS_COUNT),
    ("max_request_headers_kb", HEADERS_KB),
    ("max_response_headers_count", HEADERS_COUNT),
    ("max_response_headers_kb", HEADERS_KB),
    ("max_sent_bytes", "an integer from 0 to 1048576"),
    ("mode", "\"exchange\" or \"observe\""),
    ("record_local_node", BOOL),
    ("service_fallback", BOOL),
    (
        "share",
        "\"all\", \"minimal\", or an object with \"fields\" (a list of node metadata keys) and \
         \"labels\" (a list of label keys, each exact or a prefix with \"*\" at its end)",
    ),
    ("trust", TRUST),
    ("trust_domains", "a list of trust domains"),
    ("upstream_trust", TRUST),
];

const BOOL: &str = "true or false";
// What Envoy takes for the limits of the same names.
const HEADERS_COUNT: &str = "an integer from 1 to 65536";
const HEADERS_KB: &str = "an integer from 1 to 8192";
const TRUST: &str = "\"any\", \"mtls\", \"spiffe\" or \"none\"";

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a JSON object.
    NotJson(String),
    /// No such key.
    UnknownKey(String),
    /// The value is not allowed.
    Invalid {
        /// The key.
        key: &'static str,
        /// The value, as JSON.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Two keys exclude each other, or one needs the other.
    Conflict(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson(error) => write!(f, "not a JSON object: {error}"),
            Self::UnknownKey(key) => {
                let keys = KEYS.map(|(key, _)| key).join(", ");
                write!(f, "unknown key {}; allowed are {keys}", Quoted(key))
            }
            Self::Invalid {
                key,
                value,
                allowed,
            } => write!(f, "\"{key}\" is {value}; allowed is {allowed}"),
            Self::Conflict(conflict) => f.write_str(conflict),
        }
    }
}

impl core::error::Error for ConfigError {}

impl Config {
    /// Reads the plugin configuration; empty gives the defaults.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if json.trim_ascii().is_empty() {
            return Ok(config);
        }
        for (key, value) in object(json)? {
            config.set(&key, &value)?;
        }
        if !config.trust_domains.is_empty()
            && ![config.trust, config.upstream_trust].contains(&Trust::Spiffe)
        {
            return Err(ConfigError::Conflict(
                "\"trust_domains\" needs \"trust\" or \"upstream_trust\" to be \"spiffe\", for \
                 nothing else looks at them",
            ));
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &Json) -> Result<(), ConfigError> {
        let Some((key, allowed)) = KEYS.into_iter().find(|(name, _)| *name == key) else {
            return Err(ConfigError::UnknownKey(key.to_owned()));
        };
        self.assign(key, value).ok_or_else(|| ConfigError::Invalid {
            key,
            value: shortened(value),
            allowed,
        })
    }

    /// Assigns a key of [`KEYS`]; `None` if the value is not allowed.
    fn assign(&mut self, key: &str, value: &Json) -> Option<()> {
        match key {
            "accept_own" => self.accept_own = value.as_bool()?,
            "direction" => {
                self.direction = match value.as_str()? {
                    "auto" => None,
                    "inbound" => Some(Direction::Inbound),
                    "outbound" => Some(Direction::Outbound),
                    "gateway" => Some(Direction::Gateway),
                    _ => return None,
                };
            }
            "endpoint_fallback" => self.endpoint_fallback = value.as_bool()?,
            "external_cluster_names" => self.external_cluster_names = patterns(value)?,
            "external_clusters" => {
                self.skip_external_clusters = match value.as_str()? {
                    "skip" => true,
                    "send" => false,
                    _ => return None,
                };
            }
            "max_id_bytes" => self.limits.max_id_bytes = integer(value, 1, MAX_BYTES)?,
            "max_labels" => self.limits.max_labels = integer(value, 0, 65_536)?,
            "max_peer_cache_size" => self.max_peer_cache_size = integer(value, 0, 10_000_000)?,
            "max_received_bytes" => self.limits.max_received_bytes = integer(value, 1, MAX_BYTES)?,
            "max_request_headers_count" => self.request_headers.max_count = headers_count(value)?,
            "max_request_headers_kb" => self.request_headers.max_kb = headers_kb(value)?,
            "max_response_headers_count" => self.response_headers.max_count = headers_count(value)?,
            "max_response_headers_kb" => self.response_headers.max_kb = headers_kb(value)?,
            "max_sent_bytes" => self.max_sent_bytes = integer(value, 0, MAX_BYTES)?,
            "mode" => {
                self.mode = match value.as_str()? {
                    "exchange" => Mode::Exchange,
                    "observe" => Mode::Observe,
                    _ => return None,
                };
            }
            "record_local_node" => self.record_local_node = value.as_bool()?,
            "service_fallback" => self.service_fallback = value.as_bool()?,
            "share" => self.share = share(value)?,
            "trust" => self.trust = trust(value)?,
            "trust_domains" => self.trust_domains = strings(value)?,
            "upstream_trust" => self.upstream_trust = trust(value)?,
            _ => return None,
        }
        Some(())
    }
}

fn trust(value: &Json) -> Option<Trust> {
    match value.as_str()? {
        "any" => Some(Trust::Any),
        "mtls" => Some(Trust::Mtls),
        "spiffe" => Some(Trust::Spiffe),
        "none" => Some(Trust::None),
        _ => None,
    }
}

/// Reads the configuration's value; `None` if it is not allowed.
fn share(value: &Json) -> Option<Share> {
    if let Some(preset) = value.as_str() {
        return match preset {
            "all" => Some(Share::All),
            "minimal" => Some(Share::Minimal),
            _ => None,
        };
    }
    let (mut fields, mut labels) = (None, None);
    for (key, value) in value.as_object()? {
        match key.as_str() {
            "fields" => {
                let keys = strings(value)?;
                let known = keys.iter().map(|key| Field::of_key(key.as_bytes()));
                fields = Some(known.collect::<Option<_>>()?);
            }
            "labels" => labels = Some(patterns(value)?),
            _ => return None,
        }
    }
    Some(Share::Only { fields, labels })
}

/// An integer from `min` to `max`. Written as a float it counts, too, for that
/// is what a protobuf `Struct` turns integers into.
fn integer<T: TryFrom<u64>>(value: &Json, min: u64, max: u64) -> Option<T> {
    let integer = match *value {
        Json::Integer(integer) => integer,
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            clippy::float_cmp
        )]
        Json::Number(number) => {
            let integer = number as u64;
            // Within the range in which every float is an exact integer.
            let is_integer = integer as f64 == number && number <= 4e9;
            is_integer.then_some(integer)?
        }
        _ => return None,
    };
    (min..=max).contains(&integer).then_some(())?;
    T::try_from(integer).ok()
}

fn headers_count(value: &Json) -> Option<u32> {
    integer(value, 1, 65_536)
}

fn headers_kb(value: &Json) -> Option<u32> {
    integer(value, 1, 8192)
}

/// A list of strings, none of them empty.
fn strings(value: &Json) -> Option<Vec<String>> {
    value
        .as_list()?
        .iter()
        .map(|item| item.as_str().filter(|item| !item.is_empty()))
        .map(|item| item.map(str::to_owned))
        .collect()
}

/// A list of patterns.
fn patterns(value: &Json) -> Option<Vec<Pattern>> {
    let patterns = strings(value)?;
    patterns
        .iter()
        .map(|pattern| Pattern::parse(pattern))
        .collect()
}

/// A value as JSON, short enough for a log line.
fn shortened(value: &Json) -> String {
    const MAX_CHARS: usize = 100;
    let json = value.to_string();
    match json.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", json.get(..end).unwrap_or_default()),
        None => json,
    }
}

/// The keys and values of a JSON object, in which no key stands twice.
fn object(json: &[u8]) -> Result<Vec<(String, Json)>, ConfigError> {
    let json = Json::parse(json).map_err(|error| ConfigError::NotJson(error.to_string()))?;
    let Json::Object(object) = json else {
        return Err(ConfigError::NotJson(shortened(&json)));
    };
    let mut keys = object.iter().map(|(key, _)| key);
    while let Some(key) = keys.next() {
        if keys.clone().any(|other| other == key) {
            return Err(ConfigError::NotJson(format!(
                "{} stands twice",
                Quoted(key)
            )));
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        Config::parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn nothing_gives_the_defaults() {
        for json in ["", " \n", "{}"] {
            assert_eq!(Config::parse(json.as_bytes()), Ok(Config::default()));
        }
    }

    #[test]
    fn every_key_is_read() {
        let json = r#"{
            "accept_own": true, "direction": "gateway", "endpoint_fallback": false,
            "external_cluster_names": ["db", "ext-*"], "external_clusters": "send",
            "max_id_bytes": 7, "max_labels": 8, "max_peer_cache_size": 9.0,
            "max_received_bytes": 10, "max_request_headers_count": 11, "max_request_headers_kb": 12,
            "max_response_headers_count": 13, "max_response_headers_kb": 14, "max_sent_bytes": 0, "mode": "observe", "record_local_node": true,
            "service_fallback": false, "share": "minimal", "trust": "spiffe", "trust_domains": ["cluster.local"],
            "upstream_trust": "mtls"}"#;
        let config = Config {
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
            accept_own: true,
            limits: Limits {
                max_received_bytes: 10,
                max_labels: 8,
                max_id_bytes: 7,
            },
            trust: Trust::Spiffe,
            upstream_trust: Trust::Mtls,
            trust_domains: vec!["cluster.local".into()],
            skip_external_clusters: false,
            external_cluster_names: vec![
                Pattern::Exact("db".into()),
                Pattern::Prefix("ext-".into()),
            ],
            share: Share::Minimal,
            endpoint_fallback: false,
            service_fallback: false,
        };
        assert_eq!(Config::parse(json.as_bytes()), Ok(config));
        for (key, _) in KEYS {
            assert!(json.contains(&format!("{key:?}")), "{key} is not tested");
        }
    }

    #[test]
    fn a_mistake_is_answered_with_key_value_and_what_is_allowed() {
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
                r#"{"external_cluster_names": ["a*b"]}"#,
                r#""external_cluster_names" is"#,
            ),
            (
                r#"{"share": {"fields": ["NAMES"]}}"#,
                r#""share" is {"fields":["NAMES"]}; allo"#,
            ),
            (
                r#"{"trust": "any", "trust": "any"}"#,
                r#"not a JSON object: "trust" stands twice"#,
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
    fn a_long_value_is_shortened() {
        let long = error(&format!(r#"{{"trust": "{}"}}"#, "ä".repeat(5000)));
        assert!(long.chars().count() < 200, "{long}");
    }
}
