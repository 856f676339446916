//! Compares the cache with a list that is searched linearly.

use metadata_exchange::cache::{KnownPeer, PeerCache};
use proptest::prelude::*;

fn peer(name: &str) -> KnownPeer {
    KnownPeer {
        flat: name.as_bytes().into(),
        claims: [].into(),
        service: None,
        names_workload: true,
    }
}

/// The cached peer for these headers, looked up as the exchange does.
fn found(cache: &mut PeerCache, id: &[u8], value: &[u8]) -> Option<KnownPeer> {
    cache.get(id, value).ok().cloned()
}

/// Looks up these headers, and inserts `peer` if they are not cached.
fn keep(cache: &mut PeerCache, id: &[u8], value: &[u8], name: &str) {
    if let Err(miss) = cache.get(id, value) {
        cache.insert(miss, id, value, peer(name));
    }
}

#[test]
fn id_and_value_must_both_be_equal() {
    let mut cache = PeerCache::new(10, PeerCache::BUDGET);
    keep(&mut cache, b"id", b"value", "a");
    assert_eq!(found(&mut cache, b"id", b"value"), Some(peer("a")));
    assert_eq!(found(&mut cache, b"id", b"other"), None);
    assert_eq!(found(&mut cache, b"other", b"value"), None);
    // The boundary between id and value matters.
    assert_eq!(found(&mut cache, b"idv", b"alue"), None);
}

#[test]
fn peers_without_id_do_not_share_an_entry() {
    let mut cache = PeerCache::new(10, PeerCache::BUDGET);
    keep(&mut cache, b"", b"a", "a");
    keep(&mut cache, b"", b"b", "b");
    assert_eq!(found(&mut cache, b"", b"a"), Some(peer("a")));
    assert_eq!(found(&mut cache, b"", b"b"), Some(peer("b")));
}

#[test]
fn every_capacity_is_exact() {
    for capacity in 0..6 {
        let mut cache = PeerCache::new(capacity, PeerCache::BUDGET);
        for n in 0..20_u32 {
            keep(&mut cache, b"id", &n.to_le_bytes(), "x");
            assert_eq!(cache.len(), (n + 1).min(capacity) as usize);
        }
    }
}

#[test]
fn the_memory_of_the_peers_is_bounded() {
    const BUDGET: usize = 10_000;
    let value = [b'v'; 9_000];
    let mut cache = PeerCache::new(1_000, BUDGET);
    for bytes in [100, 1_000, 3_000] {
        for id in 0..50_u8 {
            keep(&mut cache, &[id], &value[..bytes], "x");
            assert!(found(&mut cache, &[id], &value[..bytes]).is_some());
        }
        // All peers now have this size.
        let most = BUDGET / bytes;
        assert!((most / 4..=most).contains(&cache.len()), "{}", cache.len());
    }
    // A peer that takes nearly the whole budget is kept alone, and a larger one
    // is not kept.
    keep(&mut cache, b"large", &value, "x");
    assert_eq!(cache.len(), 1);
    let larger = [b'v'; BUDGET];
    keep(&mut cache, b"larger", &larger, "x");
    assert_eq!(found(&mut cache, b"larger", &larger), None);
    assert!(found(&mut cache, b"large", &value).is_some());
}

proptest! {
    #[test]
    fn the_least_recently_used_is_evicted_first(
        capacity in 0_u32..6,
        uses in proptest::collection::vec((0_u8..4, 0_u8..4), 0..200),
    ) {
        let mut cache = PeerCache::new(capacity, PeerCache::BUDGET);
        // The most recently used last.
        let mut model: Vec<(u8, u8)> = Vec::new();
        for (id, value) in uses {
            let expected = model.iter().position(|entry| *entry == (id, value));
            let name = format!("{id}/{value}");
            let found = found(&mut cache, &[id], &[value]);
            prop_assert_eq!(found, expected.map(|_| peer(&name)));
            if let Some(index) = expected {
                model.remove(index);
            } else {
                keep(&mut cache, &[id], &[value], &name);
            }
            model.push((id, value));
            if model.len() > capacity as usize {
                model.remove(0);
            }
            prop_assert_eq!(cache.len(), model.len());
        }
    }
}
