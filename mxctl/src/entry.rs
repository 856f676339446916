//! One entry of an access log, as this tool keeps it and writes it to JSON
//! lines: all that the topology, here or in `SkyWalking`, is made of.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, Node as ProtoNode, RequestMethod};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, ResponseFlags, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    Identifier, LogEntries,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{
    Any, BytesValue, Duration, Struct, Timestamp, Value as ProtoValue,
};
use metadata_exchange::peer::{Field, Peer, Value as PeerValue, flat};
use prost::{Message as _, Name as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::als::{Batch, Gone, Sink};

/// The version of the JSON form. It changes when a reader of the one before
/// would misread it.
pub const VERSION: u32 = 1;

/// One entry of an access log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// [`VERSION`].
    pub version: u32,
    /// Who logged it.
    pub reporter: Arc<Reporter>,
    /// What was logged.
    pub protocol: Protocol,
    /// When the request or connection began, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Until the last byte to the caller, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// The request's method; empty for TCP, as all of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// The request's authority.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// The request's path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The response's status, 0 if there was none.
    #[serde(default)]
    pub status: u32,
    /// Envoy's response flags by their short names, as `UF`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<Cow<'static, str>>,
    /// The Envoy cluster that the request went to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub upstream_cluster: String,
    /// The caller's address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub downstream_address: String,
    /// The callee's address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub upstream_address: String,
    /// One of several entries of a stream, and not its last.
    #[serde(default, skip_serializing_if = "is_false")]
    pub intermediate: bool,
    /// The entry lacks the properties that every one has.
    #[serde(default, skip_serializing_if = "is_false")]
    pub bare: bool,
    /// The logged filter state.
    #[serde(default)]
    pub state: BTreeMap<String, State>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_false(bool: &bool) -> bool {
    !bool
}

/// Who logs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reporter {
    /// The log's name.
    #[serde(default)]
    pub log: String,
    /// The id of the proxy's node.
    #[serde(default)]
    pub id: String,
    /// The metadata of the proxy's node.
    #[serde(default)]
    pub metadata: Value,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A request.
    Http,
    /// A connection.
    Tcp,
}

/// An object of filter state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum State {
    /// A node in a `FlatNode`, as this filter and Istio up to 1.23 write it.
    Flat {
        /// Under the keys of node metadata.
        metadata: Value,
    },
    /// A node in a `Struct`, as Istio writes it from 1.24 on.
    Struct {
        /// Under the keys that Istio uses there.
        metadata: Value,
    },
    /// A node's id.
    Id {
        /// The id.
        id: String,
    },
    /// A peer's key that holds no peer.
    Broken {
        /// Why.
        reason: String,
        /// How many bytes it has.
        bytes: usize,
    },
    /// Something else.
    Other {
        /// The type of the message.
        type_url: String,
        /// How many bytes it has.
        bytes: usize,
    },
}

/// Which end of a call a peer is, seen from the proxy that logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Downstream,
    /// The callee.
    Upstream,
}

impl Side {
    /// The filter-state key of the peer.
    #[must_use]
    pub fn peer_key(self) -> &'static str {
        match self {
            Self::Downstream => "wasm.downstream_peer",
            Self::Upstream => "wasm.upstream_peer",
        }
    }

    /// The filter-state key of the peer's node id.
    #[must_use]
    pub fn id_key(self) -> &'static str {
        match self {
            Self::Downstream => "wasm.downstream_peer_id",
            Self::Upstream => "wasm.upstream_peer_id",
        }
    }

    /// The key of the peer that Istio's own filter writes from 1.24 on.
    #[must_use]
    pub fn struct_key(self) -> &'static str {
        match self {
            Self::Downstream => "downstream_peer",
            Self::Upstream => "upstream_peer",
        }
    }
}

/// A node as an entry names it.
#[derive(Clone, Debug)]
pub struct Named<'e> {
    /// Its id, if it is known.
    pub id: Option<&'e str>,
    /// Its metadata, under the keys of node metadata.
    pub metadata: Cow<'e, Value>,
}

