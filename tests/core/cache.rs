//! The cache against a list that is searched from end to end.

use metadata_exchange::cache::{KnownPeer, PeerCache};
use proptest::prelude::*;

fn peer(name: &str) -> KnownPeer {
    KnownPeer {
        flat: name.as_bytes().into(),
        namespace: None,
    }
}

#[test]
fn id_and_value_must_both_be_equal() {
    let mut cache = PeerCache::new(10);
    cache.insert(b"id", b"value", peer("a"));
    assert_eq!(cache.get(b"id", b"value"), Some(&peer("a")));
    assert_eq!(cache.get(b"id", b"other"), None);
    assert_eq!(cache.get(b"other", b"value"), None);
    // Nor does it matter where the one ends and the other begins.
    assert_eq!(cache.get(b"idv", b"alue"), None);
}

#[test]
fn peers_without_id_do_not_share_an_entry() {
    let mut cache = PeerCache::new(10);
    cache.insert(b"", b"a", peer("a"));
    cache.insert(b"", b"b", peer("b"));
    assert_eq!(cache.get(b"", b"a"), Some(&peer("a")));
    assert_eq!(cache.get(b"", b"b"), Some(&peer("b")));
}

#[test]
fn every_size_is_kept_exactly() {
    for capacity in 0..6 {
        let mut cache = PeerCache::new(capacity);
        for n in 0..20_u32 {
            cache.insert(b"id", &n.to_le_bytes(), peer("x"));
            assert_eq!(cache.len(), (n + 1).min(capacity) as usize);
        }
    }
}

proptest! {
    #[test]
    fn the_least_recently_used_goes_first(
        capacity in 0_u32..6,
        uses in proptest::collection::vec((0_u8..4, 0_u8..4), 0..200),
    ) {
        let mut cache = PeerCache::new(capacity);
        // The most recently used last.
        let mut model: Vec<(u8, u8)> = Vec::new();
        for (id, value) in uses {
            let expected = model.iter().position(|entry| *entry == (id, value));
            let name = format!("{id}/{value}");
            let found = cache.get(&[id], &[value]).cloned();
            prop_assert_eq!(found, expected.map(|_| peer(&name)));
            if let Some(place) = expected {
                model.remove(place);
            } else {
                cache.insert(&[id], &[value], peer(&name));
            }
            model.push((id, value));
            if model.len() > capacity as usize {
                model.remove(0);
            }
            prop_assert_eq!(cache.len(), model.len());
        }
    }
}
