//! The bounded cache of decoded peers.
//!
//! A peer is sent with every request and seldom changes, so what was made of a
//! header is kept, and the least recently used goes first. A hit needs id *and*
//! value to be equal byte for byte: the hash only finds the candidate, and is
//! keyed at random, so that no sender can make entries collide. Thus nobody can
//! speak for another's id, and other metadata under a known id is seen at once.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

/// What was made of a peer's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// The peer as `FlatNode`.
    pub flat: Box<[u8]>,
    /// The namespace that it claims.
    pub namespace: Option<Box<str>>,
}

/// A place in [`PeerCache::entries`]; [`NOWHERE`] at both ends of the list.
type Place = u32;

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

/// Peers by the bytes of their two headers, at most `capacity` of them.
#[derive(Debug)]
pub struct PeerCache {
    capacity: Place,
    hasher: RandomState,
    index: HashTable<Place>,
    /// A list in the order of use, linked by places.
    entries: Vec<Entry>,
    newest: Place,
    oldest: Place,
}

impl PeerCache {
    /// A cache of at most `capacity` peers; 0 keeps none.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            hasher: RandomState::new(),
            index: HashTable::new(),
            entries: Vec::new(),
            newest: NOWHERE,
            oldest: NOWHERE,
        }
    }

    /// How many peers are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no peer is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The peer with exactly these headers, now the most recently used.
    pub fn get(&mut self, id: &[u8], value: &[u8]) -> Option<&KnownPeer> {
        let hash = self.hasher.hash_one((id, value));
        let place = *self.index.find(hash, |&place| {
            self.entry(place)
                .is_some_and(|entry| *entry.id == *id && *entry.value == *value)
        })?;
        if place != self.newest {
            self.unlink(place);
            self.link_newest(place);
        }
        self.entry(place).map(|entry| &entry.peer)
    }

    /// Keeps a peer that [`PeerCache::get`] did not find.
    pub fn insert(&mut self, id: &[u8], value: &[u8], peer: KnownPeer) {
        if self.capacity == 0 {
            return;
        }
        let hash = self.hasher.hash_one((id, value));
        let entry = Entry {
            hash,
            id: id.into(),
            value: value.into(),
            peer,
            newer: NOWHERE,
            older: NOWHERE,
        };
        let next = Place::try_from(self.entries.len()).unwrap_or(NOWHERE);
        let place = if next < self.capacity {
            self.entries.push(entry);
            next
        } else {
            self.replace_oldest(entry)
        };
        self.link_newest(place);
        let entries = &self.entries;
        self.index.insert_unique(hash, place, |&place| {
            entries.get(place as usize).map_or(0, |entry| entry.hash)
        });
    }

    fn entry(&self, place: Place) -> Option<&Entry> {
        self.entries.get(place as usize)
    }

    fn entry_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.entries.get_mut(place as usize)
    }

    fn replace_oldest(&mut self, entry: Entry) -> Place {
        let place = self.oldest;
        self.unlink(place);
        if let Some(slot) = self.entry_mut(place) {
            let old = std::mem::replace(slot, entry);
            if let Ok(found) = self.index.find_entry(old.hash, |&other| other == place) {
                found.remove();
            }
        }
        place
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
