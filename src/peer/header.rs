//! The two headers of a peer: `x-envoy-peer-metadata`, base64 of a
//! `google.protobuf.Struct`, and `x-envoy-peer-metadata-id`.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::csm::CsmMetadata;
use super::{Peer, RejectReason, text, wire};

/// The header that carries a peer.
pub const PEER_METADATA: &str = "x-envoy-peer-metadata";

/// The header that carries the peer's node id.
pub const PEER_METADATA_ID: &str = "x-envoy-peer-metadata-id";

/// Writes padding, like the C++ plugin, and reads with or without it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A receiver's limits. Each bounds the work or the memory that one request can
/// cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the header's value, in bytes.
    pub max_received_bytes: usize,
    /// Entries of `LABELS`, and of each other map and list of names.
    pub max_labels: usize,
    /// Length of the id, in bytes.
    pub max_id_bytes: usize,
}

impl Limits {
    /// The default limits of a receiver.
    pub const DEFAULT: Self = Self {
        max_received_bytes: 16_384,
        max_labels: 256,
        max_id_bytes: 1024,
    };

    /// No limits, for tools that show what the filter would reject.
    pub const NONE: Self = Self {
        max_received_bytes: usize::MAX,
        max_labels: usize::MAX,
        max_id_bytes: usize::MAX,
    };
}

/// Rejects headers that are too long, before anything else reads them.
pub fn check_lengths(id: &[u8], value: &[u8], limits: Limits) -> Result<(), RejectReason> {
    let (len, max) = (value.len(), limits.max_received_bytes);
    if len > max {
        return Err(RejectReason::TooLong { len, max });
    }
    let (len, max) = (id.len(), limits.max_id_bytes);
    if len > max {
        return Err(RejectReason::IdTooLong { len, max });
    }
    Ok(())
}

/// The peer in the value of [`PEER_METADATA`], if it describes a workload.
pub fn decode(value: &[u8], limits: Limits) -> Result<Peer, RejectReason> {
    check_lengths(b"", value, limits)?;
    decode_message(&to_message(value)?, limits)
}

/// The serialized `google.protobuf.Struct` in the value of [`PEER_METADATA`].
pub fn to_message(value: &[u8]) -> Result<Vec<u8>, RejectReason> {
    BASE64.decode(value).map_err(|_| RejectReason::Base64)
}

/// The peer in a serialized `google.protobuf.Struct`, if it describes a workload.
pub fn decode_message(message: &[u8], limits: Limits) -> Result<Peer, RejectReason> {
    let message = wire::parse(message)?;
    let csm = CsmMetadata::new(&message);
    let mut peer = wire::read_strict(message, limits.max_labels)?;
    if !peer.names_workload() {
        csm.complete(&mut peer)?;
    }
    if peer.is_empty() {
        return Err(RejectReason::Empty);
    }
    Ok(peer)
}

/// The id in the value of [`PEER_METADATA_ID`].
pub fn id(value: &[u8], limits: Limits) -> Result<&str, RejectReason> {
    check_lengths(value, b"", limits)?;
    text::checked(value)
}

/// The value of [`PEER_METADATA`] for `peer`, padded.
#[must_use]
pub fn encode(peer: &Peer) -> String {
    BASE64.encode(wire::encode(peer))
}
