//! Bytes compared and hashed a word at a time. The target's own comparison goes
//! byte by byte, which at the length of a peer's header costs more than all the
//! rest of a request.

use block::{difference, is_none, or};

/// What the target compares at once: a vector.
#[cfg(target_feature = "simd128")]
mod block {
    pub(super) use core::arch::wasm32::v128_or as or;
    use core::arch::wasm32::{v128, v128_any_true, v128_xor};

    use bytemuck::pod_read_unaligned as load;

    pub(super) fn difference(a: &[u8; 16], b: &[u8; 16]) -> v128 {
        v128_xor(load(a), load(b))
    }

    pub(super) fn is_none(difference: v128) -> bool {
        !v128_any_true(difference)
    }
}

/// What a target without vectors compares at once: a word.
#[cfg(not(target_feature = "simd128"))]
mod block {
    pub(super) fn or(a: u64, b: u64) -> u64 {
        a | b
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // As the vector's.
    pub(super) fn difference(a: &[u8; 8], b: &[u8; 8]) -> u64 {
        u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)
    }

    pub(super) fn is_none(difference: u64) -> bool {
        difference == 0
    }
}

/// Whether `a` and `b` are equal. Does not stop at the first difference, for
/// what is compared is nearly always equal.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let (Some(a_last), Some(b_last)) = (a.last_chunk(), b.last_chunk()) else {
        let bytes = a.iter().zip(b);
        return bytes.fold(0, |all, (a, b)| all | (a ^ b)) == 0;
    };
    // The last block overlaps those before it where the length is no multiple.
    let mut all = difference(a_last, b_last);
    let (a_rows, a_rest) = a.as_chunks().0.as_chunks();
    let (b_rows, b_rest) = b.as_chunks().0.as_chunks();
    for (a, b) in a_rows.iter().zip(b_rows) {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = a;
        let [b0, b1, b2, b3, b4, b5, b6, b7] = b;
        let first = or(
            or(difference(a0, b0), difference(a1, b1)),
            or(difference(a2, b2), difference(a3, b3)),
        );
        let second = or(
            or(difference(a4, b4), difference(a5, b5)),
            or(difference(a6, b6), difference(a7, b7)),
        );
        all = or(all, or(first, second));
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        all = or(all, difference(a, b));
    }
    is_none(all)
}

/// A quick hash. Whoever wants to can make two collide: only for what such a one
/// gains nothing by.
#[must_use]
pub fn quick_hash(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(ODD);
    let hash = if let Some(last) = bytes.last_chunk::<8>() {
        // The last word overlaps those before it where the length is no multiple.
        let hash = mix(bytes.len() as u64, u64::from_le_bytes(*last));
        let (words, _) = bytes.as_chunks::<8>();
        words
            .iter()
            .fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)))
    } else {
        bytes
            .iter()
            .fold(0, |hash, byte| mix(hash, u64::from(*byte)))
    };
    // A product spreads its high bits only, and a table takes the low ones.
    let hash = (hash ^ (hash >> 32)).wrapping_mul(ODD);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_seen_at_every_place_of_every_length() {
        for len in 0..200 {
            let a: Vec<u8> = (0..len).collect();
            assert!(equal(&a, &a.clone()));
            assert!(!equal(&a, &[&a[..], &[0]].concat()));
            for place in 0..usize::from(len) {
                let mut b = a.clone();
                b[place] ^= 0x80;
                assert!(!equal(&a, &b), "{len} {place}");
                assert_ne!(quick_hash(&a), quick_hash(&b), "{len} {place}");
            }
        }
    }

    #[test]
    fn hashes_of_names_that_are_counted_up_spread_over_a_table() {
        for name in ["svc", "cluster-", "outbound|80||shop-"] {
            let hashes = (0..4096).map(|n| quick_hash(format!("{name}{n:05}").as_bytes()));
            let places: std::collections::HashSet<_> = hashes.map(|hash| hash % 8192).collect();
            // At random it would be 3,224.
            assert!(places.len() > 3000, "{name}: {}", places.len());
        }
    }
}
