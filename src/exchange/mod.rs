//! The exchange itself: what is read, stored, stripped, sent and answered, per
//! direction. Knows the proxy only as a [`Host`].
//!
//! | direction | request | response |
//! |---|---|---|
//! | inbound | store and strip the caller, send nothing to the app | strip what the app sent, answer a caller that asked |
//! | outbound | send the local node | store and strip the callee |
//! | gateway | store and strip the caller, send the local node | store and strip the callee, answer a caller that asked |
//!
//! With [`Mode::Observe`] it only stores, for Istio's own filter does the rest.

use std::cell::RefCell;
use std::rc::Rc;

use crate::bytes::equal;
use crate::cache::{KnownPeer, PeerCache};
use crate::config::{Config, Mode};
use crate::counted_host::CountedHost;
use crate::counters::{Counter, Counters};
use crate::direction::Direction;
use crate::host::{HeaderMap, Host, Property};
use crate::local::LocalNode;
use crate::peer::{RejectReason, flat, header};
use crate::trust::{Distrust, Trust};

mod callee;
pub mod clusters;
pub mod endpoint;
mod headers;
mod room;
pub mod service;
mod side;
mod trust;

use clusters::{ClusterId, Clusters};
use headers::{Both, EACH, ID_ALONE, NEITHER, PeerHeaders};
use room::Room;
use side::Side;

/// What is remembered of a stream between its request and its response.
#[derive(Debug, Default)]
pub struct Stream {
    direction: Option<Direction>,
    /// Which headers the caller sent, and is answered.
    asked: Both<bool>,
    /// Whether the callee was told anything, and its answer is believed.
    sent: bool,
    /// The cluster of the request.
    cluster: Option<ClusterId>,
    /// Whether the response headers were seen.
    answered: bool,
}

/// The exchange of one plugin configuration: shared by its streams, and gone
/// with the last of them when the configuration is replaced.
#[derive(Debug)]
pub struct Exchange {
    config: Config,
    local: LocalNode,
    room: Room,
    /// Whether the local node is a gateway by its id.
    is_router: bool,
    /// Whether the local node is a waypoint, of whose listeners some are inbound.
    is_waypoint: bool,
    peers: RefCell<PeerCache>,
    endpoints: RefCell<PeerCache>,
    clusters: RefCell<Clusters>,
    counters: Rc<Counters>,
    flat: RefCell<flat::Writer>,
}

impl Exchange {
    /// An exchange that speaks for `local` and counts in `counters`.
    #[must_use]
    pub fn new(config: Config, local: LocalNode, counters: Rc<Counters>) -> Self {
        let cache = || {
            let capacity = config.max_peer_cache_size;
            RefCell::new(PeerCache::new(capacity, PeerCache::BUDGET))
        };
        let has_role = |role| {
            let id = local.id.as_deref();
            id.is_some_and(|id| id.starts_with(role))
        };
        Self {
            room: Room::new(&config, &local),
            is_router: has_role("router~"),
            is_waypoint: has_role("waypoint~"),
            peers: cache(),
            endpoints: cache(),
            clusters: RefCell::new(Clusters::new(
                config.skip_external_clusters,
                config.external_cluster_names.clone(),
            )),
            counters,
            flat: RefCell::default(),
            config,
            local,
        }
    }

    /// Looks anew at the metadata of clusters; called now and then.
    pub fn refresh_clusters(&self) {
        self.clusters.borrow_mut().refresh();
    }

    /// The request headers of `stream`: `count` of them, pseudo-headers included.
    pub fn on_request_headers(&self, stream: &mut Stream, host: &impl Host, count: usize) {
        let host = &CountedHost::new(host, &self.counters);
        let direction = self.direction(host);
        stream.direction = Some(direction);
        let headers = match direction {
            Direction::Inbound | Direction::Gateway => {
                let headers = PeerHeaders::read(host, HeaderMap::Request);
                stream.asked = self.receive(host, Side::Downstream, stream, &headers);
                Some(headers)
            }
            Direction::Outbound => None,
        };
        if self.config.mode == Mode::Exchange {
            let sends = direction != Direction::Inbound && self.sends_to_cluster(host, stream);
            let give = if sends { EACH } else { NEITHER };
            let give = self.fitting(host, HeaderMap::Request, count, headers.as_ref(), give);
            stream.sent = self.write(host, HeaderMap::Request, headers.as_ref(), give);
        }
        self.record_local_node(host, direction);
    }

