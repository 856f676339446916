//! The serialised map of the proxy-wasm ABI: a count, the sizes of all keys and values, then the keys and values, each
//! with a closing NUL; little-endian.

/// Serialises `pairs`. A length beyond 32 bits cannot occur, because the bytes have to fit into a 32-bit linear memory.
pub(crate) fn encode<K: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(K, V)]) -> Vec<u8> {
    let mut out = length(pairs.len()).to_vec();
    for (key, value) in pairs {
        out.extend(length(key.as_ref().len()));
        out.extend(length(value.as_ref().len()));
    }
    for (key, value) in pairs {
        for part in [key.as_ref(), value.as_ref()] {
            out.extend_from_slice(part);
            out.push(0);
        }
    }
    out
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_counted_sized_and_closed() {
        let bytes = encode(&[("a", "bc"), ("", "")]);
        assert_eq!(
            bytes,
            b"\x02\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0a\0bc\0\0\0"
        );
    }
}
