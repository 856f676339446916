//! Guesses what a wrong input is, to suggest the right command.

use base64::Engine as _;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::google::protobuf::{BytesValue, Struct};
use metadata_exchange::peer::flat;
use prost::Message as _;
use serde_json::Value;

use super::{BASE64, Form};

/// What a text that is not in the form `form` looks like.
pub(super) fn of_text(text: &[u8], form: Form) -> Option<&'static str> {
    let text = text.trim_ascii();
    if let Some(likeness) = of_json(text, form) {
        return Some(likeness);
    }
    let is_one_of = |more: &[u8]| {
        let is = |byte: &u8| byte.is_ascii_alphanumeric() || more.contains(byte);
        text.iter().all(is)
    };
    if text.windows(3).any(|three| three == b"...") || text.ends_with("…".as_bytes()) {
        return Some("it was cut short by whoever printed it (...): take the whole value");
    }
    if [&b"sidecar~"[..], b"router~", b"waypoint~"]
        .iter()
        .any(|role| text.starts_with(role))
        || text.split(|byte| *byte == b'~').count() > 3
    {
        return Some(
            "it looks like a node id, the value of x-envoy-peer-metadata-id: that is plain text",
        );
    }
    if text.starts_with(b"-----BEGIN") {
        return Some("it looks like a certificate or key in PEM");
    }
    if text.starts_with(b"eyJ") && text.contains(&b'.') {
        return Some("it looks like a JSON Web Token");
    }
    if text.contains(&b'%') && is_one_of(b"%-_.") {
        return Some("it looks percent-encoded, as in a URL: decode %2B, %2F and %3D first");
    }
    if text.iter().any(|byte| b"-_".contains(byte)) && is_one_of(b"-_=") {
        return Some("it looks like URL-safe base64: the exchange writes + and / for - and _");
    }
    if text.len() >= 8 && text.iter().all(u8::is_ascii_hexdigit) {
        return Some("it looks like hexadecimal digits: the exchange writes base64");
    }
    (std::str::from_utf8(text).is_ok_and(|text| text.contains(' ')))
        .then_some("it looks like plain text")
}

fn of_json(text: &[u8], form: Form) -> Option<&'static str> {
    if !text.starts_with(b"{") && !text.starts_with(b"[") {
        return None;
    }
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        return Some("it begins like JSON, but is not valid");
    };
    let has = |key: &str| value.get(key).is_some();
    let kind = value["@type"].as_str().unwrap_or_default();
    Some(if kind.ends_with(".BytesValue") && form != Form::FlatNode {
        "it looks like filter state in a log: use `mxctl decode flat-node`"
    } else if has("httpLogs") || has("http_logs") || has("identifier") {
        "it looks like an access-log message: use `mxctl decode als`"
    } else if has("reporter") && has("protocol") {
        "it looks like a line that `mxctl collect` wrote: use `mxctl topology`"
    } else if ["metadata", "node", "NAME", "LABELS", "configs"]
        .into_iter()
        .any(has)
    {
        "it looks like a node or its metadata: `mxctl encode` makes a header from it"
    } else {
        "it looks like JSON"
    })
}

/// What bytes that are not a message of the form `form` look like.
pub(super) fn of_bytes(bytes: &[u8], form: Form) -> Option<&'static str> {
    if bytes.is_empty() {
        return None;
    }
    if form != Form::FlatNode && is_flat_node(bytes) {
        return Some("it looks like a FlatNode: use `mxctl decode flat-node`");
    }
    if form != Form::Header && Struct::decode(bytes).is_ok_and(|message| !message.fields.is_empty())
    {
        return Some("it looks like x-envoy-peer-metadata: use `mxctl decode header`");
    }
    if form != Form::Als && is_log(bytes) {
        return Some("it looks like an access-log message: use `mxctl decode als`");
    }
    let begins_json = bytes.starts_with(b"{") || bytes.starts_with(b"[");
    if begins_json && serde_json::from_slice::<Value>(bytes).is_ok() {
        return Some("it is base64 of JSON: the exchange writes protobuf messages");
    }
    let inner = BASE64.decode(bytes.trim_ascii());
    if bytes.len() >= 8 && inner.is_ok_and(|inner| Struct::decode(inner.as_slice()).is_ok()) {
        return Some("it is base64 of base64: decode it once first");
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Some("it looks compressed by gzip");
    }
    None
}

fn is_flat_node(bytes: &[u8]) -> bool {
    let is = |bytes: &[u8]| flat::read(bytes).is_ok();
    is(bytes) || BytesValue::decode(bytes).is_ok_and(|message| is(&message.value))
}

fn is_log(bytes: &[u8]) -> bool {
    // Also inside a gRPC frame.
    let framed = bytes.strip_prefix(&[0]).and_then(|rest| rest.get(4..));
    [Some(bytes), framed].into_iter().flatten().any(|bytes| {
        StreamAccessLogsMessage::decode(bytes)
            .is_ok_and(|message| message.log_entries.is_some() || message.identifier.is_some())
    })
}
