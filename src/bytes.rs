//! Bytes compared and hashed some at a time. The target's own comparison goes
//! byte by byte, which at the length of a peer's header costs more than all the
//! rest of a request.

use alloc::vec::Vec;
use core::cmp::Ordering;

use block::{Block, NO_PRODUCT, add, difference, is_none, or, product, total, unprintable};

/// What the target works on at once: a vector.
#[cfg(target_feature = "simd128")]
mod block {
    pub(super) use core::arch::wasm32::v128_or as or;
    use core::arch::wasm32::{
        i32x4_add, i64x2, i64x2_add, i64x2_extract_lane, i64x2_mul, u8x16_gt, u8x16_splat,
        u8x16_sub, u64x2_shr, u64x2_splat, v128, v128_and, v128_any_true, v128_xor,
    };

    use bytemuck::pod_read_unaligned as load;

    pub(super) type Block = [u8; 16];

    pub(super) fn add(a: v128, b: v128) -> v128 {
        i64x2_add(a, b)
    }

    pub(super) fn difference(a: &Block, b: &Block) -> v128 {
        v128_xor(load(a), load(b))
    }

    pub(super) fn is_none(difference: v128) -> bool {
        !v128_any_true(difference)
    }

    pub(super) fn unprintable(block: &Block) -> v128 {
        let above_space = u8x16_sub(load(block), u8x16_splat(0x20));
        u8x16_gt(above_space, u8x16_splat(0x7E - 0x20))
    }

    pub(super) const NO_PRODUCT: v128 = i64x2(0, 0);

    pub(super) fn product(block: &Block, key: &Block) -> v128 {
        let sums = i32x4_add(load(block), load(key));
        let low = v128_and(sums, u64x2_splat(0xFFFF_FFFF));
        i64x2_mul(low, u64x2_shr(sums, 32))
    }

    pub(super) fn total(sums: v128) -> u64 {
        let (a, b) = (i64x2_extract_lane::<0>(sums), i64x2_extract_lane::<1>(sums));
        a.wrapping_add(b).cast_unsigned()
    }
}

/// What a target without vectors works on at once: a word.
#[cfg(not(target_feature = "simd128"))]
#[allow(clippy::trivially_copy_pass_by_ref)] // As the vector's.
mod block {
    pub(super) type Block = [u8; 8];

    pub(super) fn or(a: u64, b: u64) -> u64 {
        a | b
    }

    pub(super) fn add(a: u64, b: u64) -> u64 {
        a.wrapping_add(b)
    }

