//! The exchange itself: what is read, stored, removed, sent and answered in each direction. It knows the proxy only as
//! a [`Host`].
//!
//! | direction | request | response |
//! |---|---|---|
//! | inbound | store the caller and remove its headers, send nothing to the app | remove what the app sent, answer a caller that asked |
//! | outbound | send the local node | store the callee and remove its headers |
//! | gateway | store the caller, send the local node | store the callee, answer a caller that asked |
//!
//! A listener without direction is a gateway's, but a caller without certificate is neither stored nor answered.
//!
//! With [`Mode::Observe`] it only stores, because Istio's own filter does the rest.

use std::cell::RefCell;
use std::rc::Rc;

use crate::bytes::equal;
use crate::cache::{KnownPeer, PeerCache};
use crate::config::{Config, Mode, Protocol};
use crate::counted_host::CountedHost;
use crate::counters::{Counter, Counters};
use crate::direction::Direction;
use crate::host::{HeaderMap, Host, Property, StateKey};
use crate::local::{LocalNode, Role};
use crate::peer::{Field, RejectReason, flat, header};
use crate::standard_metrics::StandardMetrics;
use crate::template::Source;
use crate::trust::{Distrust, SpiffePattern, Trust};

mod callee;
mod certificate;
pub mod clusters;
pub mod endpoint;
mod headers;
mod metrics;
mod room;
pub mod rules;
pub mod service;
mod side;
pub mod tcp;
mod trust;

use clusters::{ClusterId, Clusters};
use headers::{Both, EACH, ID_ALONE, NEITHER, PeerHeaders};
use room::Room;
use side::Side;

/// The state of a stream between its request and its response.
#[derive(Debug, Default)]
pub struct Stream {
    direction: Option<Direction>,
    /// Which headers the caller sent, and so is answered.
    asked: Both<bool>,
    /// Whether anything was sent to the callee, and so its answer is believed.
    sent: bool,
    /// The cluster of the request.
    cluster: Option<ClusterId>,
    /// Whether the response headers were seen.
    answered: bool,
}

/// The exchange of one plugin configuration: shared by its streams, and dropped with the last of them when the
/// configuration is replaced.
#[derive(Debug)]
pub struct Exchange {
    config: Config,
    local: LocalNode,
    /// What this proxy sends, without its id: the header's value, or the message in a frame.
    own: Vec<u8>,
    /// The frame that is sent over TCP; empty if there is nothing to send.
    frame: Vec<u8>,
    /// The TCP connections whose first bytes are held.
    held: RefCell<tcp::HeldConnections>,
    room: Room,
    peers: RefCell<PeerCache>,
    /// Peers from sources other than their own headers.
    other_sources: RefCell<PeerCache>,
    clusters: RefCell<Clusters>,
    counters: Rc<Counters>,
    /// The sources of the rules for callees.
    rule_sources: Vec<Source>,
    /// The fields for which certificates vouch.
    claimed: Vec<Field>,
    flat: RefCell<flat::Writer>,
    metrics: Option<RefCell<StandardMetrics>>,
}

impl Exchange {
    /// An exchange that sends `local` and counts in `counters`.
    #[must_use]
    pub fn new(config: Config, local: LocalNode, counters: Rc<Counters>) -> Self {
        let cache = || {
            let capacity = config.max_peer_cache_size;
            RefCell::new(PeerCache::new(capacity, PeerCache::BUDGET))
        };
        let header = local.header.as_deref().unwrap_or_default().as_bytes();
        let own = match config.protocol {
            Protocol::Http => header.to_vec(),
            Protocol::Tcp => header::to_message(header).unwrap_or_default(),
        };
        Self {
            frame: tcp::frame(&config, &local, &own),
            own,
            held: RefCell::default(),
            room: Room::new(&config, &local),
            peers: cache(),
            other_sources: cache(),
            rule_sources: rules::sources_of(&config.callee),
            claimed: claimed_fields(&config),
            clusters: RefCell::new(Clusters::new(
                config.skip_external_clusters,
                config.external_cluster_names.clone(),
            )),
            counters,
            flat: RefCell::default(),
            metrics: config.standard_metrics.then(|| {
                let max = config.max_metric_series as usize;
                RefCell::new(StandardMetrics::new(
                    local.flat.as_deref().unwrap_or_default(),
                    max,
                ))
            }),
            config,
            local,
        }
    }

