//! Reads what Envoys log of a mesh: who called whom.
//!
//! [`als`] receives access logs, [`entry`] is one entry in a form of its own,
//! that JSON lines carry. [`topology`] makes the graph of them, as this tool
//! reads them or as `SkyWalking` does ([`skywalking`]); [`render`] shows it.
//! [`decode`] and [`encode`] are the exchange's own forms by hand. [`doctor`]
//! finds what is wrong with an Envoy by what its [`admin`] interface says.
//!
//! Every name in all this came from the network. [`escape`] is on the way to
//! each output.

#![forbid(unsafe_code)]
// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

pub mod admin;
pub mod als;
pub mod cli;
pub mod decode;
pub mod doctor;
pub mod encode;
pub mod entry;
pub mod escape;
pub mod naming;
pub mod render;
pub mod skywalking;
pub mod topology;
