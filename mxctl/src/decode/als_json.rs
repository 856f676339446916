//! Access-log messages in Protobuf's JSON form, as gRPC proxies and debuggers
//! print them: `{"identifier": ..., "httpLogs": {"logEntry": [...]}}`.
//!
//! Reads the fields that an entry consists of. Field names are declared or JSON
//! names, `http_logs` or `httpLogs`.

use std::str::FromStr;

use access_log::convert;
use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, Node, Pipe, RequestMethod, SocketAddress};
use envoy_types::pb::envoy::data::accesslog::v3::response_flags::Unauthorized;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, ConnectionProperties, HttpAccessLogEntry,
    HttpRequestProperties, HttpResponseProperties, ResponseFlags, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use envoy_types::pb::google::protobuf::{
    Any, BytesValue, Duration, StringValue, Struct, Timestamp, UInt32Value,
};
use prost::Message as _;
use serde_json::Value;
use struct_json::struct_of_json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::BASE64;
use crate::declared_names::with_declared_names;

/// The messages in `text`: one, several in sequence, or a list.
pub(super) fn messages(text: &[u8]) -> Result<Vec<StreamAccessLogsMessage>> {
    let mut messages = Vec::new();
    for value in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        match with_declared_names(value.context("not JSON")?) {
            Value::Array(values) => {
                for value in values {
                    messages.push(message(&value)?);
                }
            }
            value => messages.push(message(&value)?),
        }
    }
    Ok(messages)
}

fn message(value: &Value) -> Result<StreamAccessLogsMessage> {
    let each = |key: &str| {
        let entries = &value[key]["log_entry"];
        entries.as_array().into_iter().flatten()
    };
    let log_entries = if value.get("http_logs").is_some() {
        let log_entry = each("http_logs").map(http).collect::<Result<_>>()?;
        Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry }))
    } else if value.get("tcp_logs").is_some() {
        let log_entry = each("tcp_logs").map(tcp).collect::<Result<_>>()?;
        Some(LogEntries::TcpLogs(TcpAccessLogEntries { log_entry }))
    } else {
        None
    };
    let identifier = present(value, "identifier").map(identifier).transpose()?;
    ensure!(
        log_entries.is_some() || identifier.is_some(),
        "JSON, but without httpLogs, tcpLogs or identifier"
    );
    Ok(StreamAccessLogsMessage {
        identifier,
        log_entries,
    })
}

fn identifier(value: &Value) -> Result<Identifier> {
    let node = present(value, "node").map(|node| {
        let metadata = present(node, "metadata").map(metadata).transpose();
        anyhow::Ok(Node {
            id: text(node, "id"),
            cluster: text(node, "cluster"),
            metadata: metadata.context("metadata of the node")?,
            ..Node::default()
        })
    });
    Ok(Identifier {
        node: node.transpose()?,
        log_name: text(value, "log_name"),
    })
}

/// Converts metadata to the type that Envoy's messages use.
fn metadata(value: &Value) -> Result<Struct> {
    Ok(convert(&struct_of_json(value)?)?)
}

fn http(value: &Value) -> Result<HttpAccessLogEntry> {
    let request = present(value, "request").map(|request| {
        let method = match &request["request_method"] {
            Value::String(name) => RequestMethod::from_str_name(name).map(Into::into),
            number => number.as_i64().and_then(|number| number.try_into().ok()),
        };
        HttpRequestProperties {
            request_method: method.unwrap_or_default(),
            authority: text(request, "authority"),
            path: text(request, "path"),
            ..HttpRequestProperties::default()
        }
    });
    let response = present(value, "response").map(|response| HttpResponseProperties {
        response_code: unsigned(&response["response_code"]).map(|value| UInt32Value { value }),
        response_code_details: text(response, "response_code_details"),
        ..HttpResponseProperties::default()
    });
    Ok(HttpAccessLogEntry {
        common_properties: present(value, "common_properties")
            .map(common)
            .transpose()?,
        request,
        response,
        ..HttpAccessLogEntry::default()
    })
}

fn tcp(value: &Value) -> Result<TcpAccessLogEntry> {
    Ok(TcpAccessLogEntry {
        common_properties: present(value, "common_properties")
            .map(common)
            .transpose()?,
        connection_properties: present(value, "connection_properties").map(|connection| {
            ConnectionProperties {
                received_bytes: unsigned(&connection["received_bytes"]).unwrap_or_default(),
                sent_bytes: unsigned(&connection["sent_bytes"]).unwrap_or_default(),
            }
        }),
    })
}

fn common(value: &Value) -> Result<AccessLogCommon> {
    let kind = match &value["access_log_type"] {
        Value::String(name) => AccessLogType::from_str_name(name).map(Into::into),
        number => number.as_i64().and_then(|number| number.try_into().ok()),
    };
    let objects = value["filter_state_objects"].as_object();
    let objects = objects.into_iter().flatten().map(|(key, value)| {
        let any = any(value).with_context(|| format!("filter state {key}"));
        Ok((key.clone(), any?))
    });
    #[allow(deprecated)] // The field that older Envoys set.
    Ok(AccessLogCommon {
        downstream_remote_address: address(&value["downstream_remote_address"]),
        upstream_remote_address: address(&value["upstream_remote_address"]),
        start_time: present(value, "start_time").map(timestamp).transpose()?,
        time_to_last_downstream_tx_byte: present(value, "time_to_last_downstream_tx_byte")
            .map(duration)
            .transpose()?,
        duration: present(value, "duration").map(duration).transpose()?,
        upstream_cluster: text(value, "upstream_cluster"),
        stream_id: text(value, "stream_id"),
        response_flags: present(value, "response_flags").map(flags).transpose()?,
        filter_state_objects: objects.collect::<Result<_>>()?,
        access_log_type: kind.unwrap_or_default(),
        intermediate_log_entry: value["intermediate_log_entry"] == true,
        ..AccessLogCommon::default()
    })
}

