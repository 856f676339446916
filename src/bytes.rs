//! Bytes compared and hashed a word at a time. The target's own comparison goes
//! byte by byte, which at the length of a peer's header costs more than all the
//! rest of a request.

/// Whether `a` and `b` are equal. Does not stop at the first difference, for
/// what is compared is nearly always equal.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let (Some(a_last), Some(b_last)) = (a.last_chunk(), b.last_chunk()) else {
        return a == b;
    };
    // The last word overlaps those before it where the length is no multiple.
    let mut difference = differ(*a_last, *b_last);
    let (a_blocks, a_words) = a.as_chunks::<8>().0.as_chunks();
    let (b_blocks, b_words) = b.as_chunks::<8>().0.as_chunks();
    for (&[a0, a1, a2, a3, a4, a5, a6, a7], &[b0, b1, b2, b3, b4, b5, b6, b7]) in
        a_blocks.iter().zip(b_blocks)
    {
        difference |= differ(a0, b0) | differ(a1, b1) | differ(a2, b2) | differ(a3, b3);
        difference |= differ(a4, b4) | differ(a5, b5) | differ(a6, b6) | differ(a7, b7);
    }
    for (a, b) in a_words.iter().zip(b_words) {
        difference |= differ(*a, *b);
    }
    difference == 0
}

fn differ(a: [u8; 8], b: [u8; 8]) -> u64 {
    u64::from_le_bytes(a) ^ u64::from_le_bytes(b)
}

/// A quick hash, whose high bits depend on all of `bytes`. Whoever wants to can
/// make two collide: only for what such a one gains nothing by.
#[must_use]
pub fn quick_hash(bytes: &[u8]) -> u64 {
    let mix =
        |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words
        .iter()
        .fold(0, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    rest.iter()
        .fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
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
}