impl Entry {
    /// The node that logged.
    #[must_use]
    pub fn local(&self) -> Named<'_> {
        let id = self.reporter.id.as_str();
        Named {
            id: (!id.is_empty()).then_some(id),
            metadata: Cow::Borrowed(&self.reporter.metadata),
        }
    }

    /// The peer on that side, by this filter's key or else by Istio's.
    #[must_use]
    pub fn peer(&self, side: Side) -> Option<Named<'_>> {
        let keys = [side.peer_key(), side.struct_key()];
        keys.into_iter().find_map(|key| self.peer_at(key, side))
    }

    /// The peer on that side under one of its keys.
    #[must_use]
    pub fn peer_at(&self, key: &str, side: Side) -> Option<Named<'_>> {
        match self.state.get(key)? {
            State::Flat { metadata } => Some(Named {
                id: match self.state.get(side.id_key()) {
                    Some(State::Id { id }) => Some(id),
                    _ => None,
                },
                metadata: Cow::Borrowed(metadata),
            }),
            State::Struct { metadata } => Some(Named {
                id: None,
                metadata: Cow::Owned(node_metadata_of(metadata)),
            }),
            State::Id { .. } | State::Broken { .. } | State::Other { .. } => None,
        }
    }

    /// Whether no answer came from upstream, not even an error. Of connections,
    /// nobody knows.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        // Why Envoy answers in the place of upstream.
        const OWN: [&str; 10] = ["DF", "DT", "LR", "NC", "UC", "UF", "UH", "UO", "UR", "UT"];
        let is_envoys = || self.flags.iter().any(|flag| OWN.contains(&&**flag));
        self.protocol == Protocol::Http && (self.status == 0 || self.status >= 500 && is_envoys())
    }

    /// Reads a JSON line.
    pub fn of_line(line: &str) -> Result<Self> {
        let entry: Self = serde_json::from_str(line)?;
        ensure!(
            entry.version == VERSION,
            "an entry of version {}, but this is a reader of version {VERSION}",
            entry.version
        );
        Ok(entry)
    }

    /// The entry as a JSON line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        json!(self).to_string()
    }

    fn new(reporter: Arc<Reporter>, protocol: Protocol, common: Option<AccessLogCommon>) -> Self {
        let bare = common.is_none();
        let common = common.unwrap_or_default();
        let state = common.filter_state_objects.iter();
        Self {
            version: VERSION,
            reporter,
            protocol,
            intermediate: is_intermediate(&common),
            start: common.start_time.as_ref().and_then(rfc3339),
            duration_us: common
                .time_to_last_downstream_tx_byte
                .or(common.duration)
                .and_then(|duration| microseconds(&duration)),
            method: String::new(),
            authority: String::new(),
            path: String::new(),
            status: 0,
            flags: common.response_flags.as_ref().map_or_else(Vec::new, flags),
            downstream_address: address(common.downstream_remote_address),
            upstream_address: address(common.upstream_remote_address),
            bare,
            state: state
                .map(|(key, any)| (key.clone(), state_of(key, any)))
                .collect(),
            upstream_cluster: common.upstream_cluster,
        }
    }

    fn of_http(reporter: Arc<Reporter>, entry: HttpAccessLogEntry) -> Self {
        let request = entry.request.unwrap_or_default();
        let response = entry.response.unwrap_or_default();
        let method = match request.request_method() {
            RequestMethod::MethodUnspecified => "",
            method => method.as_str_name(),
        };
        Self {
            method: method.to_owned(),
            authority: request.authority,
            path: request.path,
            status: response.response_code.map_or(0, |code| code.value),
            ..Self::new(reporter, Protocol::Http, entry.common_properties)
        }
    }

    fn of_tcp(reporter: Arc<Reporter>, entry: TcpAccessLogEntry) -> Self {
        Self::new(reporter, Protocol::Tcp, entry.common_properties)
    }
}

