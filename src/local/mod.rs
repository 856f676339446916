//! The local node: read once from Envoy, encoded once, sent with every exchange.

use std::fmt;

use crate::peer::header::{self, Limits};
use crate::peer::{Field, Peer, RejectReason, Value, flat, names_service};

pub mod identity;
mod node;
pub mod service;
pub mod share;

pub use node::{Locality, Node};
use service::Service;
use share::Share;

/// What this proxy sends about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNode {
    /// `node.id`; `None` sends no id.
    pub id: Option<String>,
    /// The value of `x-envoy-peer-metadata`; `None` sends no metadata.
    pub header: Option<String>,
    /// The whole node as `FlatNode`, for entries that name both sides; `None` if it does not
    /// describe its workload.
    pub flat: Option<Vec<u8>>,
    /// The role of this proxy.
    pub role: Role,
}

/// The role of a proxy by the bootstrap's node id, in Istio's form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// `router~`: a gateway.
    Router,
    /// `waypoint~`, of whose listeners some are inbound.
    Waypoint,
    /// Any other.
    #[default]
    Other,
}

impl Role {
    /// The role in `id`.
    #[must_use]
    pub fn of(id: &[u8]) -> Self {
        if id.starts_with(b"router~") {
            Self::Router
        } else if id.starts_with(b"waypoint~") {
            Self::Waypoint
        } else {
            Self::Other
        }
    }
}

/// A note about a node that is not sent unchanged, logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The value of this key is left out: not a text, number or bool, or a text that peers would
    /// refuse.
    LeftOut {
        /// The key, with its map for an entry of a map: `LABELS.app`.
        key: String,
    },
    /// A name, or a label that would name the service, is a number or bool: it is sent as text, but
    /// `SkyWalking` does not use it to name this node.
    NoText {
        /// The key, such as `NAME` or `LABELS.app`.
        key: String,
    },
    /// The node has neither `NAME` nor `WORKLOAD_NAME`, nor a label that names a service: peers
    /// store nothing that a reader could show.
    Nameless,
    /// The sent metadata name another service than the node does: `SkyWalking` draws two.
    OtherService {
        /// The service that the node names.
        node: Service,
        /// The service that the sent metadata name.
        sent: Service,
    },
    /// The sources of a value in the configuration's `node` give nothing on this proxy.
    Absent {
        /// The key in `node`: `NAME` or `LABELS.app`.
        key: String,
        /// The value as the configuration has it.
        template: String,
    },
    /// Neither the id nor `NAME` has a source that differs between proxies.
    SameEverywhere,
    /// The id is left out because peers would refuse it.
    BadId(RejectReason),
    /// The metadata is not a `google.protobuf.Struct`.
    BadMetadata(RejectReason),
    /// Values were left out because the header was longer than `max_sent_bytes`, or because peers
    /// would not accept as many entries.
    TooLong {
        /// What was left out, in that order.
        left_out: Vec<&'static str>,
        /// Bytes allowed.
        max: usize,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftOut { key } => write!(
                f,
                "node metadata {key:?} is left out: it is neither a text without control \
                 characters, a number nor a bool"
            ),
            Self::NoText { key } => write!(
                f,
                "node metadata {key:?} is not a text: SkyWalking does not name this node by it; \
                 quote it"
            ),
            Self::Nameless => f.write_str(
                "node metadata has neither NAME nor WORKLOAD_NAME, nor a label that names a \
                 service: set them, because peers cannot name this proxy",
            ),
            Self::OtherService { node, sent } => write!(
                f,
                "this node is the service {node}, but share and max_sent_bytes make it send \
                 {sent}: SkyWalking draws two services; send NAMESPACE and the label that names the \
                 service"
            ),
            Self::Absent { key, template } => write!(
                f,
                "node: {key:?} is {template:?}, of which nothing is set on this proxy: the \
                 bootstrap's value is used, if it has one; an empty default, as in \
                 ${{env:X:-}}, says that it may be absent"
            ),
            Self::SameEverywhere => f.write_str(
                "node: neither id nor NAME has a source that differs between proxies, such as \
                 ${env:POD_NAME}: proxies with the same metadata take each other for themselves, \
                 and ignore each other",
            ),
            Self::BadId(reason) => write!(f, "node id is left out: {reason}"),
            Self::BadMetadata(reason) => write!(f, "node metadata is left out: {reason}"),
            Self::TooLong { left_out, max } => write!(
                f,
                "node metadata is longer than max_sent_bytes {max}, or has more than the {} entries \
                 that peers accept: left out {}",
                Limits::DEFAULT.max_labels,
                left_out.join(", ")
            ),
        }
    }
}

impl LocalNode {
    /// Encodes the shared part of `node`, in at most `max_sent_bytes`.
    #[must_use]
    pub fn new(node: &Node, share: &Share, max_sent_bytes: usize, notes: &mut Vec<Note>) -> Self {
        let id = match header::id(&node.id, Limits::DEFAULT) {
            Ok("") => None,
            Ok(id) => Some(id.to_owned()),
            Err(reason) => {
                notes.push(Note::BadId(reason));
                None
            }
        };
        let (named, mut peer) = node.read(notes);
        if !peer.names_workload() {
            notes.push(Note::Nameless);
        }
        let flat = (!peer.is_empty()).then(|| flat::write(&peer));
        share.apply(&mut peer);
        let header = fit(&mut peer, max_sent_bytes, notes);
        let sent = Service::of_peer(&peer);
        // A node without a name has neither form.
        if header.is_some() && named.name.is_some() && named != sent {
            notes.push(Note::OtherService { node: named, sent });
        }
        Self {
            id,
            header,
            flat,
            role: Role::of(&node.id),
        }
    }
}

/// How many entries a receiver counts in `field`.
fn entries(peer: &Peer, field: Field) -> usize {
    match peer.value(field) {
        Some(Value::Map(map)) => map.len(),
        Some(Value::Text(names)) => names.split(',').count(),
        None => 0,
    }
}

/// The header's value for `peer`, from which fields are removed if it is too long or has more
/// entries than receivers accept.
fn fit(peer: &mut Peer, max_sent_bytes: usize, notes: &mut Vec<Note>) -> Option<String> {
    // The fields that identify a workload least go first.
    const DISPENSABLE: [Field; 4] = [
        Field::Labels,
        Field::PlatformMetadata,
        Field::AppContainers,
        Field::InstanceIps,
    ];
    if peer.is_empty() {
        return None;
    }
    let mut left_out = Vec::new();
    let mut header = header::encode(peer);
    for field in DISPENSABLE {
        let has_too_many = entries(peer, field) > Limits::DEFAULT.max_labels;
        if header.len() <= max_sent_bytes && !has_too_many {
            continue;
        }
        let before = peer.clone();
        let what = if field == Field::Labels {
            peer.retain_labels(names_service);
            "labels that do not name a service"
        } else {
            peer.clear(field);
            field.key()
        };
        if *peer != before {
            left_out.push(what);
            header = header::encode(peer);
        }
    }
    let fits = header.len() <= max_sent_bytes && !peer.is_empty();
    if !fits && !peer.is_empty() {
        left_out.push("all other metadata");
    }
    if !left_out.is_empty() {
        let max = max_sent_bytes;
        notes.push(Note::TooLong { left_out, max });
    }
    fits.then_some(header)
}
