//! `google.protobuf.Struct` bytes to and from [`Peer`].
//!
//! Written by hand, for what it reads is untrusted and on the way of requests:
//! it borrows instead of building a tree, visits each tag once, steps over
//! texts that it does not need, and cannot recurse beyond [`MAX_DEPTH`]. As in
//! protobuf, unknown fields are skipped, and of repeated keys the last wins (in
//! a map, the last that is usable). Groups, which a `Struct` never holds, are
//! refused.

use super::text::{self, BadText};
use super::{Field, Map, Peer, Refused, Slot, Text, Value};
use crate::bytes::{equal, order};
use alloc::vec::Vec;
use core::iter;

/// How deep lists and structs may lie within each other below a value. The
/// nested values of unknown keys, which some senders forward, stay within 8.
pub const MAX_DEPTH: usize = 8;

/// How many numbers of a message become texts; more are left out, for to write
/// one takes longer than to read anything else of its size. Honest metadata
/// hardly has any.
pub const MAX_NUMBERS: usize = 64;

/// Room for the labels of most peers.
const USUAL_LABELS: usize = 8;

/// What a reader of node metadata does about a value that it cannot use.
pub trait Unusable {
    /// A value of a kind that the field cannot hold, as null or a struct where
    /// a text is expected. It is left out; its neighbours stay.
    fn kind(&mut self, field: Field, key: Option<&[u8]>);

    /// A key or value, `text` of the message, that is not fit for logs: refuse the
    /// whole, or leave this one out.
    fn text(
        &mut self,
        field: Field,
        key: Option<&[u8]>,
        text: &[u8],
        why: BadText,
    ) -> Result<(), Refused>;
}

/// For metadata from the network: odd kinds are ignored, bad texts refused.
#[derive(Debug)]
pub struct Strict;

impl Unusable for Strict {
    fn kind(&mut self, _: Field, _: Option<&[u8]>) {}

    fn text(&mut self, _: Field, _: Option<&[u8]>, _: &[u8], why: BadText) -> Result<(), Refused> {
        Err(why.into())
    }
}

impl From<BadText> for Refused {
    fn from(bad: BadText) -> Self {
        match bad {
            BadText::Utf8 => Self::Utf8,
            BadText::ControlCharacter => Self::ControlCharacter,
        }
    }
}

/// Reads the peer in `message`, a serialised `google.protobuf.Struct` that
/// holds the keys of [`Field`]. A list of names is accepted where a comma
/// separated text is usual; numbers (see [`text::of_number`]) and bools become
/// texts.
pub fn decode<'a>(
    message: &'a [u8],
    max_labels: usize,
    unusable: &mut dyn Unusable,
) -> Result<Peer<'a>, Refused> {
    let mut decoder = Decoder {
        max_labels,
        numbers: 0,
        unusable,
    };
    decoder.peer(message).map_err(|error| match error {
        Error::Malformed { address } => Refused::Protobuf {
            // Every slice that is read lies within the message.
            offset: address.saturating_sub(message.as_ptr().addr()),
        },
        Error::Refused(refused) => refused,
    })
}

enum Error {
    /// Not protobuf, at this address within the message.
    Malformed {
        address: usize,
    },
    Refused(Refused),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

struct Decoder<'u> {
    max_labels: usize,
    /// How many became texts.
    numbers: usize,
    /// Not generic, for it is seldom asked, and two decoders would be twice the code.
    unusable: &'u mut dyn Unusable,
}

