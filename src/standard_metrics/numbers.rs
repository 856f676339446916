//! Numbers for texts, so that what is looked up for each call is short.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use rustc_hash::FxBuildHasher;

use crate::bytes::equal;

/// Texts with their numbers, from 0. Texts whose hashes collide get new numbers again, up to the bound.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    texts: Vec<Box<[u8]>>,
    index: HashMap<u64, usize, FxBuildHasher>,
}

impl Numbers {
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn clear(&mut self) {
        self.texts.clear();
        self.index.clear();
    }

    /// The number of `text`, if it has one.
    pub(super) fn get(&self, text: &[u8]) -> Option<usize> {
        let number = *self.index.get(&FxBuildHasher.hash_one(text))?;
        let known = self.texts.get(number)?;
        equal(known, text).then_some(number)
    }

    /// Adds `text`, and returns its number.
    pub(super) fn add(&mut self, text: &[u8]) -> usize {
        let number = self.texts.len();
        self.texts.push(text.into());
        self.index.insert(FxBuildHasher.hash_one(text), number);
        number
    }
}
