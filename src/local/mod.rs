//! The node that this proxy is: read once from Envoy, encoded once, sent with
//! every exchange.

use std::fmt;

use crate::peer::header::{self, Limits};
use crate::peer::{Field, Peer, RejectReason, Value, flat, names_service};

mod node;
pub mod service;
pub mod share;

pub use node::Node;
use service::Service;
use share::Share;

/// What this proxy says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNode {
    /// `node.id`; `None` sends no id.
    pub id: Option<String>,
    /// The value of `x-envoy-peer-metadata`; `None` sends no metadata.
    pub header: Option<String>,
    /// The whole node as `FlatNode`, for entries that name both sides; `None`
    /// if it says nothing about its workload.
    pub flat: Option<Vec<u8>>,
}

/// What is said, once, about a node that is not sent as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The value of this key is left out: no text, number or bool, or a text
    /// that peers would refuse.
    LeftOut {
        /// The key, of a map's entry with its map: `LABELS.app`.
        key: String,
    },
    /// A name, or a label that would name the service, is a number or bool: it is sent
    /// as a text, but `SkyWalking` does not take it for the name of this node.
    NoText {
        /// The key, as `NAME` or `LABELS.app`.
        key: String,
    },
    /// The node states neither `NAME` nor `WORKLOAD_NAME`, nor a label that names a
    /// service: peers store nothing that a reader could show.
    Nameless,
    /// What is sent names another service than the node does: `SkyWalking` draws
    /// two.
    OtherService {
        /// By the node.
        own: Service,
        /// By what is sent.
        sent: Service,
    },
    /// The id is left out, for peers would refuse it.
    BadId(RejectReason),
    /// Not a `google.protobuf.Struct`.
    BadMetadata(RejectReason),
    /// Left out because the header was longer than `max_sent_bytes`, or because
    /// it is more than peers accept.
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
                "node metadata {key:?} is left out: neither a text without control characters, \
                 a number nor a bool"
            ),
            Self::NoText { key } => write!(
                f,
                "node metadata {key:?} is no text: SkyWalking does not name this node by it; quote it"
            ),
            Self::Nameless => f.write_str(
                "node metadata has neither NAME nor WORKLOAD_NAME, nor a label that names a service: \
                 set them, for peers cannot name this proxy",
            ),
            Self::OtherService { own, sent } => write!(
                f,
                "this node is the service {own}, and what share and max_sent_bytes let it send is \
                 {sent}: SkyWalking draws two services; send NAMESPACE and the label that names the \
                 service"
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
    /// Encodes what of `node` is shared, in at most `max_sent_bytes`.
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
        let (own, mut peer) = node.read(notes);
        if !peer.names_workload() {
            notes.push(Note::Nameless);
        }
        let flat = (!peer.is_empty()).then(|| flat::write(&peer));
        share.apply(&mut peer);
        let header = fit(&mut peer, max_sent_bytes, notes);
        let sent = Service::of_peer(&peer);
        // A node without name is none in either form.
        if header.is_some() && own.name.is_some() && own != sent {
            notes.push(Note::OtherService { own, sent });
        }
        Self { id, header, flat }
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

/// The header's value for `peer`, which loses what makes it too long, or is more
/// than receivers accept.
fn fit(peer: &mut Peer, max_sent_bytes: usize, notes: &mut Vec<Note>) -> Option<String> {
    // What identifies a workload least goes first.
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
