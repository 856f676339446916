//! The tool as its users run it.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod browser;
mod collect;
mod doctor;
mod forms;
mod mesh;
mod tool;
mod topology;
