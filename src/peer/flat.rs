//! The `FlatNode` of `schema/node_info.fbs`: a peer as filter state holds it
//! and as `SkyWalking`, CEL and access logs read it.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, InvalidFlatbuffer, Vector, WIPOffset};

use super::{Map, Peer, Text};
use crate::node_info::wasm::common::{FlatNode, FlatNodeArgs, KeyVal, KeyValArgs};

/// The binary schema of `FlatNode`. With it, CEL reaches into the peer:
/// `filter_state['wasm.downstream_peer'].labels['app'].value`.
pub const BINARY_SCHEMA: &[u8] = include_bytes!("../../schema/node_info.bfbs");

/// Room for a usual peer; it grows for others.
const USUAL_SIZE: usize = 2048;

type Offsets<'b, T> = WIPOffset<Vector<'b, ForwardsUOffset<T>>>;

/// Writes `peer` as a `FlatNode`. What the peer lacks is absent; so are empty
/// maps, as the C++ plugin has it. Equal peers have equal bytes.
#[must_use]
pub fn write(peer: &Peer<'_>) -> Vec<u8> {
    let mut fbb = FlatBufferBuilder::with_capacity(USUAL_SIZE);
    let labels = put_map(&mut fbb, peer.labels.as_ref());
    let platform_metadata = put_map(&mut fbb, peer.platform_metadata.as_ref());
    let app_containers = put_names(&mut fbb, peer.app_containers.as_ref());
    let instance_ips = put_names(&mut fbb, peer.instance_ips.as_ref());
    let mut put = |text: &Option<Text<'_>>| text.as_ref().map(|text| fbb.create_string(text));
    let args = FlatNodeArgs {
        name: put(&peer.name),
        namespace: put(&peer.namespace),
        labels,
        owner: put(&peer.owner),
        workload_name: put(&peer.workload_name),
        platform_metadata,
        istio_version: put(&peer.istio_version),
        mesh_id: put(&peer.mesh_id),
        app_containers,
        cluster_id: put(&peer.cluster_id),
        instance_ips,
    };
    let node = FlatNode::create(&mut fbb, &args);
    fbb.finish(node, None);
    fbb.finished_data().to_vec()
}

/// A vector of `KeyVal`, which must be sorted by key, as a [`Map`] is.
fn put_map<'b>(
    fbb: &mut FlatBufferBuilder<'b>,
    map: Option<&Map<'_>>,
) -> Option<Offsets<'b, KeyVal<'b>>> {
    let map = map.filter(|map| !map.is_empty())?;
    let entries: Vec<_> = map
        .iter()
        .map(|(key, value)| {
            let args = KeyValArgs {
                key: Some(fbb.create_string(key)),
                value: Some(fbb.create_string(value)),
            };
            KeyVal::create(fbb, &args)
        })
        .collect();
    Some(fbb.create_vector(&entries))
}

/// A vector of strings from names separated by commas.
fn put_names<'b>(
    fbb: &mut FlatBufferBuilder<'b>,
    names: Option<&Text<'_>>,
) -> Option<Offsets<'b, &'b str>> {
    let names: Vec<_> = names?
        .split(',')
        .map(|name| fbb.create_string(name))
        .collect();
    Some(fbb.create_vector(&names))
}

/// Reads a `FlatNode` that anyone may have written: every offset is checked.
pub fn read(bytes: &[u8]) -> Result<Peer<'_>, InvalidFlatbuffer> {
    let node = flatbuffers::root::<FlatNode<'_>>(bytes)?;
    Ok(Peer {
        app_containers: node.app_containers().map(names_of),
        cluster_id: node.cluster_id().map(Text::Borrowed),
        instance_ips: node.instance_ips().map(names_of),
        istio_version: node.istio_version().map(Text::Borrowed),
        labels: node.labels().map(map_of),
        mesh_id: node.mesh_id().map(Text::Borrowed),
        name: node.name().map(Text::Borrowed),
        namespace: node.namespace().map(Text::Borrowed),
        owner: node.owner().map(Text::Borrowed),
        platform_metadata: node.platform_metadata().map(map_of),
        workload_name: node.workload_name().map(Text::Borrowed),
    })
}

fn names_of<'a>(names: Vector<'a, ForwardsUOffset<&'a str>>) -> Text<'a> {
    Text::Owned(names.iter().collect::<Vec<_>>().join(","))
}

/// Sorted here, for other writers need not sort (the C++ plugin does not).
fn map_of<'a>(map: Vector<'a, ForwardsUOffset<KeyVal<'a>>>) -> Map<'a> {
    let mut map: Map<'a> = map
        .iter()
        .map(|entry| {
            let value = entry.value().unwrap_or_default();
            (Text::Borrowed(entry.key()), Text::Borrowed(value))
        })
        .collect();
    map.sort();
    map
}