    /// What the filter is loaded into, as the configuration has it.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.config.protocol
    }

    /// Makes the metadata of clusters be read again; called periodically.
    pub fn refresh_clusters(&self) {
        self.clusters.borrow_mut().refresh();
    }

    /// Handles the request headers of `stream`, `count` of them with pseudo-headers.
    pub fn on_request_headers(&self, stream: &mut Stream, host: &impl Host, count: usize) {
        let host = &CountedHost::new(host, &self.counters);
        let direction = self.direction(host);
        stream.direction = Some(direction);
        let headers = match direction {
            Direction::Inbound | Direction::Gateway => {
                let headers = PeerHeaders::read(host, HeaderMap::Request);
                let (id, value) = (headers.id.value(), headers.metadata.value());
                stream.asked = self.receive(host, Side::Downstream, stream, id, value);
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
        self.store_local_peer(host);
    }

    /// Handles the response headers of `stream`, also those of a local reply, `count` of them with pseudo-headers.
    pub fn on_response_headers(&self, stream: &mut Stream, host: &impl Host, count: usize) {
        let host = &CountedHost::new(host, &self.counters);
        let direction = stream.direction.unwrap_or_else(|| self.direction(host));
        stream.answered = true;
        let mut headers = None;
        if direction != Direction::Inbound {
            let mut callee = NEITHER;
            if self.trusts_answer(stream, host) {
                let read = PeerHeaders::read(host, HeaderMap::Response);
                let (id, value) = (read.id.value(), read.metadata.value());
                callee = self.receive(host, Side::Upstream, stream, id, value);
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

    /// Handles the end of `stream`, before it is logged. If the caller is gone, or a filter ahead of this one has
    /// replied, the callee is not named yet.
    pub fn on_log(&self, stream: &mut Stream, host: &impl Host) {
        let host = &CountedHost::new(host, &self.counters);
        if stream.direction.is_none() {
            self.store_local_peer(host);
        }
        if stream.answered && self.metrics.is_none() {
            return;
        }
        let direction = stream.direction.unwrap_or_else(|| self.direction(host));
        let names_callee = !stream.answered && direction != Direction::Inbound;
        if !names_callee && self.metrics.is_none() {
            return;
        }
        // If Envoy redirects the request, its filter state carries over to the next one, which has another callee.
        if !stream.answered && is_redirected(host) {
            return;
        }
        if names_callee {
            self.complete(stream, host, direction);
        }
        self.record_call(host, direction);
    }

    /// Names a callee that sent nothing, from other sources.
    fn complete(&self, stream: &Stream, host: &impl Host, direction: Direction) {
        if !self.name_callee(host) && !stream.asked.metadata {
            self.mark_gateway(host, direction);
        }
    }

    fn direction(&self, host: &impl Host) -> Direction {
        if let Some(direction) = self.config.direction {
            return direction;
        }
        if self.local.role == Role::Waypoint {
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

    /// Stores the peer with this id and metadata, and returns which of them were received: not empty, and not refused.
    fn receive(
        &self,
        host: &impl Host,
        side: Side,
        stream: &Stream,
        id: &[u8],
        value: &[u8],
    ) -> Both<bool> {
        if value.is_empty() && side == Side::Downstream {
            self.name_caller_by_certificate(host);
        }
        if value.is_empty() && id.is_empty() {
            return NEITHER;
        }
        if !self.config.accept_own && self.is_self(id, value) {
            self.counters.count(Counter::Own);
            return NEITHER;
        }
        let checked = self.check_connection(host, side);
        if let Err(distrust) = checked.and_then(|()| self.check_direction(host, side, stream)) {
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

    /// An id without metadata names nobody that a reader could draw: it is answered, but not stored.
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

    /// Counts a refused peer. A valid id is still answered, unless a certificate would have to vouch for it.
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

    /// Stores a peer if its connection vouches for it.
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
        // If the host refuses it, another filter owns the key, and an id stored here would belong to another peer.
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
        let peer = match self.config.protocol {
            Protocol::Http => header::decode(value, self.config.limits),
            Protocol::Tcp => header::decode_message(value, self.config.limits),
        }?;
        Ok(KnownPeer::new(
            &peer,
            &self.claimed,
            &mut self.flat.borrow_mut(),
        ))
    }

    /// Whether this proxy's own headers came back. Istio's filter sends the same id, but other metadata.
    fn is_self(&self, id: &[u8], value: &[u8]) -> bool {
        let self_id = self.local.id.as_deref().unwrap_or_default();
        if !equal(self_id.as_bytes(), id) {
            return false;
        }
        if self.config.mode == Mode::Observe && !id.is_empty() {
            return true;
        }
        equal(&self.own, value)
    }

    /// Whether the callee's answer is believed: only if something was sent to it.
    fn trusts_answer(&self, stream: &mut Stream, host: &impl Host) -> bool {
        match self.config.mode {
            Mode::Exchange => stream.sent,
            // Istio's filter sent it metadata, possibly even outside the mesh; but a cluster to which this filter would
            // send nothing is not believed.
            Mode::Observe => stream.direction.is_some() && self.sends_to_cluster(host, stream),
        }
    }

    /// Whether the local node is sent to the request's cluster.
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

    /// Looks up a cluster by its name.
    fn look_up(&self, host: &impl Host, name: &[u8]) -> ClusterId {
        let metadata = || host.property(Property::ClusterMetadata).ok().flatten();
        self.clusters.borrow_mut().look_up(name, metadata)
    }

    /// Stores the local node under its own key, for readers that name this proxy.
    fn store_local_peer(&self, host: &impl Host) {
        if let Some(flat) = &self.local.flat
            && self.config.local_peer
        {
            host.store(StateKey::LocalPeer, flat).ok();
        }
    }

    /// Stores the local node under the key of its own side, so that one entry names both. A gateway has no side.
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

/// The fields that peers must claim for a certificate to vouch for them.
fn claimed_fields(config: &Config) -> Vec<Field> {
    if ![config.trust, config.upstream_trust].contains(&Trust::Spiffe) {
        return Vec::new();
    }
    let patterns = config.spiffe_patterns.iter();
    patterns.flat_map(SpiffePattern::fields).collect()
}

/// Whether Envoy follows the response's redirect itself, in another stream.
fn is_redirected(host: &impl Host) -> bool {
    let details = host.property(Property::ResponseCodeDetails).ok().flatten();
    details.is_some_and(|details| &*details == b"internal_redirect")
}
