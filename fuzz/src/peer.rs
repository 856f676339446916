//! An arbitrary peer, encoded and decoded.

use metadata_exchange::peer::wire;

use super::source::Source;

/// Decoding and encoding again gives the same bytes.
pub fn run(data: &[u8]) {
    let peer = Source(data).peer();
    let message = wire::encode(&peer);
    let decoded = wire::decode(&message, usize::MAX).expect("own message");
    assert_eq!(decoded, peer);
    assert_eq!(wire::encode(&decoded), message);
}
