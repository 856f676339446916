//! Envoy's node.

use prost::Message;
use prost_types::Struct;

use super::Note;
use super::service::{self, Service};
use crate::peer::wire::{self, Unusable};
use crate::peer::{Peer, RejectReason};

/// The parts of `envoy.config.core.v3.Node` that are sent, or that the configuration may name. A
/// real node has 60 KB, mostly extensions, which are skipped. Texts are raw bytes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Node {
    /// `id`
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// `cluster`
    #[prost(bytes = "vec", tag = "2")]
    pub cluster: Vec<u8>,
    /// `metadata`, a serialized `google.protobuf.Struct`.
    #[prost(bytes = "vec", tag = "3")]
    pub metadata: Vec<u8>,
    /// `locality`
    #[prost(message, optional, tag = "4")]
    pub locality: Option<Locality>,
}

/// `envoy.config.core.v3.Locality`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Locality {
    /// `region`
    #[prost(bytes = "vec", tag = "1")]
    pub region: Vec<u8>,
    /// `zone`
    #[prost(bytes = "vec", tag = "2")]
    pub zone: Vec<u8>,
    /// `sub_zone`
    #[prost(bytes = "vec", tag = "3")]
    pub sub_zone: Vec<u8>,
}

impl Node {
    /// Decodes a serialized node; empty if it is malformed.
    #[must_use]
    pub fn from_message(message: &[u8]) -> Self {
        Self::decode(message).unwrap_or_default()
    }

    /// The peer for this node. Keys may have any case, and `SERVICE` becomes a label. Values that
    /// cannot be sent are left out and noted; their neighbours stay.
    #[must_use]
    pub fn peer(&self, notes: &mut Vec<Note>) -> Peer {
        self.read(notes).1
    }

    /// The decoded `metadata`; empty, and noted, if they are malformed.
    pub(super) fn metadata(&self, notes: &mut Vec<Note>) -> Struct {
        Struct::decode(self.metadata.as_slice()).unwrap_or_else(|_| {
            notes.push(Note::BadMetadata(RejectReason::Protobuf));
            Struct::default()
        })
    }

    /// The service of this node for `SkyWalking`, and its [`peer`](Self::peer).
    pub(super) fn read(&self, notes: &mut Vec<Note>) -> (Service, Peer) {
        let mut metadata = self.metadata(notes);
        let service = Service::of_node(&metadata);
        service::settle(&mut metadata, notes);
        let peer = wire::read(metadata, usize::MAX, &mut |unusable| {
            note(notes, unusable);
            Ok(())
        });
        let peer = peer.unwrap_or_else(|reason| {
            notes.push(Note::BadMetadata(reason));
            Peer::default()
        });
        (service, peer)
    }
}

fn note(notes: &mut Vec<Note>, Unusable { field, key, .. }: Unusable<'_>) {
    let key = match key {
        Some(key) => format!("{}.{key}", field.key()),
        None => field.key().to_owned(),
    };
    let note = Note::LeftOut { key };
    // A list notes each of its values.
    if notes.last() != Some(&note) {
        notes.push(note);
    }
}
