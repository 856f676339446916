//! Many peers through one VM: memory and work stay where they are.
//!
//! `PEERS=1000000 cargo test --package wasm-host --test filter many_peers` is the long form.

use crate::support::*;
use serde_json::json;

/// The most memory that the default configuration can come to hold, in pages of 64 KiB: what the VM starts with, and
/// 500 peers with a header of 16 KiB, an id of 1 KiB and a decoded form of 36 KiB: 12 KiB of texts, and what the four
/// collections of 256 entries take besides.
const BOUND: u64 = 20 + 500 * (16 + 1 + 36) / 64;

fn peers() -> u32 {
    const LEAST: u32 = 12_000;
    std::env::var("PEERS")
        .map_or(LEAST, |peers| peers.parse().expect("a number"))
        .max(LEAST)
}

/// A peer that nobody was before, with labels that nobody had before.
fn stranger(number: u32) -> Workload {
    let mut stranger = Workload::new(&format!("stranger-{number:07}"));
    for label in 0..number % 7 {
        stranger.metadata["LABELS"][format!("label-{number:07}-{label}")] = json!("x".repeat(30));
    }
    stranger
}

#[test]
fn many_peers_and_labels_neither_grow_nor_slow_it() {
    const SAMPLE: u32 = 1_400;
    let mut proxy = Proxy::plain("local");
    let mut tell = |numbers: std::ops::Range<u32>| {
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
    // The cache of 500 is full several times over.
    tell(0..4_200);
    let (early, pages) = tell(4_200..4_200 + SAMPLE);
    let end = peers().next_multiple_of(7);
    tell(4_200 + SAMPLE..end - SAMPLE);
    let (late, pages_at_the_end) = tell(end - SAMPLE..end);
    println!(
        "{end} peers: {pages} pages early, {pages_at_the_end} at the end; {early} instructions early, {late} late"
    );
    assert_eq!(pages_at_the_end, pages, "memory does not grow");
    assert!(pages <= BOUND, "{pages} pages");
    let a_twentieth = early / 20;
    assert!(
        late.abs_diff(early) < a_twentieth,
        "{late} instead of {early}"
    );
}
