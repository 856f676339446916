//! The node that this proxy is: read once from Envoy, encoded once, sent with
//! every exchange.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::ops::Deref;

use crate::json::Quoted;
use crate::peer::header::{self, Limits};
use crate::peer::text::{self, BadText};
use crate::peer::wire::{self, Fields, Unusable, Wire, sort_last_wins};
use crate::peer::{self, Field, Peer, Refused, SERVICE_LABELS, Slot, Text, Value, flat};

pub mod share;

use share::Share;

/// What this proxy says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNode {
    /// `node.id`; `None` sends no id.
    pub id: Option<String>,
    /// The value of `x-envoy-peer-metadata`; `None` sends no metadata.
    pub header: Option<String>,
    /// The whole node as `FlatNode`, for entries that name both sides; `None`
    /// if it says nothing about its workload.
    pub flat: Option<Vec<u8>>,
}

/// What is said, once, about a node that is not sent as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The value of this key is left out: no text, number or bool, or a text
    /// that peers would refuse.
    LeftOut {
        /// The key, of a map's entry with its map: `LABELS.app`.
        key: String,
    },
    /// The id is left out, for peers would refuse it.
    BadId(Refused),
    /// Not a `google.protobuf.Struct`.
    BadMetadata(Refused),
    /// Left out because the header was longer than `max_sent_bytes`, or because
    /// it is more than peers accept.
    TooLong {
        /// What was left out, in that order.
        left_out: Vec<&'static str>,
        /// Bytes allowed.
        max: usize,
    },
}

impl core::fmt::Display for Note {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::LeftOut { key } => write!(
                f,
                "node metadata {} is left out: neither a text without control characters, \
                 a number nor a bool",
                Quoted(key)
            ),
            Self::BadId(refused) => write!(f, "node id is left out: {refused}"),
            Self::BadMetadata(refused) => write!(f, "node metadata is left out: {refused}"),
            Self::TooLong { left_out, max } => write!(
                f,
                "node metadata is longer than max_sent_bytes {max}, or has more than the {} entries \
                 that peers accept: left out {}",
                Limits::DEFAULT.max_labels,
                left_out.join(", ")
            ),
        }
    }
}

/// A node as Envoy reports it, before it is fitted to what may be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `node.id`, as it is.
    pub id: Vec<u8>,
    /// `node.metadata`, a serialised `google.protobuf.Struct`.
    pub metadata: Vec<u8>,
}

impl Node {
    /// Reads a serialised `envoy.config.core.v3.Node`: id = 1, metadata = 3. A
    /// real one has 60 KB, mostly extensions, which are stepped over.
    #[must_use]
    pub fn of_message(message: &[u8]) -> Self {
        let mut node = Self::default();
        let mut fields = Fields::of(message);
        while let Ok(Some((number, wire))) = fields.next() {
            match (number, wire) {
                (1, Wire::Bytes(id)) => node.id = id.to_vec(),
                (3, Wire::Bytes(metadata)) => node.metadata = metadata.to_vec(),
                _ => {}
            }
        }
        node
    }

    /// Reads the node field by field, for Envoys that have no `xds.node`: `get`
    /// gives the attribute at a path. Such an attribute has no type, so a value
    /// that is no text is taken for the number or bool that has its length.
    #[must_use]
    pub fn of_properties<B: Deref<Target = [u8]>>(
        mut get: impl FnMut(&str) -> Option<B>,
        notes: &mut Vec<Note>,
    ) -> Self {
        let mut peer = Peer::default();
        for field in Field::ALL {
            let path = format!("node\0metadata\0{}", field.key());
            let Some(value) = get(&path) else {
                if field == Field::Labels {
                    peer.labels = service_labels(|key| get(&format!("{path}\0{key}")), notes);
                }
                continue;
            };
            let is_taken = match peer.slot(field) {
                Slot::Text(slot) => {
                    *slot = untyped(&value);
                    slot.is_some()
                }
                Slot::Names(slot) => {
                    *slot = untyped(&value).or_else(|| untyped_list(&value));
                    slot.is_some()
                }
                Slot::Map(slot) => {
                    *slot = pairs(&value).map(|pairs| untyped_map(field, &pairs, notes));
                    slot.is_some()
                }
            };
            if !is_taken {
                Lenient { notes }.kind(field, None);
            }
        }
        Self {
            id: get("node\0id").map(|id| id.to_vec()).unwrap_or_default(),
            metadata: wire::encode(&peer),
        }
    }

