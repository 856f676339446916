//! What is known of clusters: which are outside the mesh and are sent nothing,
//! and the service of each.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::ops::Deref;

use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustc_hash::FxBuildHasher;

use super::service;
use crate::bytes::equal;
use crate::cache::Service;
use crate::pattern::Pattern;
use crate::peer::{Peer, flat, text};
use crate::standard_metrics;

/// Istio's name for traffic to addresses that it does not know.
const PASSTHROUGH: &[u8] = b"PassthroughCluster";

/// How Kuma's names for such traffic begin: `outbound:passthrough:ipv4`.
const KUMAS_PASSTHROUGH: &[u8] = b"outbound:passthrough:";

/// Whether a cluster of this name leads to addresses that the control plane does not know.
#[must_use]
pub fn is_passthrough(name: &[u8]) -> bool {
    name == PASSTHROUGH || name.starts_with(KUMAS_PASSTHROUGH)
}

/// The most clusters that are kept. Their names come from the operator, so this
/// bounds mistakes, not attacks.
const MAX_KNOWN: usize = 4096;

/// Decides by a cluster's name and metadata whether the local node is sent to
/// it, and remembers which service answers in it.
#[derive(Debug)]
pub struct Clusters {
    skip_external: bool,
    external_names: Vec<Pattern>,
    known: Vec<Cluster>,
    /// Indices of `known`, by the hash of the name. If two names collide, the
    /// later one is found.
    index: HashMap<u64, usize, FxBuildHasher>,
    /// How often all clusters were forgotten, which invalidates older indices.
    generation: u32,
}

/// A handle to a cluster that was looked up, valid while it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId {
    generation: u32,
    index: usize,
}

/// What is known of a cluster.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // Each is a decision of its own.
pub struct Cluster {
    name: Box<[u8]>,
    /// Whether its metadata were read since [`Clusters::refresh`].
    is_fresh: bool,
    /// Whether the local node is sent to it.
    pub is_sent_to: bool,
    /// Whether it lies outside the mesh, sent to or not.
    pub is_external: bool,
    /// Whether its metadata mark it as one that exchanges frames over TCP.
    pub is_marked_tcp: bool,
    /// Its service, or its host if it is external, from its metadata, as a
    /// `FlatNode`.
    pub service: Option<Vec<u8>>,
    /// The first service in its metadata, see [`standard_metrics::of_service`].
    pub destination: Option<String>,
    answered: Answered,
}

/// The service of the callees that answered in a cluster.
#[derive(Debug, Default)]
enum Answered {
    #[default]
    Nobody,
    /// All belonged to this service.
    One(Service),
    /// There were several services, or a callee that named its workload but no
    /// service.
    Several,
}

impl Cluster {
    fn new(name: &[u8]) -> Self {
        Self {
            name: name.into(),
            is_fresh: false,
            is_sent_to: false,
            is_external: false,
            is_marked_tcp: false,
            service: None,
            destination: None,
            answered: Answered::Nobody,
        }
    }

    /// The service of all callees that answered, if it is the same, as a
    /// `FlatNode`.
    #[must_use]
    pub fn known_service(&self) -> Option<&[u8]> {
        match &self.answered {
            Answered::One(service) if !self.is_external => Some(&service.flat),
            _ => None,
        }
    }

    /// Whether an answer of `service` is nothing new.
    fn is_settled(&self, service: Option<&Service>) -> bool {
        match &self.answered {
            _ if self.is_external => true,
            Answered::Several => true,
            Answered::One(known) => {
                service.is_some_and(|service| equal(&known.name, &service.name))
            }
            Answered::Nobody => false,
        }
    }
}

impl Clusters {
    /// With `skip_external`, sends nothing to clusters outside the mesh: those
    /// whose metadata says so, and those in `external_names`.
    #[must_use]
    pub fn new(skip_external: bool, external_names: Vec<Pattern>) -> Self {
        Self {
            skip_external,
            external_names,
            known: Vec::new(),
            index: HashMap::default(),
            generation: 0,
        }
    }

    /// Finds `cluster`; asks for its `metadata`, a serialized
    /// `envoy.config.core.v3.Metadata`, only where they are not known yet.
    pub fn look_up<B: Deref<Target = [u8]>>(
        &mut self,
        cluster: &[u8],
        metadata: impl FnOnce() -> Option<B>,
    ) -> ClusterId {
        let hash = self.index.hasher().hash_one(cluster);
        let index = self.index.get(&hash).copied();
        let is_known = |index: &usize| {
            let known = self.known.get(*index);
            known.is_some_and(|known| equal(&known.name, cluster))
        };
        let index = match index.filter(is_known) {
            Some(index) => index,
            None => self.insert(hash, cluster),
        };
        let known = self.known.get(index);
        if !known.is_some_and(|known| known.is_fresh) {
            self.decide(index, metadata().as_deref().unwrap_or_default());
        }
        ClusterId {
            generation: self.generation,
            index,
        }
    }

    /// What is known of a cluster; `None` if it was forgotten.
    #[must_use]
    pub fn get(&self, id: ClusterId) -> Option<&Cluster> {
        let is_valid = id.generation == self.generation;
        self.known.get(id.index).filter(|_| is_valid)
    }

