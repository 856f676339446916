//! The exchange over TCP: a [`frame`](crate::peer::frame) ahead of the first bytes of each direction.
//!
//! | direction | the client's first bytes | the server's first bytes |
//! |---|---|---|
//! | inbound | store the caller and remove its frame | answer a caller that sent one, unless the server spoke before |
//! | outbound | send a frame, only to clusters and endpoints that expect one | store the callee and remove its frame |
//! | gateway | both | both |
//!
//! The first byte that no frame has there ends the search, and all bytes pass as they are. Bytes are held only while
//! they fit the beginning of a frame; the client's for [`MAX_HELD_TICKS`] at most. Afterwards nothing is read.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::headers::{Both, NEITHER};
use super::side::Side;
use super::{Exchange, Stream};
use crate::config::{Config, Mode, Protocol};
use crate::counted_host::CountedHost;
use crate::counters::Counter;
use crate::direction::Direction;
use crate::host::{Data, Host, Property, TcpHost};
use crate::local::LocalNode;
use crate::pattern::Pattern;
use crate::peer::RejectReason;
use crate::peer::frame::{Frame, HEADER_BYTES, Start, TELLING_BYTES};

/// How many ticks, of a second each, the client's first bytes are held.
pub const MAX_HELD_TICKS: u64 = 5;

/// What happens with the bytes of a direction that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They are passed on.
    Pass,
    /// They are held, and shown again together with the next ones.
    Hold,
}

/// A connection from its first byte to its end.
#[derive(Debug, Default)]
pub struct Connection {
    /// What identifies it to the proxy.
    id: u32,
    stream: Stream,
    client: Progress,
    server: Progress,
    /// Whether the client's bytes are held.
    is_held: Rc<Cell<bool>>,
    /// Whether the caller was named, or need not be.
    is_caller_settled: bool,
    /// Whether the callee was named, or need not be.
    is_callee_settled: bool,
}

/// How far the first bytes of a direction were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// No byte has arrived.
    #[default]
    Silent,
    /// Held until so many bytes have arrived.
    Held(usize),
    /// A frame was removed, and no byte followed yet.
    Framed,
    /// A byte of the application has passed.
    Passed,
}

/// The connections whose client's first bytes are held, the longest held first.
#[derive(Debug, Default)]
pub(super) struct HeldConnections {
    /// The number of ticks until now.
    ticks: u64,
    connections: VecDeque<Held>,
}

#[derive(Debug)]
struct Held {
    id: u32,
    /// The tick until which they may be held.
    until: u64,
    is_waiting: Rc<Cell<bool>>,
}

/// The bytes of a direction that have arrived.
#[derive(Clone, Copy)]
struct Arrived {
    data: Data,
    size: usize,
    is_end: bool,
}

/// What the first bytes of a direction were.
enum First {
    Held,
    /// A frame, and how many bytes follow it.
    Frame(Frame, usize),
    Other,
}

impl Connection {
    /// A connection that the proxy identifies by `id`.
    #[must_use]
    pub fn new(id: u32) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }
}

/// The address of the chosen endpoint; `None` before Envoy has connected to it.
fn upstream_address(host: &impl Host) -> Option<Vec<u8>> {
    let address = host.property(Property::UpstreamAddress).ok().flatten();
    address.filter(|address| !address.is_empty())
}

/// The frame that this proxy sends; empty if it sends none.
pub(super) fn frame(config: &Config, local: &LocalNode, own: &[u8]) -> Vec<u8> {
    let id = local.id.as_deref().unwrap_or_default();
    if config.protocol == Protocol::Http || own.is_empty() && id.is_empty() {
        return Vec::new();
    }
    let (metadata, id) = (own.to_vec(), id.as_bytes().to_vec());
    Frame { metadata, id }.encode()
}