    /// The peer that this node is. Values that cannot be sent are left out and
    /// noted, never their neighbours.
    #[must_use]
    pub fn peer(&self, notes: &mut Vec<Note>) -> Peer<'_> {
        wire::decode(&self.metadata, usize::MAX, &mut Lenient { notes }).unwrap_or_else(|refused| {
            notes.push(Note::BadMetadata(refused));
            Peer::default()
        })
    }
}

impl LocalNode {
    /// Encodes what of `node` is shared, in at most `max_sent_bytes`.
    #[must_use]
    pub fn new(node: &Node, share: &Share, max_sent_bytes: usize, notes: &mut Vec<Note>) -> Self {
        let id = match header::id(&node.id, Limits::DEFAULT) {
            Ok(id) if id.is_empty() => None,
            Ok(id) => Some(id.to_string()),
            Err(refused) => {
                notes.push(Note::BadId(refused));
                None
            }
        };
        let mut peer = node.peer(notes);
        let flat = (!peer.is_empty()).then(|| flat::write(&peer));
        share.apply(&mut peer);
        Self {
            id,
            header: fit(peer, max_sent_bytes, notes),
            flat,
        }
    }
}

/// How many entries a receiver counts in `field`.
fn entries(peer: &Peer<'_>, field: Field) -> usize {
    match peer.value(field) {
        Some(Value::Map(map)) => map.len(),
        Some(Value::Text(names)) => names.count_names(),
        None => 0,
    }
}

/// The header's value for `peer`, without what makes it too long, or is more
/// than receivers accept.
fn fit(mut peer: Peer<'_>, max_sent_bytes: usize, notes: &mut Vec<Note>) -> Option<String> {
    // What identifies a workload least goes first.
    const DISPENSABLE: [Field; 4] = [
        Field::Labels,
        Field::PlatformMetadata,
        Field::AppContainers,
        Field::InstanceIps,
    ];
    if peer.is_empty() {
        return None;
    }
    let mut left_out = Vec::new();
    let mut header = header::encode(&peer);
    for field in DISPENSABLE {
        let has_too_many = entries(&peer, field) > Limits::DEFAULT.max_labels;
        if header.len() <= max_sent_bytes && !has_too_many {
            continue;
        }
        let before = peer.clone();
        let what = if field == Field::Labels {
            peer.retain_labels(|key| SERVICE_LABELS.contains(&key));
            "labels that do not name a service"
        } else {
            peer.clear(field);
            field.key()
        };
        if peer != before {
            left_out.push(what);
            header = header::encode(&peer);
        }
    }
    let fits = header.len() <= max_sent_bytes && !peer.is_empty();
    if !fits && !peer.is_empty() {
        left_out.push("all other metadata");
    }
    if !left_out.is_empty() {
        let max = max_sent_bytes;
        notes.push(Note::TooLong { left_out, max });
    }
    fits.then_some(header)
}

/// A value without its type: a text, a double or a bool. `None` for what is none
/// of these. (An attribute that is null, or holds null, Envoy does not give.)
fn untyped(value: &[u8]) -> Option<Text<'static>> {
    if let Ok(text) = Text::checked(value) {
        return Some(text.into_owned());
    }
    if let Ok(double) = <[u8; 8]>::try_from(value) {
        return text::of_number(f64::from_le_bytes(double));
    }
    match value {
        [0] => Some(text::of_bool(false)),
        [1] => Some(text::of_bool(true)),
        _ => None,
    }
}

/// The labels that name a service, one by one: older Envoys give none of the
/// labels together if one is null.
fn service_labels<B: Deref<Target = [u8]>>(
    mut get: impl FnMut(&str) -> Option<B>,
    notes: &mut Vec<Note>,
) -> Option<peer::Map<'static>> {
    let mut labels: peer::Map<'static> = SERVICE_LABELS
        .into_iter()
        .filter_map(|key| Some((key.into(), untyped(&get(key)?)?)))
        .collect();
    if labels.is_empty() {
        return None;
    }
    sort_last_wins(&mut labels);
    let key = "LABELS, but for those that name a service".to_owned();
    notes.push(Note::LeftOut { key });
    Some(labels)
}

/// A list of such values, which comes as pairs of each with nothing.
fn untyped_list(value: &[u8]) -> Option<Text<'static>> {
    pairs(value)?
        .into_iter()
        .map(|(name, nothing)| untyped(name).filter(|_| nothing.is_empty()))
        .reduce(|names, name| Some(names?.with_name(&name?)))?
}

