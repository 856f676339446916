//! Encodes and decodes peers independently of the filter, with `prost-types`
//! and `base64`. The harness computes its expectations with it.

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use prost_types::Struct;
use serde_json::Value;
use struct_json::{json_of_struct, struct_of_json};

/// The keys of node metadata that proxies exchange, as Istio lists them.
pub const EXCHANGED: [&str; 11] = [
    "APP_CONTAINERS",
    "CLUSTER_ID",
    "INSTANCE_IPS",
    "ISTIO_VERSION",
    "LABELS",
    "MESH_ID",
    "NAME",
    "NAMESPACE",
    "OWNER",
    "PLATFORM_METADATA",
    "WORKLOAD_NAME",
];

/// The metadata as a serialized `google.protobuf.Struct`.
///
/// # Panics
/// If they are not an object.
#[must_use]
pub fn encode(metadata: &Value) -> Vec<u8> {
    let message = struct_of_json(metadata).expect("metadata is an object");
    message.encode_to_vec()
}

/// The value of `x-envoy-peer-metadata` for the metadata.
#[must_use]
pub fn header(metadata: &Value) -> String {
    BASE64_STANDARD.encode(encode(metadata))
}

/// The metadata in a value of `x-envoy-peer-metadata`.
pub fn decode_header(value: &[u8]) -> Result<Value> {
    let message = BASE64_STANDARD.decode(value)?;
    Ok(json_of_struct(Struct::decode(message.as_slice())?))
}