/// Hands each entry that a server receives to a function, one after the other.
#[derive(Debug)]
pub struct Each<F>(pub F);

impl<F: Fn(&Entry) + Send + Sync + 'static> Sink for Each<F> {
    type Source = Reporter;

    fn identify(&self, identifier: Identifier) -> Reporter {
        Reporter::from(identifier)
    }

    async fn take(&self, batch: Batch<Reporter>) -> Result<(), Gone> {
        let Self(each) = self;
        entries(&batch.source, batch.entries).iter().for_each(each);
        Ok(())
    }
}

/// The entries of a message.
#[must_use]
pub fn entries(reporter: &Arc<Reporter>, entries: LogEntries) -> Vec<Entry> {
    match entries {
        LogEntries::HttpLogs(logs) => logs
            .log_entry
            .into_iter()
            .map(|entry| Entry::of_http(Arc::clone(reporter), entry))
            .collect(),
        LogEntries::TcpLogs(logs) => logs
            .log_entry
            .into_iter()
            .map(|entry| Entry::of_tcp(Arc::clone(reporter), entry))
            .collect(),
    }
}

/// The most metadata that is kept whole of a stream's sender, as long as the stream
/// is open. Istio's proxies have some kilobytes.
const MAX_REPORTER_BYTES: usize = 64 << 10;
/// The most metadata of a node that is kept beyond its entry.
const MAX_EXCHANGED_BYTES: usize = 8 << 10;

impl From<Identifier> for Reporter {
    fn from(identifier: Identifier) -> Self {
        let node: ProtoNode = identifier.node.unwrap_or_default();
        let mut metadata = node.metadata.map(json_of_struct).unwrap_or_default();
        if weight(&metadata) > MAX_REPORTER_BYTES {
            let kept = exchanged(&metadata).map(|(key, value)| (key.to_owned(), value.clone()));
            metadata = Value::Object(kept.collect());
        }
        Self {
            log: identifier.log_name,
            id: node.id,
            metadata,
        }
    }
}

/// Of a node's metadata, what proxies tell each other, as far as it has the usual
/// size: anyone may send any.
pub fn exchanged(metadata: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    let mut room = MAX_EXCHANGED_BYTES;
    Field::ALL.into_iter().filter_map(move |field| {
        let value = metadata.get(field.key())?;
        // Smaller ones after one that is too large may have room.
        room = room.checked_sub(weight(value))?;
        Some((field.key(), value))
    })
}