    pub(super) fn difference(a: &Block, b: &Block) -> u64 {
        u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)
    }

    pub(super) fn is_none(difference: u64) -> bool {
        difference == 0
    }

    pub(super) use super::word::unprintable;

    pub(super) const NO_PRODUCT: u64 = 0;

    pub(super) fn product(block: &Block, key: &Block) -> u64 {
        const LOW: u64 = u32::MAX as u64;
        let (block, key) = (u64::from_le_bytes(*block), u64::from_le_bytes(*key));
        let low = (block & LOW).wrapping_add(key & LOW) & LOW;
        let high = (block >> 32).wrapping_add(key >> 32) & LOW;
        low.wrapping_mul(high)
    }

    pub(super) fn total(sum: u64) -> u64 {
        sum
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
        let longer = || have_equal_ends::<4>(a, b).unwrap_or_else(|| a.iter().eq(b));
        return have_equal_ends::<8>(a, b).unwrap_or_else(longer);
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

/// Whether the first and the last `N` bytes are equal, which for a length of up
/// to twice `N` are all. `None` if there are fewer.
fn have_equal_ends<const N: usize>(a: &[u8], b: &[u8]) -> Option<bool> {
    let first = a.first_chunk::<N>()? == b.first_chunk()?;
    Some(first & (a.last_chunk::<N>()? == b.last_chunk()?))
}

/// Whether all of `bytes` are printable ASCII, 0x20 to 0x7E.
#[must_use]
pub fn are_printable(bytes: &[u8]) -> bool {
    // The last block overlaps those before it where the length is no multiple.
    if let Some(last) = bytes.last_chunk() {
        let blocks = bytes.as_chunks().0.iter();
        return is_none(blocks.fold(unprintable(last), |all, block| or(all, unprintable(block))));
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        return word::unprintable(first) | word::unprintable(last) == 0;
    }
    if let (Some([a, b, c, d]), Some([e, f, g, h])) = (bytes.first_chunk(), bytes.last_chunk()) {
        return word::unprintable(&[*a, *b, *c, *d, *e, *f, *g, *h]) == 0;
    }
    bytes.iter().all(|byte| (0x20..0x7F).contains(byte))
}

mod word {
    /// Some bit for each byte that is not printable ASCII.
    #[allow(clippy::trivially_copy_pass_by_ref)] // As the vector's.
    pub(super) fn unprintable(word: &[u8; 8]) -> u64 {
        const EACH: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x80 * EACH;
        let word = u64::from_le_bytes(*word);
        // Without a high bit, the bytes add and subtract without carries: one
        // below 0x20 borrows, 0x7F overflows.
        let below = (word | HIGH).wrapping_sub(0x20 * EACH);
        let above = (word & !HIGH).wrapping_add(EACH);
        (word | !below | above) & HIGH
    }
}

/// The order of bytes, as the standard library has it.
#[must_use]
#[inline(never)] // A sort has it in many places.
pub fn order(a: &[u8], b: &[u8]) -> Ordering {
    let in_order =
        |(a, b): (&[u8; 8], &[u8; 8])| u64::from_be_bytes(*a).cmp(&u64::from_be_bytes(*b));
    let mut words = a.as_chunks().0.iter().zip(b.as_chunks().0);
    if let Some(words) = words.find(|(a, b)| a != b) {
        return in_order(words);
    }
    let both = a.len().min(b.len());
    let (a_both, b_both) = (a.get(..both).unwrap_or(a), b.get(..both).unwrap_or(b));
    let rest = match (a_both.last_chunk(), b_both.last_chunk()) {
        // This word overlaps those before it, which are equal.
        (Some(a), Some(b)) => in_order((a, b)),
        _ => short(a_both).cmp(&short(b_both)),
    };
    rest.then(a.len().cmp(&b.len()))
}

/// Fewer bytes than a word has, as a number.
fn short(bytes: &[u8]) -> u64 {
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    bytes.iter().fold(0, add)
}

/// A keyed hash of pairs of bytes. Of two different pairs, whatever they are,
/// about one choice of keys in 2^32 gives the same, so that nobody who does not
/// know the keys can make pairs collide.
///
/// It is the NH of UMAC (RFC 4418, 5.2.2), for which the standard library's hash
/// takes five times as many instructions.
#[derive(Debug, Default)]
pub struct PairHasher {
    /// At least one for each block of the longest pair yet.
    keys: Vec<Block>,
}

impl PairHasher {
    /// The hash of `first` and `second`; `None` if the proxy has no random numbers
    /// for its keys: with known ones, any sender could make pairs collide.
    pub fn hash(&mut self, first: &[u8], second: &[u8]) -> Option<u64> {
        let lengths = (first.len() as u64) << 32 | second.len() as u64;
        let (first_blocks, first_rest) = first.as_chunks();
        let (second_blocks, second_rest) = second.as_chunks();
        let ends = [&lengths.to_le_bytes(), first_rest, second_rest].map(padded);
        let count = [ends.len(), first_blocks.len(), second_blocks.len()];
        let count = count.into_iter().fold(0, usize::saturating_add);
        if count > self.keys.len() {
            self.draw_keys(count)?;
        }
        let (keys_of_ends, keys) = self.keys.split_at_checked(ends.len()).unwrap_or_default();
        let (keys_of_first, keys) = keys
            .split_at_checked(first_blocks.len())
            .unwrap_or_default();
        let sum = nh(&ends, keys_of_ends)
            .wrapping_add(nh(first_blocks, keys_of_first))
            .wrapping_add(nh(second_blocks, keys));
        Some(mix(sum))
    }

    /// Draws keys at random, so that there are `count`: many at once, for the
    /// proxy is asked for them.
    #[cold]
    fn draw_keys(&mut self, count: usize) -> Option<()> {
        /// What Envoy gives at once, in bytes.
        const MOST: usize = 1 << 16;
        let known = self.keys.len();
        self.keys
            .resize(count.next_power_of_two(), Block::default());
        let new = self.keys.get_mut(known..).unwrap_or_default();
        for some in new.as_flattened_mut().chunks_mut(MOST) {
            if getrandom::fill(some).is_err() {
                self.keys.truncate(known);
                return None;
            }
        }
        Some(())
    }
}

/// The sum of the products of each block with its key.
fn nh(blocks: &[Block], keys: &[Block]) -> u64 {
    let products = blocks
        .iter()
        .zip(keys)
        .map(|(block, key)| product(block, key));
    total(products.fold(NO_PRODUCT, add))
}

/// At most a block's bytes, filled up with zeros.
fn padded(bytes: &[u8]) -> Block {
    let mut block = Block::default();
    for (to, from) in block.iter_mut().zip(bytes) {
        *to = *from;
    }
    block
}

/// A quick hash. Whoever wants to can make two collide: only for what such a one
/// gains nothing by.
#[must_use]
pub fn quick_hash(bytes: &[u8]) -> u64 {
    let add = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(ODD);
    let hash = if let Some(last) = bytes.last_chunk::<8>() {
        // The last word overlaps those before it where the length is no multiple.
        let hash = add(bytes.len() as u64, u64::from_le_bytes(*last));
        let (words, _) = bytes.as_chunks::<8>();
        words
            .iter()
            .fold(hash, |hash, word| add(hash, u64::from_le_bytes(*word)))
    } else {
        bytes
            .iter()
            .fold(0, |hash, byte| add(hash, u64::from(*byte)))
    };
    mix(hash)
}

/// Spreads what differs in some bits over all: a table takes the low ones, where
/// products spread little.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(ODD);
    hash ^ (hash >> 32)
}

