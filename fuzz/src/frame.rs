//! Arbitrary bytes as the beginning of a TCP connection, compared with protobuf's own `Any` and `Struct`.

use metadata_exchange::peer::frame::{Frame, HEADER_BYTES, Start, TELLING_BYTES};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, Struct};

const MAX: usize = 16_384;

/// A frame is held until it is whole, and anything else not beyond the first byte that tells; a frame has the content
/// of its message.
pub fn run(data: &[u8]) {
    let mut is_other = false;
    for size in 0..=data.len() {
        let seen = &data[..size.min(TELLING_BYTES)];
        match Start::of(seen, size, MAX) {
            Start::Other => is_other = true,
            Start::Partial(needed) => {
                assert!(!is_other && needed > size, "{size} {needed}");
                assert!(needed <= MAX + HEADER_BYTES);
            }
            Start::Frame(whole) => {
                assert!(!is_other && whole <= size, "{size} {whole}");
                return compare(&data[HEADER_BYTES..whole]);
            }
            Start::TooLong(length) => {
                assert!(!is_other && length > MAX);
                return;
            }
        }
    }
}

fn compare(payload: &[u8]) {
    let read = Frame::decode(payload);
    let Ok(any) = Any::decode(payload) else {
        return;
    };
    let read = read.expect("an Any");
    if any.type_url != "type.googleapis.com/google.protobuf.Struct" {
        assert_eq!(read, Frame::default());
        return;
    }
    let Ok(message) = Struct::decode(any.value.as_slice()) else {
        return;
    };
    // Of repeated fields, only the last is read.
    if any.encode_to_vec() != payload || message.encode_to_vec() != any.value {
        return;
    }
    let kind = |key: &str| message.fields.get(key).and_then(|value| value.kind.clone());
    if let Some(Kind::StructValue(metadata)) = kind("x-envoy-peer-metadata") {
        assert_eq!(Struct::decode(read.metadata.as_slice()), Ok(metadata));
    } else {
        assert!(read.metadata.is_empty());
    }
    if let Some(Kind::StringValue(id)) = kind("x-envoy-peer-metadata-id") {
        assert_eq!(read.id, id.into_bytes());
    } else {
        assert!(read.id.is_empty());
    }
}
