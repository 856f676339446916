//! Any bytes as a `google.protobuf.Struct`, compared with what prost reads.

use std::collections::HashSet;

use metadata_exchange::peer::wire::{self, Strict};
use metadata_exchange::peer::{Field, Map, Peer, Refused, Slot, Text, text};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::source::assert_fit;

/// What both readers accept, they read the same.
pub fn run(data: &[u8]) {
    let ours = wire::decode(data, usize::MAX, &mut Strict);
    if let Ok(peer) = &ours {
        assert_fit(peer);
    }
    let Ok(theirs) = Struct::decode(data) else {
        return;
    };
    match ours {
        Ok(peer) if !is_ambiguous(data) && count_numbers(&theirs) <= wire::MAX_NUMBERS => {
            assert_eq!(peer, peer_of(&theirs));
        }
        // Prost has looked at every text, knows no control characters, and goes
        // deeper; groups it steps over.
        Ok(_) | Err(Refused::TooDeep | Refused::ControlCharacter) => {}
        Err(Refused::Protobuf { offset }) => assert!(
            may_hold_group(data) || RawStruct::decode(data).is_err(),
            "refused at {offset}"
        ),
        Err(refused) => panic!("{refused}"),
    }
}

/// Whether there is a group in `data` or in what it holds, if that is a message.
fn may_hold_group(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let Ok((number, wire_type)) = decode_key(&mut data) else {
            return false;
        };
        let mut inner = data;
        match wire_type {
            WireType::StartGroup | WireType::EndGroup => return true,
            _ if skip_field(wire_type, number, &mut data, DecodeContext::default()).is_err() => {
                return false;
            }
            WireType::LengthDelimited => {
                // It has just been stepped over, so it is whole.
                let len = decode_varint(&mut inner).unwrap_or_default();
                if may_hold_group(&inner[..usize::try_from(len).unwrap()]) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
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

fn peer_of(message: &Struct) -> Peer<'static> {
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

fn text_of(value: &Value) -> Option<Text<'static>> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone().into()),
        Kind::NumberValue(number) => text::of_number(*number),
        Kind::BoolValue(bool) => Some(text::of_bool(*bool)),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

fn names_of(list: &ListValue) -> Option<Text<'static>> {
    let names: Vec<_> = list.values.iter().filter_map(text_of).collect();
    (!names.is_empty()).then(|| {
        names
            .iter()
            .map(|name| &**name)
            .collect::<Vec<_>>()
            .join(",")
            .into()
    })
}

fn map_of(message: &Struct) -> Map<'static> {
    let entries = message.fields.iter();
    let mut map: Map<'static> = entries
        .filter_map(|(key, value)| Some((key.clone().into(), text_of(value)?)))
        .collect();
    map.sort();
    map
}

/// Whether `data` holds what no serialiser writes, and the two read differently:
/// a message where there is one already, which protobuf merges and ours replaces;
/// a label twice, of which ours takes the last that it can use; or an entry with
/// another wire type, which prost does not look at in maps.
fn is_ambiguous(data: &[u8]) -> bool {
    RawStruct::decode(data).map_or(true, |message| {
        message.entries.iter().any(RawEntry::is_ambiguous)
    })
}

/// A `Struct` that keeps apart what protobuf makes one.
#[derive(Message)]
struct RawStruct {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<RawEntry>,
}

#[derive(Message)]
struct RawEntry {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    values: Vec<RawValue>,
}

#[derive(Message)]
struct RawValue {
    #[prost(message, repeated, tag = "5")]
    structs: Vec<RawStruct>,
    #[prost(message, repeated, tag = "6")]
    lists: Vec<RawList>,
}

#[derive(Message)]
struct RawList {
    #[prost(message, repeated, tag = "1")]
    values: Vec<RawValue>,
}

impl RawEntry {
    fn is_ambiguous(&self) -> bool {
        self.values.len() > 1 || self.values.iter().any(RawValue::is_ambiguous)
    }
}

impl RawValue {
    fn is_ambiguous(&self) -> bool {
        let mut listed = self.lists.iter().flat_map(|list| &list.values);
        self.structs.len() > 1
            || self.lists.len() > 1
            || self.structs.iter().any(RawStruct::is_ambiguous)
            || listed.any(Self::is_ambiguous)
    }
}

impl RawStruct {
    fn is_ambiguous(&self) -> bool {
        let mut keys = HashSet::new();
        !self.entries.iter().all(|entry| keys.insert(&entry.key))
            || self.entries.iter().any(RawEntry::is_ambiguous)
    }
}
