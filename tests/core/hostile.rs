//! What fuzzing kept: `fuzz/corpus/` through the bodies of the fuzz targets.

use std::collections::HashSet;
use std::mem::discriminant;
use std::path::Path;

use metadata_exchange::peer::header;

// A crate of its own for libFuzzer.
#[allow(unreachable_pub)]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// The inputs of a target, in the order of their names.
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

fn replay(target: &str, run: fn(&[u8])) {
    for input in corpus(target) {
        // Shown if the test fails: the last is the one.
        println!("{}", input.escape_ascii());
        run(&input);
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
        let read = header::message(value, limits)
            .and_then(|message| header::peer(&message, limits).map(|_| ()));
        accepted += usize::from(read.is_ok());
        let refused = [read.err(), header::id(id, limits).err()];
        refusals.extend(refused.iter().flatten().map(discriminant));
    }
    assert_eq!(refusals.len(), 9);
    assert!(accepted > 10, "{accepted}");
}
