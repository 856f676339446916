//! OpenTelemetry log records, as the file `examples/otlp-log` has Envoy send them, as entries of the gRPC access log.
//! A record of a connection has the attribute `network.transport`, `tcp`, and no method.
//!
//! The messages are a part of OpenTelemetry's `logs.proto`, which has been stable since 1.0: fields that are not read are
//! skipped.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::core::v3::{Node, RequestMethod};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, ConnectionProperties, HttpAccessLogEntry,
    HttpRequestProperties, HttpResponseProperties, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use envoy_types::pb::google::protobuf::{Any, BytesValue, Duration, Timestamp, UInt32Value};
use envoy_types::pb::opentelemetry::proto::common::v1::{KeyValue, any_value};
use metadata_exchange::peer::{Peer, flat};
use prost::{Message, Name as _};
use serde_json::{Map, Value, json};
use struct_json::struct_of_json;

use crate::convert;
use crate::read::response_flags;
use crate::side::Side;

/// `opentelemetry.proto.collector.logs.v1.ExportLogsServiceRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Export {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeLogs {
    #[prost(message, repeated, tag = "2")]
    log_records: Vec<LogRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct LogRecord {
    #[prost(fixed64, tag = "1")]
    time_unix_nano: u64,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<KeyValue>,
}

/// How many levels of messages lie above an attribute of a record: what may be many.
pub(crate) const LEVELS: [u32; 4] = [1, 2, 2, 6];

type Attributes = BTreeMap<String, String>;

fn texts(attributes: Vec<KeyValue>) -> Attributes {
    let text = |attribute: KeyValue| match attribute.value?.value? {
        // What Envoy writes for an absent value.
        any_value::Value::StringValue(text) if text.is_empty() || text == "-" => None,
        any_value::Value::StringValue(text) => Some((attribute.key, text)),
        _ => None,
    };
    attributes.into_iter().filter_map(text).collect()
}

/// The records of one resource by who reports them: its identifier is that of the log, the node the record's own end.
pub(crate) fn entries(logs: ResourceLogs) -> Vec<(Identifier, LogEntries)> {
    let resource = texts(logs.resource.unwrap_or_default().attributes);
    let text = |key: &str| resource.get(key).cloned().unwrap_or_default();
    let (log_name, id) = (text("log_name"), text("node_name"));
    let mut by_node: Vec<(Value, HttpAccessLogEntries, TcpAccessLogEntries)> = Vec::new();
    let records = logs
        .scope_logs
        .into_iter()
        .flat_map(|logs| logs.log_records);
    for record in records {
        let time = record.time_unix_nano;
        let attributes = texts(record.attributes);
        let (local, peer, side) = match attributes.get("istio.reporter").map(String::as_str) {
            Some("source") => ("source", "destination", Side::Upstream),
            _ => ("destination", "source", Side::Downstream),
        };
        let node = metadata(&attributes, local);
        let common = common(&attributes, time, peer, side);
        let known = by_node.iter().position(|(other, ..)| *other == node);
        let index = known.unwrap_or_else(|| {
            by_node.push((
                node,
                HttpAccessLogEntries::default(),
                TcpAccessLogEntries::default(),
            ));
            by_node.len() - 1
        });
        if let Some((_, requests, connections)) = by_node.get_mut(index) {
            if is_connection(&attributes) {
                connections.log_entry.push(connection(&attributes, common));
            } else {
                requests.log_entry.push(request(&attributes, common));
            }
        }
    }
    let mut all = Vec::new();
    for (metadata, requests, connections) in by_node {
        let metadata = struct_of_json(&metadata).ok();
        let node = Node {
            id: id.clone(),
            metadata: metadata.and_then(|metadata| convert(&metadata).ok()),
            ..Node::default()
        };
        let identifier = Identifier {
            node: Some(node),
            log_name: log_name.clone(),
        };
        if !requests.log_entry.is_empty() {
            all.push((identifier.clone(), LogEntries::HttpLogs(requests)));
        }
        if !connections.log_entry.is_empty() {
            all.push((identifier, LogEntries::TcpLogs(connections)));
        }
    }
    all
}

const SERVICE: &str = "service.istio.io/canonical-name";
const REVISION: &str = "service.istio.io/canonical-revision";