impl Exchange {
    /// Handles bytes of the client, of which `size` have arrived; `is_end` says that it sends no more.
    pub fn on_downstream_data(
        &self,
        connection: &mut Connection,
        host: &impl TcpHost,
        size: usize,
        is_end: bool,
    ) -> Flow {
        if connection.client == Progress::Passed {
            return Flow::Pass;
        }
        if matches!(connection.client, Progress::Held(_)) && !connection.is_held.get() {
            // They were held too long, and passed.
            connection.client = Progress::Passed;
            return Flow::Pass;
        }
        let host = &CountedHost::new(host, &self.counters);
        let direction = self.begin(connection, host);
        let mut arrived = Arrived {
            data: Data::Downstream,
            size,
            is_end,
        };
        if direction != Direction::Outbound && connection.client != Progress::Framed {
            match self.first(host, &mut connection.client, arrived) {
                First::Held => {
                    self.hold(connection);
                    return Flow::Hold;
                }
                First::Frame(frame, rest) => {
                    arrived.size = rest;
                    connection.is_caller_settled = true;
                    let asked = self.receive_frame(host, Side::Downstream, connection, &frame);
                    // Later, an answer would be in the middle of the server's bytes.
                    if connection.server == Progress::Silent {
                        connection.stream.asked = asked;
                    }
                }
                First::Other => {}
            }
            connection.is_held.set(false);
        }
        if arrived.size > 0 {
            if direction != Direction::Inbound && self.sends_frame(host, &mut connection.stream) {
                connection.stream.sent = self.send(host, Data::Downstream);
            }
            // An answer can only precede the server's first bytes. Before Envoy has connected, the endpoint is unknown.
            if !connection.stream.sent && upstream_address(host).is_some() {
                self.settle_callee(connection, host, direction);
            }
            self.settle_caller(connection, host, direction);
            connection.client = Progress::Passed;
        }
        Flow::Pass
    }

    /// Handles bytes of the server, of which `size` have arrived; `is_end` says that it sends no more.
    pub fn on_upstream_data(
        &self,
        connection: &mut Connection,
        host: &impl TcpHost,
        size: usize,
        is_end: bool,
    ) -> Flow {
        if connection.server == Progress::Passed {
            return Flow::Pass;
        }
        let host = &CountedHost::new(host, &self.counters);
        let direction = self.begin(connection, host);
        let mut arrived = Arrived {
            data: Data::Upstream,
            size,
            is_end,
        };
        let is_expected = connection.stream.sent
            || self.config.mode == Mode::Observe && self.sends_frame(host, &mut connection.stream);
        if direction != Direction::Inbound && is_expected && connection.server != Progress::Framed {
            match self.first(host, &mut connection.server, arrived) {
                First::Held => return Flow::Hold,
                First::Frame(frame, rest) => {
                    arrived.size = rest;
                    let callee = self.receive_frame(host, Side::Upstream, connection, &frame);
                    connection.is_callee_settled |= callee.metadata;
                }
                First::Other => {}
            }
        }
        if arrived.size > 0 {
            self.settle_callee(connection, host, direction);
            let asked = std::mem::take(&mut connection.stream.asked);
            if asked != NEITHER {
                self.send(host, Data::Upstream);
            }
            connection.server = Progress::Passed;
        }
        Flow::Pass
    }

    /// Handles the end of a connection, before it is logged.
    pub fn on_connection_end(&self, connection: &mut Connection, host: &impl Host) {
        connection.is_held.set(false);
        let host = &CountedHost::new(host, &self.counters);
        let direction = self.begin(connection, host);
        self.settle_caller(connection, host, direction);
        self.settle_callee(connection, host, direction);
    }

    /// Counts a tick, and returns the connections whose client's bytes must be passed on, because they were held too long.
    pub fn overdue(&self) -> Vec<u32> {
        let HeldConnections { ticks, connections } = &mut *self.held.borrow_mut();
        *ticks = ticks.saturating_add(1);
        let mut overdue = Vec::new();
        while let Some(held) = connections.pop_front_if(|held| held.until < *ticks) {
            if held.is_waiting.replace(false) {
                self.counters.count(Counter::FrameTimedOut);
                overdue.push(held.id);
            }
        }
        overdue
    }

    /// What every connection stores, once its direction is known.
    fn begin(&self, connection: &mut Connection, host: &impl Host) -> Direction {
        if let Some(direction) = connection.stream.direction {
            return direction;
        }
        let direction = self.direction(host);
        connection.stream.direction = Some(direction);
        self.record_local_node(host, direction);
        self.store_local_peer(host);
        direction
    }

