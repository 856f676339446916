//! The filter's counters: incremented in the VM, and published on a tick.

use std::cell::Cell;

use crate::peer::RejectReason;

/// A counter, in Envoy's stats as `wasmcustom.metadata_exchange.<name>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// A caller was stored as `wasm.downstream_peer`.
    DownstreamPeerStored,
    /// A callee was stored as `wasm.upstream_peer`.
    UpstreamPeerStored,
    /// A callee that did not answer was stored from its endpoint's metadata.
    UpstreamPeerFromEndpoint,
    /// A callee was stored by the rules in `callee`.
    UpstreamPeerFromRules,
    /// A callee was stored from its cluster's metadata.
    UpstreamPeerFromClusterMetadata,
    /// A callee was stored as the service that answered calls to its cluster
    /// before.
    UpstreamPeerFromKnownService,
    /// A callee was stored from its cluster's name.
    UpstreamPeerFromClusterName,
    /// A caller that sent no metadata was stored from its certificate.
    DownstreamPeerFromCertificate,
    /// A callee that sent no metadata was stored from its certificate.
    UpstreamPeerFromCertificate,
    /// A received peer was in the cache.
    CacheHit,
    /// A received peer had to be decoded.
    CacheMiss,
    /// This proxy's own id and metadata came back and were ignored.
    Own,
    /// A host call returned an unexpected status.
    HostError,
    /// The cluster is outside the mesh: nothing was sent, or, where the filter only
    /// observes, an answer was not believed.
    ExternalSkipped,
    /// A message was sent without the local node's headers, or with the id
    /// alone, because they could have exceeded a header limit.
    TooLargeToSend,
    /// The first bytes of a TCP connection fitted a frame, which did not come within the
    /// time limit, and were passed on.
    FrameTimedOut,
    /// [`RejectReason::Base64`]
    RefusedBase64,
    /// [`RejectReason::Protobuf`]
    RefusedProtobuf,
    /// [`RejectReason::Empty`]
    RefusedEmpty,
    /// [`RejectReason::Utf8`]
    RefusedUtf8,
    /// [`RejectReason::ControlCharacter`]
    RefusedControlCharacter,
    /// [`RejectReason::TooLong`]
    RefusedTooLong,
    /// [`RejectReason::TooDeep`]
    RefusedTooDeep,
    /// [`RejectReason::TooManyLabels`]
    RefusedTooManyLabels,
    /// [`RejectReason::IdTooLong`]
    RefusedIdTooLong,
    /// [`crate::trust::Distrust::Nobody`]
    RefusedTrustNone,
    /// [`crate::trust::Distrust::NoCertificate`]
    RefusedTrustMtls,
    /// [`crate::trust::Distrust::OtherIdentity`]
    RefusedTrustSpiffe,
    /// [`crate::trust::Distrust::NoDirection`]
    RefusedNoDirection,
    /// A VM received an invalid plugin configuration, and refused it or is
    /// idle: counted once for Envoy's validation, and once for each idle VM.
    ConfigurationError,
    /// A configuration was accepted on a node that names no workload, so peers
    /// cannot name this proxy: counted once for each VM.
    NodeWithoutName,
    /// A call was recorded with an unknown peer in the standard metrics, because
    /// `max_metric_series` is reached.
    MetricSeriesOverLimit,
    /// A second passed in a VM that has served requests, which the VM on
    /// Envoy's main thread never does. Envoy does not count VMs that died under
    /// `FAIL_OPEN`, but then this counter stops.
    Tick,
}