/// What a record says of an end, under the keys of node metadata.
fn metadata(attributes: &Attributes, end: &str) -> Value {
    let text = |name: &str| attributes.get(&format!("istio.{end}_{name}"));
    let mut metadata = Map::new();
    for (key, name) in [
        ("NAME", "instance_name"),
        ("NAMESPACE", "namespace"),
        ("WORKLOAD_NAME", "workload"),
    ] {
        if let Some(text) = text(name) {
            metadata.insert(key.to_owned(), json!(text));
        }
    }
    let mut labels = Map::new();
    for (key, name) in [
        (SERVICE, "canonical_service"),
        (REVISION, "canonical_revision"),
    ] {
        if let Some(text) = text(name) {
            labels.insert(key.to_owned(), json!(text));
        }
    }
    if !labels.is_empty() {
        metadata.insert("LABELS".to_owned(), labels.into());
    }
    Value::Object(metadata)
}

fn peer(attributes: &Attributes, end: &str) -> Peer {
    let text = |name: &str| attributes.get(&format!("istio.{end}_{name}")).cloned();
    let labels = [
        (SERVICE, "canonical_service"),
        (REVISION, "canonical_revision"),
    ];
    let labels = labels.map(|(key, name)| Some((key.to_owned(), text(name)?)));
    Peer {
        name: text("instance_name"),
        namespace: text("namespace"),
        workload_name: text("workload"),
        labels: Some(labels.into_iter().flatten().collect()),
        ..Peer::default()
    }
}

fn is_connection(attributes: &Attributes) -> bool {
    let transport = attributes.get("network.transport");
    transport.is_some_and(|transport| transport == "tcp")
        && !attributes.contains_key("http.request.method")
}

fn text(attributes: &Attributes, key: &str) -> String {
    attributes.get(key).cloned().unwrap_or_default()
}

fn number(attributes: &Attributes, key: &str) -> Option<u64> {
    attributes.get(key)?.parse().ok()
}

fn common(attributes: &Attributes, time: u64, end: &str, side: Side) -> AccessLogCommon {
    let peer = peer(attributes, end);
    let mut state = HashMap::new();
    if peer.names_workload() {
        let value = BytesValue {
            value: flat::write(&peer),
        };
        let any = Any {
            type_url: BytesValue::type_url(),
            value: value.encode_to_vec(),
        };
        state.insert(side.peer_key().to_owned(), any);
    }
    let milliseconds = number(attributes, "envoy.duration");
    AccessLogCommon {
        start_time: (time > 0).then(|| Timestamp {
            seconds: i64::try_from(time / 1_000_000_000).unwrap_or_default(),
            nanos: i32::try_from(time % 1_000_000_000).unwrap_or_default(),
        }),
        duration: milliseconds.map(|milliseconds| Duration {
            seconds: i64::try_from(milliseconds / 1000).unwrap_or_default(),
            nanos: i32::try_from(milliseconds % 1000 * 1_000_000).unwrap_or_default(),
        }),
        upstream_cluster: text(attributes, "envoy.upstream_cluster"),
        response_flags: Some(response_flags(&text(attributes, "envoy.response_flags"))),
        filter_state_objects: state,
        ..AccessLogCommon::default()
    }
}

fn request(attributes: &Attributes, common: AccessLogCommon) -> HttpAccessLogEntry {
    let code = number(attributes, "http.response.status_code");
    let code = code.and_then(|code| u32::try_from(code).ok());
    let method = RequestMethod::from_str_name(&text(attributes, "http.request.method"));
    HttpAccessLogEntry {
        common_properties: Some(common),
        request: Some(HttpRequestProperties {
            request_method: method.unwrap_or_default().into(),
            authority: text(attributes, "server.address"),
            path: text(attributes, "url.path"),
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: code.map(|value| UInt32Value { value }),
            ..HttpResponseProperties::default()
        }),
        ..HttpAccessLogEntry::default()
    }
}

