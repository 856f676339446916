//! The two sides of a stream, with the keys of filter state under which each is stored.

use crate::host::StateKey;

/// The sender of a header map: the caller of requests, the callee of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

impl Side {
    pub(super) fn peer_key(self) -> StateKey {
        match self {
            Self::Downstream => StateKey::DownstreamPeer,
            Self::Upstream => StateKey::UpstreamPeer,
        }
    }

    pub(super) fn id_key(self) -> StateKey {
        match self {
            Self::Downstream => StateKey::DownstreamPeerId,
            Self::Upstream => StateKey::UpstreamPeerId,
        }
    }
}
