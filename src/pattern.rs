//! A name, or the start of names, as configurations list them.

use alloc::borrow::ToOwned;
use alloc::string::String;

/// A name, or the start of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This name only.
    Exact(String),
    /// Every name that starts so.
    Prefix(String),
}

impl Pattern {
    /// Reads a name, or a prefix with `*` at its end; `None` if a `*` stands
    /// elsewhere.
    #[must_use]
    pub fn parse(pattern: &str) -> Option<Self> {
        let prefix = pattern.strip_suffix('*');
        if prefix.unwrap_or(pattern).contains('*') {
            return None;
        }
        Some(match prefix {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(pattern.to_owned()),
        })
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix),
        }
    }
}