    /// The response headers of `stream`, also those of a local reply: `count` of
    /// them, pseudo-headers included.
    pub fn on_response_headers(&self, stream: &mut Stream, host: &impl Host, count: usize) {
        let host = &CountedHost::new(host, &self.counters);
        let direction = stream.direction.unwrap_or_else(|| self.direction(host));
        stream.answered = true;
        let mut headers = None;
        if direction != Direction::Inbound {
            let mut callee = NEITHER;
            if self.trusts_answer(stream, host) {
                let read = PeerHeaders::read(host, HeaderMap::Response);
                callee = self.receive(host, Side::Upstream, stream, &read);
                headers = Some(read);
            }
            if !callee.metadata {
                self.complete(stream, host, direction);
            }
        }
        if self.config.mode == Mode::Exchange {
            let headers = headers.as_ref();
            let give = self.fitting(host, HeaderMap::Response, count, headers, stream.asked);
            self.write(host, HeaderMap::Response, headers, give);
        }
    }

    /// The end of `stream`, before it is logged. The caller may be gone, or a
    /// filter ahead of this one may have replied: then the callee was not named yet.
    pub fn on_log(&self, stream: &mut Stream, host: &impl Host) {
        let host = &CountedHost::new(host, &self.counters);
        if stream.answered {
            return;
        }
        let direction = stream.direction.unwrap_or_else(|| self.direction(host));
        if direction == Direction::Inbound {
            return;
        }
        // What is stored for a request that Envoy redirects would stay for the one
        // that follows, and its callee is another.
        let details = host.property(Property::ResponseCodeDetails).ok().flatten();
        if details.is_none_or(|details| &*details != b"internal_redirect") {
            self.complete(stream, host, direction);
        }
    }

    /// Says of a callee that has not spoken what others know of it.
    fn complete(&self, stream: &Stream, host: &impl Host, direction: Direction) {
        if !self.name_callee(host) && !stream.asked.metadata {
            self.mark_gateway(host, direction);
        }
    }

    fn direction(&self, host: &impl Host) -> Direction {
        if let Some(direction) = self.config.direction {
            return direction;
        }
        if self.is_waypoint {
            return Direction::Gateway;
        }
        // envoy.config.core.v3.TrafficDirection as int64, little endian.
        let direction = host.property(Property::ListenerDirection).ok().flatten();
        match direction.as_deref().and_then(<[u8]>::first) {
            Some(1) => Direction::Inbound,
            Some(2) => Direction::Outbound,
            _ => Direction::Gateway,
        }
    }

    /// Stores the peer in `headers` and tells which of them were received: not
    /// empty, and not refused.
    fn receive(
        &self,
        host: &impl Host,
        side: Side,
        stream: &Stream,
        headers: &PeerHeaders,
    ) -> Both<bool> {
        let value = headers.metadata.value();
        let id = headers.id.value();
        if value.is_empty() && id.is_empty() {
            return NEITHER;
        }
        if !self.config.accept_own && self.is_self(id, value) {
            self.counters.count(Counter::Own);
            return NEITHER;
        }
        if let Err(distrust) = self.check_connection(host, side) {
            self.count_distrust(distrust);
            return NEITHER;
        }
        if let Err(refused) = header::check_lengths(id, value, self.config.limits) {
            return self.refuse(side, id, refused);
        }
        if value.is_empty() {
            return self.receive_id_alone(side, id);
        }
        let mut peers = self.peers.borrow_mut();
        match peers.get(id, value) {
            Ok(peer) => {
                self.counters.count(Counter::CacheHit);
                self.receive_peer(host, side, stream, id, peer)
            }
            Err(miss) => {
                self.counters.count(Counter::CacheMiss);
                match self.decode(id, value) {
                    Ok(peer) => {
                        let received = self.receive_peer(host, side, stream, id, &peer);
                        if received.metadata {
                            peers.insert(miss, id, value, peer);
                        }
                        received
                    }
                    Err(refused) => self.refuse(side, id, refused),
                }
            }
        }
    }

    /// An id without metadata names nobody that a reader could draw: it is
    /// answered, and not stored.
    fn receive_id_alone(&self, side: Side, id: &[u8]) -> Both<bool> {
        match header::id(id, self.config.limits) {
            Ok(_) if self.trust(side) == Trust::Spiffe => {
                self.count_distrust(Distrust::OtherIdentity);
                NEITHER
            }
            Ok(_) => ID_ALONE,
            Err(refused) => self.refuse(side, id, refused),
        }
    }

