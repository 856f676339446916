//! Decodes the forms of the exchange to JSON, or reports the byte at which decoding fails.

mod als_json;
mod likeness;
mod pasted;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, prelude::BASE64_STANDARD};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::google::protobuf::BytesValue;
use flatbuffers::InvalidFlatbuffer;
use metadata_exchange::peer::header::{self, Limits};
use metadata_exchange::peer::wire::{self, Unusable};
use metadata_exchange::peer::{RejectReason, flat};
use prost::Message;
use prost_types::Struct;
use serde::Serialize;
use serde_json::{Value, json};

use access_log::Reporter;
use access_log::state::json_of_peer;

/// The form that the input should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[allow(clippy::doc_markdown)] // These comments are help texts, too.
pub enum Form {
    /// The value of x-envoy-peer-metadata
    Header,
    /// A FlatNode in base64, or a log's JSON BytesValue that holds it
    FlatNode,
    /// An ALS message, StreamAccessLogsMessage: bytes, base64 of them, or JSON
    Als,
}

/// Why decoding failed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The byte offset, if known.
    pub offset: Option<usize>,
    /// What the offset counts from: the text, or the message that it encodes.
    pub of: &'static str,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(offset) = self.offset {
            write!(f, "at byte {offset} of the {}: ", self.of)?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Broken {}

impl Broken {
    /// [`Broken::of`] for empty input.
    const INPUT: &str = "input";

    /// Whether there was nothing to decode.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of == Self::INPUT
    }
}

/// As the filter reads it: padding is optional.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes `input` to JSON.
pub fn decode(form: Form, input: &[u8]) -> Result<Value, Broken> {
    if pasted::flat_node(input).text.is_empty() {
        return Err(Broken {
            offset: None,
            of: Broken::INPUT,
            reason: "it is empty: there is nothing to decode".to_owned(),
        });
    }
    match form {
        Form::Header => decode_header(input),
        Form::FlatNode => decode_flat(input),
        Form::Als => decode_als(input),
    }
}

fn decode_header(input: &[u8]) -> Result<Value, Broken> {
    let pasted = pasted::header(input);
    let value = pasted.text.as_slice();
    let of_text = |offset: Option<usize>, reason: String| Broken {
        offset: offset.map(|offset| pasted.offset(offset)),
        of: "text",
        reason,
    };
    if pasted.name == Some(pasted::Name::Id) {
        let id = String::from_utf8_lossy(value);
        let reason = format!(
            "this is x-envoy-peer-metadata-id, which has nothing to decode: the node id is {id}"
        );
        return Err(of_text(None, reason));
    }
    let message = unbase64(value).map_err(|(offset, reason)| {
        // Check the original text too, because the cleaned one may have lost what identifies it.
        let likeness = likeness::of_text(value, Form::Header)
            .or_else(|| likeness::of_text(input, Form::Header));
        of_text(Some(offset), with_likeness(reason, likeness))
    })?;
    let refused = header::decode(value, Limits::DEFAULT).err();
    let peer = match header::decode(value, Limits::NONE) {
        Ok(peer) => json_of_peer(&peer),
        Err(RejectReason::Empty) => json!({}),
        Err(reason) => {
            let mut broken = broken_struct(&message, reason);
            let likeness = likeness::of_bytes(&message, Form::Header)
                .or_else(|| likeness::of_text(value, Form::Header));
            broken.reason = with_likeness(broken.reason, likeness);
            return Err(broken);
        }
    };
    Ok(json!({
        "metadata": peer,
        "header_bytes": value.len(),
        "message_bytes": message.len(),
        "accepted": refused.is_none(),
        "refused": refused.map(|reason| reason.to_string()),
    }))
}

fn with_likeness(reason: String, likeness: Option<&str>) -> String {
    match likeness {
        Some(likeness) => format!("{}; {likeness}", reason.trim_end_matches('.')),
        None => reason,
    }
}

