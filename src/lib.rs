//! Istio's metadata exchange as a proxy-wasm filter: tells, for every request
//! through Envoy, which workload called which.
//!
//! Start reading at [`exchange`], the decisions of the protocol. It knows a
//! [`peer`] in its three forms (header, wire, filter state), keeps known ones in
//! a [`cache`], and reaches the proxy only through the trait [`host::Host`]. All
//! that is pure and natively tested. `envoy` alone speaks proxy-wasm, and is
//! there on `wasm32` only.

#![deny(
    unsafe_code,
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::todo,
    clippy::unreachable,
    clippy::unwrap_used
)]
// A failing test is to panic.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

pub mod bytes;
pub mod cache;
pub mod config;
pub mod counted_host;
pub mod counters;
pub mod direction;
#[cfg(target_arch = "wasm32")]
mod envoy;
pub mod exchange;
pub mod header_limits;
pub mod host;
pub mod local;
pub mod pattern;
pub mod peer;
pub mod trust;

// Made by flatc from schema/node_info.fbs, see `make schema`. Its `unsafe` is
// of the generator: reads of verified buffers.
#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    unused_extern_crates,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
#[rustfmt::skip]
#[path = "../schema/node_info_generated.rs"]
mod node_info;
