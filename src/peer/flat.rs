//! The `FlatNode` of `schema/node_info.fbs`: the form of a peer in filter
//! state, which `SkyWalking`, CEL and access logs read.

use std::fmt;

use flatbuffers::{
    FlatBufferBuilder, ForwardsUOffset, InvalidFlatbuffer, Vector, VerifierOptions, WIPOffset,
};

use super::{Map, Peer};
use crate::node_info::wasm::common::{FlatNode, FlatNodeArgs, KeyVal, KeyValArgs};

/// The binary schema of `FlatNode`. It lets CEL read the fields of a peer:
/// `filter_state['wasm.downstream_peer'].labels['app'].value`.
pub const BINARY_SCHEMA: &[u8] = include_bytes!("../../schema/node_info.bfbs");

/// Writes peers as `FlatNode`, reusing its buffer.
#[derive(Default)]
pub struct Writer(FlatBufferBuilder<'static>);

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

type Offsets<T> = WIPOffset<Vector<'static, ForwardsUOffset<T>>>;

impl Writer {
    /// Writes `peer`. A missing text is absent. A missing vector is written
    /// empty, because Envoy's CEL indexes a vector without checking that it
    /// exists, and crashes if it does not. Equal peers have equal bytes.
    pub fn write(&mut self, peer: &Peer) -> &[u8] {
        self.0.reset();
        let labels = self.map(peer.labels.as_ref());
        let platform_metadata = self.map(peer.platform_metadata.as_ref());
        let app_containers = self.names(peer.app_containers.as_deref());
        let instance_ips = self.names(peer.instance_ips.as_deref());
        let mut text = |text: &Option<String>| Some(self.0.create_string(text.as_deref()?));
        let node = FlatNodeArgs {
            name: text(&peer.name),
            namespace: text(&peer.namespace),
            labels: Some(labels),
            owner: text(&peer.owner),
            workload_name: text(&peer.workload_name),
            platform_metadata: Some(platform_metadata),
            istio_version: text(&peer.istio_version),
            mesh_id: text(&peer.mesh_id),
            app_containers: Some(app_containers),
            cluster_id: text(&peer.cluster_id),
            instance_ips: Some(instance_ips),
        };
        let node = FlatNode::create(&mut self.0, &node);
        self.0.finish_minimal(node);
        self.0.finished_data()
    }

    /// The map is sorted by key, as readers with binary search expect.
    fn map(&mut self, map: Option<&Map>) -> Offsets<KeyVal<'static>> {
        let mut entries = Vec::with_capacity(map.map_or(0, Vec::len));
        for (key, value) in map.into_iter().flatten() {
            let entry = KeyValArgs {
                key: Some(self.0.create_string(key)),
                value: Some(self.0.create_string(value)),
            };
            entries.push(KeyVal::create(&mut self.0, &entry));
        }
        self.0.create_vector(&entries)
    }

    fn names(&mut self, names: Option<&str>) -> Offsets<&'static str> {
        let names = names.into_iter().flat_map(|names| names.split(','));
        let names: Vec<_> = names.map(|name| self.0.create_string(name)).collect();
        self.0.create_vector(&names)
    }
}

/// Writes a single `peer`, see [`Writer::write`].
#[must_use]
pub fn write(peer: &Peer) -> Vec<u8> {
    Writer::default().write(peer).to_vec()
}

/// Verifies every offset of a `FlatNode` from any writer. Parts may share bytes,
/// as with equal texts, within bounds: what is read is at most a few times as
/// large as the input.
pub(crate) fn verify(bytes: &[u8]) -> Result<FlatNode<'_>, InvalidFlatbuffer> {
    let bounds = VerifierOptions {
        max_apparent_size: bytes.len().saturating_mul(8).saturating_add(1024),
        ..VerifierOptions::default()
    };
    flatbuffers::root_with_opts::<FlatNode<'_>>(&bounds, bytes)
}

/// Reads a `FlatNode` from any writer.
pub fn read(bytes: &[u8]) -> Result<Peer, InvalidFlatbuffer> {
    let node = verify(bytes)?;
    let text = |text: Option<&str>| text.map(str::to_owned);
    Ok(Peer {
        app_containers: node.app_containers().and_then(names_of),
        cluster_id: text(node.cluster_id()),
        instance_ips: node.instance_ips().and_then(names_of),
        istio_version: text(node.istio_version()),
        labels: node.labels().and_then(map_of),
        mesh_id: text(node.mesh_id()),
        name: text(node.name()),
        namespace: text(node.namespace()),
        owner: text(node.owner()),
        platform_metadata: node.platform_metadata().and_then(map_of),
        workload_name: text(node.workload_name()),
    })
}

/// `None` for an empty vector, which is as good as an absent one.
fn names_of<'a>(names: Vector<'a, ForwardsUOffset<&'a str>>) -> Option<String> {
    (!names.is_empty()).then(|| names.iter().collect::<Vec<_>>().join(","))
}

/// Sorted here, because other writers may not sort (the C++ plugin does not).
/// `None` for an empty vector, which is as good as an absent one.
fn map_of<'a>(map: Vector<'a, ForwardsUOffset<KeyVal<'a>>>) -> Option<Map> {
    if map.is_empty() {
        return None;
    }
    let entry = |entry: KeyVal<'_>| {
        let value = entry.value().unwrap_or_default();
        (entry.key().to_owned(), value.to_owned())
    };
    let mut map: Map = map.iter().map(entry).collect();
    map.sort();
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_is_always_present() {
        let named = Peer {
            name: Some("a".into()),
            ..Peer::default()
        };
        for peer in [Peer::default(), named] {
            let bytes = write(&peer);
            let node = flatbuffers::root::<FlatNode<'_>>(&bytes).unwrap();
            assert_eq!(node.labels().map(|map| map.len()), Some(0));
            assert_eq!(node.platform_metadata().map(|map| map.len()), Some(0));
            assert_eq!(node.app_containers().map(|names| names.len()), Some(0));
            assert_eq!(node.instance_ips().map(|names| names.len()), Some(0));
            assert_eq!(read(&bytes).unwrap(), peer);
        }
    }

    #[test]
    fn the_previous_peer_leaves_no_trace() {
        let of_name = |name: &str| Peer {
            name: Some(name.into()),
            labels: Some(vec![("app".into(), name.into())]),
            ..Peer::default()
        };
        let mut writer = Writer::default();
        writer.write(&of_name("a-long-name-of-the-peer-before"));
        assert_eq!(writer.write(&of_name("b")), write(&of_name("b")));
    }
}
