//! Who a callee is that did not say so itself.

use super::{Exchange, endpoint};
use crate::cache::KnownPeer;
use crate::counters::Counter;
use crate::host::{Host, Property, StateKey};

impl Exchange {
    /// Stores the chosen endpoint as the callee, without an id, so that a reader
    /// can tell it from a callee that spoke for itself.
    pub(super) fn store_endpoint(&self, host: &impl Host) {
        let Some(workload) = self.property(host, Property::EndpointWorkload) else {
            return;
        };
        let mut endpoints = self.endpoints.borrow_mut();
        let store = |known: &KnownPeer| {
            let stored = host.store(StateKey::UpstreamPeer, &known.flat);
            if self.counters.survive(stored).is_some() {
                self.counters.count(Counter::UpstreamPeerFromEndpoint);
            }
        };
        let missing = match endpoints.get(&workload, b"") {
            Ok(known) => return store(known),
            Err(missing) => missing,
        };
        if let Some(peer) = endpoint::peer(&workload) {
            let known = KnownPeer::of(&peer);
            store(&known);
            endpoints.insert(&missing, known);
        }
    }
}
