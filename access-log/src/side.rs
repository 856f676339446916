//! The sides of a call with the filter-state keys of their peers, and the
//! directions of listeners.

/// The side of a peer, seen from the proxy that logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller.
    Downstream,
    /// The callee.
    Upstream,
}

impl Side {
    /// The filter-state key of the peer.
    #[must_use]
    pub fn peer_key(self) -> &'static str {
        match self {
            Self::Downstream => "wasm.downstream_peer",
            Self::Upstream => "wasm.upstream_peer",
        }
    }

    /// The filter-state key of the peer's node id.
    #[must_use]
    pub fn id_key(self) -> &'static str {
        match self {
            Self::Downstream => "wasm.downstream_peer_id",
            Self::Upstream => "wasm.upstream_peer_id",
        }
    }

    /// The key of the peer that Istio's own filter writes from 1.24 on.
    #[must_use]
    pub fn struct_key(self) -> &'static str {
        match self {
            Self::Downstream => "downstream_peer",
            Self::Upstream => "upstream_peer",
        }
    }
}

/// A listener's `traffic_direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the app.
    Inbound,
    /// Towards the mesh; also Istio's gateways.
    Outbound,
}

impl Direction {
    /// As Envoy's configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "INBOUND",
            Self::Outbound => "OUTBOUND",
        }
    }
}
