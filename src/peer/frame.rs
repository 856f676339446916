//! Istio's frame, which carries a peer over TCP, ahead of all other bytes of its direction:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | the magic number `0x3D230467`, big endian |
//! | 4 | the length of the rest, big endian |
//! | length | `google.protobuf.Any` of a `google.protobuf.Struct` with the peer as a struct under [`PEER_METADATA`] and its id as a text under [`PEER_METADATA_ID`] |
//!
//! Source: `source/extensions/filters/network/metadata_exchange` in istio/proxy.

use prost::Message;

use super::header::{PEER_METADATA, PEER_METADATA_ID};

/// The magic number.
const MAGIC: [u8; 4] = 0x3D23_0467_u32.to_be_bytes();

/// The length of the magic number and of the length.
pub const HEADER_BYTES: usize = 8;

/// How the type of every `Any` begins.
const TYPES: &[u8] = b"type.googleapis.com/";

/// The type of the message in the frame.
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";

/// The bytes that tell a frame from anything else: up to the type's common beginning.
pub const TELLING_BYTES: usize = HEADER_BYTES + 2 + TYPES.len();

/// What the first bytes of a direction are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Not those of a frame.
    Other,
    /// The beginning of a frame, of which at least so many bytes are needed to continue.
    Partial(usize),
    /// A frame of so many bytes.
    Frame(usize),
    /// A frame that is longer than allowed, of so many bytes.
    TooLong(usize),
}

impl Start {
    /// What begins with `bytes`, of a direction in which `size` bytes have arrived; a frame may have `max` bytes behind
    /// its length.
    #[must_use]
    pub fn of(bytes: &[u8], size: usize, max: usize) -> Self {
        if !fits(bytes) {
            return Self::Other;
        }
        let Some(length) = bytes.get(MAGIC.len()..HEADER_BYTES) else {
            return Self::Partial(size.saturating_add(1));
        };
        let length = length.try_into().map_or(0, u32::from_be_bytes);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let whole = length.saturating_add(HEADER_BYTES);
        if whole < TELLING_BYTES {
            Self::Other
        } else if bytes.len() < TELLING_BYTES {
            Self::Partial(size.saturating_add(1))
        } else if length > max {
            Self::TooLong(length)
        } else if size < whole {
            Self::Partial(whole)
        } else {
            Self::Frame(whole)
        }
    }
}

/// Whether each of `bytes` is as in a frame, as far as frames are alike.
fn fits(bytes: &[u8]) -> bool {
    /// The tag of the type, a text.
    const TYPE: u8 = 0x0A;
    let is_type = |at: usize, byte: u8| match at {
        0 => byte == TYPE,
        1 => (TYPES.len()..0x80).contains(&usize::from(byte)),
        at => TYPES
            .get(at.saturating_sub(2))
            .is_none_or(|known| *known == byte),
    };
    bytes.iter().enumerate().all(|(at, byte)| match at {
        0..4 => MAGIC.get(at) == Some(byte),
        4..HEADER_BYTES => true,
        at => is_type(at.saturating_sub(HEADER_BYTES), *byte),
    })
}

/// What a frame carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The peer as a serialized `google.protobuf.Struct`; empty without one.
    pub metadata: Vec<u8>,
    /// The node id; empty without one.
    pub id: Vec<u8>,
}

/// `google.protobuf.Struct`, of which only the outer level is decoded.
#[derive(Clone, PartialEq, Message)]
struct Shallow {
    #[prost(message, repeated, tag = "1")]
    fields: Vec<Pair>,
}

