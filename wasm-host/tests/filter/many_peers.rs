//! Many peers through one VM: memory and work do not grow.
//!
//! `PEERS=1000000 cargo test --package wasm-host --test filter many_peers` is the long form.

use crate::support::*;
use serde_json::json;
use wasm_host::Headers;

fn peers() -> u32 {
    const LEAST: u32 = 16_000;
    std::env::var("PEERS")
        .map_or(LEAST, |peers| peers.parse().expect("a number"))
        .max(LEAST)
}

/// A new peer with new labels.
fn stranger(number: u32) -> Workload {
    let mut stranger = Workload::new(&format!("stranger-{number:07}"));
    for label in 0..number % 7 {
        stranger.metadata["LABELS"][format!("label-{number:07}-{label}")] = json!("x".repeat(30));
    }
    stranger
}

#[test]
fn many_peers_and_labels_use_constant_memory_and_work() {
    const SAMPLE: u32 = 1_400;
    let mut proxy = Proxy::plain("local");
    let mut call = |numbers: std::ops::Range<u32>| {
        let (mut instructions, mut last) = (0, None);
        for number in numbers {
            let headers = stranger(number).headers();
            let stream = proxy.open(wasm_host::Direction::Inbound);
            let (result, spent) = proxy.vm.measure(|vm| {
                vm.request_headers(&stream, headers)?;
                vm.finish(&stream)
            });
            result.expect("no trap");
            instructions += spent;
            last = Some(stream);
        }
        proxy.vm.take_calls();
        let last = last.expect("at least one");
        assert!(state(&last, DOWNSTREAM).is_some(), "it was stored");
        (instructions, proxy.vm.memory_pages())
    };
    // The cache of 1,000 peers has been filled several times.
    call(0..8_400);
    let (early, pages) = call(8_400..8_400 + SAMPLE);
    let end = peers().next_multiple_of(7);
    call(8_400 + SAMPLE..end - SAMPLE);
    let (late, pages_at_the_end) = call(end - SAMPLE..end);
    println!(
        "{end} peers: {pages} pages early, {pages_at_the_end} at the end; {early} instructions early, {late} late"
    );
    assert_eq!(pages_at_the_end, pages, "memory does not grow");
    assert!(pages <= 52, "{pages} pages");
    let a_twentieth = early / 20;
    assert!(
        late.abs_diff(early) < a_twentieth,
        "{late} instead of {early}"
    );
}

/// A pod as the C++ plugin sends it, by its number: a header of about 950 bytes.
fn usual(number: u32) -> Workload {
    let vector = include_str!("../../../testdata/vectors/k8s_pod_client.json");
    let vector: serde_json::Value = serde_json::from_str(vector).expect("JSON");
    let mut usual = Workload::new("usual");
    usual.id = format!(
        "sidecar~10.0.{}.{}~productpage-v1-84975bc778-{number:05}.default~default.svc.cluster.local",
        number / 256,
        number % 256
    );
    usual.metadata = vector["node"]["metadata"].clone();
    usual.metadata["NAME"] = json!(format!("productpage-v1-84975bc778-{number:05}"));
    usual
}

/// The number of pages after so many usual peers have called twice, and how many of the second calls found theirs in the
/// cache.
fn pages_of_usual_peers(settings: &serde_json::Value, peers: u32) -> (u64, u64) {
    let mut proxy = Proxy::of(&Workload::new("local"), settings);
    for number in (0..peers).chain(0..peers) {
        let headers = usual(number).headers();
        proxy.inbound(&headers);
        proxy.vm.take_calls();
    }
    (proxy.vm.memory_pages(), proxy.counter("cache_hit"))
}

#[test]
fn a_thousand_usual_peers_fit_into_the_cache() {
    println!("a header of {} bytes", usual(0).value().len());
    let (none, _) = pages_of_usual_peers(&json!({ "max_peer_cache_size": 0 }), 1_000);
    let (pages, hits) = pages_of_usual_peers(&json!({}), 1_000);
    println!("1,000 usual peers: {pages} pages, {none} without a cache");
    assert_eq!(hits, 1_000);
    assert!(pages - none <= 45, "{pages} pages, {none} without a cache");
}

/// The header of a peer whose decoded form is as large as possible: all collections are full, and the rest is one name.
fn largest() -> String {
    let labels: serde_json::Map<_, _> = (0..256)
        .map(|label| (format!("{label:02x}"), json!("")))
        .collect();
    let names = ",".repeat(255);
    let mut metadata = json!({
        "APP_CONTAINERS": names, "INSTANCE_IPS": names, "LABELS": labels, "PLATFORM_METADATA": labels,
    });
    let rest = 16_384 - header_value(&metadata).len() - 32;
    metadata["NAME"] = json!("n".repeat(rest / 4 * 3));
    header_value(&metadata)
}

/// The number of pages after these largest peers have called, each with its own id of 1 KiB.
fn pages_of_the_largest(proxy: &mut Proxy, ids: std::ops::Range<u32>) -> u64 {
    let value = largest();
    assert!(
        (16_300..=16_384).contains(&value.len()),
        "{} bytes",
        value.len()
    );
    for id in ids {
        let headers = Headers::from([(METADATA, value.clone()), (ID, format!("{id:01024}"))]);
        let stream = proxy.inbound(&headers);
        assert!(state(&stream, DOWNSTREAM).is_some(), "it was stored");
        proxy.vm.take_calls();
    }
    proxy.vm.memory_pages()
}

#[test]
fn the_largest_peers_stay_within_a_bound() {
    let mut proxy = Proxy::plain("local");
    let pages = pages_of_the_largest(&mut proxy, 0..1_200);
    let later = pages_of_the_largest(&mut proxy, 1_200..4_000);
    println!("1,000 of the largest peers: {pages} pages, later {later}");
    assert!(pages > 600, "{pages} pages");
    assert!(later < 920, "{later} pages");
}

/// Envoy's engine has 16,384 pages for a VM.
#[test]
fn an_unlimited_cache_is_bounded_by_its_memory() {
    let mut proxy = Proxy::of(
        &Workload::new("local"),
        &json!({ "max_peer_cache_size": 10_000_000 }),
    );
    let pages = pages_of_the_largest(&mut proxy, 0..4_000);
    let later = pages_of_the_largest(&mut proxy, 4_000..8_000);
    println!("the largest peers without end: {pages} pages, later {later}");
    assert!(later < 3_000, "{later} pages");
    assert!(later < pages + pages / 10, "{later} instead of {pages}");
}
