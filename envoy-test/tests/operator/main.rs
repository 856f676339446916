//! `mxctl` with real Envoys: their admin interface and their logs.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod doctor;
mod mesh;
mod tcp;
// mxctl's own tests use all of it.
#[allow(dead_code)]
#[path = "../../../mxctl/tests/mxctl/tool.rs"]
mod tool;

/// The tool, built from mxctl/src/main.rs.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mxctl-under-test");
