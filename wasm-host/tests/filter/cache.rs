//! The cache, tested through its counters and its promises.

use crate::support::{
    DOWNSTREAM, DOWNSTREAM_ID, ID, METADATA, Proxy, Workload, assert_sent_by, assert_stored, peer,
    state,
};
use serde_json::{Value as Json, json};
use wasm_host::Headers;

fn proxy(max_peer_cache_size: u32) -> Proxy {
    let configuration = json!({ "max_peer_cache_size": max_peer_cache_size });
    Proxy::of(&Workload::new("local"), &configuration)
}

/// Hits and misses so far.
fn counts(proxy: &mut Proxy) -> (u64, u64) {
    (proxy.counter("cache_hit"), proxy.counter("cache_miss"))
}

fn call(proxy: &mut Proxy, name: &str) {
    let caller = Workload::new(name);
    let stream = proxy.inbound(&caller.headers());
    assert_stored(&stream, Some(&caller), None);
}

#[test]
fn a_known_peer_is_not_decoded_again() {
    let mut proxy = proxy(500);
    call(&mut proxy, "a");
    assert_eq!(counts(&mut proxy), (0, 1));
    call(&mut proxy, "a");
    call(&mut proxy, "a");
    assert_eq!(counts(&mut proxy), (2, 1));
    assert_eq!(proxy.counter("downstream_peer_stored"), 3);
    let callee = Workload::new("b");
    for _ in 0..2 {
        let stream = proxy.outbound(&callee.headers());
        assert_stored(&stream, None, Some(&callee));
    }
    assert_eq!(counts(&mut proxy), (3, 2));
    assert_eq!(proxy.counter("upstream_peer_stored"), 2);
}

#[test]
fn zero_turns_it_off() {
    let mut proxy = proxy(0);
    for _ in 0..3 {
        call(&mut proxy, "a");
    }
    assert_eq!(counts(&mut proxy).0, 0);
}

#[test]
fn the_least_recently_used_is_evicted_first() {
    for size in [1, 2, 3, 5] {
        let mut proxy = proxy(size);
        let names: Vec<String> = (0..size).map(|index| format!("w{index}")).collect();
        for name in &names {
            call(&mut proxy, name);
        }
        for name in &names {
            call(&mut proxy, name);
        }
        let size = u64::from(size);
        assert_eq!(counts(&mut proxy), (size, size), "all of {size} fit");
        // A new peer evicts the least recently used one, and no other.
        call(&mut proxy, "new");
        for name in names.iter().skip(1) {
            call(&mut proxy, name);
        }
        assert_eq!(counts(&mut proxy), (2 * size - 1, size + 1));
        call(&mut proxy, &names[0]);
        assert_eq!(
            counts(&mut proxy),
            (2 * size - 1, size + 2),
            "the oldest was gone"
        );
    }
}

#[test]
fn changed_metadata_under_a_known_id_is_noticed() {
    let mut proxy = proxy(500);
    let mut workload = Workload::new("a");
    for version in ["v1", "v2", "v3", "v1"] {
        workload.metadata["LABELS"]["version"] = json!(version);
        let stream = proxy.inbound(&workload.headers());
        assert_stored(&stream, Some(&workload), None);
    }
}

#[test]
fn a_peer_cannot_replace_the_entry_of_another() {
    let mut proxy = proxy(500);
    let honest = Workload::new("honest");
    let mut liar = Workload::new("liar");
    liar.id.clone_from(&honest.id);
    for _ in 0..2 {
        for workload in [&liar, &honest] {
            let stream = proxy.inbound(&workload.headers());
            assert_stored(&stream, Some(workload), None);
        }
    }
}

#[test]
fn peers_without_an_id_do_not_share_an_entry() {
    let mut proxy = proxy(500);
    for _ in 0..2 {
        for name in ["a", "b"] {
            let workload = Workload::new(name);
            let stream = proxy.inbound(&Headers::from([(METADATA, workload.value())]));
            assert_eq!(peer(&stream, DOWNSTREAM), Some(workload.metadata));
            assert_eq!(state(&stream, DOWNSTREAM_ID), None);
        }
    }
}

#[test]
fn an_id_and_a_value_are_not_confused_with_each_other() {
    // The same bytes, split differently.
    let mut proxy = proxy(500);
    let value = Workload::new("a").value();
    let first = proxy.inbound(&Headers::from([(ID, "ab"), (METADATA, &value)]));
    let second = proxy.inbound(&Headers::from([
        (ID, "a"),
        (METADATA, &format!("b{value}")),
    ]));
    assert_eq!(state(&first, DOWNSTREAM_ID), Some(b"ab".to_vec()));
    assert_eq!(second.filter_state_keys(), [""; 0]);
}

#[test]
fn many_peers_take_no_more_memory_than_the_bound_allows() {
    let mut proxy = proxy(100);
    let run = |proxy: &mut Proxy, range: std::ops::Range<u32>| {
        for index in range {
            call(proxy, &format!("workload-{index:06}"));
            proxy.vm.take_calls();
        }
    };
    run(&mut proxy, 0..2_000);
    let pages = proxy.vm.memory_pages();
    run(&mut proxy, 2_000..6_000);
    assert_eq!(proxy.vm.memory_pages(), pages);
    assert_eq!(counts(&mut proxy), (0, 6_000));
}

#[test]
fn two_plugins_in_one_vm_have_their_own_settings_and_caches() {
    let mut proxy = proxy(500);
    let recording: Json = json!({ "record_local_node": true, "max_peer_cache_size": 0 });
    let second = proxy.vm.configure(recording.to_string()).expect("no trap");
    assert!(second.accepted());
    let caller = Workload::new("caller");
    call(&mut proxy, "caller");
    let first = std::mem::replace(&mut proxy.root, second);
    for _ in 0..2 {
        let stream = proxy.inbound(&caller.headers());
        assert_stored(&stream, Some(&caller), Some(&Workload::new("local")));
    }
    let second = std::mem::replace(&mut proxy.root, first);
    call(&mut proxy, "caller");
    // Both add to the proxy's counters: only the first one's second call was a hit.
    proxy.vm.tick(&second).expect("no trap");
    assert_eq!(proxy.counter("cache_hit"), 1);
}

#[test]
fn a_removed_plugin_leaves_the_other_alone() {
    let mut proxy = proxy(500);
    let second = proxy.vm.configure("{}").expect("no trap");
    let open = proxy.open(wasm_host::Direction::Inbound);
    let caller = Workload::new("caller");
    proxy.request(&open, &caller.headers());
    let first = std::mem::replace(&mut proxy.root, second);
    proxy.inbound(&caller.headers());
    // Envoy keeps the old root context until its last stream has ended.
    proxy.response(&open, &Headers::new());
    proxy.vm.finish(&open).expect("no trap");
    assert_sent_by(&open.response_headers(), &Workload::new("local"));
    proxy.vm.remove(&first).expect("no trap");
    call(&mut proxy, "caller");
}
