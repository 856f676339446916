//! The value of `x-envoy-peer-metadata`: base64 of a `google.protobuf.Struct`.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::wire::{self, Strict};
use super::{Peer, Refused, text};

/// The header that carries a peer.
pub const PEER_METADATA: &str = "x-envoy-peer-metadata";

/// The header that carries the peer's node id.
pub const PEER_METADATA_ID: &str = "x-envoy-peer-metadata-id";

/// Standard alphabet, padded on writing; on reading padding is optional, for
/// some senders leave it out. Bits that no byte uses must be zero.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a receiver accepts at most. Each limit bounds what one request can make
/// the filter do or keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the header's value, in bytes.
    pub max_received_bytes: usize,
    /// Entries of `LABELS`, and of each other map and list of names.
    pub max_labels: usize,
    /// Length of the id, in bytes.
    pub max_id_bytes: usize,
}

/// Refuses headers that are longer than they may be, before any other look at
/// them.
pub fn check_lengths(id: &[u8], value: &[u8], limits: Limits) -> Result<(), Refused> {
    let (len, max) = (value.len(), limits.max_received_bytes);
    if len > max {
        return Err(Refused::TooLong { len, max });
    }
    let (len, max) = (id.len(), limits.max_id_bytes);
    if len > max {
        return Err(Refused::IdTooLong { len, max });
    }
    Ok(())
}

impl Limits {
    /// What a receiver accepts unless it is configured otherwise.
    pub const DEFAULT: Self = Self {
        max_received_bytes: 16_384,
        max_labels: 256,
        max_id_bytes: 1024,
    };
}

/// The message in a header's `value`; the peer of [`peer`] borrows from it.
pub fn message(value: &[u8], limits: Limits) -> Result<Vec<u8>, Refused> {
    check_lengths(b"", value, limits)?;
    BASE64.decode(value).map_err(|_| Refused::Base64)
}

/// The peer in a `message`, if it says anything about the workload.
pub fn peer(message: &[u8], limits: Limits) -> Result<Peer<'_>, Refused> {
    let peer = wire::decode(message, limits.max_labels, &mut Strict)?;
    if peer.is_empty() {
        return Err(Refused::Empty);
    }
    Ok(peer)
}

/// The id in the header's `value`.
pub fn id(value: &[u8], limits: Limits) -> Result<&str, Refused> {
    check_lengths(value, b"", limits)?;
    Ok(text::check(value)?)
}

/// The header's value for `peer`.
#[must_use]
pub fn encode(peer: &Peer<'_>) -> String {
    BASE64.encode(wire::encode(peer))
}