/// An `Any`: a well-known type has its JSON under `value`.
fn any(value: &Value) -> Result<Any> {
    let type_url = value["@type"].as_str().context("no @type")?.to_owned();
    let inner = &value["value"];
    let kind = type_url.rsplit('.').next().unwrap_or_default();
    let bytes = match (kind, inner) {
        ("BytesValue", Value::String(text)) => {
            let value = BASE64.decode(text).context("its value is not base64")?;
            BytesValue { value }.encode_to_vec()
        }
        ("StringValue", Value::String(text)) => {
            let value = text.clone();
            StringValue { value }.encode_to_vec()
        }
        ("Struct", Value::Object(_)) => struct_of_json(inner)?.encode_to_vec(),
        // An Any whose type the writer did not know.
        (_, Value::String(text)) => BASE64.decode(text).unwrap_or_default(),
        _ => Vec::new(),
    };
    Ok(Any {
        type_url,
        value: bytes,
    })
}

/// Response flags by name: Protobuf's JSON lists those that are set.
fn flags(value: &Value) -> Result<ResponseFlags> {
    const NAMES: [(&str, u32); 27] = [
        ("failed_local_healthcheck", 1),
        ("no_healthy_upstream", 2),
        ("upstream_request_timeout", 3),
        ("local_reset", 4),
        ("upstream_remote_reset", 5),
        ("upstream_connection_failure", 6),
        ("upstream_connection_termination", 7),
        ("upstream_overflow", 8),
        ("no_route_found", 9),
        ("delay_injected", 10),
        ("fault_injected", 11),
        ("rate_limited", 12),
        ("rate_limit_service_error", 14),
        ("downstream_connection_termination", 15),
        ("upstream_retry_limit_exceeded", 16),
        ("stream_idle_timeout", 17),
        ("invalid_envoy_request_headers", 18),
        ("downstream_protocol_error", 19),
        ("upstream_max_stream_duration_reached", 20),
        ("response_from_cache_filter", 21),
        ("no_filter_config_found", 22),
        ("duration_timeout", 23),
        ("upstream_protocol_error", 24),
        ("no_cluster_found", 25),
        ("overload_manager", 26),
        ("dns_resolution_failure", 27),
        ("downstream_remote_reset", 28),
    ];
    let mut message = Vec::new();
    for (name, number) in NAMES {
        if value[name] == true {
            prost::encoding::bool::encode(number, &true, &mut message);
        }
    }
    let mut flags = ResponseFlags::decode(message.as_slice())?;
    if present(value, "unauthorized_details").is_some() {
        flags.unauthorized_details = Some(Unauthorized::default());
    }
    Ok(flags)
}

fn address(value: &Value) -> Option<Address> {
    let address = if let Some(socket) = present(value, "socket_address") {
        AddressKind::SocketAddress(SocketAddress {
            address: text(socket, "address"),
            port_specifier: unsigned(&socket["port_value"]).map(PortSpecifier::PortValue),
            ..SocketAddress::default()
        })
    } else {
        let path = text(present(value, "pipe")?, "path");
        AddressKind::Pipe(Pipe { path, mode: 0 })
    };
    Some(Address {
        address: Some(address),
    })
}

fn timestamp(value: &Value) -> Result<Timestamp> {
    let text = value
        .as_str()
        .context("a start time that is not a string")?;
    let time = OffsetDateTime::parse(text, &Rfc3339).context("a start time not in RFC 3339")?;
    Ok(Timestamp {
        seconds: time.unix_timestamp(),
        nanos: time.nanosecond().try_into().unwrap_or_default(),
    })
}

/// `"0.003s"`
fn duration(value: &Value) -> Result<Duration> {
    let seconds = value.as_str().and_then(|text| text.strip_suffix('s'));
    let Some(seconds) = seconds else {
        bail!("a duration that is not a string such as \"0.003s\": {value}");
    };
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let nanos = format!("{fraction:0<9}");
    Ok(Duration {
        seconds: whole.parse().context("a duration")?,
        nanos: nanos
            .get(..9)
            .and_then(|nanos| nanos.parse().ok())
            .context("a duration")?,
    })
}

/// A number, which JSON may write as a string or in a wrapper.
fn unsigned<N: TryFrom<u64> + FromStr>(value: &Value) -> Option<N> {
    let number = match value {
        Value::Object(wrapper) => wrapper.get("value")?.as_u64(),
        Value::String(text) => return text.parse().ok(),
        number => number.as_u64(),
    };
    number?.try_into().ok()
}

fn present<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    value.get(key).filter(|value| !value.is_null())
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}
