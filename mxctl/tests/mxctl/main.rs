//! Runs the tool as its users do.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod browser;
mod collect;
mod forms;
mod stream;
mod tool;
mod topology;

/// The path of the tool.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mxctl");