const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

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
    fn order_is_that_of_slices() {
        let texts = [
            "",
            "a",
            "ab",
            "abcdefgh",
            "abcdefgi",
            "abcdefgh1",
            "abcdefgh\u{ff}",
            "b",
        ];
        let long = texts.map(|text| format!("0123456789abcdef{text}"));
        let texts = texts.into_iter().chain(long.iter().map(String::as_str));
        for a in texts.clone().map(str::as_bytes) {
            for b in texts.clone().map(str::as_bytes) {
                assert_eq!(order(a, b), a.cmp(b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_pair_has_one_hash_and_another_pair_another() {
        let mut pairs = PairHasher::default();
        let bytes: Vec<u8> = (0..100).collect();
        let mut hashes = std::collections::HashSet::new();
        for len in 0..100 {
            // All divisions of the same bytes, and bytes that are filled up alike.
            for (first, second) in [
                bytes.split_at(len),
                (&bytes[..len], &[]),
                (&[], &[0; 100][..len]),
            ] {
                let hash = pairs.hash(first, second);
                assert_eq!(hash, pairs.hash(first, second));
                let is_new = hashes.insert(hash);
                assert!(
                    is_new || (first.is_empty() && second.is_empty()),
                    "{first:?} {second:?}"
                );
            }
        }
        let other = PairHasher::default().hash(&bytes, &bytes);
        assert_ne!(other, pairs.hash(&bytes, &bytes), "the keys are random");
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