/// About how many bytes of memory the value takes.
fn weight(value: &Value) -> usize {
    const EACH: usize = 64;
    EACH + match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(fields) => {
            let weights = fields.iter().map(|(key, value)| key.len() + weight(value));
            weights.sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

fn state_of(key: &str, any: &Any) -> State {
    let is = |key_of: fn(Side) -> &'static str| {
        [Side::Downstream, Side::Upstream]
            .map(key_of)
            .contains(&key)
    };
    let state = if is(Side::peer_key) {
        open(any).and_then(|bytes| {
            let peer = flat::read(&bytes).map_err(|error| format!("no FlatNode: {error}"))?;
            let metadata = json_of_peer(&peer);
            Ok(State::Flat { metadata })
        })
    } else if is(Side::id_key) {
        open(any).and_then(|bytes| {
            let id = String::from_utf8(bytes).map_err(|error| format!("no text: {error}"))?;
            Ok(State::Id { id })
        })
    } else if is(Side::struct_key) {
        struct_in(any).map(|metadata| State::Struct { metadata })
    } else {
        Ok(State::Other {
            type_url: any.type_url.clone(),
            bytes: any.value.len(),
        })
    };
    state.unwrap_or_else(|reason| State::Broken {
        reason,
        bytes: any.value.len(),
    })
}

/// The bytes in `Any(BytesValue)`, the envelope from which `SkyWalking` takes
/// them, or why there are none.
pub fn open(any: &Any) -> Result<Vec<u8>, String> {
    if any.type_url != BytesValue::type_url() {
        return Err(format!("a {}, not a BytesValue", any.type_url));
    }
    match BytesValue::decode(any.value.as_slice()) {
        Ok(message) => Ok(message.value),
        Err(error) => Err(format!("no BytesValue: {error}")),
    }
}

fn struct_in(any: &Any) -> Result<Value, String> {
    if any.type_url != Struct::type_url() {
        return Err(format!("a {}, not a Struct", any.type_url));
    }
    match Struct::decode(any.value.as_slice()) {
        Ok(message) => Ok(json_of_struct(message)),
        Err(error) => Err(format!("no Struct: {error}")),
    }
}

/// The keys of node metadata for those that Istio uses from 1.24 on.
fn node_metadata_of(metadata: &Value) -> Value {
    let key = |key: &str| {
        match key {
            "name" => "NAME",
            "namespace" => "NAMESPACE",
            "labels" => "LABELS",
            "workload" => "WORKLOAD_NAME",
            "cluster" => "CLUSTER_ID",
            "owner" => "OWNER",
            "service" => "SERVICE",
            other => return other.to_owned(),
        }
        .to_owned()
    };
    let fields = metadata.as_object().into_iter().flatten();
    Value::Object(fields.map(|(k, v)| (key(k), v.clone())).collect())
}

/// A peer under the keys of node metadata; absent fields are absent.
#[must_use]
pub fn json_of_peer(peer: &Peer<'_>) -> Value {
    let fields = Field::ALL.into_iter().filter_map(|field| {
        let value = match peer.value(field)? {
            PeerValue::Text(text) => Value::from(&**text),
            PeerValue::Map(map) => map
                .iter()
                .map(|(key, value)| (key.to_string(), Value::from(&**value)))
                .collect::<Map<_, _>>()
                .into(),
        };
        Some((field.key().to_owned(), value))
    });
    Value::Object(fields.collect())
}

/// A `google.protobuf.Struct` as the JSON that it stands for.
#[must_use]
pub fn json_of_struct(message: Struct) -> Value {
    let fields = message.fields.into_iter();
    Value::Object(fields.map(|(key, value)| (key, json_of(value))).collect())
}

fn json_of(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => Value::from(number),
        Some(Kind::StringValue(text)) => Value::from(text),
        Some(Kind::BoolValue(bool)) => Value::from(bool),
        Some(Kind::StructValue(fields)) => json_of_struct(fields),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json_of).collect(),
    }
}

/// The `google.protobuf.Struct` of a JSON object.
pub fn struct_of_json(value: &Value) -> Result<Struct> {
    let object = value.as_object().context("not a JSON object")?;
    let fields = object
        .iter()
        .map(|(key, value)| Ok((key.clone(), value_of_json(value)?)))
        .collect::<Result<_>>()?;
    Ok(Struct { fields })
}

fn value_of_json(value: &Value) -> Result<ProtoValue> {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(*bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().context("no double")?),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => {
            let values = values.iter().map(value_of_json).collect::<Result<_>>()?;
            Kind::ListValue(envoy_types::pb::google::protobuf::ListValue { values })
        }
        Value::Object(_) => Kind::StructValue(struct_of_json(value)?),
    };
    Ok(ProtoValue { kind: Some(kind) })
}

fn is_intermediate(common: &AccessLogCommon) -> bool {
    // Old Envoys say it in a field that is deprecated since.
    #[allow(deprecated)]
    let is_intermediate = common.intermediate_log_entry;
    is_intermediate
        || !matches!(
            common.access_log_type(),
            AccessLogType::NotSet
                | AccessLogType::TcpConnectionEnd
                | AccessLogType::DownstreamEnd
                | AccessLogType::UpstreamEnd
        )
}

fn rfc3339(time: &Timestamp) -> Option<String> {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    time.format(&Rfc3339).ok()
}

fn microseconds(duration: &Duration) -> Option<u64> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u64::try_from(duration.nanos).ok()?;
    seconds.checked_mul(1_000_000)?.checked_add(nanos / 1000)
}

