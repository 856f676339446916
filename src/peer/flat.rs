//! The `FlatNode` of `schema/node_info.fbs`: a peer as filter state holds it
//! and as `SkyWalking`, CEL and access logs read it.
//!
//! It is written front to back, for the crate's builder, which must do without
//! knowing the schema's shape, takes six times as many instructions. The crate
//! reads it, in the tests also with all its checks.

use alloc::vec::Vec;
use flatbuffers::{ForwardsUOffset, InvalidFlatbuffer, Vector, VerifierOptions};

use super::{Map, Peer, Text};
use crate::node_info::wasm::common::{FlatNode, KeyVal};

/// The binary schema of `FlatNode`. With it, CEL reaches into the peer:
/// `filter_state['wasm.downstream_peer'].labels['app'].value`.
pub const BINARY_SCHEMA: &[u8] = include_bytes!("../../schema/node_info.bfbs");

/// Room for a usual peer; it grows for others.
const USUAL_SIZE: usize = 1024;

/// Writes `peer` as a `FlatNode`. A text that the peer lacks is absent. A vector
/// that it lacks is written empty: Envoy's CEL indexes a vector field without a
/// look whether it is there, and an absent one ends the process. Equal peers
/// have equal bytes.
#[must_use]
pub fn write(peer: &Peer<'_>) -> Vec<u8> {
    // In the order of the schema.
    let fields = [
        peer.name.as_ref().map(Value::Text),
        peer.namespace.as_ref().map(Value::Text),
        Some(map(peer.labels.as_ref())),
        peer.owner.as_ref().map(Value::Text),
        peer.workload_name.as_ref().map(Value::Text),
        Some(map(peer.platform_metadata.as_ref())),
        peer.istio_version.as_ref().map(Value::Text),
        peer.mesh_id.as_ref().map(Value::Text),
        Some(names(peer.app_containers.as_ref())),
        peer.cluster_id.as_ref().map(Value::Text),
        Some(names(peer.instance_ips.as_ref())),
    ];
    let mut flat = Writer(Vec::with_capacity(USUAL_SIZE));
    let root = flat.offsets(1);
    // With these the table stands at a multiple of four.
    flat.0.extend_from_slice(&[0; 2]);
    let vtable = flat.vtable(fields.each_ref().map(Option::is_some));
    flat.point(root);
    let mut place = flat.table(vtable, fields.iter().flatten().count());
    for field in fields.into_iter().flatten() {
        flat.point(place);
        match field {
            Value::Text(text) => flat.text(text.as_bytes()),
            Value::Names(names) => flat.names(names),
            Value::Map(map) => flat.map(map),
            Value::None => flat.u32s([0]),
        }
        place = place.next();
    }
    flat.0
}

/// What a field of `FlatNode` holds.
#[derive(Clone, Copy)]
enum Value<'p> {
    Text(&'p Text<'p>),
    /// Texts separated by commas.
    Names(&'p Text<'p>),
    /// Sorted by key, for readers search in it.
    Map(&'p Map<'p>),
    /// A vector without elements.
    None,
}

fn map<'p>(map: Option<&'p Map<'p>>) -> Value<'p> {
    map.map_or(Value::None, Value::Map)
}

fn names<'p>(names: Option<&'p Text<'p>>) -> Value<'p> {
    names.map_or(Value::None, Value::Names)
}

/// Writes front to back. All but vtables stands at multiples of four. (Lengths
/// and positions are of what is in memory: their sums do not wrap.)
struct Writer(Vec<u8>);

/// Where an offset is, which says how far behind it something stands.
#[derive(Clone, Copy)]
struct Place(usize);

impl Place {
    /// That of the offset right behind this one.
    fn next(self) -> Self {
        Self(self.0.wrapping_add(4))
    }
}

impl Writer {
    /// What stands at `place` comes next.
    fn point(&mut self, place: Place) {
        let distance = self.0.len().wrapping_sub(place.0);
        let offset = self.0.get_mut(place.0..).unwrap_or_default();
        if let Some(offset) = offset.first_chunk_mut() {
            *offset = u32::try_from(distance).unwrap_or(u32::MAX).to_le_bytes();
        }
    }

    /// Offsets that are yet to point somewhere; returns the first.
    fn offsets(&mut self, count: usize) -> Place {
        let first = self.0.len();
        self.0.resize(first.wrapping_add(count.wrapping_mul(4)), 0);
        Place(first)
    }

