//! The tool as its users run it.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod browser;
mod collect;
mod forms;
mod stream;
mod tool;
mod topology;

/// The tool.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mxctl");