fn untyped_map(
    field: Field,
    pairs: &[(&[u8], &[u8])],
    notes: &mut Vec<Note>,
) -> peer::Map<'static> {
    let mut map = peer::Map::new();
    for (key, value) in pairs {
        match (Text::checked(key), untyped(value)) {
            (Ok(key), Some(value)) => map.push((key.into_owned(), value)),
            _ => Lenient { notes }.kind(field, Some(key)),
        }
    }
    sort_last_wins(&mut map);
    map
}

/// The pairs of a map as proxy-wasm serialises it: their number, the lengths of
/// each key and value (all u32, little endian), then keys and values, each with
/// a NUL at its end. `None` if it is no such map.
fn pairs(map: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let (count, rest) = map.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (mut lengths, mut texts) = rest.split_at_checked(count.checked_mul(8)?)?;
    let mut next = || {
        let (length, rest) = lengths.split_first_chunk::<4>()?;
        lengths = rest;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (text, rest) = texts.split_at_checked(length)?;
        texts = rest.strip_prefix(b"\0")?;
        Some(text)
    };
    (0..count).map(|_| Some((next()?, next()?))).collect()
}

/// For the own node: what cannot be sent is left out and noted.
struct Lenient<'n> {
    notes: &'n mut Vec<Note>,
}

impl Unusable for Lenient<'_> {
    fn kind(&mut self, field: Field, key: Option<&[u8]>) {
        let key = match key {
            Some(key) => format!("{}.{}", field.key(), String::from_utf8_lossy(key)),
            None => field.key().to_owned(),
        };
        let note = Note::LeftOut { key };
        // A list notes each of its values.
        if self.notes.last() != Some(&note) {
            self.notes.push(note);
        }
    }

    fn text(
        &mut self,
        field: Field,
        key: Option<&[u8]>,
        _: &[u8],
        _: BadText,
    ) -> Result<(), Refused> {
        self.kind(field, key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs_of(map: &[(&[u8], &[u8])]) -> Vec<u8> {
        let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
        let mut bytes = number(map.len()).to_vec();
        for (key, value) in map {
            bytes.extend(number(key.len()));
            bytes.extend(number(value.len()));
        }
        for (key, value) in map {
            bytes.extend([key, b"\0".as_slice(), value, b"\0"].concat());
        }
        bytes
    }

    #[test]
    fn an_older_envoy_is_read_field_by_field() {
        let mut notes = Vec::new();
        let get = |path: &str| {
            Some(match path {
                "node\0id" => b"sidecar~1".to_vec(),
                "node\0metadata\0NAME" => b"pay-1".to_vec(),
                "node\0metadata\0MESH_ID" => 15090_f64.to_le_bytes().to_vec(),
                "node\0metadata\0CLUSTER_ID" => Vec::new(),
                "node\0metadata\0INSTANCE_IPS" => {
                    pairs_of(&[(b"10.0.0.1", b""), (b"fe80::1", b"")])
                }
                "node\0metadata\0OWNER" => b"\xff\xff".to_vec(),
                "node\0metadata\0LABELS" => pairs_of(&[
                    (b"v", &1_f64.to_le_bytes()),
                    (b"app", b"pay"),
                    (b"x", b"\n"),
                ]),
                "node\0metadata\0PLATFORM_METADATA" => b"\x01\0\0\0 no pairs".to_vec(),
                _ => return None,
            })
        };
        let node = Node::of_properties(get, &mut notes);
        assert_eq!(node.id, b"sidecar~1");
        let left_out = |key: &str| Note::LeftOut { key: key.into() };
        assert_eq!(
            notes,
            [
                left_out("LABELS.x"),
                left_out("OWNER"),
                left_out("PLATFORM_METADATA")
            ]
        );
        let expected = Peer {
            name: Some("pay-1".into()),
            cluster_id: Some("".into()),
            instance_ips: Some("10.0.0.1,fe80::1".into()),
            mesh_id: Some("15090".into()),
            labels: Some(vec![("app".into(), "pay".into()), ("v".into(), "1".into())]),
            ..Peer::default()
        };
        assert_eq!(node.peer(&mut Vec::new()), expected);
    }

    #[test]
    fn of_labels_that_an_older_envoy_cannot_give_the_naming_ones_are_read() {
        let get = |path: &str| match path {
            "node\0metadata\0LABELS\0app" => Some(b"pay".to_vec()),
            "node\0metadata\0LABELS\0version" => Some(b"v1".to_vec()),
            _ => None,
        };
        let mut notes = Vec::new();
        let node = Node::of_properties(get, &mut notes);
        let labels = node.peer(&mut Vec::new()).labels;
        assert_eq!(labels, Some(vec![("app".into(), "pay".into())]));
        assert_eq!(notes.len(), 1);
    }
}