    /// Reads the first bytes of a direction, and removes a frame.
    fn first(&self, host: &impl TcpHost, progress: &mut Progress, arrived: Arrived) -> First {
        let Arrived { data, size, is_end } = arrived;
        match *progress {
            Progress::Held(needed) if size < needed && !is_end => return First::Held,
            _ if size == 0 => return First::Other,
            _ => {}
        }
        let max = self.config.limits.max_received_bytes;
        let read = |max| host.data(data, max).unwrap_or_default();
        let bytes = read(TELLING_BYTES.min(size));
        match Start::of(&bytes, size, max) {
            Start::Partial(needed) if !is_end && !bytes.is_empty() => {
                *progress = Progress::Held(needed);
                First::Held
            }
            Start::Frame(whole) => {
                let bytes = read(whole);
                let Some(frame) = bytes.get(HEADER_BYTES..).and_then(Frame::decode) else {
                    self.counters.count(Counter::RefusedProtobuf);
                    return First::Other;
                };
                // Istio's own filter removes it otherwise.
                let is_ours = self.config.mode == Mode::Exchange;
                if is_ours && host.replace_data(data, whole, &[]).is_err() {
                    return First::Other;
                }
                *progress = Progress::Framed;
                First::Frame(frame, size.saturating_sub(whole))
            }
            Start::TooLong(len) => {
                self.counters
                    .count(RejectReason::TooLong { len, max }.into());
                First::Other
            }
            Start::Partial(_) | Start::Other => First::Other,
        }
    }

    /// Stores the peer in a frame, and returns what of it was received.
    fn receive_frame(
        &self,
        host: &impl Host,
        side: Side,
        connection: &Connection,
        frame: &Frame,
    ) -> Both<bool> {
        let Frame { metadata, id } = frame;
        if metadata.is_empty() && id.is_empty() {
            self.counters.count(Counter::RefusedEmpty);
        }
        self.receive(host, side, &connection.stream, id, metadata)
    }

    /// Whether the chosen endpoint expects a frame. A listener that does not know frames passes them to its
    /// application, so only the configuration or a metadata key of this filter can say so.
    fn sends_frame(&self, host: &impl Host, stream: &mut Stream) -> bool {
        let Some(name) = host.property(Property::ClusterName).ok().flatten() else {
            return false;
        };
        let id = self.look_up(host, &name);
        stream.cluster = Some(id);
        let clusters = self.clusters.borrow();
        let Some(cluster) = clusters.get(id) else {
            return false;
        };
        let is_expected = cluster.is_marked_tcp
            || Pattern::any(&self.config.tcp_clusters, &name)
            || self.is_endpoint_expected(host);
        if is_expected && !cluster.is_sent_to {
            self.counters.count(Counter::ExternalSkipped);
        }
        is_expected && cluster.is_sent_to
    }

    fn is_endpoint_expected(&self, host: &impl Host) -> bool {
        let marked = host.property(Property::EndpointTcp).ok().flatten();
        if marked.as_deref() == Some(&[1]) {
            return true;
        }
        let patterns = &self.config.tcp_endpoints;
        !patterns.is_empty()
            && upstream_address(host).is_some_and(|address| Pattern::any(patterns, &address))
    }

    /// Puts the own frame ahead of the bytes of a direction. Returns whether it is sent.
    fn send(&self, host: &impl TcpHost, data: Data) -> bool {
        self.config.mode == Mode::Exchange
            && !self.frame.is_empty()
            && host.replace_data(data, 0, &self.frame).is_ok()
    }

    /// Names a callee that sent no frame, from other sources.
    fn settle_callee(&self, connection: &mut Connection, host: &impl Host, direction: Direction) {
        if direction != Direction::Inbound && !connection.is_callee_settled {
            connection.is_callee_settled = true;
            self.complete(&connection.stream, host, direction);
        }
    }

    /// Names a caller that sent no frame, from its certificate.
    fn settle_caller(&self, connection: &mut Connection, host: &impl Host, direction: Direction) {
        if direction != Direction::Outbound && !connection.is_caller_settled {
            connection.is_caller_settled = true;
            self.name_caller_by_certificate(host);
        }
    }

    fn hold(&self, connection: &Connection) {
        if connection.is_held.replace(true) {
            return;
        }
        let held = &mut *self.held.borrow_mut();
        held.connections.push_back(Held {
            id: connection.id,
            until: held.ticks.saturating_add(MAX_HELD_TICKS),
            is_waiting: Rc::clone(&connection.is_held),
        });
    }
}
