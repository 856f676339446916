//! The two headers of the exchange in a header map: read, set and removed.

use super::Exchange;
use crate::host::{HeaderMap, Host};
use crate::peer::header::{PEER_METADATA, PEER_METADATA_ID};

/// The two headers as found in a header map.
pub(super) struct PeerHeaders {
    pub(super) metadata: Header,
    pub(super) id: Header,
}

/// A header in a header map.
pub(super) enum Header {
    Absent,
    Present(Vec<u8>),
    /// It cannot be read, but may exist: it is not believed, and removed.
    Unreadable,
}

impl Header {
    /// The value; an empty one counts as absent, but is removed.
    pub(super) fn value(&self) -> &[u8] {
        match self {
            Self::Present(value) => value,
            Self::Absent | Self::Unreadable => &[],
        }
    }

    /// The bytes of the value; `None` if the header is absent, or cannot be read.
    pub(super) fn size(&self) -> Option<usize> {
        match self {
            Self::Present(value) => Some(value.len()),
            Self::Absent | Self::Unreadable => None,
        }
    }

    pub(super) fn may_be_there(&self) -> bool {
        !matches!(self, Self::Absent)
    }
}

/// A value for each of the two headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Both<T> {
    pub(super) metadata: T,
    pub(super) id: T,
}

/// Neither header.
pub(super) const NEITHER: Both<bool> = Both {
    metadata: false,
    id: false,
};

/// The id without metadata.
pub(super) const ID_ALONE: Both<bool> = Both {
    metadata: false,
    id: true,
};

/// Each header.
pub(super) const EACH: Both<bool> = Both {
    metadata: true,
    id: true,
};

impl PeerHeaders {
    pub(super) fn read(host: &impl Host, map: HeaderMap) -> Self {
        let read = |name| match host.header(map, name).ok() {
            Some(Some(value)) => Header::Present(value),
            Some(None) => Header::Absent,
            None => Header::Unreadable,
        };
        Self {
            metadata: read(PEER_METADATA),
            id: read(PEER_METADATA_ID),
        }
    }
}

impl Exchange {
    /// Sets the local node's headers in `map` as `give` says, and removes the
    /// others; `headers` is what was read, if anything. Returns whether any was
    /// set.
    pub(super) fn write(
        &self,
        host: &impl Host,
        map: HeaderMap,
        headers: Option<&PeerHeaders>,
        give: Both<bool>,
    ) -> bool {
        let write = |name, value: Option<&str>, is_there: bool| {
            let is_given = value.is_some_and(|value| {
                let set = host.set_header(map, name, value.as_bytes());
                set.is_ok()
            });
            if !is_given && is_there {
                host.remove_header(map, name).ok();
            }
            is_given
        };
        let is_metadata_given = write(
            PEER_METADATA,
            self.local.header.as_deref().filter(|_| give.metadata),
            headers.is_none_or(|headers| headers.metadata.may_be_there()),
        );
        let is_id_given = write(
            PEER_METADATA_ID,
            self.local.id.as_deref().filter(|_| give.id),
            headers.is_none_or(|headers| headers.id.may_be_there()),
        );
        is_metadata_given || is_id_given
    }
}