impl Decoder<'_> {
    fn peer<'a>(&mut self, message: &'a [u8]) -> Result<Peer<'a>, Error> {
        let mut peer = Peer::default();
        let mut entries = Fields::of(message);
        while let Some(entry) = entries.next_bytes(1)? {
            let (key, value) = entry_of(entry)?;
            let value = Kind::of(value)?;
            let Some(field) = Field::of_key(key) else {
                value.check_depth(MAX_DEPTH)?;
                continue;
            };
            match peer.slot(field) {
                Slot::Text(slot) => *slot = self.scalar(field, None, value)?,
                Slot::Names(slot) => *slot = self.names(field, value)?,
                Slot::Map(slot) => *slot = self.map(field, value)?,
            }
        }
        for map in [&mut peer.labels, &mut peer.platform_metadata] {
            map.iter_mut().for_each(sort_last_wins);
        }
        Ok(peer)
    }

    /// A text, number or bool as text; `None` for what is neither.
    #[inline(always)]
    fn scalar<'a>(
        &mut self,
        field: Field,
        key: Option<&[u8]>,
        value: Kind<'a>,
    ) -> Result<Option<Text<'a>>, Error> {
        let text = match value {
            Kind::Text(bytes) => match Text::checked(bytes) {
                Ok(text) => Some(text),
                Err(why) => {
                    self.unusable.text(field, key, bytes, why)?;
                    return Ok(None);
                }
            },
            Kind::Number(number) if self.numbers < MAX_NUMBERS => {
                self.numbers = self.numbers.saturating_add(1);
                text::of_number(number)
            }
            Kind::Bool(bool) => Some(text::of_bool(bool)),
            Kind::Number(_) | Kind::Null => None,
            Kind::Struct(_) | Kind::List(_) => {
                value.check_depth(MAX_DEPTH)?;
                None
            }
        };
        if text.is_none() {
            self.unusable.kind(field, key);
        }
        Ok(text)
    }

    /// A comma separated text, or a list of texts joined to one.
    fn names<'a>(&mut self, field: Field, value: Kind<'a>) -> Result<Option<Text<'a>>, Error> {
        let names = match value {
            Kind::List(list) => self.joined(field, list)?,
            value => self.scalar(field, None, value)?,
        };
        // Each name becomes an entry of a list, whichever way it came.
        if let Some(names) = &names {
            self.check_count(names.count_names())?;
        }
        Ok(names)
    }

    fn joined<'a>(&mut self, field: Field, list: &'a [u8]) -> Result<Option<Text<'a>>, Error> {
        let mut joined: Option<Text<'a>> = None;
        let mut count = 0_usize;
        let mut values = Fields::of(list);
        while let Some(value) = values.next_bytes(1)? {
            // Counted before it is used: what is left out costs as much.
            count = count.saturating_add(1);
            self.check_count(count)?;
            if let Some(name) = self.scalar(field, None, Kind::of(value)?)? {
                joined = Some(match joined {
                    Some(joined) => joined.with_name(&name),
                    None => name,
                });
            }
        }
        Ok(joined)
    }

    /// Not yet sorted, for another one may follow, which goes before it.
    fn map<'a>(&mut self, field: Field, value: Kind<'a>) -> Result<Option<Map<'a>>, Error> {
        let Kind::Struct(message) = value else {
            value.check_depth(MAX_DEPTH)?;
            self.unusable.kind(field, None);
            return Ok(None);
        };
        let mut map = Map::with_capacity(USUAL_LABELS);
        let mut count = 0_usize;
        let mut entries = Fields::of(message);
        while let Some(entry) = entries.next_bytes(1)? {
            count = count.saturating_add(1);
            self.check_count(count)?;
            let (key, value) = entry_of(entry)?;
            let name = match Text::checked(key) {
                Ok(name) => name,
                Err(why) => {
                    self.unusable.text(field, Some(key), key, why)?;
                    continue;
                }
            };
            if let Some(value) = self.scalar(field, Some(key), Kind::of(value)?)? {
                map.push((name, value));
            }
        }
        Ok(Some(map))
    }

    fn check_count(&self, count: usize) -> Result<(), Error> {
        let max = self.max_labels;
        if count > max {
            return Err(Refused::TooManyLabels { max }.into());
        }
        Ok(())
    }
}

/// Sorts by key; of equal keys the last stays, as in protobuf.
pub(crate) fn sort_last_wins(map: &mut Map<'_>) {
    // Labels mostly come in order, and mostly differ in their first byte.
    let is_less = |a: &Text<'_>, b: &Text<'_>| match (a.as_bytes(), b.as_bytes()) {
        ([a, ..], [b, ..]) if a != b => a < b,
        (a, b) => order(a, b).is_lt(),
    };
    if map.is_sorted_by(|(a, _), (b, _)| is_less(a, b)) {
        return;
    }
    map.reverse();
    map.sort_by(|(a, _), (b, _)| order(a.as_bytes(), b.as_bytes()));
    map.dedup_by(|(later, _), (kept, _)| equal(later.as_bytes(), kept.as_bytes()));
}

