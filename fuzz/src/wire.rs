//! Arbitrary bytes as a `google.protobuf.Struct`, compared with a
//! straightforward reading of the decoded message.

use metadata_exchange::peer::wire::{self, MAX_DEPTH, MAX_NUMBERS};
use metadata_exchange::peer::{Field, Map, Peer, RejectReason, Slot, text};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::source::assert_fit;

/// An accepted peer has the content of the message; each rejection has the
/// right reason.
pub fn run(data: &[u8]) {
    let decoded = wire::decode(data, usize::MAX);
    let Ok(message) = Struct::decode(data) else {
        assert_eq!(decoded, Err(RejectReason::Protobuf));
        return;
    };
    let depth = message.fields.values().map(depth).max().unwrap_or_default();
    match decoded {
        Ok(peer) => {
            assert!(depth <= MAX_DEPTH, "{depth}");
            assert_fit(&peer);
            if count_numbers(&message) <= MAX_NUMBERS {
                assert_eq!(peer, peer_of(&message));
            }
        }
        Err(RejectReason::TooDeep) => assert!(depth > MAX_DEPTH, "{depth}"),
        Err(RejectReason::ControlCharacter) => {
            assert!(message.fields.values().any(has_control_character));
        }
        Err(reason) => panic!("{reason}"),
    }
}

/// The nesting depth of lists and structs that are not empty.
fn depth(value: &Value) -> usize {
    let inner = match &value.kind {
        Some(Kind::StructValue(message)) => message.fields.values().map(depth).max(),
        Some(Kind::ListValue(list)) => list.values.iter().map(depth).max(),
        _ => None,
    };
    inner.map_or(0, |inner| inner + 1)
}

fn has_control_character(value: &Value) -> bool {
    match &value.kind {
        Some(Kind::StringValue(text)) => text.contains(char::is_control),
        Some(Kind::StructValue(message)) => message
            .fields
            .iter()
            .any(|(key, value)| key.contains(char::is_control) || has_control_character(value)),
        Some(Kind::ListValue(list)) => list.values.iter().any(has_control_character),
        _ => false,
    }
}

fn count_numbers(message: &Struct) -> usize {
    let count = |value: &Value| match &value.kind {
        Some(Kind::NumberValue(_)) => 1,
        Some(Kind::StructValue(message)) => count_numbers(message),
        Some(Kind::ListValue(list)) => list.values.len(),
        _ => 0,
    };
    message.fields.values().map(count).sum()
}

fn peer_of(message: &Struct) -> Peer {
    let mut peer = Peer::default();
    for field in Field::ALL {
        let Some(value) = message.fields.get(field.key()) else {
            continue;
        };
        match (peer.slot(field), &value.kind) {
            (Slot::Names(slot), Some(Kind::ListValue(list))) => *slot = names_of(list),
            (Slot::Text(slot) | Slot::Names(slot), _) => *slot = text_of(value),
            (Slot::Map(slot), Some(Kind::StructValue(map))) => *slot = Some(map_of(map)),
            (Slot::Map(_), _) => {}
        }
    }
    peer
}

fn text_of(value: &Value) -> Option<String> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => text::of_number(*number),
        Kind::BoolValue(bool) => Some(bool.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

fn names_of(list: &ListValue) -> Option<String> {
    let names: Vec<_> = list.values.iter().filter_map(text_of).collect();
    (!names.is_empty()).then(|| names.join(","))
}

fn map_of(message: &Struct) -> Map {
    let entries = message.fields.iter();
    entries
        .filter_map(|(key, value)| Some((key.clone(), text_of(value)?)))
        .collect()
}
