//! Base64: the standard alphabet, read with or without padding.
//!
//! Written by hand, for it goes over every byte of a new peer's header: sixteen
//! characters at a time where the target has vectors, else four. The `base64`
//! crate, to which the tests compare it, takes five times as many instructions.

use alloc::string::String;
use alloc::vec::Vec;

/// The bytes that `text` stands for, in `bytes`, whose memory is used again.
/// `None` if it is not standard base64: another alphabet, a lone last character,
/// more padding than is due, or bits set that no byte uses.
#[must_use]
pub fn decode<'b>(text: &[u8], bytes: &'b mut Vec<u8>) -> Option<&'b [u8]> {
    let (text, padding) = split_padding(text);
    let (mut is_base64, rest) = blocks::decode(text, bytes);
    let (quads, last) = rest.as_chunks();
    let mut all = 0;
    for quad in quads {
        let [_, bytes_of_quad @ ..] = decode_quad(*quad, &mut all).to_be_bytes();
        bytes.extend_from_slice(&bytes_of_quad);
    }
    let (most_padding, unused) = match *last {
        [] => (0, 0),
        [a, b] => {
            let [_, byte, unused @ ..] = decode_quad([a, b, b'A', b'A'], &mut all).to_be_bytes();
            bytes.push(byte);
            (2, u16::from_be_bytes(unused))
        }
        [a, b, c] => {
            let [_, byte, next, unused] = decode_quad([a, b, c, b'A'], &mut all).to_be_bytes();
            bytes.extend_from_slice(&[byte, next]);
            (1, u16::from(unused))
        }
        _ => return None,
    };
    is_base64 &= all & INVALID == 0 && unused == 0 && padding <= most_padding;
    is_base64.then_some(bytes.as_slice())
}

/// `bytes` as text, padded.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3).saturating_mul(4));
    for triple in bytes.chunks(3) {
        let byte = |place| u32::from(triple.get(place).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let value = (bits >> shift) as usize & 0x3F;
            let character = ALPHABET.get(value).filter(|_| place <= triple.len());
            text.push(char::from(*character.unwrap_or(&b'=')));
        }
    }
    text
}