fn broken_struct(message: &[u8], reason: RejectReason) -> Broken {
    let decoded = match whole::<Struct>(message) {
        Ok(decoded) => decoded,
        Err(broken) => {
            return Broken {
                reason: format!("{reason}: {}", broken.reason),
                ..broken
            };
        }
    };
    // The reason is known; this finds the field.
    let mut first = None;
    let _ = wire::read(decoded, usize::MAX, &mut |unusable| match unusable.text {
        Some(text) => {
            first = Some(place_of(message, unusable, text));
            Err(reason)
        }
        None => Ok(()),
    });
    let (offset, whose) = first.unzip();
    let whose = whose.map_or_else(String::new, |whose| format!(" of {whose}"));
    Broken {
        offset: offset.flatten(),
        of: "message",
        reason: format!("{reason}{whose}"),
    }
}

/// The offset in `message` of the control character in `text`, and the key of that text.
fn place_of(message: &[u8], unusable: Unusable<'_>, text: &str) -> (Option<usize>, String) {
    let mut keys = vec![unusable.field.key()];
    keys.extend(unusable.key);
    let path = keys.iter().map(|key| key.escape_default().to_string());
    let path = path.collect::<Vec<_>>().join(".");
    // After the field's key and the map's key, each preceded by its length.
    let mut start = Some(0);
    for key in keys {
        let length = u8::try_from(key.len()).unwrap_or_default();
        let field = [&[0x0A, length], key.as_bytes()].concat();
        start = start.and_then(|start| Some(start + find(&message[start..], &field)? + 2));
    }
    let within = text.find(char::is_control).unwrap_or_default();
    let offset = start.and_then(|start| Some(start + find(&message[start..], text.as_bytes())?));
    (offset.map(|offset| offset + within), path)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len().max(1))
        .position(|window| window == wanted)
}

fn decode_flat(input: &[u8]) -> Result<Value, Broken> {
    let pasted = pasted::flat_node(input);
    let value = pasted.text.as_slice();
    let bytes = if value.starts_with(b"{") {
        of_bytes_value(value)?
    } else {
        unbase64(value).map_err(|(offset, reason)| Broken {
            offset: Some(pasted.offset(offset)),
            of: "text",
            reason: with_likeness(reason, likeness::of_text(value, Form::FlatNode)),
        })?
    };
    // It may still be wrapped in Envoy's BytesValue.
    let inner = BytesValue::decode(bytes.as_slice())
        .ok()
        .map(|message| message.value);
    let read = |bytes: &[u8]| flat::read(bytes).map(|peer| json_of_peer(&peer));
    let direct = read(&bytes);
    let broken = |error| {
        let mut broken = broken_flat(&error, bytes.len());
        broken.reason = with_likeness(broken.reason, likeness::of_bytes(&bytes, Form::FlatNode));
        broken
    };
    let metadata = match (direct, inner) {
        (Ok(metadata), _) => metadata,
        (Err(error), None) => return Err(broken(error)),
        (Err(error), Some(inner)) => read(&inner).map_err(|_| broken(error))?,
    };
    Ok(json!({ "metadata": metadata, "bytes": bytes.len() }))
}

/// The bytes in `{"@type": "...BytesValue", "value": "..."}`, the form of typed filter state in
/// text logs.
fn of_bytes_value(json: &[u8]) -> Result<Vec<u8>, Broken> {
    let reason = |reason: &str| Broken {
        offset: None,
        of: "text",
        reason: reason.to_owned(),
    };
    let value: Value = serde_json::from_slice(json).map_err(|error| reason(&error.to_string()))?;
    let text = value["value"].as_str();
    let text = text.ok_or_else(|| {
        let likeness = likeness::of_text(json, Form::FlatNode);
        let text = "JSON, but without a text under \"value\"".to_owned();
        reason(&with_likeness(
            text,
            likeness.filter(|_| !is_empty_object(&value)),
        ))
    })?;
    BASE64_STANDARD
        .decode(text)
        .map_err(|error| reason(&format!("\"value\" is not base64: {error}")))
}