/// A `google.protobuf.Value`, not yet checked to be usable.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Null,
    Number(f64),
    Text(&'a [u8]),
    Bool(bool),
    /// A serialised `Struct`.
    Struct(&'a [u8]),
    /// A serialised `ListValue`.
    List(&'a [u8]),
}

impl<'a> Kind<'a> {
    /// The last kind that is set, as protobuf reads a oneof; null if none is.
    #[inline(always)]
    fn of(value: &'a [u8]) -> Result<Self, Error> {
        if value.is_empty() {
            return Ok(Self::Null);
        }
        match (Fields::of(value).short(3), Fields::of(value).short(5)) {
            (Some((text, [])), _) => Ok(Self::Text(text)),
            (_, Some((message, []))) => Ok(Self::Struct(message)),
            _ => Self::of_any(value),
        }
    }

    #[cold]
    fn of_any(value: &'a [u8]) -> Result<Self, Error> {
        let mut kind = Self::Null;
        let mut fields = Fields::of(value);
        while let Some((number, wire)) = fields.next()? {
            kind = match (number, wire) {
                (1, Wire::Varint(_)) => Self::Null,
                (2, Wire::Fixed64(bits)) => Self::Number(f64::from_bits(bits)),
                (3, Wire::Bytes(bytes)) => Self::Text(bytes),
                (4, Wire::Varint(bool)) => Self::Bool(bool != 0),
                (5, Wire::Bytes(bytes)) => Self::Struct(bytes),
                (6, Wire::Bytes(bytes)) => Self::List(bytes),
                _ => kind,
            };
        }
        Ok(kind)
    }

    /// Refuses lists and structs that hold others to more than `allowed` levels,
    /// and what is malformed in them.
    fn check_depth(self, allowed: usize) -> Result<(), Error> {
        let (message, is_struct) = match self {
            Self::Struct(message) => (message, true),
            Self::List(message) => (message, false),
            _ => return Ok(()),
        };
        let Some(allowed) = allowed.checked_sub(1) else {
            return Err(Refused::TooDeep.into());
        };
        let mut fields = Fields::of(message);
        while let Some(bytes) = fields.next_bytes(1)? {
            let value = if is_struct { entry_of(bytes)?.1 } else { bytes };
            Self::of(value)?.check_depth(allowed)?;
        }
        Ok(())
    }
}

/// Key and value of an entry of `Struct.fields`, as protobuf maps are written.
#[inline(always)]
fn entry_of(entry: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    // As nearly every sender writes it: key, value, and nothing more.
    if let Some((key, rest)) = Fields::of(entry).short(1)
        && let Some((value, [])) = Fields::of(rest).short(2)
    {
        return Ok((key, value));
    }
    if entry.is_empty() {
        return Ok((&[], &[]));
    }
    entry_of_any(entry)
}

#[cold]
fn entry_of_any(entry: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    let mut fields = Fields::of(entry);
    while let Some((number, wire)) = fields.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = bytes,
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((key, value))
}

/// What a protobuf field holds, by its wire type.
#[derive(Clone, Copy)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// A value of a `Struct`, as far as others than [`decode`] read it.
pub(crate) enum Simple<'a> {
    Bool(bool),
    Text(&'a [u8]),
    /// A serialised `Struct`.
    Struct(&'a [u8]),
    /// A serialised `ListValue`.
    List(&'a [u8]),
    Other,
}

impl<'a> Simple<'a> {
    fn of(value: &'a [u8]) -> Self {
        match Kind::of(value) {
            Ok(Kind::Bool(bool)) => Self::Bool(bool),
            Ok(Kind::Text(text)) => Self::Text(text),
            Ok(Kind::Struct(message)) => Self::Struct(message),
            Ok(Kind::List(message)) => Self::List(message),
            Ok(Kind::Null | Kind::Number(_)) | Err(_) => Self::Other,
        }
    }
}

/// The structs under `name` in `metadata`, a serialised
/// `envoy.config.core.v3.Metadata`; what is malformed ends them.
pub(crate) fn filter_metadata<'a>(
    metadata: &'a [u8],
    name: &[u8],
) -> impl Iterator<Item = &'a [u8]> {
    let mut entries = Fields::of(metadata);
    iter::from_fn(move || entries.next_bytes(1).ok().flatten())
        .filter_map(|entry| entry_of(entry).ok())
        .filter_map(move |(key, message)| (key == name).then_some(message))
}

/// Keys and values of `message`, a serialised `Struct`; what is malformed, or no
/// entry, ends them.
pub(crate) fn entries_of_struct(message: &[u8]) -> impl Iterator<Item = (&[u8], Simple<'_>)> {
    let mut fields = Fields::of(message);
    let next = move || match fields.next() {
        Ok(Some((1, Wire::Bytes(entry)))) => Some(entry),
        _ => None,
    };
    iter::from_fn(next)
        .filter_map(|entry| entry_of(entry).ok())
        .map(|(key, value)| (key, Simple::of(value)))
}

/// The values of `message`, a serialised `ListValue`; what is malformed ends
/// them.
pub(crate) fn values_of_list(message: &[u8]) -> impl Iterator<Item = Simple<'_>> {
    let mut values = Fields::of(message);
    iter::from_fn(move || values.next_bytes(1).ok().flatten()).map(Simple::of)
}

/// The fields of a serialised message, in their order.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// Not protobuf, from this address on.
pub(crate) struct Malformed {
    address: usize,
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed {
            address: malformed.address,
        }
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field's number and value.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let malformed = Malformed {
            address: self.rest.as_ptr().addr(),
        };
        self.field().map(Some).ok_or(malformed)
    }

    /// The next length-delimited field and what follows it, if it is of this
    /// number, its tag takes one byte, and its length one or two: the short way
    /// for nearly all.
    #[inline(always)]
    fn short(&self, wanted: u8) -> Option<(&'a [u8], &'a [u8])> {
        let tag = wanted << 3 | 2;
        match self.rest {
            [first, len @ 0..0x80, rest @ ..] if *first == tag => {
                rest.split_at_checked(usize::from(*len))
            }
            [first, low, high @ 0..0x80, rest @ ..] if *first == tag => {
                let len = usize::from(*high) << 7 | usize::from(low & 0x7F);
                rest.split_at_checked(len)
            }
            _ => None,
        }
    }

    /// The next length-delimited field of this number; steps over all others.
    #[inline(always)]
    pub(crate) fn next_bytes(&mut self, wanted: u8) -> Result<Option<&'a [u8]>, Malformed> {
        if let Some((bytes, rest)) = self.short(wanted) {
            self.rest = rest;
            return Ok(Some(bytes));
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (bytes, rest) = Self::of(self.rest).find_bytes(wanted)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The next such field written in any way, and what follows it.
    #[cold]
    fn find_bytes(mut self, wanted: u8) -> Result<(Option<&'a [u8]>, &'a [u8]), Malformed> {
        while let Some((number, wire)) = self.next()? {
            if let Wire::Bytes(bytes) = wire
                && number == u64::from(wanted)
            {
                return Ok((Some(bytes), self.rest));
            }
        }
        Ok((None, self.rest))
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || tag > u64::from(u32::MAX) {
            return None;
        }
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return None,
        };
        Some((number, wire))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                // The tenth byte has room for one bit.
                return (shift < 63 || byte <= 1).then_some(value);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*bytes)
    }
}

