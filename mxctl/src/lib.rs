//! Shows which workload called which, from Envoys' access logs.
//!
//! [`topology`] builds the graph from access-log entries, by its own rules or by `SkyWalking`'s;
//! [`naming`] names the service of a node, and [`render`] shows the graph. [`decode`] and
//! [`encode`] convert the forms of the exchange. [`doctor`] finds problems of an Envoy from its
//! [`admin`] interface or a file, and [`prometheus`] reads calls from one; [`envoy_yaml`] parses YAML as Envoy does, and [`check_config`] a
//! plugin configuration as the filter does.
//!
//! Every name comes from the network, so every output goes through [`escape`].

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
pub mod prometheus;
pub mod render;
pub mod topology;