fn address(address: Option<Address>) -> String {
    match address.and_then(|address| address.address) {
        Some(AddressKind::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            _ => socket.address,
        },
        Some(AddressKind::Pipe(pipe)) => pipe.path,
        Some(AddressKind::EnvoyInternalAddress(_)) | None => String::new(),
    }
}

/// The short names that Envoy's text logs have for response flags.
fn flags(flags: &ResponseFlags) -> Vec<Cow<'static, str>> {
    let flags = [
        (flags.failed_local_healthcheck, "LH"),
        (flags.no_healthy_upstream, "UH"),
        (flags.upstream_request_timeout, "UT"),
        (flags.local_reset, "LR"),
        (flags.upstream_remote_reset, "UR"),
        (flags.upstream_connection_failure, "UF"),
        (flags.upstream_connection_termination, "UC"),
        (flags.upstream_overflow, "UO"),
        (flags.no_route_found, "NR"),
        (flags.delay_injected, "DI"),
        (flags.fault_injected, "FI"),
        (flags.rate_limited, "RL"),
        (flags.unauthorized_details.is_some(), "UAEX"),
        (flags.rate_limit_service_error, "RLSE"),
        (flags.downstream_connection_termination, "DC"),
        (flags.upstream_retry_limit_exceeded, "URX"),
        (flags.stream_idle_timeout, "SI"),
        (flags.invalid_envoy_request_headers, "IH"),
        (flags.downstream_protocol_error, "DPE"),
        (flags.upstream_max_stream_duration_reached, "UMSDR"),
        (flags.response_from_cache_filter, "RFCF"),
        (flags.no_filter_config_found, "NFCF"),
        (flags.duration_timeout, "DT"),
        (flags.upstream_protocol_error, "UPE"),
        (flags.no_cluster_found, "NC"),
        (flags.overload_manager, "OM"),
        (flags.dns_resolution_failure, "DF"),
        (flags.downstream_remote_reset, "DR"),
    ];
    let set = flags.into_iter().filter(|(is_set, _)| *is_set);
    set.map(|(_, name)| Cow::Borrowed(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_sender_with_much_metadata_is_kept_what_is_exchanged() {
        let kept = |annotations: usize, labels: usize| {
            let metadata = json!({
                "NAME": "a-1", "NAMESPACE": "shop", "LABELS": { "app": "l".repeat(labels) },
                "ANNOTATIONS": "a".repeat(annotations),
            });
            let node = ProtoNode {
                metadata: Some(struct_of_json(&metadata).unwrap()),
                ..ProtoNode::default()
            };
            let reporter = Reporter::from(Identifier {
                node: Some(node),
                ..Identifier::default()
            });
            let keys = reporter.metadata.as_object().unwrap().keys().cloned();
            keys.collect::<std::collections::BTreeSet<_>>()
        };
        let usual = ["ANNOTATIONS", "LABELS", "NAME", "NAMESPACE"].map(str::to_owned);
        assert_eq!(kept(30_000, 30_000), usual.clone().into());
        assert_eq!(kept(100_000, 100), usual[1..].iter().cloned().collect());
        assert_eq!(kept(100, 100_000), usual[2..].iter().cloned().collect());
    }

    #[test]
    fn a_flat_node_of_shared_parts_does_not_fill_the_memory() {
        const APP_CONTAINERS: u16 = 20;
        let with_names = |count: usize, length: usize| {
            let mut flat = flatbuffers::FlatBufferBuilder::new();
            let name = flat.create_string(&"n".repeat(length));
            let names = flat.create_vector(&vec![name; count]);
            let node = flat.start_table();
            flat.push_slot_always(APP_CONTAINERS, names);
            let node = flat.end_table(node);
            flat.finish_minimal(node);
            flat.finished_data().to_vec()
        };
        let few = with_names(3, 2);
        let few = flat::read(&few).unwrap();
        assert_eq!(few.app_containers, Some("nn,nn,nn".into()));
        assert!(flat::read(&with_names(10_000, 10_000)).is_err());
    }
}
