//! The value of `x-envoy-peer-metadata`: base64 of a `google.protobuf.Struct`.

use alloc::string::String;
use alloc::vec::Vec;

use super::wire::{self, Strict};
use super::{Peer, Refused, Text, base64, csm};

/// The header that carries a peer.
pub const PEER_METADATA: &str = "x-envoy-peer-metadata";

/// The header that carries the peer's node id.
pub const PEER_METADATA_ID: &str = "x-envoy-peer-metadata-id";

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
    let mut bytes = Vec::new();
    message_in(value, limits, &mut bytes)?;
    Ok(bytes)
}

/// As [`message`], in `bytes`, whose memory is used again.
pub fn message_in<'b>(
    value: &[u8],
    limits: Limits,
    bytes: &'b mut Vec<u8>,
) -> Result<&'b [u8], Refused> {
    check_lengths(b"", value, limits)?;
    base64::decode(value, bytes).ok_or(Refused::Base64)
}

/// The peer in a `message`, if it says anything about the workload.
pub fn peer(message: &[u8], limits: Limits) -> Result<Peer<'_>, Refused> {
    let mut peer = wire::decode(message, limits.max_labels, &mut Strict)?;
    if !peer.names_workload() {
        csm::complete(&mut peer, message)?;
    }
    if peer.is_empty() {
        return Err(Refused::Empty);
    }
    Ok(peer)
}

/// The id in the header's `value`.
pub fn id(value: &[u8], limits: Limits) -> Result<Text<'_>, Refused> {
    check_lengths(value, b"", limits)?;
    Ok(Text::checked(value)?)
}

/// The header's value for `peer`, padded.
#[must_use]
pub fn encode(peer: &Peer<'_>) -> String {
    base64::encode(&wire::encode(peer))
}