impl Counter {
    /// Every counter with its name, in the order of the enum.
    pub const ALL: [(Self, &str); 33] = [
        (Self::DownstreamPeerStored, "downstream_peer_stored"),
        (Self::UpstreamPeerStored, "upstream_peer_stored"),
        (
            Self::UpstreamPeerFromEndpoint,
            "upstream_peer_from_endpoint",
        ),
        (Self::UpstreamPeerFromRules, "upstream_peer_from_rules"),
        (
            Self::UpstreamPeerFromClusterMetadata,
            "upstream_peer_from_cluster_metadata",
        ),
        (
            Self::UpstreamPeerFromKnownService,
            "upstream_peer_from_known_service",
        ),
        (
            Self::UpstreamPeerFromClusterName,
            "upstream_peer_from_cluster_name",
        ),
        (
            Self::DownstreamPeerFromCertificate,
            "downstream_peer_from_certificate",
        ),
        (
            Self::UpstreamPeerFromCertificate,
            "upstream_peer_from_certificate",
        ),
        (Self::CacheHit, "cache_hit"),
        (Self::CacheMiss, "cache_miss"),
        (Self::Own, "own"),
        (Self::HostError, "host_error"),
        (Self::ExternalSkipped, "external_skipped"),
        (Self::TooLargeToSend, "too_large_to_send"),
        (Self::FrameTimedOut, "frame_timed_out"),
        (Self::RefusedBase64, "refused_base64"),
        (Self::RefusedProtobuf, "refused_protobuf"),
        (Self::RefusedEmpty, "refused_empty"),
        (Self::RefusedUtf8, "refused_utf8"),
        (Self::RefusedControlCharacter, "refused_control_character"),
        (Self::RefusedTooLong, "refused_too_long"),
        (Self::RefusedTooDeep, "refused_too_deep"),
        (Self::RefusedTooManyLabels, "refused_too_many_labels"),
        (Self::RefusedIdTooLong, "refused_id_too_long"),
        (Self::RefusedTrustNone, "refused_trust_none"),
        (Self::RefusedTrustMtls, "refused_trust_mtls"),
        (Self::RefusedTrustSpiffe, "refused_trust_spiffe"),
        (Self::RefusedNoDirection, "refused_no_direction"),
        (Self::ConfigurationError, "configuration_errors"),
        (Self::NodeWithoutName, "node_without_name"),
        (Self::MetricSeriesOverLimit, "metric_series_over_limit"),
        (Self::Tick, "ticks"),
    ];
}

impl From<RejectReason> for Counter {
    fn from(refused: RejectReason) -> Self {
        match refused {
            RejectReason::TooLong { .. } => Self::RefusedTooLong,
            RejectReason::Base64 => Self::RefusedBase64,
            RejectReason::Protobuf => Self::RefusedProtobuf,
            RejectReason::TooDeep => Self::RefusedTooDeep,
            RejectReason::TooManyLabels { .. } => Self::RefusedTooManyLabels,
            RejectReason::Utf8 => Self::RefusedUtf8,
            RejectReason::ControlCharacter => Self::RefusedControlCharacter,
            RejectReason::IdTooLong { .. } => Self::RefusedIdTooLong,
            RejectReason::Empty => Self::RefusedEmpty,
        }
    }
}

/// The gauge of plugin configurations that leave the filter idle, in Envoy's
/// stats as `wasmcustom.metadata_exchange.<name>`, counted once for every VM.
/// Above 0, some listener has no exchange.
pub const CONFIGURATION_IDLE: &str = "configuration_idle";

/// The counts since the last publication.
#[derive(Debug)]
pub struct Counters([Cell<u64>; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Cell::default()))
    }
}

impl Counters {
    /// Increments a counter.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `number` to a counter.
    pub fn add(&self, counter: Counter, number: u64) {
        if let Some(count) = self.0.get(counter as usize) {
            count.set(count.get().wrapping_add(number));
        }
    }

    /// The count of `counter` since the last publication, which it resets.
    pub fn take(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).map_or(0, Cell::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_index_and_name() {
        let counters = Counters::default();
        for (index, (counter, name)) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index, "{name}");
            counters.count(counter);
            assert_eq!(counters.take(counter), 1);
            assert_eq!(counters.take(counter), 0);
        }
        let mut names = Counter::ALL.map(|(_, name)| name);
        names.sort_unstable();
        assert!(
            names.is_sorted_by(|a, b| a < b),
            "two counters have one name"
        );
    }
}
