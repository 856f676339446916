//! Arbitrary bytes as the two headers: an id, and after a NUL, which no header
//! can contain, the metadata.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use metadata_exchange::peer::header::{self, Limits};
use metadata_exchange::peer::{RejectReason, flat};

use super::source::{assert_fit, without_empty_maps};

/// Low limits, so that short inputs reach them.
pub const LIMITS: Limits = Limits {
    max_received_bytes: 2048,
    max_labels: 8,
    max_id_bytes: 32,
};

/// The index at which the metadata begins in `data`.
#[must_use]
pub fn value_offset(data: &[u8]) -> usize {
    let nul = data.iter().position(|&byte| byte == 0);
    nul.map_or(0, |nul| nul + 1)
}

/// The values of the two headers: the id, and the metadata.
#[must_use]
pub fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let (id, value) = data.split_at(value_offset(data));
    (id.strip_suffix(b"\0").unwrap_or(id), value)
}

/// Standard base64, padded or not, decoded independently of the filter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Everything is refused for the right reason, and accepted if there is none.
/// An accepted peer is within the limits, fit for logs, and reads the same
/// after being sent or stored.
pub fn run(data: &[u8]) {
    let (id, value) = split(data);
    let is_too_long = id.len() > LIMITS.max_id_bytes;
    let text = str::from_utf8(id);
    match header::id(id, LIMITS) {
        Ok(id) => {
            assert!(!is_too_long);
            assert!(!id.contains(char::is_control));
            assert_eq!(text, Ok(id));
        }
        Err(RejectReason::IdTooLong { .. }) => assert!(is_too_long),
        Err(RejectReason::Utf8) => assert!(text.is_err()),
        Err(RejectReason::ControlCharacter) => {
            assert!(text.is_ok_and(|text| text.contains(char::is_control)));
        }
        Err(reason) => panic!("not a reason to refuse an id: {reason}"),
    }
    let is_too_long = value.len() > LIMITS.max_received_bytes;
    let decoded = BASE64.decode(value);
    let peer = match header::decode(value, LIMITS) {
        Ok(peer) => {
            assert!(!is_too_long && decoded.is_ok());
            peer
        }
        Err(RejectReason::TooLong { .. }) => return assert!(is_too_long),
        Err(RejectReason::Base64) => return assert!(!is_too_long && decoded.is_err()),
        Err(_) => return assert!(!is_too_long && decoded.is_ok()),
    };
    assert!(!peer.is_empty());
    assert_fit(&peer);
    for map in [&peer.labels, &peer.platform_metadata] {
        assert!(
            map.as_ref()
                .is_none_or(|map| map.len() <= LIMITS.max_labels)
        );
    }
    let sent = header::encode(&peer);
    let unlimited = Limits {
        max_received_bytes: usize::MAX,
        ..LIMITS
    };
    let received = header::decode(sent.as_bytes(), unlimited);
    assert_eq!(received.as_ref(), Ok(&peer));
    let stored = flat::write(&peer);
    let read = flat::read(&stored).expect("own FlatNode");
    assert_eq!(read, without_empty_maps(peer));
}