    /// The type of a table of offsets: its own size, the table's, and for each
    /// field where in the table it is, 0 if it is not there.
    fn vtable<const FIELDS: usize>(&mut self, are_there: [bool; FIELDS]) -> VTable {
        let vtable = VTable(self.0.len());
        let mut end = 4_u16;
        let fields = are_there.map(|is_there| {
            let field = if is_there { end } else { 0 };
            end = end.wrapping_add(if is_there { 4 } else { 0 });
            field.to_le_bytes()
        });
        #[allow(clippy::cast_possible_truncation)] // Of a dozen fields.
        let size = const { 2 * (2 + FIELDS) as u16 };
        self.0.extend_from_slice(&size.to_le_bytes());
        self.0.extend_from_slice(&end.to_le_bytes());
        self.0.extend_from_slice(fields.as_flattened());
        vtable
    }

    /// A table of `count` offsets; returns the first.
    fn table(&mut self, vtable: VTable, count: usize) -> Place {
        self.u32s([self.0.len().wrapping_sub(vtable.0)]);
        self.offsets(count)
    }

    /// A string: its length, the text, and a NUL.
    fn text(&mut self, text: &[u8]) {
        let end = self.0.len().wrapping_add(size_of_string(text));
        self.u32s([text.len()]);
        self.0.extend_from_slice(text);
        self.0.extend_from_slice(&[0; 4]);
        self.0.truncate(end);
    }

    /// A vector of strings.
    fn names(&mut self, names: &Text<'_>) {
        let mut place = self.vector(names.count_names());
        for name in names.names() {
            self.point(place);
            self.text(name);
            place = place.next();
        }
    }

    /// A vector of `KeyVal`.
    fn map(&mut self, map: &Map<'_>) {
        let mut place = self.vector(map.len());
        let vtable = self.vtable([true, true]);
        for (key, value) in map {
            self.point(place);
            let table = self.0.len().wrapping_sub(vtable.0);
            // The key stands behind both offsets, and behind it the value.
            self.u32s([table, 8, size_of_string(key.as_bytes()).wrapping_add(4)]);
            self.text(key.as_bytes());
            self.text(value.as_bytes());
            place = place.next();
        }
    }

    /// A vector of `count` offsets; returns the first.
    fn vector(&mut self, count: usize) -> Place {
        self.u32s([count]);
        self.offsets(count)
    }

    fn u32s<const COUNT: usize>(&mut self, numbers: [usize; COUNT]) {
        let numbers = numbers.map(|number| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend_from_slice(numbers.as_flattened());
    }
}

/// What a string takes: its length, the text, and a NUL.
fn size_of_string(text: &[u8]) -> usize {
    (text.len() | 3).wrapping_add(5)
}

/// Where the type of a table stands.
#[derive(Clone, Copy)]
struct VTable(usize);

/// Reads a `FlatNode` that anyone may have written: every offset is checked. Parts
/// may share their bytes, as writers do with equal texts, but not without bounds:
/// what is read is at most some times as large as what was written.
pub fn read(bytes: &[u8]) -> Result<Peer<'_>, InvalidFlatbuffer> {
    let bounds = VerifierOptions {
        max_apparent_size: bytes.len().saturating_mul(8).saturating_add(1024),
        ..VerifierOptions::default()
    };
    let node = flatbuffers::root_with_opts::<FlatNode<'_>>(&bounds, bytes)?;
    Ok(Peer {
        app_containers: node.app_containers().and_then(names_of),
        cluster_id: node.cluster_id().map(Text::from),
        instance_ips: node.instance_ips().and_then(names_of),
        istio_version: node.istio_version().map(Text::from),
        labels: node.labels().and_then(map_of),
        mesh_id: node.mesh_id().map(Text::from),
        name: node.name().map(Text::from),
        namespace: node.namespace().map(Text::from),
        owner: node.owner().map(Text::from),
        platform_metadata: node.platform_metadata().and_then(map_of),
        workload_name: node.workload_name().map(Text::from),
    })
}

/// `None` for an empty vector, which is as good as an absent one.
fn names_of<'a>(names: Vector<'a, ForwardsUOffset<&'a str>>) -> Option<Text<'a>> {
    (!names.is_empty()).then(|| names.iter().collect::<Vec<_>>().join(",").into())
}

/// Sorted here, for other writers need not sort (the C++ plugin does not).
/// `None` for an empty vector, which is as good as an absent one.
fn map_of<'a>(map: Vector<'a, ForwardsUOffset<KeyVal<'a>>>) -> Option<Map<'a>> {
    if map.is_empty() {
        return None;
    }
    let mut map: Map<'a> = map
        .iter()
        .map(|entry| {
            let value = entry.value().unwrap_or_default();
            (entry.key().into(), value.into())
        })
        .collect();
    map.sort();
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_is_there_whatever_the_peer_lacks() {
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
}
