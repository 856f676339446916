//! Any bytes as the two headers: an id, and after a NUL, which no header can
//! hold, the metadata.

use metadata_exchange::peer::flat;
use metadata_exchange::peer::header::{self, Limits};

use super::source::{assert_fit, without_empty_maps};

/// Low, so that short inputs reach them.
pub const LIMITS: Limits = Limits {
    max_received_bytes: 2048,
    max_labels: 8,
    max_id_bytes: 32,
};

/// Where the metadata begins in `data`.
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

/// What is accepted is within the limits, fit for logs, and read the same again
/// when it is sent on or stored.
pub fn run(data: &[u8]) {
    let (id, value) = split(data);
    if let Ok(id) = header::id(id, LIMITS) {
        assert!(id.len() <= LIMITS.max_id_bytes);
        assert!(!id.contains(char::is_control));
    }
    let Ok(message) = header::message(value, LIMITS) else {
        return;
    };
    assert!(value.len() <= LIMITS.max_received_bytes);
    let Ok(peer) = header::peer(&message, LIMITS) else {
        return;
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
    let received = header::message(sent.as_bytes(), unlimited).expect("own base64");
    assert_eq!(header::peer(&received, unlimited).as_ref(), Ok(&peer));
    let stored = flat::write(&peer);
    let read = flat::read(&stored).expect("own FlatNode");
    assert_eq!(read, without_empty_maps(peer));
}
