//! What the filter's pure core promises for any input, one module for each fuzz
//! target: `run` panics if a promise is broken.
//!
//! `fuzz_targets/` gives these bodies to libFuzzer. The tests of the core replay
//! `corpus/` through the same bodies, so that what a fuzzer once found stays
//! found on the stable toolchain. A new finding is kept by copying its input from
//! `artifacts/` to the corpus of its target.

pub mod config;
pub mod flat;
pub mod header;
pub mod node;
pub mod peer;
pub mod source;
pub mod wire;
