//! Structured input from bytes for the targets that need it, and the common
//! assertions about peers.

use std::collections::BTreeMap;

use metadata_exchange::peer::{Field, Map, Peer, Slot, Value};

/// A fuzzer's bytes, read from the front. At the end it returns zeros and empty
/// texts.
#[derive(Debug)]
pub struct Source<'a>(pub &'a [u8]);

impl<'a> Source<'a> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    /// Up to 255 bytes, preceded by their number.
    pub fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        self.0.split_off(..len).unwrap_or_default()
    }

    /// A text that a peer may carry.
    pub fn text(&mut self) -> String {
        let text = String::from_utf8_lossy(self.bytes());
        text.chars().filter(|char| !char.is_control()).collect()
    }

    /// A peer whose fields may be absent, empty or long.
    pub fn peer(&mut self) -> Peer {
        let mut peer = Peer::default();
        let present = u16::from_le_bytes([self.byte(), self.byte()]);
        for (bit, field) in Field::ALL.into_iter().enumerate() {
            if present >> bit & 1 == 0 {
                continue;
            }
            match peer.slot(field) {
                Slot::Text(text) | Slot::Names(text) => *text = Some(self.text()),
                Slot::Map(map) => *map = Some(self.map()),
            }
        }
        peer
    }

    fn map(&mut self) -> Map {
        let map: BTreeMap<_, _> = (0..self.byte())
            .map(|_| (self.text(), self.text()))
            .collect();
        map.into_iter().collect()
    }
}

/// Asserts what holds for every peer that is stored or sent: no text can forge
/// a log line, and maps are sorted without repeated keys.
pub fn assert_fit(peer: &Peer) {
    let assert_text = |text: &str| assert!(!text.contains(char::is_control), "{text:?}");
    for value in Field::ALL.into_iter().filter_map(|field| peer.value(field)) {
        match value {
            Value::Text(text) => assert_text(text),
            Value::Map(map) => {
                assert!(map.is_sorted_by(|(a, _), (b, _)| a < b), "{map:?}");
                for (key, value) in map {
                    assert_text(key);
                    assert_text(value);
                }
            }
        }
    }
}

/// The peer without its empty maps, which a `FlatNode` does not preserve.
#[must_use]
pub fn without_empty_maps(mut peer: Peer) -> Peer {
    peer.labels = peer.labels.filter(|map| !map.is_empty());
    peer.platform_metadata = peer.platform_metadata.filter(|map| !map.is_empty());
    peer
}