fn broken_flat(error: &InvalidFlatbuffer, length: usize) -> Broken {
    use InvalidFlatbuffer as Invalid;
    let offset =
        match error {
            Invalid::Utf8Error { range, error, .. } => Some(range.start + error.valid_up_to()),
            Invalid::MissingNullTerminator { range, .. }
            | Invalid::RangeOutOfBounds { range, .. } => Some(range.start),
            Invalid::Unaligned { position, .. }
            | Invalid::SignedOffsetOutOfBounds { position, .. } => Some(*position),
            _ => None,
        };
    // The first line states the error, the others the path to it.
    let text = error.to_string();
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Broken {
        // The offset of an out-of-range reference lies outside the message; the reason names it.
        offset: offset.filter(|offset| *offset <= length),
        of: "message",
        reason: format!("not a FlatNode: {}", lines.join("; ")),
    }
}

fn decode_als(input: &[u8]) -> Result<Value, Broken> {
    let text = input.trim_ascii();
    let start = input.len() - input.trim_ascii_start().len();
    if text.starts_with(b"{") || text.starts_with(b"[") {
        return decode_als_json(text);
    }
    let is_text = !text.is_empty()
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=\r\n".contains(byte));
    let bytes = if is_text {
        let pasted = pasted::header(text);
        unbase64(&pasted.text).map_err(|(offset, reason)| Broken {
            offset: Some(start + pasted.offset(offset)),
            of: "text",
            reason: with_likeness(reason, likeness::of_text(text, Form::Als)),
        })?
    } else {
        input.to_vec()
    };
    let mut messages = Vec::new();
    for (start, frame) in frames(&bytes) {
        let message: StreamAccessLogsMessage = whole(frame).map_err(|mut broken| {
            broken.offset = broken.offset.map(|offset| start + offset);
            let likeness = likeness::of_bytes(&bytes, Form::Als)
                .or_else(|| likeness::of_text(text, Form::Als));
            broken.reason = with_likeness(broken.reason, likeness);
            broken
        })?;
        messages.push(message);
    }
    // Other messages decode as well, because unknown fields are skipped.
    let is_nothing = messages
        .iter()
        .all(|message| message.identifier.is_none() && message.log_entries.is_none());
    if is_nothing && let Some(likeness) = likeness::of_bytes(&bytes, Form::Als) {
        return Err(Broken {
            offset: None,
            of: "message",
            reason: format!("neither an identifier nor entries; {likeness}"),
        });
    }
    Ok(entries(messages))
}

fn decode_als_json(text: &[u8]) -> Result<Value, Broken> {
    let messages = als_json::messages(text).map_err(|error| Broken {
        offset: None,
        of: "text",
        reason: with_likeness(format!("{error:#}"), likeness::of_text(text, Form::Als)),
    })?;
    Ok(entries(messages))
}

/// The entries of a stream's messages.
fn entries(messages: Vec<StreamAccessLogsMessage>) -> Value {
    let mut reporter = Arc::<Reporter>::default();
    let mut entries = Vec::new();
    for message in messages {
        if let Some(identifier) = message.identifier {
            reporter = Arc::new(Reporter::from(identifier));
        }
        if let Some(logs) = message.log_entries {
            entries.extend(access_log::entries(&reporter, logs));
        }
    }
    json!({ "reporter": *reporter, "entries": entries })
}

