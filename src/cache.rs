//! The bounded cache of decoded peers.
//!
//! A peer is sent with every request and seldom changes, so what was made of a
//! header is kept, and the least recently used goes first. A hit needs id *and*
//! value to be equal byte for byte: the hash only finds the candidate, and is
//! keyed at random, so that no sender can make entries collide. Thus nobody can
//! speak for another's id, and other metadata under a known id is seen at once.

use alloc::boxed::Box;
use alloc::vec::Vec;
use hashbrown::HashTable;

use crate::bytes::{PairHasher, equal, quick_hash};
use crate::peer::{Peer, Text, flat};

/// What was made of a peer's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// The peer as `FlatNode`.
    pub flat: Box<[u8]>,
    /// The namespace that it claims.
    pub namespace: Option<Box<[u8]>>,
    /// What it says of its service alone; `None` if that is nothing, or longer
    /// than [`Service::MAX_BYTES`].
    pub service: Option<Service>,
    /// Whether a reader could name it.
    pub names_workload: bool,
}

impl KnownPeer {
    /// What is kept of `peer`.
    #[must_use]
    pub fn of(peer: &Peer<'_>) -> Self {
        Self {
            flat: flat::write(peer).into_boxed_slice(),
            namespace: peer.namespace.as_ref().map(|name| name.as_bytes().into()),
            service: Service::of(peer),
            names_workload: peer.names_workload(),
        }
    }
}

/// The service of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What tells it from others: the name that readers give it and its namespace,
    /// separated by NUL.
    pub name: Box<[u8]>,
    /// Its namespace and the labels that name it, as `FlatNode`.
    pub flat: Box<[u8]>,
}

impl Service {
    /// The longest [`Self::flat`] that is kept: room for names of usual length.
    pub const MAX_BYTES: usize = 1024;

    fn of(peer: &Peer<'_>) -> Option<Self> {
        let name = peer.service_name()?.as_bytes();
        let service = peer.service()?;
        let flat = flat::write(&service).into_boxed_slice();
        let namespace = service.namespace.as_ref().map(Text::as_bytes);
        let name = [name, namespace.unwrap_or_default()].join(&0);
        (flat.len() <= Self::MAX_BYTES).then(|| Self {
            name: name.into_boxed_slice(),
            flat,
        })
    }
}

/// A place in [`PeerCache::entries`]; [`NOWHERE`] at both ends of the list.
pub(crate) type Place = u32;

const NOWHERE: Place = Place::MAX;

#[derive(Debug)]
struct Entry {
    hash: u64,
    id: Box<[u8]>,
    value: Box<[u8]>,
    peer: KnownPeer,
    newer: Place,
    older: Place,
}

/// What an entry takes, in bytes.
fn size_of(id: &[u8], value: &[u8], peer: &KnownPeer) -> usize {
    /// The entry itself, its places in the tables, and what the allocator adds to
    /// each of its parts.
    const OVERHEAD: usize = 256;
    let namespace = peer.namespace.as_deref().unwrap_or_default();
    let (name, service) = peer.service.as_ref().map_or((&[][..], &[][..]), |service| {
        (&*service.name, &*service.flat)
    });
    [id, value, &peer.flat, namespace, name, service]
        .into_iter()
        .fold(OVERHEAD, |size, part| size.saturating_add(part.len()))
}

/// Peers by the bytes of their two headers, at most `capacity` of them, which
/// take at most `budget` bytes.
#[derive(Debug)]
pub struct PeerCache {
    capacity: Place,
    budget: usize,
    hasher: PairHasher,
    index: HashTable<Place>,
    /// A list in the order of use, linked by places.
    entries: Vec<Option<Entry>>,
    /// The places that no entry has.
    free: Vec<Place>,
    /// What the entries take.
    bytes: usize,
    newest: Place,
    oldest: Place,
    /// Where an id was last found. Only a guess, but one that spares the hash of
    /// a long value wherever an id keeps its metadata, as honest ones do.
    guesses: [Place; GUESSES],
}

const GUESSES: usize = 1 << 10;

/// A peer that the cache lacks; [`PeerCache::insert`] takes it.
#[derive(Debug)]
pub struct Missing<'a> {
    id: &'a [u8],
    value: &'a [u8],
    hash: Option<u64>,
}

impl PeerCache {
    /// What a cache may take however large its capacity, in bytes: some 60,000
    /// peers of usual size. Envoy's engine has 1 GiB for a VM, which a change of
    /// the configuration shares between the old caches and the new ones.
    pub const BUDGET: usize = 128 << 20;

    /// A cache of at most `capacity` peers, which take at most `budget` bytes; 0
    /// keeps none.
    #[must_use]
    pub fn new(capacity: u32, budget: usize) -> Self {
        Self {
            capacity,
            budget,
            hasher: PairHasher::default(),
            index: HashTable::new(),
            entries: Vec::new(),
            free: Vec::new(),
            bytes: 0,
            newest: NOWHERE,
            oldest: NOWHERE,
            guesses: [NOWHERE; GUESSES],
        }
    }

