//! Which clusters lie outside the mesh and are told nothing.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Deref;

use hashbrown::HashTable;

use crate::bytes::{equal, quick_hash};
use crate::cache::{Place, insert_place};
use crate::pattern::Pattern;
use crate::peer::wire::{self, Fields};

/// Istio's name for traffic to addresses that it does not know.
const PASSTHROUGH: &[u8] = b"PassthroughCluster";

/// Clusters whose answer is kept. Their names come from the operator, so this
/// bounds mistakes, not attacks.
const MAX_KNOWN: usize = 4096;

/// Decides by the name and the metadata of a cluster whether it is told about
/// the local node.
#[derive(Debug)]
pub struct Clusters {
    skip_external: bool,
    external_names: Vec<Pattern>,
    known: Vec<Known>,
    /// Places in `known`, by the hash of the name.
    index: HashTable<Place>,
    /// The place of the cluster before, which is often that of the next, too.
    latest: Place,
}

/// A cluster that was decided about.
#[derive(Debug)]
struct Known {
    name: Box<[u8]>,
    is_told: bool,
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
        }
    }

    /// Whether `cluster` is told; asks for its `metadata`, a serialised
    /// `envoy.config.core.v3.Metadata`, only where it is not known yet.
    pub fn is_told<B: Deref<Target = [u8]>>(
        &mut self,
        cluster: &[u8],
        metadata: impl FnOnce() -> Option<B>,
    ) -> bool {
        let is_it = |place: Place| {
            self.known
                .get(place as usize)
                .is_some_and(|known: &Known| equal(&known.name, cluster))
        };
        if !is_it(self.latest) {
            let hash = quick_hash(cluster);
            self.latest = match self.index.find(hash, |&place| is_it(place)) {
                Some(&place) => place,
                None => self.decide(cluster, hash, metadata().as_deref().unwrap_or_default()),
            };
        }
        self.known
            .get(self.latest as usize)
            .is_some_and(|known| known.is_told)
    }

    /// Decides about a cluster and returns its place.
    #[cold]
    fn decide(&mut self, cluster: &[u8], hash: u64, metadata: &[u8]) -> Place {
        let istio = IstioMetadata::of(metadata);
        let is_external = istio.external || cluster == PASSTHROUGH || self.is_named(cluster);
        let is_told = !(istio.disable_mx || self.skip_external && is_external);
        if self.known.len() >= MAX_KNOWN {
            self.forget();
        }
        let name = cluster.into();
        // Never the default: there are at most `MAX_KNOWN`.
        let place = Place::try_from(self.known.len()).unwrap_or_default();
        self.known.push(Known { name, is_told });
        let known = &self.known;
        insert_place(&mut self.index, hash, place, &|place| {
            let known = known.get(place as usize);
            known.map_or(0, |known| quick_hash(&known.name))
        });
        place
    }

    /// Forgets what is known, so that a cluster that was replaced by one of the
    /// same name is seen.
    pub fn forget(&mut self) {
        self.known.clear();
        self.index.clear();
    }

    fn is_named(&self, cluster: &[u8]) -> bool {
        core::str::from_utf8(cluster)
            .is_ok_and(|cluster| self.external_names.iter().any(|name| name.matches(cluster)))
    }
}

/// What Istio's control plane says in the `istio` metadata of a cluster.
#[derive(Debug, Default, PartialEq, Eq)]
struct IstioMetadata {
    /// `external`: the endpoints are outside the mesh.
    external: bool,
    /// `disable_mx`: metadata must not be exchanged, as over HBONE.
    disable_mx: bool,
}

impl IstioMetadata {
    /// Reads `filter_metadata["istio"]`; what is malformed says nothing.
    fn of(metadata: &[u8]) -> Self {
        let mut istio = Self::default();
        let mut entries = Fields::of(metadata);
        while let Ok(Some(entry)) = entries.next_bytes(1) {
            for (key, is_set) in wire::bools_of_entry(entry, b"istio") {
                match key {
                    b"external" => istio.external = is_set,
                    b"disable_mx" => istio.disable_mx = is_set,
                    _ => {}
                }
            }
        }
        istio
    }
}
