//! Any peer through the wire and back.

use metadata_exchange::peer::wire;

use super::source::Source;

/// What is encoded is decoded and encoded the same.
pub fn run(data: &[u8]) {
    let peer = Source(data).peer();
    let message = wire::encode(&peer);
    let decoded = wire::decode(&message, usize::MAX).expect("own message");
    assert_eq!(decoded, peer);
    assert_eq!(wire::encode(&decoded), message);
}