    /// How many peers are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len().saturating_sub(self.free.len())
    }

    /// Whether no peer is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The peer with exactly these headers, now the most recently used.
    #[inline(always)] // On the way of every request.
    pub fn get<'a>(&mut self, id: &'a [u8], value: &'a [u8]) -> Result<&KnownPeer, Missing<'a>> {
        let place = self.find(id, value)?;
        if place != self.newest {
            self.unlink(place);
            self.link_newest(place);
        }
        match self.entry(place) {
            Some(entry) => Ok(&entry.peer),
            // Not reached: only places of entries are found.
            None => Err(Missing {
                id,
                value,
                hash: None,
            }),
        }
    }

    /// Keeps a peer, in the place of those that were not used for longest.
    pub fn insert(&mut self, missing: &Missing<'_>, peer: KnownPeer) {
        let Some(hash) = missing.hash else {
            return;
        };
        let bytes = size_of(missing.id, missing.value, &peer);
        if bytes > self.budget {
            return;
        }
        while self.len() >= self.capacity as usize || self.bytes.saturating_add(bytes) > self.budget
        {
            if self.forget_oldest().is_none() {
                return;
            }
        }
        self.bytes = self.bytes.saturating_add(bytes);
        let place = self.put(Entry {
            hash,
            id: missing.id.into(),
            value: missing.value.into(),
            peer,
            newer: NOWHERE,
            older: NOWHERE,
        });
        self.link_newest(place);
        self.guess(missing.id, place);
        let entries = &self.entries;
        insert_place(&mut self.index, hash, place, &|place| {
            let entry = entries.get(place as usize).and_then(Option::as_ref);
            entry.map_or(0, |entry| entry.hash)
        });
    }

    /// Puts an entry into a place that none has.
    fn put(&mut self, entry: Entry) -> Place {
        if let Some(place) = self.free.pop()
            && let Some(slot) = self.entries.get_mut(place as usize)
        {
            *slot = Some(entry);
            return place;
        }
        let place = Place::try_from(self.entries.len()).unwrap_or(NOWHERE);
        self.entries.push(Some(entry));
        place
    }

    /// `None` if there is none.
    fn forget_oldest(&mut self) -> Option<()> {
        let place = self.oldest;
        self.unlink(place);
        let entry = self.entries.get_mut(place as usize)?.take()?;
        if let Ok(found) = self.index.find_entry(entry.hash, |&other| other == place) {
            found.remove();
        }
        let bytes = size_of(&entry.id, &entry.value, &entry.peer);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.free.push(place);
        Some(())
    }

    #[inline(always)] // On the way of every request.
    fn find<'a>(&mut self, id: &'a [u8], value: &'a [u8]) -> Result<Place, Missing<'a>> {
        let is_found = |entries: &[Option<Entry>], place: Place| {
            let entry = entries.get(place as usize).and_then(Option::as_ref);
            entry.is_some_and(|entry| equal(&entry.value, value) && equal(&entry.id, id))
        };
        let guess = self.guesses.get(guess_of(id)).copied().unwrap_or(NOWHERE);
        if is_found(&self.entries, guess) {
            return Ok(guess);
        }
        let hash = self.hasher.hash(id, value);
        let place = hash.and_then(|hash| {
            let is_it = |&place: &Place| is_found(&self.entries, place);
            self.index.find(hash, is_it)
        });
        match place {
            Some(&place) => {
                self.guess(id, place);
                Ok(place)
            }
            None => Err(Missing { id, value, hash }),
        }
    }

    fn guess(&mut self, id: &[u8], place: Place) {
        if let Some(guess) = self.guesses.get_mut(guess_of(id)) {
            *guess = place;
        }
    }

    fn entry(&self, place: Place) -> Option<&Entry> {
        self.entries.get(place as usize)?.as_ref()
    }

    fn entry_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.entries.get_mut(place as usize)?.as_mut()
    }

    fn unlink(&mut self, place: Place) {
        let Some(entry) = self.entry(place) else {
            return;
        };
        let (newer, older) = (entry.newer, entry.older);
        match self.entry_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.entry_mut(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, place: Place) {
        let older = self.newest;
        if let Some(entry) = self.entry_mut(place) {
            entry.newer = NOWHERE;
            entry.older = older;
        }
        match self.entry_mut(older) {
            Some(entry) => entry.newer = place,
            None => self.oldest = place,
        }
        self.newest = place;
    }
}

/// Puts a place into a table. Not generic over what gives the hash of a place, so
/// that the code that makes a table grow is there once.
pub(crate) fn insert_place(
    index: &mut HashTable<Place>,
    hash: u64,
    place: Place,
    hash_of: &dyn Fn(Place) -> u64,
) {
    index.insert_unique(hash, place, |&place| hash_of(place));
}

/// The place in [`PeerCache::guesses`] of an id. Whoever makes two ids share one
/// only costs them the guess.
fn guess_of(id: &[u8]) -> usize {
    let [.., low, high] = quick_hash(id).to_le_bytes();
    usize::from(u16::from_le_bytes([low, high])) % GUESSES
}
