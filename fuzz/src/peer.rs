//! Any peer through the wire and back.

use metadata_exchange::peer::wire::{self, Strict};
use prost::Message as _;
use prost_types::Struct;

use super::source::Source;

/// What is encoded is decoded and encoded the same, and is protobuf for others.
pub fn run(data: &[u8]) {
    let peer = Source(data).peer();
    let message = wire::encode(&peer);
    let decoded = wire::decode(&message, usize::MAX, &mut Strict).expect("own message");
    assert_eq!(decoded, peer);
    assert_eq!(wire::encode(&decoded), message);
    Struct::decode(message.as_slice()).expect("protobuf");
}