/// Serialises `peer` as a `google.protobuf.Struct`: keys in byte order at every
/// level, so that equal peers have equal bytes.
#[must_use]
pub fn encode(peer: &Peer<'_>) -> Vec<u8> {
    let mut message = Vec::new();
    for field in Field::ALL {
        let value = match peer.value(field) {
            Some(Value::Text(text)) => value_of_text(text.as_bytes()),
            Some(Value::Map(map)) => value_of_map(map),
            None => continue,
        };
        put_entry(&mut message, field.key().as_bytes(), &value);
    }
    message
}

/// `Value { string_value }`
fn value_of_text(text: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    put_bytes(&mut value, 3, text);
    value
}

/// `Value { struct_value }`
fn value_of_map(map: &[(Text<'_>, Text<'_>)]) -> Vec<u8> {
    let mut message = Vec::new();
    for (key, text) in map {
        put_entry(
            &mut message,
            key.as_bytes(),
            &value_of_text(text.as_bytes()),
        );
    }
    let mut value = Vec::new();
    put_bytes(&mut value, 5, &message);
    value
}

/// An entry of `Struct.fields`.
fn put_entry(message: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, key);
    put_bytes(&mut entry, 2, value);
    put_bytes(message, 1, &entry);
}

/// A length-delimited field.
pub(crate) fn put_bytes(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    put_varint(message, u64::from(number << 3 | 2));
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

/// A varint, as lengths and tags are written.
fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        message.push(low | 0x80);
        value >>= 7;
    }
    let [last, ..] = value.to_le_bytes();
    message.push(last);
}