/// `google.protobuf.Any`, and an entry of a `Struct`: they have the same shape.
#[derive(Clone, PartialEq, Message)]
struct Pair {
    /// The type, or the key.
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    /// The message, or the `google.protobuf.Value`.
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.protobuf.Value`
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(bytes = "vec", optional, tag = "3")]
    text: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    message: Option<Vec<u8>>,
}

impl Frame {
    /// Reads what stands behind the length. `None` if this is no `Any`, and thus no frame; another message than a
    /// `Struct` carries nothing.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let any = Pair::decode(payload).ok()?;
        let mut frame = Self::default();
        if any.name != STRUCT.as_bytes() {
            return Some(frame);
        }
        let message = Shallow::decode(any.value.as_slice()).unwrap_or_default();
        for Pair { name, value } in message.fields {
            let value = Value::decode(value.as_slice()).unwrap_or_default();
            if name == PEER_METADATA.as_bytes() {
                frame.metadata = value.message.unwrap_or_default();
            } else if name == PEER_METADATA_ID.as_bytes() {
                frame.id = value.text.unwrap_or_default();
            }
        }
        Some(frame)
    }

    /// The whole frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let pair = |name: &str, value| Pair {
            name: name.as_bytes().to_vec(),
            value,
        };
        let value = |text, message| Value { text, message }.encode_to_vec();
        // The order of the keys, as in a serialized map that is deterministic.
        let fields = vec![
            pair(PEER_METADATA, value(None, Some(self.metadata.clone()))),
            pair(PEER_METADATA_ID, value(Some(self.id.clone()), None)),
        ];
        let any = pair(STRUCT, Shallow { fields }.encode_to_vec());
        let payload = any.encode_to_vec();
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        [&MAGIC, &length.to_be_bytes(), payload.as_slice()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1024;

    fn frame() -> Vec<u8> {
        let frame = Frame {
            metadata: b"\n\x0b\n\x04NAME\x12\x03\x1a\x01a".to_vec(),
            id: b"sidecar~1".to_vec(),
        };
        frame.encode()
    }

    #[test]
    fn a_frame_is_read_back() {
        let bytes = frame();
        let whole = bytes.len();
        assert_eq!(Start::of(&bytes, whole, MAX), Start::Frame(whole));
        assert_eq!(Start::of(&bytes, whole + 9, MAX), Start::Frame(whole));
        let read = Frame::decode(&bytes[HEADER_BYTES..]).unwrap();
        assert_eq!(read.encode(), bytes);
        assert_eq!(read.id, b"sidecar~1");
    }

    #[test]
    fn a_frame_is_held_at_every_byte() {
        let bytes = frame();
        let mut needed = 0;
        for end in 0..bytes.len() {
            let next = match Start::of(&bytes[..end], end, MAX) {
                Start::Partial(next) => next,
                Start::Other | Start::Frame(_) | Start::TooLong(_) => 0,
            };
            assert!(end < next && next <= bytes.len() && needed <= next, "{end}");
            needed = next;
        }
        assert_eq!(needed, bytes.len());
    }

    #[test]
    fn other_bytes_are_not_held_from_the_first_that_differs() {
        let bytes = frame();
        for at in (0..TELLING_BYTES).filter(|at| !(4..8).contains(at)) {
            let mut other = bytes.clone();
            other[at] ^= 0x80;
            for end in at + 1..other.len() {
                assert_eq!(Start::of(&other[..end], end, MAX), Start::Other, "{at}");
            }
        }
    }

    #[test]
    fn the_length_is_bounded() {
        let mut bytes = frame();
        for (length, start) in [
            (0, Start::Other),
            (21, Start::Other),
            (22, Start::Frame(30)),
            (1024, Start::Partial(1032)),
            (1025, Start::TooLong(1025)),
            (u32::MAX, Start::TooLong(u32::MAX as usize)),
        ] {
            bytes[4..8].copy_from_slice(&length.to_be_bytes());
            assert_eq!(Start::of(&bytes, bytes.len(), MAX), start, "{length}");
        }
    }

    #[test]
    fn other_messages_carry_nothing() {
        let any = |type_url: &str, value: &[u8]| {
            let (type_url, value) = (type_url.to_owned(), value.to_vec());
            Frame::decode(&prost_types::Any { type_url, value }.encode_to_vec())
        };
        let nothing = Some(Frame::default());
        assert_eq!(
            any("type.googleapis.com/google.protobuf.Empty", b""),
            nothing
        );
        assert_eq!(any(STRUCT, b""), nothing);
        assert_eq!(any(STRUCT, b"\xff\xff"), nothing);
        assert_eq!(Frame::decode(b"\x0a\xff"), None);
        assert_eq!(Frame::decode(b"GET / HTTP/1.1"), None);
    }
}
