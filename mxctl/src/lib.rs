//! Reads what Envoys log of a mesh: who called whom.
//!
//! [`topology`] makes the graph of access-log entries, as this tool reads them or as
//! `SkyWalking` does; [`naming`] says which service a node is of, and [`render`]
//! shows the graph. [`decode`] and [`encode`] are the exchange's own forms by hand.
//! [`doctor`] finds what is wrong with an Envoy by what its [`admin`] interface or a
//! file says; [`envoy_yaml`] reads YAML as Envoy does, and [`check_config`] a plugin's
//! configuration as the filter does.
//!
//! Every name in all this came from the network. [`escape`] is on the way to
//! each output.

#![forbid(unsafe_code)]
// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

pub mod admin;
pub mod check_config;
pub mod cli;
mod declared_names;
pub mod decode;
pub mod doctor;
pub mod encode;
pub mod envoy_yaml;
pub mod escape;
pub mod naming;
pub mod render;
pub mod topology;
