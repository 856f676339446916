//! Names a callee that did not send its metadata, from the first of these sources:
//!
//! | source | names |
//! |---|---|
//! | the metadata of the chosen endpoint ([`endpoint`]) | the workload; not outside the mesh |
//! | the rules of the configuration ([`super::rules`]) | what they say; not outside the mesh |
//! | the metadata of the cluster ([`super::clusters`]) | the service, or the host outside the mesh |
//! | its certificate, with `name_from_certificate` | the workload; not outside the mesh |
//! | who answered in this cluster before | the service, if all were of one |
//! | the name of the cluster ([`service`]) | the service, or the host outside the mesh |
//!
//! None of them gives an id, so that readers can distinguish such a callee from one that sent its
//! metadata; and a source that names a service gives no `NAME` either.

use super::clusters::ClusterId;
use super::side::Side;
use super::{Exchange, Stream, endpoint, service};
use crate::cache::{KnownPeer, Service};
use crate::config::Config;
use crate::counters::Counter;
use crate::direction::Direction;
use crate::host::{Host, Property, StateKey};
use crate::local::Role;
use crate::peer::{Peer, flat};

impl Exchange {
    /// Stores the callee from the other sources, unless one is already stored, for example by a
    /// second filter in the chain that saw the answer. Returns whether a callee is stored.
    pub(super) fn name_callee(&self, host: &impl Host) -> bool {
        if !(self.config.endpoint_fallback
            || self.config.service_fallback
            || self.config.name_from_certificate
            || !self.config.callee.is_empty())
        {
            return false;
        }
        let stored = host.property(Property::UpstreamPeer).ok().flatten();
        if stored.is_some_and(|stored| !stored.is_empty()) {
            return true;
        }
        let name = host.property(Property::ClusterName).ok().flatten();
        let cluster = name.as_deref().map(|name| self.look_up(host, name));
        let is_external = cluster.is_some_and(|cluster| self.is_external(cluster));
        let Config {
            endpoint_fallback,
            service_fallback,
            ..
        } = self.config;
        (endpoint_fallback && !is_external && self.store_endpoint(host))
            || (!is_external && self.store_by_rules(host))
            || (service_fallback && self.store_cluster_metadata(host, cluster))
            || (!is_external && self.store_certificate(host, Side::Upstream))
            || (service_fallback
                && self.store_service(host, name.as_deref().unwrap_or_default(), cluster))
    }

    fn is_external(&self, cluster: ClusterId) -> bool {
        let clusters = self.clusters.borrow();
        clusters
            .get(cluster)
            .is_some_and(|cluster| cluster.is_external)
    }

    /// Stores the chosen endpoint as the callee.
    fn store_endpoint(&self, host: &impl Host) -> bool {
        let Some(workload) = host.property(Property::EndpointWorkload).ok().flatten() else {
            return false;
        };
        let source = Counter::UpstreamPeerFromEndpoint;
        self.store_from(host, Side::Upstream, &workload, source, &|| {
            endpoint::peer(&workload)
        })
    }

    /// Stores the service in the metadata of the cluster as the callee.
    fn store_cluster_metadata(&self, host: &impl Host, cluster: Option<ClusterId>) -> bool {
        let clusters = self.clusters.borrow();
        let cluster = cluster.and_then(|cluster| clusters.get(cluster));
        let service = cluster.and_then(|cluster| cluster.service.as_deref());
        let source = Counter::UpstreamPeerFromClusterMetadata;
        service.is_some_and(|service| self.store_peer(host, Side::Upstream, service, source))
    }

    /// Stores the service that answered in the cluster before, or the one in the cluster's name, as the callee.
    fn store_service(&self, host: &impl Host, name: &[u8], cluster: Option<ClusterId>) -> bool {
        let clusters = self.clusters.borrow();
        let Some(cluster) = cluster.and_then(|cluster| clusters.get(cluster)) else {
            return false;
        };
        if let Some(service) = cluster.known_service() {
            let source = Counter::UpstreamPeerFromKnownService;
            return self.store_peer(host, Side::Upstream, service, source);
        }
        let named = if cluster.is_external {
            service::of_external_cluster_name(name)
        } else {
            service::of_cluster_name(name)
        };
        named.is_some_and(|peer| {
            let source = Counter::UpstreamPeerFromClusterName;
            self.store_peer(host, Side::Upstream, &flat::write(&peer), source)
        })
    }

    /// Stores the peer that `read` makes of `bytes`, which is kept in a cache, and counts its source. Returns whether a
    /// peer is stored.
    pub(super) fn store_from(
        &self,
        host: &impl Host,
        side: Side,
        bytes: &[u8],
        source: Counter,
        read: &dyn Fn() -> Option<Peer>,
    ) -> bool {
        let kind = [source as u8];
        let mut known = self.other_sources.borrow_mut();
        let miss = match known.get(bytes, &kind) {
            Ok(known) => return self.store_peer(host, side, &known.flat, source),
            Err(miss) => miss,
        };
        let Some(peer) = read() else {
            return false;
        };
        let peer = KnownPeer::new(&peer, &[], &mut self.flat.borrow_mut());
        let is_stored = self.store_peer(host, side, &peer.flat, source);
        known.insert(miss, bytes, &kind, peer);
        is_stored
    }

    /// Stores a peer and counts its source.
    fn store_peer(&self, host: &impl Host, side: Side, flat: &[u8], source: Counter) -> bool {
        let is_stored = host.store(side.peer_key(), flat).is_ok();
        if is_stored {
            self.counters.count(source);
        }
        is_stored
    }

    /// Remembers the service of a callee that answered and is believed. The cluster is read again
    /// only if the answer is new, because a filter in between may have changed the route.
    pub(super) fn remember_service(&self, host: &impl Host, stream: &Stream, peer: &KnownPeer) {
        let Some(cluster) = stream.cluster else {
            return;
        };
        let service = peer.service.as_ref();
        let is_settled = self.clusters.borrow().is_settled(cluster, service);
        if !is_settled && peer.names_workload && self.config.service_fallback {
            self.remember_new_service(host, service);
        }
    }

    fn remember_new_service(&self, host: &impl Host, service: Option<&Service>) {
        if let Some(name) = host.property(Property::ClusterName).ok().flatten() {
            let cluster = self.look_up(host, &name);
            self.clusters.borrow_mut().remember(cluster, service);
        }
    }

    /// Adds a key to a gateway's entry if it has none: `SkyWalking` counts a gateway's call only if
    /// there is a key, and recognises gateways by `router~` in their id. The key is an empty callee
    /// id, which names nobody.
    pub(super) fn mark_gateway(&self, host: &impl Host, direction: Direction) {
        if self.local.role == Role::Router && direction != Direction::Inbound {
            host.store(StateKey::UpstreamPeerId, b"").ok();
        }
    }
}
