//! Tests of the built filter, `dist/metadata_exchange.wasm`, in a host that can be made to fail: one test for each
//! promise.

#![allow(
    clippy::similar_names,
    reason = "caller and callee are the field's terms"
)]

mod cache;
mod callees;
mod configuration;
mod cost;
mod directions;
mod endpoint_fallback;
mod host_calls;
mod host_failures;
mod hostile;
mod idle;
mod local_node;
mod many_peers;
mod observe;
mod privacy;
mod received;
mod support;
mod trust;
mod vectors;
