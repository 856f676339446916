//! What is known of clusters: which lie outside the mesh and are told nothing,
//! and which service each stands for.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Deref;

use hashbrown::HashTable;

use super::service;
use crate::bytes::{equal, quick_hash};
use crate::cache::{Place, Service, insert_place};
use crate::pattern::Pattern;
use crate::peer::wire::{self, Simple};
use crate::peer::{Peer, Text, flat};

/// Istio's name for traffic to addresses that it does not know.
const PASSTHROUGH: &[u8] = b"PassthroughCluster";

/// Clusters whose answer is kept. Their names come from the operator, so this
/// bounds mistakes, not attacks.
const MAX_KNOWN: usize = 4096;

/// Decides by the name and the metadata of a cluster whether it is told about
/// the local node, and remembers which service answers in it.
#[derive(Debug)]
pub struct Clusters {
    skip_external: bool,
    external_names: Vec<Pattern>,
    known: Vec<Cluster>,
    /// Places in `known`, by the hash of the name.
    index: HashTable<Place>,
    /// The place of the cluster before, which is often that of the next, too.
    latest: Place,
    /// Counts how often all were forgotten, so that no place outlives it.
    generation: u32,
}

/// A cluster that was looked up, for as long as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId {
    generation: u32,
    place: Place,
}

/// What is known of a cluster.
#[derive(Debug)]
pub struct Cluster {
    name: Box<[u8]>,
    /// Whether its metadata were looked at since [`Clusters::refresh`].
    is_fresh: bool,
    /// Whether it is told about the local node.
    pub is_told: bool,
    /// Whether it lies outside the mesh, told or not.
    pub is_external: bool,
    /// Its service, or its host where it is external, by its metadata: a
    /// `FlatNode`.
    pub service: Option<Box<[u8]>>,
    answered: Answered,
}

/// Of which service those were that answered in a cluster.
#[derive(Debug, Default)]
enum Answered {
    #[default]
    Nobody,
    /// All were of this one.
    One(Service),
    /// Of several, or one of them named its workload and not its service.
    Several,
}

impl Cluster {
    /// The service of all that answered, if it is one: a `FlatNode`.
    #[must_use]
    pub fn known_service(&self) -> Option<&[u8]> {
        match &self.answered {
            Answered::One(service) if !self.is_external => Some(&service.flat),
            _ => None,
        }
    }

    /// Whether an answer of `service` changes nothing.
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
    /// Tells clusters outside the mesh nothing, if `skip_external`. They are those
    /// that say so in their metadata, and those of `external_names`.
    #[must_use]
    pub fn new(skip_external: bool, external_names: Vec<Pattern>) -> Self {
        Self {
            skip_external,
            external_names,
            known: Vec::new(),
            index: HashTable::new(),
            latest: 0,
            generation: 0,
        }
    }

    /// Finds `cluster`; asks for its `metadata`, a serialised
    /// `envoy.config.core.v3.Metadata`, only where they are not known yet.
    pub fn look_up<B: Deref<Target = [u8]>>(
        &mut self,
        cluster: &[u8],
        metadata: impl FnOnce() -> Option<B>,
    ) -> ClusterId {
        let find = |known: &[Cluster], place: Place| {
            let cluster_there = known.get(place as usize);
            cluster_there.is_some_and(|known| equal(&known.name, cluster))
        };
        if !find(&self.known, self.latest) {
            let hash = quick_hash(cluster);
            let place = self.index.find(hash, |&place| find(&self.known, place));
            self.latest = match place {
                Some(&place) => place,
                None => self.insert(cluster, hash),
            };
        }
        let is_fresh = self.known.get(self.latest as usize);
        if !is_fresh.is_some_and(|known| known.is_fresh) {
            self.decide(metadata().as_deref().unwrap_or_default());
        }
        ClusterId {
            generation: self.generation,
            place: self.latest,
        }
    }

    /// What is known of a cluster; `None` if that was forgotten.
    #[must_use]
    pub fn get(&self, id: ClusterId) -> Option<&Cluster> {
        let is_valid = id.generation == self.generation;
        self.known.get(id.place as usize).filter(|_| is_valid)
    }

    /// Whether an answer of `service` in that cluster is nothing new.
    #[inline(always)] // On the way of every answer.
    #[must_use]
    pub fn is_settled(&self, id: ClusterId, service: Option<&Service>) -> bool {
        let cluster = self.get(id);
        cluster.is_some_and(|cluster| cluster.is_settled(service))
    }

