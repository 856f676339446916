//! Istio's metadata exchange as a proxy-wasm filter: tells, for every request
//! through Envoy, which workload called which.
//!
//! Start reading at [`exchange`], the decisions of the protocol. It knows a
//! [`peer`] in its three forms (header, wire, filter state), keeps known ones in
//! a [`cache`], and reaches the proxy only through the trait [`host::Host`]. All
//! that is pure and natively tested. `plugin` alone speaks proxy-wasm, and is
//! there on `wasm32` only.

// The standard library's panics, streams and threads would be a sixth of the
// module.
#![cfg_attr(target_arch = "wasm32", no_std)]
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
// Where it was measured to pay, see docs/cost.md.
#![allow(clippy::inline_always)]
// A failing test is to panic.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;

#[forbid(unsafe_code)]
pub mod bytes;
#[forbid(unsafe_code)]
pub mod cache;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod counters;
#[forbid(unsafe_code)]
pub mod direction;
#[forbid(unsafe_code)]
pub mod exchange;
#[forbid(unsafe_code)]
pub mod header_limits;
#[forbid(unsafe_code)]
pub mod host;
#[forbid(unsafe_code)]
mod json;
#[forbid(unsafe_code)]
pub mod local;
#[forbid(unsafe_code)]
pub mod pattern;
#[forbid(unsafe_code)]
pub mod peer;
#[cfg(target_arch = "wasm32")]
mod plugin;
#[forbid(unsafe_code)]
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
