//! Reads a `FlatNode` as `SkyWalking` does: with `FlatBuffers` for Java, which
//! verifies nothing, and only the fields that name a service.

use serde_json::{Map, Value};

/// The fields' indices in the vtable.
const NAME: usize = 0;
const NAMESPACE: usize = 1;
const LABELS: usize = 2;
const CLUSTER_ID: usize = 9;
const KEY: usize = 0;
const VALUE: usize = 1;

/// The most labels that are read; no node has more.
const MAX_LABELS: usize = 4096;

/// The name, namespace, cluster and labels; absent ones are empty. `None` if an
/// offset leaves the buffer or a text is not UTF-8.
pub(crate) fn read(bytes: &[u8]) -> Option<Value> {
    let node = Table::at(bytes, Table::root(bytes)?)?;
    let mut metadata = Map::new();
    for (key, field) in [
        ("NAME", NAME),
        ("NAMESPACE", NAMESPACE),
        ("CLUSTER_ID", CLUSTER_ID),
    ] {
        metadata.insert(key.to_owned(), node.text(field)?.into());
    }
    let mut labels = Map::new();
    // Labels may share bytes, so their total size is bounded.
    let mut room = bytes.len().saturating_mul(8);
    for offset in node.vector(LABELS)? {
        let label = Table::at(bytes, node.target(offset?)?)?;
        let (key, value) = (label.text(KEY)?, label.text(VALUE)?);
        room = room.checked_sub(key.len().saturating_add(value.len()))?;
        labels.insert(key.to_owned(), value.into());
    }
    metadata.insert("LABELS".to_owned(), labels.into());
    Some(metadata.into())
}

/// A table in `bytes`.
#[derive(Clone, Copy)]
struct Table<'b> {
    bytes: &'b [u8],
    offset: usize,
    /// The offset of its vtable.
    vtable: usize,
}

impl<'b> Table<'b> {
    fn root(bytes: &[u8]) -> Option<usize> {
        usize::try_from(u32_at(bytes, 0)?).ok()
    }

    fn at(bytes: &'b [u8], offset: usize) -> Option<Self> {
        let back = i64::from(i32_at(bytes, offset)?);
        let vtable = i64::try_from(offset).ok()?.checked_sub(back)?;
        Some(Self {
            bytes,
            offset,
            vtable: usize::try_from(vtable).ok()?,
        })
    }

    /// The offset of a field; 0, where the root's offset is, if the table lacks
    /// it.
    fn field(self, field: usize) -> Option<usize> {
        let entry = field.checked_mul(2)?.checked_add(4)?;
        let length = usize::from(u16_at(self.bytes, self.vtable)?);
        if entry >= length {
            return Some(0);
        }
        let offset = u16_at(self.bytes, self.vtable.checked_add(entry)?)?;
        if offset == 0 {
            return Some(0);
        }
        self.offset.checked_add(usize::from(offset))
    }

    /// The target of the offset stored at `offset`.
    fn target(self, offset: usize) -> Option<usize> {
        offset.checked_add(usize::try_from(u32_at(self.bytes, offset)?).ok()?)
    }

    fn text(self, field: usize) -> Option<&'b str> {
        let offset = self.field(field)?;
        if offset == 0 {
            return Some("");
        }
        let text = self.target(offset)?;
        let length = usize::try_from(u32_at(self.bytes, text)?).ok()?;
        let start = text.checked_add(4)?;
        let text = self.bytes.get(start..start.checked_add(length)?)?;
        str::from_utf8(text).ok()
    }

    /// The offsets of a vector's elements.
    fn vector(self, field: usize) -> Option<impl Iterator<Item = Option<usize>>> {
        let (start, length) = match self.field(field)? {
            0 => (0, 0),
            offset => {
                let vector = self.target(offset)?;
                let length = usize::try_from(u32_at(self.bytes, vector)?).ok()?;
                (vector.checked_add(4)?, length)
            }
        };
        if length > MAX_LABELS {
            return None;
        }
        Some((0..length).map(move |number| start.checked_add(number.checked_mul(4)?)))
    }
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    array_at(bytes, offset).map(i32::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use metadata_exchange::peer::{Peer, flat};
    use serde_json::json;

    use super::*;

    fn node() -> Vec<u8> {
        flat::write(&Peer {
            name: Some("stock-1".into()),
            namespace: Some("shop".into()),
            cluster_id: Some("east".into()),
            labels: Some(vec![("app".into(), "stock".into())]),
            ..Peer::default()
        })
    }

    #[test]
    fn it_is_read_like_a_verified_one() {
        let expected = json!({
            "NAME": "stock-1", "NAMESPACE": "shop", "CLUSTER_ID": "east",
            "LABELS": { "app": "stock" },
        });
        assert_eq!(read(&node()), Some(expected));
        let empty = json!({ "NAME": "", "NAMESPACE": "", "CLUSTER_ID": "", "LABELS": {} });
        assert_eq!(read(&flat::write(&Peer::default())), Some(empty));
    }

    /// For any bytes it terminates, and agrees with a verifying reader where
    /// there is one.
    #[test]
    fn arbitrary_bytes_are_harmless() {
        let node = node();
        assert_eq!(read(&[]), None);
        for length in 0..node.len() {
            let _ = read(&node[..length]);
        }
        for offset in 0..node.len() {
            for bit in 0..8 {
                let mut twisted = node.clone();
                twisted[offset] ^= 1 << bit;
                let checked = flat::read(&twisted).map(|peer| peer.name);
                if let Ok(Some(name)) = checked {
                    assert_eq!(read(&twisted).unwrap()["NAME"], json!(name));
                }
            }
        }
    }
}