fn is_empty_object(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The messages in gRPC frames, each with its offset; or the single message without a frame.
fn frames(bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    // No message begins with a zero, because no field has the number 0.
    while let Some((&[0, a, b, c, d], after)) = rest.split_first_chunk() {
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let Some((message, after)) = after.split_at_checked(length) else {
            break;
        };
        frames.push((bytes.len() - rest.len() + 5, message));
        rest = after;
    }
    if !rest.is_empty() || frames.is_empty() {
        frames.push((bytes.len() - rest.len(), rest));
    }
    frames
}

/// Decodes, and reports how far it got.
fn whole<M: Message + Default>(bytes: &[u8]) -> Result<M, Broken> {
    let mut rest = bytes;
    M::decode(&mut rest).map_err(|error| Broken {
        offset: Some(bytes.len() - rest.len()),
        of: "message",
        reason: error.to_string(),
    })
}

/// The bytes, or the offset and reason of the failure.
fn unbase64(text: &[u8]) -> Result<Vec<u8>, (usize, String)> {
    BASE64.decode(text).map_err(|error| {
        let (offset, reason) = match error {
            DecodeError::InvalidByte(offset, byte) => {
                let byte = byte.escape_ascii();
                (offset, format!("'{byte}' is not in the alphabet"))
            }
            DecodeError::InvalidLastSymbol { offset, .. } => {
                (offset, "its last symbol has unused bits set".to_owned())
            }
            DecodeError::InvalidLength(_) => (text.len(), "its end is missing".to_owned()),
            DecodeError::InvalidPadding => (text.len(), "its padding is wrong".to_owned()),
        };
        (offset, format!("not standard base64: {reason}"))
    })
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
    use metadata_exchange::peer::Peer;

    use super::*;

    fn peer() -> Peer {
        Peer {
            name: Some("pay-1".into()),
            labels: Some(vec![("app".into(), "pay".into())]),
            ..Peer::default()
        }
    }

    fn broken(form: Form, input: &[u8]) -> (Option<usize>, String) {
        let broken = decode(form, input).unwrap_err();
        (broken.offset, broken.reason)
    }

    #[test]
    fn a_header_decodes_to_its_metadata() {
        let value = format!(" {}\n", header::encode(&peer()));
        let decoded = decode(Form::Header, value.as_bytes()).unwrap();
        assert_eq!(
            decoded["metadata"],
            json!({ "NAME": "pay-1", "LABELS": { "app": "pay" } })
        );
        assert_eq!(decoded["accepted"], json!(true));
    }

    #[test]
    fn a_header_that_the_filter_refuses_is_decoded() {
        let labels = (0..300).map(|number| (format!("l{number}"), String::new()));
        let peer = Peer {
            labels: Some(labels.collect()),
            ..peer()
        };
        let decoded = decode(Form::Header, header::encode(&peer).as_bytes()).unwrap();
        assert_eq!(decoded["accepted"], json!(false));
        assert_eq!(
            decoded["refused"],
            json!("more than max_labels 256 entries in a map or list")
        );
        assert_eq!(
            decoded["metadata"]["LABELS"].as_object().unwrap().len(),
            300
        );
        // {OTHER: ""}
        let empty = decode(Form::Header, b"CgsKBU9USEVSEgIaAA==").unwrap();
        assert_eq!(empty["refused"], json!("says nothing about the workload"));
    }

    #[test]
    fn an_empty_header_is_an_error() {
        for form in [Form::Header, Form::FlatNode, Form::Als] {
            for input in ["", " \n", "''", "x-envoy-peer-metadata: "] {
                let broken = decode(form, input.as_bytes()).unwrap_err();
                assert!(broken.is_empty(), "{form:?} {input:?}: {broken}");
            }
        }
        assert!(!decode(Form::Header, b"_").unwrap_err().is_empty());
    }

    /// The error names what the input looks like.
    #[test]
    fn an_error_says_what_the_input_looks_like() {
        let encoded = header::encode(&peer());
        let flat = BASE64_STANDARD.encode(flat::write(&peer()));
        let identifier = Identifier {
            log_name: "log".to_owned(),
            ..Identifier::default()
        };
        let log = StreamAccessLogsMessage {
            identifier: Some(identifier),
            ..StreamAccessLogsMessage::default()
        };
        let log = BASE64_STANDARD.encode(log.encode_to_vec());
        let twice = BASE64_STANDARD.encode(&encoded);
        let (of_json, of_bytes) = (
            BASE64_STANDARD.encode(r#"{"NAME":"a"}"#),
            json!({
                "@type": "type.googleapis.com/google.protobuf.BytesValue", "value": flat,
            }),
        );
        let of_bytes = of_bytes.to_string();
        let log_json = json!({ "httpLogs": { "logEntry": [] } }).to_string();
        for (form, input, expected) in [
            (Form::Header, "Cgw-KBE_", "URL-safe base64"),
            (Form::Header, "Cgw%2BKBE%3D", "percent-encoded"),
            (Form::Header, "CgwKBE5BTUUS...", "cut short"),
            (Form::Header, "sidecar~10.0.0.1~a.b~c.svc", "a node id"),
            (
                Form::Header,
                "x-envoy-peer-metadata-id: a",
                "x-envoy-peer-metadata-id",
            ),
            (Form::Header, "0a0c0a044e414d4512041a0261", "hexadecimal"),
            (Form::Header, r#"{"NAME": "a"}"#, "mxctl encode"),
            (Form::Header, &of_bytes, "mxctl decode flat-node"),
            (Form::Header, &log_json, "mxctl decode als"),
            (Form::Header, r#"{"a": "#, "begins like JSON"),
            (Form::Header, &flat, "mxctl decode flat-node"),
            (Form::Header, &log, "mxctl decode als"),
            (Form::Header, &of_json, "base64 of JSON"),
            (Form::Header, &twice, "base64 of base64"),
            (Form::Header, "eyJhbGciOi.eyJz.x", "JSON Web Token"),
            (Form::Header, "-----BEGIN CERTIFICATE-----", "PEM"),
            (Form::Header, "not a header, really", "plain text"),
            (Form::FlatNode, &encoded, "mxctl decode header"),
            (Form::FlatNode, &log, "mxctl decode als"),
            (Form::FlatNode, r#"{"NAME": "a"}"#, "mxctl encode"),
            (Form::FlatNode, "Cgw-KBE_", "URL-safe base64"),
            (Form::Als, &flat, "mxctl decode flat-node"),
            (Form::Als, &encoded, "mxctl decode header"),
            (Form::Als, &of_bytes, "mxctl decode flat-node"),
            (Form::Als, r#"{"NAME": "a"}"#, "mxctl encode"),
            (
                Form::Als,
                r#"{"version":1,"reporter":{},"protocol":"http"}"#,
                "mxctl topology",
            ),
        ] {
            let broken = decode(form, input.as_bytes()).unwrap_err();
            assert!(
                broken.reason.contains(expected),
                "{form:?} {input}: {broken}"
            );
        }
    }

    #[test]
    fn a_pasted_header_line_is_decoded() {
        let value = header::encode(&peer());
        let (first, second) = value.split_at(20);
        for pasted in [
            format!("x-envoy-peer-metadata: {value}"),
            format!("'x-envoy-peer-metadata', '{value}'"),
            format!("[\"{value}\"]"),
            format!("{first}\n    {second}"),
        ] {
            let decoded = decode(Form::Header, pasted.as_bytes()).unwrap();
            assert_eq!(decoded["metadata"]["NAME"], json!("pay-1"), "{pasted}");
        }
    }

    #[test]
    fn an_als_message_may_be_json() {
        let flat = BASE64_STANDARD.encode(flat::write(&peer()));
        let bytes = "type.googleapis.com/google.protobuf.BytesValue";
        let text = "type.googleapis.com/google.protobuf.Struct";
        let named_as_json = json!({
            "identifier": { "node": { "id": "sidecar~1", "metadata": { "NAME": "a" } },
                            "logName": "log" },
            "httpLogs": { "logEntry": [{
                "commonProperties": {
                    "startTime": "2026-11-27T19:00:00.25Z",
                    "timeToLastDownstreamTxByte": "0.003500s",
                    "upstreamCluster": "outbound|80||b",
                    "upstreamRemoteAddress": {
                        "socketAddress": { "address": "10.0.0.1", "portValue": 80 } },
                    "downstreamRemoteAddress": { "pipe": { "path": "/a" } },
                    "responseFlags": { "upstreamRequestTimeout": true,
                                       "unauthorizedDetails": {} },
                    "filterStateObjects": {
                        "wasm.upstream_peer": { "@type": bytes, "value": flat },
                        "wasm.upstream_peer_id": { "@type": bytes, "value": "Yg==" },
                        "upstream_peer": { "@type": text, "value": { "name": "b" } },
                    },
                    "accessLogType": "DownstreamPeriodic",
                },
                "request": { "requestMethod": "GET", "authority": "b", "path": "/x" },
                "response": { "responseCode": 504 },
            }] },
        });
        let declared = crate::declared_names::with_declared_names(named_as_json.clone());
        let twice = format!("{named_as_json}\n{declared}");
        for (input, count) in [
            (named_as_json.to_string(), 1),
            (declared.to_string(), 1),
            (json!([named_as_json, declared]).to_string(), 2),
            (twice, 2),
        ] {
            let decoded = decode(Form::Als, input.as_bytes()).unwrap();
            assert_eq!(decoded["reporter"]["metadata"]["NAME"], json!("a"));
            let entries = decoded["entries"].as_array().unwrap();
            assert_eq!(entries.len(), count);
            for entry in entries {
                let mut entry = entry.clone();
                entry.as_object_mut().unwrap().remove("reporter");
                let peer = json!({ "NAME": "pay-1", "LABELS": { "app": "pay" } });
                let state = &entry["state"];
                assert_eq!(state["wasm.upstream_peer"]["metadata"], peer);
                assert_eq!(state["wasm.upstream_peer_id"]["id"], json!("b"));
                let native = json!({ "name": "b" });
                assert_eq!(state["upstream_peer"]["metadata"], native);
                entry.as_object_mut().unwrap().remove("state");
                assert_eq!(
                    entry,
                    json!({
                        "version": entry["version"], "protocol": "http",
                        "start": "2026-11-27T19:00:00.25Z", "duration_us": 3500,
                        "method": "GET", "authority": "b", "path": "/x", "status": 504,
                        "flags": ["UT", "UAEX"], "upstream_cluster": "outbound|80||b",
                        "downstream_address": "/a", "upstream_address": "10.0.0.1:80",
                        "intermediate": true,
                    })
                );
            }
        }
        let tcp = json!({ "tcpLogs": { "logEntry": [{ "commonProperties": {} }] } });
        let decoded = decode(Form::Als, tcp.to_string().as_bytes()).unwrap();
        assert_eq!(decoded["entries"][0]["protocol"], json!("tcp"));
        for (wrong, expected) in [
            (json!({ "startTime": "yesterday" }), "RFC 3339"),
            (json!({ "duration": 5 }), "a duration"),
            (
                json!({ "filterStateObjects": { "a": {} } }),
                "filter state a: no @type",
            ),
        ] {
            let wrong = json!({ "tcpLogs": { "logEntry": [{ "commonProperties": wrong }] } });
            let (_, reason) = broken(Form::Als, wrong.to_string().as_bytes());
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn an_error_has_the_offset_in_the_header() {
        let (offset, reason) = broken(Form::Header, b"  AAAA_AAA");
        assert_eq!(offset, Some(6));
        assert!(reason.starts_with("not standard base64"), "{reason}");
        assert_eq!(broken(Form::Header, b"AAAAA").0, Some(5), "its end");
        let message = wire::encode(&peer());
        let cut = BASE64_STANDARD.encode(&message[..message.len() - 3]);
        let (offset, reason) = broken(Form::Header, cut.as_bytes());
        assert!(offset.is_some_and(|offset| offset < message.len()));
        assert!(
            reason.starts_with("not a google.protobuf.Struct: "),
            "{reason}"
        );
    }

    #[test]
    fn a_bad_text_has_its_offset_and_key() {
        let message = wire::encode(&peer());
        let index = message
            .windows(3)
            .position(|three| three == b"pay")
            .unwrap();
        let broken_by = |byte| {
            let mut message = message.clone();
            message[index + 1] = byte;
            broken(Form::Header, BASE64_STANDARD.encode(&message).as_bytes())
        };
        let (offset, reason) = broken_by(b'\n');
        assert_eq!(reason, "a control character in a text of LABELS.app");
        assert_eq!(offset, Some(index + 1));
        // The library reports where it stopped, and that a string is not UTF-8.
        let (offset, reason) = broken_by(0xFF);
        assert!(reason.contains("UTF-8"), "{reason}");
        assert!(offset.is_some_and(|offset| offset > index), "{offset:?}");
    }

    /// If there are several, the first by key is reported; keys that the filter does not read are
    /// ignored.
    #[test]
    fn the_offset_is_that_of_the_reported_text() {
        let text = |key: &str| {
            let value = [&[3 << 3 | 2, 3], &b"a\nb"[..]].concat();
            let key = [&[10, u8::try_from(key.len()).unwrap()], key.as_bytes()].concat();
            let entry = [&key[..], &[18, 5], &value].concat();
            [&[10, u8::try_from(entry.len()).unwrap()], &entry[..]].concat()
        };
        let unread = text("SOMETHING_ELSE");
        for (message, whose, index) in [
            (
                [unread.clone(), text("OWNER")].concat(),
                "OWNER",
                unread.len() + 14,
            ),
            ([text("OWNER"), text("NAME")].concat(), "NAME", 16 + 13),
        ] {
            let (offset, said) = broken(Form::Header, BASE64_STANDARD.encode(message).as_bytes());
            assert_eq!(said, format!("a control character in a text of {whose}"));
            assert_eq!(offset, Some(index));
        }
    }

    #[test]
    fn a_flat_node_is_decoded_bare_or_from_a_log() {
        let bytes = flat::write(&peer());
        let text = BASE64_STANDARD.encode(&bytes);
        let typed =
            json!({ "@type": "type.googleapis.com/google.protobuf.BytesValue", "value": text });
        let envelope = BytesValue { value: bytes }.encode_to_vec();
        for input in [text, typed.to_string(), BASE64_STANDARD.encode(envelope)] {
            let decoded = decode(Form::FlatNode, input.as_bytes()).unwrap();
            assert_eq!(decoded["metadata"]["NAME"], json!("pay-1"), "{input}");
        }
        let (offset, reason) = broken(Form::FlatNode, b"//////8=");
        assert!(offset.is_none_or(|offset| offset <= 5), "{reason}");
        assert!(reason.starts_with("not a FlatNode: "), "{reason}");
        let mut cut = flat::write(&peer());
        cut.truncate(cut.len() - 8);
        let (offset, reason) = broken(Form::FlatNode, BASE64_STANDARD.encode(&cut).as_bytes());
        assert!(
            offset.is_some_and(|offset| offset <= cut.len()),
            "{offset:?} {reason}"
        );
        assert!(broken(Form::FlatNode, b"{}").1.contains("\"value\""));
    }

    #[test]
    fn an_als_message_decodes_to_its_entries() {
        use envoy_types::pb::envoy::config::core::v3::Node;
        use envoy_types::pb::envoy::data::accesslog::v3::{
            HttpAccessLogEntry, HttpRequestProperties,
        };
        use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
            HttpAccessLogEntries, LogEntries,
        };
        let request = HttpRequestProperties {
            path: "/pay".to_owned(),
            ..HttpRequestProperties::default()
        };
        let log_entry = vec![HttpAccessLogEntry {
            request: Some(request),
            ..HttpAccessLogEntry::default()
        }];
        let node = Node {
            id: "sidecar~1".to_owned(),
            ..Node::default()
        };
        let message = StreamAccessLogsMessage {
            identifier: Some(Identifier {
                node: Some(node),
                log_name: "log".to_owned(),
            }),
            log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry })),
        }
        .encode_to_vec();
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend(&message);
        let twice = [framed.clone(), framed].concat();
        let text = BASE64_STANDARD.encode(&message).into_bytes();
        for (input, count) in [(&message, 1), (&twice, 2), (&text, 1)] {
            let decoded = decode(Form::Als, input).unwrap();
            assert_eq!(decoded["reporter"]["id"], json!("sidecar~1"));
            assert_eq!(decoded["entries"].as_array().unwrap().len(), count);
            assert_eq!(decoded["entries"][0]["path"], json!("/pay"));
        }
        let (offset, reason) = broken(Form::Als, &message[..message.len() - 2]);
        assert!(
            offset.is_some_and(|offset| offset <= message.len()),
            "{reason}"
        );
        assert!(reason.contains("failed to decode"), "{reason}");
        let mut bad = twice;
        let start = 2 * 5 + message.len();
        bad[start] = 7;
        assert_eq!(broken(Form::Als, &bad).0, Some(start + 1));
    }
}
