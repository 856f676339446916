//! The bytes of a direction, from its seed.

use std::sync::Arc;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::plan::Direction;

const POOL: usize = 1 << 20;

/// Random bytes, of which all contents are pieces.
#[derive(Debug)]
pub(super) struct Pool(Vec<u8>);

impl Pool {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let mut bytes = vec![0; POOL];
        Xoshiro256PlusPlus::seed_from_u64(seed).fill_bytes(&mut bytes);
        Arc::new(Self(bytes))
    }
}

/// What a direction still has to carry, piece by piece.
#[derive(Debug)]
pub(super) struct Content {
    pool: Arc<Pool>,
    random: Xoshiro256PlusPlus,
    opening: Vec<u8>,
    largest: usize,
    /// Not counting the current piece.
    left: u64,
    piece: std::ops::Range<usize>,
    is_opening: bool,
    /// The bytes before the current one.
    pub(super) done: u64,
}

impl Content {
    pub(super) fn new(direction: &Direction, pool: &Arc<Pool>) -> Self {
        let mut opening = direction.opening.clone();
        opening.truncate(usize::try_from(direction.length).unwrap_or(usize::MAX));
        let left = direction.length - opening.len() as u64;
        Self {
            pool: Arc::clone(pool),
            random: Xoshiro256PlusPlus::seed_from_u64(direction.seed),
            largest: direction.largest,
            left,
            piece: 0..opening.len(),
            opening,
            is_opening: true,
            done: 0,
        }
    }

    /// The rest of the current piece; empty at the end.
    pub(super) fn rest(&mut self) -> &[u8] {
        if self.piece.is_empty() && self.left > 0 {
            let length = self.random.random_range(1..=self.largest);
            let length = length.min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let begin = self.random.random_range(0..=POOL - length);
            self.piece = begin..begin + length;
            self.left -= length as u64;
            self.is_opening = false;
        }
        let source = if self.is_opening {
            &self.opening
        } else {
            &self.pool.0
        };
        &source[self.piece.clone()]
    }

    /// Goes on behind `count` bytes of the current piece.
    pub(super) fn advance(&mut self, count: usize) {
        self.piece.start += count;
        self.done += count as u64;
    }

    /// Whether these are the next bytes, behind which it goes on. If not, where the first other one is.
    pub(super) fn check(&mut self, mut bytes: &[u8]) -> Result<(), u64> {
        while !bytes.is_empty() {
            let rest = self.rest();
            let both = rest.iter().zip(bytes);
            let length = rest.len().min(bytes.len());
            if length == 0 {
                return Err(self.done);
            }
            if rest[..length] != bytes[..length] {
                let same = both.take_while(|(one, other)| one == other).count();
                return Err(self.done + same as u64);
            }
            self.advance(length);
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(opening: &[u8], length: u64) -> Direction {
        Direction {
            seed: 1,
            opening: opening.to_owned(),
            length,
            largest: 100,
        }
    }

    fn all(direction: &Direction, pool: &Arc<Pool>) -> Vec<u8> {
        let mut content = Content::new(direction, pool);
        let mut bytes = Vec::new();
        loop {
            let rest = content.rest().to_owned();
            if rest.is_empty() {
                return bytes;
            }
            content.advance(rest.len());
            bytes.extend(rest);
        }
    }

    #[test]
    fn every_byte_is_compared() {
        let pool = Pool::new(1);
        let direction = direction(b"=#", 1000);
        let sent = all(&direction, &pool);
        assert_eq!(sent.len(), 1000);
        assert_eq!(&sent[..2], b"=#");
        for chunk in [1, 7, 1000] {
            let mut content = Content::new(&direction, &pool);
            for bytes in sent.chunks(chunk) {
                assert_eq!(content.check(bytes), Ok(()));
            }
            assert_eq!(content.done, 1000);
            assert_eq!(content.check(b"more"), Err(1000));
        }
        for place in [0, 1, 2, 500, 999] {
            let mut other = sent.clone();
            other[place] ^= 1;
            let mut content = Content::new(&direction, &pool);
            assert_eq!(content.check(&other), Err(place as u64));
        }
    }

    #[test]
    fn a_short_direction_is_a_part_of_its_opening() {
        let pool = Pool::new(1);
        assert_eq!(all(&direction(b"=#\x04", 1), &pool), b"=");
        assert_eq!(all(&direction(b"", 0), &pool), b"");
    }
}