/// The text without the `=` at its end, and how many there were.
fn split_padding(text: &[u8]) -> (&[u8], usize) {
    let mut rest = text;
    while let [start @ .., b'='] = rest {
        rest = start;
    }
    (rest, text.len().saturating_sub(rest.len()))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What [`VALUES`] gives for a character that is not of the alphabet.
const INVALID: u8 = 0x80;

/// The value of each character.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // Checked when it is compiled.
const VALUES: [u8; 256] = {
    let mut values = [INVALID; 256];
    let mut value = 0;
    while value < 64 {
        values[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// Four characters as 24 bits. Puts their values into `all`, where the bit
/// [`INVALID`] remains of a wrong one.
fn decode_quad(quad: [u8; 4], all: &mut u8) -> u32 {
    let [a, b, c, d] = quad.map(|character| {
        let value = VALUES.get(usize::from(character)).copied();
        value.unwrap_or(INVALID)
    });
    *all |= a | b | c | d;
    u32::from(a) << 18 | u32::from(b) << 12 | u32::from(c) << 6 | u32::from(d)
}

/// Sixteen characters at once, after Wojciech Muła, "Base64 decoding with SIMD
/// instructions".
#[cfg(target_feature = "simd128")]
mod blocks {
    use alloc::vec::Vec;
    use bytemuck::{bytes_of, pod_read_unaligned as load};
    use core::arch::wasm32::{
        i8x16, i8x16_add, i8x16_eq, i8x16_swizzle, i16x8, i16x8_shl, i32x4_dot_i16x8, u8x16,
        u8x16_shr, u8x16_splat, u16x8_shr, u16x8_splat, v128, v128_and, v128_any_true, v128_or,
    };

    /// Characters of a block.
    const LEN: usize = 16;
    /// Bytes of a block.
    const BYTES: usize = 12;

    /// Which groups of characters have this low half: each bit is a group, and
    /// means that the half does not occur in it.
    const NOT_IN_BY_LOW: v128 = u8x16(
        0x15, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x13, 0x1A, 0x1B, 0x1B, 0x1B,
        0x1A,
    );
    /// The group of the characters with this high half.
    const GROUP_BY_HIGH: v128 = u8x16(
        0x10, 0x10, 0x01, 0x02, 0x04, 0x08, 0x04, 0x08, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10,
        0x10,
    );
    /// What, added to a character with this high half, gives its value; that of
    /// `/` is one place before that of `+`.
    const TO_VALUE_BY_HIGH: v128 = i8x16(0, 16, 19, 4, -65, -65, -71, -71, 0, 0, 0, 0, 0, 0, 0, 0);
    /// The bytes of four 24-bit numbers, most significant first.
    const BYTES_OF_QUADS: v128 = i8x16(2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1);

    /// Decodes whole blocks. Returns whether all are base64, and what remains.
    pub(super) fn decode<'a>(text: &'a [u8], bytes: &mut Vec<u8>) -> (bool, &'a [u8]) {
        let (blocks, rest) = text.as_chunks::<LEN>();
        let mut wrong = u8x16_splat(0);
        bytes.resize(blocks.len().saturating_mul(BYTES), 0);
        for (block, bytes) in blocks.iter().zip(bytes.as_chunks_mut::<BYTES>().0) {
            let quads = decode_block(load(block), &mut wrong);
            let packed = i8x16_swizzle(quads, BYTES_OF_QUADS);
            if let Some(packed) = bytes_of(&packed).first_chunk() {
                *bytes = *packed;
            }
        }
        (!v128_any_true(wrong), rest)
    }

    /// Four times 24 bits. Puts into `wrong` a bit for each wrong character.
    fn decode_block(text: v128, wrong: &mut v128) -> v128 {
        let high = u8x16_shr(text, 4);
        let low = v128_and(text, u8x16_splat(0x0F));
        let not_in = i8x16_swizzle(NOT_IN_BY_LOW, low);
        let group = i8x16_swizzle(GROUP_BY_HIGH, high);
        *wrong = v128_or(*wrong, v128_and(not_in, group));
        // A comparison gives -1 where it holds.
        let is_slash = i8x16_eq(text, u8x16_splat(b'/'));
        let to_value = i8x16_swizzle(TO_VALUE_BY_HIGH, i8x16_add(high, is_slash));
        let values = i8x16_add(text, to_value);
        let first = i16x8_shl(v128_and(values, u16x8_splat(0xFF)), 6);
        let pairs = v128_or(first, u16x8_shr(values, 8));
        i32x4_dot_i16x8(pairs, i16x8(0x1000, 1, 0x1000, 1, 0x1000, 1, 0x1000, 1))
    }
}

/// Without vectors there are no blocks.
#[cfg(not(target_feature = "simd128"))]
mod blocks {
    use alloc::vec::Vec;

    pub(super) fn decode<'a>(text: &'a [u8], bytes: &mut Vec<u8>) -> (bool, &'a [u8]) {
        bytes.clear();
        (true, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
    use proptest::prelude::*;

    const CRATE: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        decode(text, &mut b"left from before".to_vec()).map(<[u8]>::to_vec)
    }

    #[test]
    fn every_character_at_every_place() {
        for len in 0..40 {
            for place in 0..len {
                for character in 0..=u8::MAX {
                    let mut text = vec![b'A'; len];
                    text[place] = character;
                    assert_eq!(decoded(&text), CRATE.decode(&text).ok(), "{text:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_same_as_the_crate(bytes: Vec<u8>, padding in 0_usize..4, any in "[A-D/+=_ -]*") {
            let text = CRATE.encode(&bytes);
            prop_assert_eq!(decoded(text.as_bytes()), Some(bytes));
            prop_assert_eq!(encode(&decoded(text.as_bytes()).unwrap()), text.as_str());
            let padded = text.trim_end_matches('=').to_owned() + &"=".repeat(padding);
            for text in [padded, any] {
                prop_assert_eq!(decoded(text.as_bytes()), CRATE.decode(&text).ok());
            }
        }
    }
}
