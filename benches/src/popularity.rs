//! How often a peer is in the cache, and what memory the VM takes, when some peers call more often than others.

use anyhow::Result;
use metadata_exchange::cache::PeerCache;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use wasm_host::{Direction, Headers, Module, Properties, Settings, Vm};

use crate::bench::Bench;
use crate::codec;
use crate::plot::{Axis, Chart, Line, Scale};
use crate::report::{Cell, Table};
use crate::sample::{USUAL_LABELS, headers, pod};

/// As configured by default, and ten times as many.
const CAPACITIES: [u32; 2] = [500, 5_000];

/// How fast popularity falls with rank.
const SKEWS: [f64; 2] = [1.0, 1.1];

/// The skew with which memory is looked at.
const MEMORY_SKEW: f64 = SKEWS[0];

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let most: u32 = if bench.is_quick { 10_000 } else { 1_000_000 };
    let sizes = || {
        (1..)
            .map(|power| 10_u32.pow(power))
            .take_while(move |&size| size <= most)
    };
    let module = Module::from_file(bench.lab.module())?;
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for capacity in CAPACITIES {
        for skew in SKEWS {
            let mut points = Vec::new();
            for peers in sizes() {
                bench.progress(format_args!("{peers} peers, cache of {capacity}"));
                let popularity = Zipf::new(peers, skew);
                let ratio = hit_ratio(&popularity, capacity, bench.scaled(1_000_000))?;
                points.push((f64::from(peers), ratio));
                let memory = if skew.to_bits() == MEMORY_SKEW.to_bits() {
                    memory_pages(&module, &popularity, capacity, bench.scaled(20_000))?.into()
                } else {
                    Cell::None
                };
                rows.push(vec![
                    u64::from(capacity).into(),
                    skew.into(),
                    u64::from(peers).into(),
                    ratio.into(),
                    memory,
                ]);
            }
            let name = format!("cache of {capacity}, skew {skew:.1}");
            lines.push(Line { name, points });
        }
    }
    bench.add_chart(&Chart::Lines {
        title: "How often a peer is in the cache, by the number of peers",
        x: Axis {
            title: "peers",
            scale: Scale::Logarithmic,
        },
        y: Axis {
            title: "hit ratio",
            scale: Scale::Linear,
        },
        lines,
    })?;
    bench.add_table(Table {
        name: "popularity",
        about: "share of requests whose peer is in the cache, when the peer of rank r sends 1 / r^skew of the requests; \
                linear memory of the VM after 20,000 such requests (a tenth in a quick run) with a header of five labels",
        columns: &["cache", "skew", "peers", "hit ratio", "memory, pages of 64 KiB"],
        rows,
    });
    Ok(())
}

/// Zipf's law: the peer of rank r has a share of 1 / r^skew.
struct Zipf {
    /// For each rank, its share and those of all before.
    up_to: Vec<f64>,
}

impl Zipf {
    fn new(peers: u32, skew: f64) -> Self {
        let shares = (1..=peers).map(|rank| f64::from(rank).powf(-skew));
        let up_to = shares.scan(0.0, |sum, share| {
            *sum += share;
            Some(*sum)
        });
        Self {
            up_to: up_to.collect(),
        }
    }

    fn draw(&self, random: &mut Xoshiro256PlusPlus) -> usize {
        let all = self.up_to.last().copied().unwrap_or_default();
        let drawn = random.random_range(0.0..all);
        self.up_to.partition_point(|&up_to| up_to <= drawn)
    }
}

/// Of `requests` requests, after as many that fill the cache.
fn hit_ratio(popularity: &Zipf, capacity: u32, requests: usize) -> Result<f64> {
    let [(_, value), _] = headers(&pod("any", 0)?);
    let known = codec::decode(value.as_bytes())?;
    let mut cache = PeerCache::new(capacity, PeerCache::BUDGET);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut hits = 0_usize;
    for request in 0..2 * requests {
        let id = popularity.draw(&mut random).to_le_bytes();
        match cache.get(&id, b"any value") {
            Ok(_) => hits += usize::from(request >= requests),
            Err(miss) => cache.insert(miss, &id, b"any value", known.clone()),
        }
    }
    Ok(hits as f64 / requests as f64)
}

fn memory_pages(module: &Module, popularity: &Zipf, capacity: u32, requests: usize) -> Result<u64> {
    let mut vm = Vm::start(module, Settings::default())?;
    let root = vm.configure(json!({ "max_peer_cache_size": capacity }).to_string())?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    for _ in 0..requests {
        let name = format!("peer-{:07}", popularity.draw(&mut random));
        let properties = Properties::new().direction(Direction::Inbound);
        let stream = vm.open(&root, properties);
        vm.request_headers(&stream, Headers::from(headers(&pod(&name, USUAL_LABELS)?)))?;
        vm.finish(&stream)?;
        vm.take_calls();
    }
    Ok(vm.memory_pages())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn popularity_falls_with_rank() {
        let popularity = Zipf::new(1_000, 1.0);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut drawn = [0_u32; 1_000];
        for _ in 0..100_000 {
            drawn[popularity.draw(&mut random)] += 1;
        }
        // 1 / (1 + 1/2 + ... + 1/1000) is 13.4 %.
        assert!(drawn[0].abs_diff(13_400) < 500, "{}", drawn[0]);
        assert!(drawn[9].abs_diff(1_340) < 150, "{}", drawn[9]);
    }

    #[test]
    fn a_cache_for_all_always_hits_and_one_for_few_does_not() {
        let popularity = Zipf::new(1_000, 1.0);
        let hits = |capacity| hit_ratio(&popularity, capacity, 20_000).unwrap();
        assert!((hits(1_000) - 1.0).abs() < 0.01);
        assert!((0.3..0.7).contains(&hits(50)), "{}", hits(50));
    }
}
