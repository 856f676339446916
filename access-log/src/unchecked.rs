//! A `FlatNode` as `SkyWalking` reads it: with `FlatBuffers` for Java, which checks
//! nothing beforehand, and of the node only what names a service.

use serde_json::{Map, Value};

/// Where the fields stand in the table's directory.
const NAME: usize = 0;
const NAMESPACE: usize = 1;
const LABELS: usize = 2;
const CLUSTER_ID: usize = 9;
const KEY: usize = 0;
const VALUE: usize = 1;

/// More labels are no node's: a vector of this filter's could not have them.
const MAX_LABELS: usize = 4096;

/// The name, the namespace, the cluster and the labels; what is absent is empty.
/// `None` where the reader runs out of the bytes, or into a text that is no UTF-8.
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
    // As many labels may stand for one place in the bytes: no more than have room.
    let mut room = bytes.len().saturating_mul(8);
    for place in node.vector(LABELS)? {
        let label = Table::at(bytes, node.target(place?)?)?;
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
    place: usize,
    /// Where its directory begins.
    directory: usize,
}

impl<'b> Table<'b> {
    fn root(bytes: &[u8]) -> Option<usize> {
        usize::try_from(u32_at(bytes, 0)?).ok()
    }

    fn at(bytes: &'b [u8], place: usize) -> Option<Self> {
        let back = i64::from(i32_at(bytes, place)?);
        let directory = i64::try_from(place).ok()?.checked_sub(back)?;
        Some(Self {
            bytes,
            place,
            directory: usize::try_from(directory).ok()?,
        })
    }

    /// Where a field is, or 0 if the table lacks it: the root's offset is there.
    fn field(self, field: usize) -> Option<usize> {
        let entry = field.checked_mul(2)?.checked_add(4)?;
        let length = usize::from(u16_at(self.bytes, self.directory)?);
        if entry >= length {
            return Some(0);
        }
        let offset = u16_at(self.bytes, self.directory.checked_add(entry)?)?;
        if offset == 0 {
            return Some(0);
        }
        self.place.checked_add(usize::from(offset))
    }

    /// What the offset at `place` points to.
    fn target(self, place: usize) -> Option<usize> {
        place.checked_add(usize::try_from(u32_at(self.bytes, place)?).ok()?)
    }

    fn text(self, field: usize) -> Option<&'b str> {
        let place = self.field(field)?;
        if place == 0 {
            return Some("");
        }
        let text = self.target(place)?;
        let length = usize::try_from(u32_at(self.bytes, text)?).ok()?;
        let start = text.checked_add(4)?;
        let text = self.bytes.get(start..start.checked_add(length)?)?;
        str::from_utf8(text).ok()
    }

    /// The places of a vector's elements.
    fn vector(self, field: usize) -> Option<impl Iterator<Item = Option<usize>>> {
        let (start, length) = match self.field(field)? {
            0 => (0, 0),
            place => {
                let vector = self.target(place)?;
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

fn array_at<const N: usize>(bytes: &[u8], place: usize) -> Option<[u8; N]> {
    bytes.get(place..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], place: usize) -> Option<u16> {
    array_at(bytes, place).map(u16::from_le_bytes)
}

fn i32_at(bytes: &[u8], place: usize) -> Option<i32> {
    array_at(bytes, place).map(i32::from_le_bytes)
}

fn u32_at(bytes: &[u8], place: usize) -> Option<u32> {
    array_at(bytes, place).map(u32::from_le_bytes)
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
    fn it_is_read_as_by_one_who_checks() {
        let expected = json!({
            "NAME": "stock-1", "NAMESPACE": "shop", "CLUSTER_ID": "east",
            "LABELS": { "app": "stock" },
        });
        assert_eq!(read(&node()), Some(expected));
        let empty = json!({ "NAME": "", "NAMESPACE": "", "CLUSTER_ID": "", "LABELS": {} });
        assert_eq!(read(&flat::write(&Peer::default())), Some(empty));
    }

    /// Whatever the bytes, it ends, and finds what one who checks finds.
    #[test]
    fn no_bytes_do_harm() {
        let node = node();
        assert_eq!(read(&[]), None);
        for length in 0..node.len() {
            let _ = read(&node[..length]);
        }
        for place in 0..node.len() {
            for bit in 0..8 {
                let mut twisted = node.clone();
                twisted[place] ^= 1 << bit;
                let checked = flat::read(&twisted).map(|peer| peer.name);
                if let Ok(Some(name)) = checked {
                    assert_eq!(read(&twisted).unwrap()["NAME"], json!(name));
                }
            }
        }
    }
}