    /// Whether an answer of `service` in that cluster is nothing new.
    #[must_use]
    pub fn is_settled(&self, id: ClusterId, service: Option<&Service>) -> bool {
        let cluster = self.get(id);
        cluster.is_some_and(|cluster| cluster.is_settled(service))
    }

    /// Remembers that a callee of `service` answered in that cluster.
    pub fn remember(&mut self, id: ClusterId, service: Option<&Service>) {
        let is_valid = id.generation == self.generation;
        let cluster = self.known.get_mut(id.index);
        let Some(cluster) = cluster.filter(|_| is_valid) else {
            return;
        };
        if cluster.is_settled(service) {
            return;
        }
        cluster.answered = match (&cluster.answered, service) {
            (Answered::Nobody, Some(service)) => Answered::One(service.clone()),
            _ => Answered::Several,
        };
    }

    /// Adds a cluster and returns its index.
    fn insert(&mut self, hash: u64, name: &[u8]) -> usize {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
            self.index.clear();
            self.generation = self.generation.wrapping_add(1);
        }
        let index = self.known.len();
        self.known.push(Cluster::new(name));
        self.index.insert(hash, index);
        index
    }

    /// Decides about the cluster of that index.
    fn decide(&mut self, index: usize, metadata: &[u8]) {
        let metadata = Metadata::decode(metadata).unwrap_or_default();
        let istio = IstioMetadata(metadata.of_filter("istio"));
        let own = metadata.of_filter("metadata_exchange");
        let name = self.known.get(index);
        let name = name.map(|known| &*known.name).unwrap_or_default();
        let is_external = istio.is_set("external")
            || is_passthrough(name)
            || Pattern::any(&self.external_names, name);
        let is_skipped = istio.is_set("disable_mx") || self.skip_external && is_external;
        if let Some(known) = self.known.get_mut(index) {
            known.is_fresh = true;
            known.is_sent_to = !is_skipped;
            known.is_external = is_external;
            known.is_marked_tcp = kind(own, "tcp") == Some(&Kind::BoolValue(true));
            let service = istio.service(is_external);
            known.service = service.map(|service| flat::write(&service));
            known.destination = istio.destination();
        }
    }

    /// Makes metadata be read again, to notice a cluster that was replaced by
    /// one of the same name. The services that answered stay known.
    pub fn refresh(&mut self) {
        for known in &mut self.known {
            known.is_fresh = false;
        }
    }
}

/// `envoy.config.core.v3.Metadata`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(message, repeated, tag = "1")]
    filter_metadata: Vec<FilterMetadata>,
}

/// An entry of the map `filter_metadata`.
#[derive(Clone, PartialEq, Message)]
struct FilterMetadata {
    #[prost(string, tag = "1")]
    filter: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Struct>,
}

impl Metadata {
    /// The metadata of `filter`; of repeated ones the last, as protobuf requires.
    pub(super) fn of_filter(&self, filter: &str) -> Option<&Struct> {
        let mut filters = self.filter_metadata.iter().rev();
        filters
            .find(|entry| entry.filter == filter)?
            .metadata
            .as_ref()
    }
}

/// Istio's metadata of a cluster, `filter_metadata["istio"]`; malformed
/// metadata is ignored.
struct IstioMetadata<'m>(Option<&'m Struct>);

impl IstioMetadata<'_> {
    /// `external`: the endpoints are outside the mesh. `disable_mx`: metadata must not be exchanged, for example over HBONE.
    fn is_set(&self, key: &str) -> bool {
        kind(self.0, key) == Some(&Kind::BoolValue(true))
    }

    fn services(&self) -> &[Value] {
        match kind(self.0, "services") {
            Some(Kind::ListValue(services)) => &services.values,
            _ => &[],
        }
    }

    /// The single service in `services`, or only its host if it `is_external`.
    /// If there are several, the callee may be any of them.
    fn service(&self, is_external: bool) -> Option<Peer> {
        let [entry] = self.services() else {
            return None;
        };
        let name_of = |key| {
            let name = text_of(entry, key).filter(|name| !name.is_empty());
            name.filter(|name| !text::has_control_character(name))
        };
        if is_external {
            name_of("host").map(service::external)
        } else {
            Some(service::peer(name_of("name")?, name_of("namespace")?))
        }
    }

    /// The first service in `services`, by whatever part it has.
    fn destination(&self) -> Option<String> {
        let entry = self.services().first()?;
        let part = |key| text_of(entry, key).unwrap_or_default();
        matches!(entry.kind, Some(Kind::StructValue(_)))
            .then(|| standard_metrics::of_service(part("host"), part("name"), part("namespace")))
    }
}

/// The text under `key` in an object.
fn text_of<'m>(object: &'m Value, key: &str) -> Option<&'m str> {
    let Some(Kind::StructValue(object)) = &object.kind else {
        return None;
    };
    match kind(Some(object), key) {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn kind<'m>(message: Option<&'m Struct>, key: &str) -> Option<&'m Kind> {
    message?.fields.get(key)?.kind.as_ref()
}
