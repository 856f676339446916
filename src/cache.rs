//! The bounded cache of decoded peers.
//!
//! Every request carries a peer, which rarely changes, so decoded peers are kept, and the least
//! recently used is evicted first. A hit requires id *and* value to be equal byte for byte: the
//! hash only finds the candidate. Thus no peer can impersonate another by its id, and changed
//! metadata under a known id is noticed at once.
//!
//! The hash covers the id, and the length and the end of the value: to hash the whole value would
//! take longer than the rest of a known peer's request. It is keyed at random. Peers whose hashes
//! collide replace each other and are decoded again, as every new peer is.

use std::hash::{BuildHasher as _, RandomState};

use lru::LruCache;
use rustc_hash::FxBuildHasher;

use crate::bytes::equal;
use crate::peer::{Field, Peer, Value, flat};

/// A decoded peer in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// The peer as `FlatNode`.
    pub flat: Box<[u8]>,
    /// The fields for which its certificate has to vouch, with what it claims.
    pub claims: Box<[(Field, Box<str>)]>,
    /// The part that names its service; `None` if there is none, or if it is longer than
    /// [`Service::MAX_BYTES`].
    pub service: Option<Service>,
    /// Whether a reader could name it.
    pub names_workload: bool,
}

impl KnownPeer {
    /// The cached form of `peer`, with its claims of the fields `claimed`.
    #[must_use]
    pub fn new(peer: &Peer, claimed: &[Field], writer: &mut flat::Writer) -> Self {
        let claim = |field: &Field| match peer.value(*field) {
            Some(Value::Text(text)) => Some((*field, text.into())),
            Some(Value::Map(_)) | None => None,
        };
        Self {
            flat: writer.write(peer).into(),
            claims: claimed.iter().filter_map(claim).collect(),
            service: Service::new(peer, writer),
            names_workload: peer.names_workload(),
        }
    }
}

/// The service of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its identity: the name that readers use and its namespace, separated by NUL.
    pub name: Box<[u8]>,
    /// Its namespace and the labels that name it, as `FlatNode`.
    pub flat: Box<[u8]>,
}

impl Service {
    /// The longest [`Self::flat`] that is kept, with room for names of usual length.
    pub const MAX_BYTES: usize = 1024;

    fn new(peer: &Peer, writer: &mut flat::Writer) -> Option<Self> {
        let service = peer.service()?;
        let namespace = service.namespace.as_deref().unwrap_or_default();
        let name = [peer.service_name()?, namespace].join("\0");
        let flat = writer.write(&service);
        (flat.len() <= Self::MAX_BYTES).then(|| Self {
            name: name.into_bytes().into(),
            flat: flat.into(),
        })
    }
}

#[derive(Debug)]
struct Entry {
    id: Box<[u8]>,
    value: Box<[u8]>,
    peer: KnownPeer,
}

impl Entry {
    fn is_of(&self, id: &[u8], value: &[u8]) -> bool {
        equal(&self.value, value) && equal(&self.id, id)
    }

    /// Its memory, in bytes.
    fn size(&self) -> usize {
        /// The entry itself, its slots in the tables, and the allocator's overhead for each part.
        const OVERHEAD: usize = 256;
        let service = self.peer.service.as_ref();
        let (name, service) = service.map_or((&[][..], &[][..]), |service| {
            (&*service.name, &*service.flat)
        });
        let claims = self.peer.claims.iter().map(|(_, claim)| claim.as_bytes());
        let peer = [&self.peer.flat, name, service].into_iter().chain(claims);
        [&self.id, &self.value]
            .into_iter()
            .map(|part| &**part)
            .chain(peer)
            .fold(OVERHEAD, |size, part| size.saturating_add(part.len()))
    }
}

/// Peers by the bytes of their two headers: at most `capacity` peers, which occupy at most `budget`
/// bytes.
#[derive(Debug)]
pub struct PeerCache {
    capacity: usize,
    budget: usize,
    /// The memory of the entries.
    bytes: usize,
    /// What keys the hash.
    seed: u64,
    /// By the hash of both headers.
    entries: LruCache<u64, Entry, FxBuildHasher>,
}

/// A missing peer, with the hash of its headers.
#[derive(Debug)]
pub struct Miss(u64);

impl PeerCache {
    /// The most memory of a cache of any capacity, in bytes: about 60,000 peers of usual size.
    /// Envoy's engine has 1 GiB for a VM, which old and new caches share when the configuration
    /// changes.
    pub const BUDGET: usize = 128 << 20;

    /// A cache of at most `capacity` peers, which occupy at most `budget` bytes; a capacity of 0
    /// keeps none.
    #[must_use]
    pub fn new(capacity: u32, budget: usize) -> Self {
        Self {
            capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
            budget,
            bytes: 0,
            // Random, as the keys of std's hasher are.
            seed: RandomState::new().hash_one(()),
            entries: LruCache::unbounded_with_hasher(FxBuildHasher),
        }
    }

    /// The number of peers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Finds the peer with exactly these headers and marks it as most recently used.
    pub fn get(&mut self, id: &[u8], value: &[u8]) -> Result<&KnownPeer, Miss> {
        let hash = self.hash(id, value);
        match self.entries.get(&hash) {
            Some(entry) if entry.is_of(id, value) => Ok(&entry.peer),
            _ => Err(Miss(hash)),
        }
    }

    fn hash(&self, id: &[u8], value: &[u8]) -> u64 {
        /// With the base64 of `WORKLOAD_NAME`, the last key.
        const END_BYTES: usize = 64;
        let end = value.last_chunk::<END_BYTES>();
        let end = end.map_or(value, <[u8; END_BYTES]>::as_slice);
        FxBuildHasher.hash_one((self.seed, id, value.len(), end))
    }

    /// Inserts the peer with these headers and evicts the least recently used ones.
    pub fn insert(&mut self, Miss(hash): Miss, id: &[u8], value: &[u8], peer: KnownPeer) {
        let (id, value) = (id.into(), value.into());
        let entry = Entry { id, value, peer };
        let size = entry.size();
        if size > self.budget || self.capacity == 0 {
            return;
        }
        while self.len() >= self.capacity || self.bytes.saturating_add(size) > self.budget {
            let Some((_, oldest)) = self.entries.pop_lru() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(oldest.size());
        }
        self.bytes = self.bytes.saturating_add(size);
        if let Some(replaced) = self.entries.put(hash, entry) {
            self.bytes = self.bytes.saturating_sub(replaced.size());
        }
    }
}
