//! The operator's tool reads what real Envoys say and log.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod doctor;
mod mesh;
// The tests of mxctl itself use all of it.
#[allow(dead_code)]
#[path = "../../../mxctl/tests/mxctl/tool.rs"]
mod tool;

/// The tool, as mxctl/src/main.rs makes it.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mxctl-under-test");