fn connection(attributes: &Attributes, common: AccessLogCommon) -> TcpAccessLogEntry {
    let kind = AccessLogType::from_str_name(&text(attributes, "envoy.access_log_type"));
    let bytes = |key: &str| number(attributes, key).unwrap_or_default();
    TcpAccessLogEntry {
        common_properties: Some(AccessLogCommon {
            stream_id: text(attributes, "envoy.stream_id"),
            access_log_type: kind.unwrap_or_default().into(),
            ..common
        }),
        connection_properties: Some(ConnectionProperties {
            received_bytes: bytes("envoy.bytes_received"),
            sent_bytes: bytes("envoy.bytes_sent"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::opentelemetry::proto::common::v1::AnyValue;

    use super::*;
    use crate::limits::parts_at;
    use crate::reporter::Reporter;

    fn attributes(all: &[(&str, &str)]) -> Vec<KeyValue> {
        let attribute = |(key, text): &(&str, &str)| KeyValue {
            key: (*key).to_owned(),
            value: Some(AnyValue {
                value: Some(any_value::Value::StringValue((*text).to_owned())),
            }),
            ..KeyValue::default()
        };
        all.iter().map(attribute).collect()
    }

    fn logs(records: &[&[(&str, &str)]]) -> ResourceLogs {
        let record = |all: &&[(&str, &str)]| LogRecord {
            time_unix_nano: 1_700_000_000_000_000_000,
            attributes: attributes(all),
        };
        ResourceLogs {
            resource: Some(Resource {
                attributes: attributes(&[("log_name", "a/outbound"), ("node_name", "id")]),
            }),
            scope_logs: vec![ScopeLogs {
                log_records: records.iter().map(record).collect(),
            }],
        }
    }

    #[test]
    fn a_record_names_its_reporter_and_the_peer() {
        let known = [
            ("istio.reporter", "source"),
            ("istio.source_workload", "a"),
            ("istio.source_namespace", "shop"),
            ("istio.destination_workload", "b"),
            ("istio.destination_canonical_service", "b-service"),
            ("http.response.status_code", "503"),
            ("envoy.response_flags", "UH"),
        ];
        let unknown = [
            ("istio.reporter", "source"),
            ("istio.source_workload", "a"),
            ("istio.source_namespace", "shop"),
            ("istio.destination_workload", "-"),
            ("http.response.status_code", "many"),
        ];
        let mut all = super::entries(logs(&[&known, &unknown]));
        let (identifier, entries) = all.pop().unwrap();
        assert!(all.is_empty());
        let reporter = Arc::new(Reporter::from(identifier));
        assert_eq!(reporter.log, "a/outbound");
        assert_eq!(
            reporter.metadata,
            json!({ "WORKLOAD_NAME": "a", "NAMESPACE": "shop" })
        );
        let entries = crate::read::entries(&reporter, entries);
        let peer = entries[0].peer(Side::Upstream).unwrap();
        assert_eq!(
            *peer.metadata,
            json!({ "WORKLOAD_NAME": "b", "LABELS": { SERVICE: "b-service" } })
        );
        assert!(entries[0].is_unanswered());
        assert_eq!(entries[0].status, 503);
        assert!(entries[1].peer(Side::Upstream).is_none());
        assert_eq!(entries[1].status, 0);
    }

    #[test]
    fn a_record_of_a_connection_has_its_bytes() {
        let request: &[(&str, &str)] = &[
            ("network.transport", "tcp"),
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
        ];
        let connection: &[(&str, &str)] = &[
            ("istio.destination_workload", "db"),
            ("istio.source_workload", "a"),
            ("network.transport", "tcp"),
            ("envoy.access_log_type", "TcpPeriodic"),
            ("envoy.stream_id", "one"),
            ("envoy.bytes_received", "5"),
            ("envoy.bytes_sent", "7"),
            ("envoy.response_flags", "UF"),
        ];
        let read = |records: &[&[(&str, &str)]]| {
            let mut all = Vec::new();
            for (identifier, entries) in super::entries(logs(records)) {
                let reporter = Arc::new(Reporter::from(identifier));
                all.extend(crate::read::entries(&reporter, entries));
            }
            all
        };
        let entries = read(&[connection, request, &connection[..3]]);
        let [periodic, end, request] = entries.as_slice() else {
            panic!("{entries:?}");
        };
        assert_eq!(request.protocol, crate::Protocol::Http);
        assert_eq!(request.status, 200);
        for entry in [periodic, end] {
            assert_eq!(entry.protocol, crate::Protocol::Tcp);
            let caller = entry.peer(Side::Downstream).unwrap();
            assert_eq!(caller.metadata["WORKLOAD_NAME"], "a");
        }
        assert_eq!(periodic.stream_id, "one");
        assert_eq!((periodic.received_bytes, periodic.sent_bytes), (5, 7));
        assert_eq!(periodic.flags, ["UF"]);
        assert!(periodic.intermediate && !end.intermediate);
    }

    #[test]
    fn the_attributes_of_an_export_are_counted() {
        let record: &[(&str, &str)] = &[("a", "b"), ("c", "d")];
        let export = Export {
            resource_logs: vec![logs(&[record, record])],
        };
        // Of the resource, the scope, the records, and the attributes of both.
        let bytes = export.encode_to_vec();
        assert_eq!(parts_at(&bytes, &LEVELS), Ok(1 + 1 + 2 + 4));
    }
}
