//! The promises of the filter's pure core for arbitrary input, one module for
//! each fuzz target: `run` panics if a promise is broken.
//!
//! `fuzz_targets/` passes these functions to libFuzzer. The tests of the core replay `corpus/`
//! through the same functions, as regression tests on the stable toolchain. To keep a new finding,
//! copy its input from `artifacts/` to the corpus of its target.

#![forbid(unsafe_code)]

pub mod config;
pub mod flat;
pub mod frame;
pub mod header;
pub mod node;
pub mod peer;
pub mod source;
pub mod wire;
