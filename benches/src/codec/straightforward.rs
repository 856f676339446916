//! The codec that one would write first: base64, prost-types and flatbuffers, one after the other.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use prost::Message as _;
use prost_types::Struct;
use prost_types::value::Kind;

use node_info::wasm::common::{FlatNode, FlatNodeArgs, KeyVal, KeyValArgs};

// The generator's code is the generator's affair.
#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    unused_extern_crates,
    dead_code,
    clippy::all,
    clippy::pedantic
)]
#[rustfmt::skip]
#[path = "../../../schema/node_info_generated.rs"]
mod node_info;

type Offsets<'b, T> = WIPOffset<Vector<'b, ForwardsUOffset<T>>>;

pub(super) fn decode(value: &[u8]) -> Result<Vec<u8>> {
    let message = STANDARD.decode(value)?;
    let node = Struct::decode(message.as_slice())?;
    let mut fbb = FlatBufferBuilder::new();
    let labels = put_map(&mut fbb, &node, "LABELS");
    let platform_metadata = put_map(&mut fbb, &node, "PLATFORM_METADATA");
    let app_containers = put_names(&mut fbb, &node, "APP_CONTAINERS");
    let instance_ips = put_names(&mut fbb, &node, "INSTANCE_IPS");
    let mut put = |key| text(&node, key).map(|text| fbb.create_string(text));
    let args = FlatNodeArgs {
        name: put("NAME"),
        namespace: put("NAMESPACE"),
        labels,
        owner: put("OWNER"),
        workload_name: put("WORKLOAD_NAME"),
        platform_metadata,
        istio_version: put("ISTIO_VERSION"),
        mesh_id: put("MESH_ID"),
        app_containers,
        cluster_id: put("CLUSTER_ID"),
        instance_ips,
    };
    let node = FlatNode::create(&mut fbb, &args);
    fbb.finish(node, None);
    Ok(fbb.finished_data().to_vec())
}

fn text<'n>(node: &'n Struct, key: &str) -> Option<&'n str> {
    match node.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Sorted, for the struct's fields are.
fn put_map<'b>(
    fbb: &mut FlatBufferBuilder<'b>,
    node: &Struct,
    key: &str,
) -> Option<Offsets<'b, KeyVal<'b>>> {
    let Kind::StructValue(map) = node.fields.get(key)?.kind.as_ref()? else {
        return None;
    };
    if map.fields.is_empty() {
        return None;
    }
    let entries: Vec<_> = map
        .fields
        .keys()
        .map(|key| {
            let args = KeyValArgs {
                key: Some(fbb.create_string(key)),
                value: text(map, key).map(|value| fbb.create_string(value)),
            };
            KeyVal::create(fbb, &args)
        })
        .collect();
    Some(fbb.create_vector(&entries))
}

fn put_names<'b>(
    fbb: &mut FlatBufferBuilder<'b>,
    node: &Struct,
    key: &str,
) -> Option<Offsets<'b, &'b str>> {
    let names = text(node, key)?.split(',');
    let names: Vec<_> = names.map(|name| fbb.create_string(name)).collect();
    Some(fbb.create_vector(&names))
}
