//! `google.protobuf.Struct` to and from [`Peer`].
//!
//! The message is decoded first and checked afterwards: the length of the
//! header bounds the cost of decoding. Of repeated keys the last wins, and
//! unknown fields are skipped, as protobuf requires.

use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::{Field, Map, Peer, RejectReason, Slot, text};

/// How deep lists and structs may be nested below a value. Values of unknown
/// keys, which some senders forward, are nested at most 8 deep.
pub const MAX_DEPTH: usize = 8;

/// How many numbers of a message become text. Formatting one takes longer than
/// reading anything else of its size, and ordinary metadata has hardly any.
pub const MAX_NUMBERS: usize = 64;

/// A value that a peer cannot hold.
#[derive(Clone, Copy, Debug)]
pub struct Unusable<'a> {
    /// The field that contains it.
    pub field: Field,
    /// Its key in the field's map, if the field has one.
    pub key: Option<&'a str>,
    /// The text or key with the control character; `None` for a value of a kind
    /// that the field cannot hold, such as null.
    pub text: Option<&'a str>,
}

/// Decodes a peer from the network: values of an unexpected kind are ignored,
/// and a control character rejects the peer.
pub fn decode(message: &[u8], max_labels: usize) -> Result<Peer, RejectReason> {
    read_strict(parse(message)?, max_labels)
}

/// Decodes a `Struct`.
pub(super) fn parse(message: &[u8]) -> Result<Struct, RejectReason> {
    Struct::decode(message).map_err(|_| RejectReason::Protobuf)
}

/// See [`decode`].
pub(super) fn read_strict(message: Struct, max_labels: usize) -> Result<Peer, RejectReason> {
    read(message, max_labels, &mut |unusable| match unusable.text {
        Some(_) => Err(RejectReason::ControlCharacter),
        None => Ok(()),
    })
}

/// Reads the peer from the keys of [`Field`] in `message`. A list of names is
/// accepted in place of a comma-separated text; numbers (see
/// [`text::of_number`]) and bools become text. `on_unusable` decides whether a
/// value that the peer cannot hold is ignored or rejects the whole peer.
pub fn read(
    message: Struct,
    max_labels: usize,
    on_unusable: &mut dyn FnMut(Unusable<'_>) -> Result<(), RejectReason>,
) -> Result<Peer, RejectReason> {
    let mut reader = Reader {
        max_labels,
        numbers: 0,
        on_unusable,
    };
    let mut peer = Peer::default();
    for (key, value) in message.fields {
        check_depth(&value, MAX_DEPTH)?;
        let Some(field) = Field::of_key(&key) else {
            continue;
        };
        match peer.slot(field) {
            Slot::Text(slot) => *slot = reader.text(field, None, value)?,
            Slot::Names(slot) => *slot = reader.names(field, value)?,
            Slot::Map(slot) => *slot = reader.map(field, value)?,
        }
    }
    Ok(peer)
}

struct Reader<'u> {
    max_labels: usize,
    /// How many numbers became text.
    numbers: usize,
    on_unusable: &'u mut dyn FnMut(Unusable<'_>) -> Result<(), RejectReason>,
}

impl Reader<'_> {
    /// A text, number or bool as text; `None` if it is ignored.
    fn text(
        &mut self,
        field: Field,
        key: Option<&str>,
        value: Value,
    ) -> Result<Option<String>, RejectReason> {
        let text = match value.kind {
            Some(Kind::StringValue(text)) if text::has_control_character(&text) => {
                let text = Some(text.as_str());
                (self.on_unusable)(Unusable { field, key, text })?;
                return Ok(None);
            }
            Some(Kind::StringValue(text)) => Some(text),
            Some(Kind::NumberValue(number)) if self.numbers < MAX_NUMBERS => {
                self.numbers = self.numbers.saturating_add(1);
                text::of_number(number)
            }
            Some(Kind::BoolValue(bool)) => Some(bool.to_string()),
            _ => None,
        };
        if text.is_none() {
            let text = None;
            (self.on_unusable)(Unusable { field, key, text })?;
        }
        Ok(text)
    }

    /// A comma-separated text, or a list of texts joined into one.
    fn names(&mut self, field: Field, value: Value) -> Result<Option<String>, RejectReason> {
        let names = match value.kind {
            Some(Kind::ListValue(list)) => self.joined(field, list)?,
            _ => self.text(field, None, value)?,
        };
        // Each name becomes a list entry, in either form.
        if let Some(names) = &names {
            self.check_count(names.split(',').count())?;
        }
        Ok(names)
    }

    fn joined(&mut self, field: Field, list: ListValue) -> Result<Option<String>, RejectReason> {
        // Checked first, because ignored entries cost as much.
        self.check_count(list.values.len())?;
        let mut names = Vec::new();
        for value in list.values {
            names.extend(self.text(field, None, value)?);
        }
        Ok((!names.is_empty()).then(|| names.join(",")))
    }

    fn map(&mut self, field: Field, value: Value) -> Result<Option<Map>, RejectReason> {
        let Some(Kind::StructValue(message)) = value.kind else {
            (self.on_unusable)(Unusable {
                field,
                key: None,
                text: None,
            })?;
            return Ok(None);
        };
        self.check_count(message.fields.len())?;
        let mut map = Map::with_capacity(message.fields.len());
        for (key, value) in message.fields {
            if text::has_control_character(&key) {
                let key = Some(key.as_str());
                (self.on_unusable)(Unusable {
                    field,
                    key,
                    text: key,
                })?;
            } else if let Some(value) = self.text(field, Some(&key), value)? {
                map.push((key, value));
            }
        }
        Ok(Some(map))
    }

    fn check_count(&self, count: usize) -> Result<(), RejectReason> {
        let max = self.max_labels;
        if count > max {
            return Err(RejectReason::TooManyLabels { max });
        }
        Ok(())
    }
}

/// Rejects lists and structs that are nested more than `allowed` levels deep.
fn check_depth(value: &Value, allowed: usize) -> Result<(), RejectReason> {
    let check = |inner: &Value| {
        let allowed = allowed.checked_sub(1).ok_or(RejectReason::TooDeep)?;
        check_depth(inner, allowed)
    };
    match &value.kind {
        Some(Kind::StructValue(message)) => message.fields.values().try_for_each(check),
        Some(Kind::ListValue(list)) => list.values.iter().try_for_each(check),
        _ => Ok(()),
    }
}

/// `peer` as a serialized `google.protobuf.Struct`, with keys in byte order, so that equal peers have equal bytes.
#[must_use]
pub fn encode(peer: &Peer) -> Vec<u8> {
    let mut message = Struct::default();
    for field in Field::ALL {
        let kind = match peer.value(field) {
            None => continue,
            Some(super::Value::Text(text)) => Kind::StringValue(text.to_owned()),
            Some(super::Value::Map(map)) => {
                let mut inner = Struct::default();
                for (key, value) in map {
                    put(&mut inner, key, Kind::StringValue(value.clone()));
                }
                Kind::StructValue(inner)
            }
        };
        put(&mut message, field.key(), kind);
    }
    message.encode_to_vec()
}

fn put(message: &mut Struct, key: &str, kind: Kind) {
    let value = Value { kind: Some(kind) };
    message.fields.insert(key.to_owned(), value);
}