    /// Counts a refused peer. An id that is fine is answered all the same,
    /// unless it would have to be vouched for.
    fn refuse(&self, side: Side, id: &[u8], refused: RejectReason) -> Both<bool> {
        log::debug!("peer refused: {refused}");
        self.counters.count(refused.into());
        let is_fit = !id.is_empty() && header::id(id, self.config.limits).is_ok();
        if is_fit && self.trust(side) != Trust::Spiffe {
            ID_ALONE
        } else {
            NEITHER
        }
    }

    /// Stores a peer, if its connection vouches for it.
    fn receive_peer(
        &self,
        host: &impl Host,
        side: Side,
        stream: &Stream,
        id: &[u8],
        peer: &KnownPeer,
    ) -> Both<bool> {
        if let Err(distrust) = self.check_identity(host, side, peer) {
            self.count_distrust(distrust);
            return NEITHER;
        }
        let received = Both {
            metadata: true,
            id: !id.is_empty(),
        };
        if side == Side::Upstream {
            if !peer.names_workload && self.name_callee(host) {
                return received;
            }
            self.remember_service(host, stream, peer);
        }
        // Where the host refuses it, the key is another filter's: an id besides
        // would be of somebody else.
        let stored = host.store(side.peer_key(), &peer.flat);
        if stored.is_ok() {
            self.counters.count(match side {
                Side::Downstream => Counter::DownstreamPeerStored,
                Side::Upstream => Counter::UpstreamPeerStored,
            });
            if !id.is_empty() {
                host.store(side.id_key(), id).ok();
            }
        }
        received
    }

    fn decode(&self, id: &[u8], value: &[u8]) -> Result<KnownPeer, RejectReason> {
        header::id(id, self.config.limits)?;
        let peer = header::decode(value, self.config.limits)?;
        Ok(KnownPeer::new(&peer, &mut self.flat.borrow_mut()))
    }

    /// Whether this proxy's own headers came back to it. Istio's filter states
    /// the same id, but other metadata.
    fn is_self(&self, id: &[u8], value: &[u8]) -> bool {
        let self_id = self.local.id.as_deref().unwrap_or_default();
        if !equal(self_id.as_bytes(), id) {
            return false;
        }
        if self.config.mode == Mode::Observe && !id.is_empty() {
            return true;
        }
        let self_value = self.local.header.as_deref().unwrap_or_default();
        equal(self_value.as_bytes(), value)
    }

    /// Whether the callee's answer is believed: it was told who calls.
    fn trusts_answer(&self, stream: &mut Stream, host: &impl Host) -> bool {
        match self.config.mode {
            Mode::Exchange => stream.sent,
            // Istio's filter told it. That one may tell clusters outside the mesh,
            // too; but what ours would not tell is not believed either.
            Mode::Observe => stream.direction.is_some() && self.sends_to_cluster(host, stream),
        }
    }

    /// Whether the request's cluster is told about the local node.
    fn sends_to_cluster(&self, host: &impl Host, stream: &mut Stream) -> bool {
        let Some(name) = host.property(Property::ClusterName).ok().flatten() else {
            return true;
        };
        let cluster = self.look_up(host, &name);
        stream.cluster = Some(cluster);
        let clusters = self.clusters.borrow();
        let is_sent_to = clusters
            .get(cluster)
            .is_none_or(|cluster| cluster.is_sent_to);
        if !is_sent_to {
            self.counters.count(Counter::ExternalSkipped);
        }
        is_sent_to
    }

    /// Finds a cluster by its name.
    fn look_up(&self, host: &impl Host, name: &[u8]) -> ClusterId {
        let metadata = || host.property(Property::ClusterMetadata).ok().flatten();
        self.clusters.borrow_mut().look_up(name, metadata)
    }

    /// Stores the local node under the key of the side on which it stands, so
    /// that one entry names both. A gateway stands on neither.
    fn record_local_node(&self, host: &impl Host, direction: Direction) {
        let side = match direction {
            _ if !self.config.record_local_node => return,
            Direction::Inbound => Side::Upstream,
            Direction::Outbound => Side::Downstream,
            Direction::Gateway => return,
        };
        if let Some(flat) = &self.local.flat {
            host.store(side.peer_key(), flat).ok();
            if let Some(id) = &self.local.id {
                host.store(side.id_key(), id.as_bytes()).ok();
            }
        }
    }
}