    /// Remembers that a callee of that cluster answered who is of `service`.
    #[cold]
    pub fn remember(&mut self, id: ClusterId, service: Option<&Service>) {
        let is_valid = id.generation == self.generation;
        let cluster = self.known.get_mut(id.place as usize);
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

    /// Makes room for a cluster and returns its place.
    #[cold]
    fn insert(&mut self, cluster: &[u8], hash: u64) -> Place {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
            self.index.clear();
            self.generation = self.generation.wrapping_add(1);
        }
        // Never the default: there are at most `MAX_KNOWN`.
        let place = Place::try_from(self.known.len()).unwrap_or_default();
        self.known.push(Cluster {
            name: cluster.into(),
            is_fresh: false,
            is_told: false,
            is_external: false,
            service: None,
            answered: Answered::Nobody,
        });
        let known = &self.known;
        insert_place(&mut self.index, hash, place, &|place| {
            let known = known.get(place as usize);
            known.map_or(0, |known| quick_hash(&known.name))
        });
        place
    }

    /// Decides about the latest cluster.
    #[cold]
    fn decide(&mut self, metadata: &[u8]) {
        let istio = IstioMetadata::of(metadata);
        let name = self.known.get(self.latest as usize);
        let name = name.map(|known| &*known.name).unwrap_or_default();
        let is_external = istio.external || name == PASSTHROUGH || self.is_named(name);
        let is_told = !(istio.disable_mx || self.skip_external && is_external);
        if let Some(known) = self.known.get_mut(self.latest as usize) {
            known.is_fresh = true;
            known.is_told = is_told;
            known.is_external = is_external;
            let service = istio.service(is_external);
            known.service = service.map(|service| flat::write(&service).into_boxed_slice());
        }
    }

    /// Has metadata looked at anew, so that a cluster that was replaced by one of
    /// the same name is seen. Who answered stays known.
    pub fn refresh(&mut self) {
        for known in &mut self.known {
            known.is_fresh = false;
        }
    }

    fn is_named(&self, cluster: &[u8]) -> bool {
        core::str::from_utf8(cluster)
            .is_ok_and(|cluster| self.external_names.iter().any(|name| name.matches(cluster)))
    }
}

/// What Istio's control plane says in the `istio` metadata of a cluster.
#[derive(Debug, Default, PartialEq, Eq)]
struct IstioMetadata<'a> {
    /// `external`: the endpoints are outside the mesh.
    external: bool,
    /// `disable_mx`: metadata must not be exchanged, as over HBONE.
    disable_mx: bool,
    /// `services`: those that the cluster stands for.
    services: Services<'a>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Services<'a> {
    #[default]
    None,
    One(ServiceEntry<'a>),
    Several,
}

/// An entry of `services`; empty is absent.
#[derive(Debug, Default, PartialEq, Eq)]
struct ServiceEntry<'a> {
    host: &'a [u8],
    name: &'a [u8],
    namespace: &'a [u8],
}

impl<'a> IstioMetadata<'a> {
    /// Reads `filter_metadata["istio"]`; what is malformed says nothing.
    fn of(metadata: &'a [u8]) -> Self {
        let mut istio = Self::default();
        let structs = wire::filter_metadata(metadata, b"istio");
        for (key, value) in structs.flat_map(wire::entries_of_struct) {
            match (key, value) {
                (b"external", Simple::Bool(is_set)) => istio.external = is_set,
                (b"disable_mx", Simple::Bool(is_set)) => istio.disable_mx = is_set,
                (b"services", Simple::List(list)) => istio.services = Services::of(list),
                _ => {}
            }
        }
        istio
    }

    /// The one service, or its host alone if it `is_external`. Of several the
    /// callee may be any.
    fn service(&self, is_external: bool) -> Option<Peer<'a>> {
        let Services::One(entry) = &self.services else {
            return None;
        };
        let text = |bytes| {
            let text = Text::checked(bytes).ok();
            text.filter(|text| !text.is_empty())
        };
        if is_external {
            text(entry.host).map(service::external)
        } else {
            Some(service::peer(text(entry.name)?, text(entry.namespace)?))
        }
    }
}

impl<'a> Services<'a> {
    fn of(list: &'a [u8]) -> Self {
        let mut values = wire::values_of_list(list);
        match (values.next(), values.next()) {
            (Some(Simple::Struct(entry)), None) => Self::One(ServiceEntry::of(entry)),
            (Some(_), Some(_)) => Self::Several,
            _ => Self::None,
        }
    }
}

impl<'a> ServiceEntry<'a> {
    fn of(message: &'a [u8]) -> Self {
        let mut entry = Self::default();
        for (key, value) in wire::entries_of_struct(message) {
            match (key, value) {
                (b"host", Simple::Text(text)) => entry.host = text,
                (b"name", Simple::Text(text)) => entry.name = text,
                (b"namespace", Simple::Text(text)) => entry.namespace = text,
                _ => {}
            }
        }
        entry
    }
}
