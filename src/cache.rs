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
use crate::peer::{Peer, flat};

/// What was made of a peer's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// The peer as `FlatNode`.
    pub flat: Box<[u8]>,
    /// The namespace that it claims.
    pub namespace: Option<Box<[u8]>>,
}

impl KnownPeer {
    /// What is kept of `peer`.
    #[must_use]
    pub fn of(peer: &Peer<'_>) -> Self {
        Self {
            flat: flat::write(peer).into_boxed_slice(),
            namespace: peer.namespace.as_ref().map(|name| name.as_bytes().into()),
        }
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

/// Peers by the bytes of their two headers, at most `capacity` of them.
#[derive(Debug)]
pub struct PeerCache {
    capacity: Place,
    hasher: PairHasher,
    index: HashTable<Place>,
    /// A list in the order of use, linked by places.
    entries: Vec<Entry>,
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
    hash: u64,
}

impl PeerCache {
    /// A cache of at most `capacity` peers; 0 keeps none.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self {
            capacity,
            hasher: PairHasher::default(),
            index: HashTable::new(),
            entries: Vec::new(),
            newest: NOWHERE,
            oldest: NOWHERE,
            guesses: [NOWHERE; GUESSES],
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
    #[inline(always)] // On the way of every request.
    pub fn get<'a>(&mut self, id: &'a [u8], value: &'a [u8]) -> Result<&KnownPeer, Missing<'a>> {
        let place = self.find(id, value)?;
        if place != self.newest {
            self.unlink(place);
            self.link_newest(place);
        }
        match self.entries.get(place as usize) {
            Some(entry) => Ok(&entry.peer),
            // Not reached: only places of entries are found.
            None => Err(Missing { id, value, hash: 0 }),
        }
    }

    /// Keeps a peer.
    pub fn insert(&mut self, missing: &Missing<'_>, peer: KnownPeer) {
        if self.capacity == 0 {
            return;
        }
        let entry = Entry {
            hash: missing.hash,
            id: missing.id.into(),
            value: missing.value.into(),
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
        self.guess(missing.id, place);
        let entries = &self.entries;
        insert_place(&mut self.index, missing.hash, place, &|place| {
            entries.get(place as usize).map_or(0, |entry| entry.hash)
        });
    }

    #[inline(always)] // On the way of every request.
    fn find<'a>(&mut self, id: &'a [u8], value: &'a [u8]) -> Result<Place, Missing<'a>> {
        let is_found = |entries: &[Entry], place: Place| {
            entries
                .get(place as usize)
                .is_some_and(|entry| equal(&entry.value, value) && equal(&entry.id, id))
        };
        let guess = self.guesses.get(guess_of(id)).copied().unwrap_or(NOWHERE);
        if is_found(&self.entries, guess) {
            return Ok(guess);
        }
        let hash = self.hasher.hash(id, value);
        match self
            .index
            .find(hash, |&place| is_found(&self.entries, place))
        {
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
        self.entries.get(place as usize)
    }

    fn entry_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.entries.get_mut(place as usize)
    }

    fn replace_oldest(&mut self, entry: Entry) -> Place {
        let place = self.oldest;
        self.unlink(place);
        if let Some(slot) = self.entry_mut(place) {
            let old = core::mem::replace(slot, entry);
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
