//! Decodes the forms of the exchange to JSON, or reports the byte at which decoding fails.

mod als_json;
mod likeness;
mod pasted;
#[cfg(test)]
mod tests;

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
