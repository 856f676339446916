//! The bounded form of `make fuzz`: runs `fuzz/corpus/`, and mutations of it
//! from a fixed seed, through the functions of the fuzz targets.

use std::collections::HashSet;
use std::mem::discriminant;
use std::path::Path;

use metadata_exchange::peer::header;

// It is a separate crate for libFuzzer.
#[allow(unreachable_pub)]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// The inputs of a target, sorted by name.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let inputs = std::fs::read_dir(folder.join(target)).unwrap();
    let mut paths: Vec<_> = inputs.map(|input| input.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 20, "{target}: inputs are missing");
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// Mutations of each input.
const MUTATIONS: u64 = 200;

fn replay(target: &str, run: fn(&[u8])) {
    let mut random = Random(0x5EED);
    for input in corpus(target) {
        show_and_run(&input, run);
        for _ in 0..MUTATIONS {
            show_and_run(&mutated(input.clone(), &mut random), run);
        }
    }
}

fn show_and_run(input: &[u8], run: fn(&[u8])) {
    // Caught to show the input that fails.
    let outcome = std::panic::catch_unwind(|| run(input));
    assert!(outcome.is_ok(), "{}", input.escape_ascii());
}

/// The input with some bytes changed, or a part removed or repeated.
fn mutated(mut input: Vec<u8>, random: &mut Random) -> Vec<u8> {
    if input.is_empty() {
        return input;
    }
    for _ in 0..=random.below(3) {
        let index = random.below(input.len());
        match random.below(6) {
            0 => input.truncate(index + 1),
            1 => drop(input.drain(index / 2..index)),
            2 => input.extend_from_within(index..),
            3 => input[index] = 0xFF,
            4 => input[index] ^= 1 << random.below(8),
            _ => input[index] = random.below(256).to_le_bytes()[0],
        }
    }
    input
}

/// Xorshift, with the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

#[test]
fn any_header() {
    replay("header", targets::header::run);
}

#[test]
fn any_message() {
    replay("wire", targets::wire::run);
}

#[test]
fn any_frame() {
    replay("frame", targets::frame::run);
}

#[test]
fn any_peer() {
    replay("peer", targets::peer::run);
}

#[test]
fn any_flat_node() {
    replay("flat", targets::flat::run);
}

#[test]
fn any_configuration() {
    replay("config", targets::config::run);
}

#[test]
fn any_node() {
    replay("node", targets::node::run);
}

#[test]
fn the_corpus_reaches_every_refusal_and_none() {
    let mut refusals = HashSet::new();
    let mut accepted = 0;
    for input in corpus("header") {
        let (id, value) = targets::header::split(&input);
        let limits = targets::header::LIMITS;
        let read = header::decode(value, limits);
        accepted += usize::from(read.is_ok());
        let refused = [read.err(), header::id(id, limits).err()];
        refusals.extend(refused.iter().flatten().map(discriminant));
    }
    assert_eq!(refusals.len(), 9);
    assert!(accepted > 10, "{accepted}");
}
