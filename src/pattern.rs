//! A name or a prefix of names, as listed in configurations.

use serde::Deserialize;

/// A name or a prefix of names.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum Pattern {
    /// This name only.
    Exact(String),
    /// Every name with this prefix.
    Prefix(String),
}

impl Pattern {
    /// Reads a name, or a prefix with `*` at its end; `None` if it is empty or a `*`
    /// is elsewhere.
    #[must_use]
    pub fn parse(pattern: &str) -> Option<Self> {
        let prefix = pattern.strip_suffix('*');
        if pattern.is_empty() || prefix.unwrap_or(pattern).contains('*') {
            return None;
        }
        Some(match prefix {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(pattern.to_owned()),
        })
    }

    /// Whether one of `patterns` matches `name`, which must be UTF-8.
    #[must_use]
    pub fn any(patterns: &[Self], name: &[u8]) -> bool {
        std::str::from_utf8(name)
            .is_ok_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
    }

    /// Whether it matches `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = &'static str;

    fn try_from(pattern: String) -> Result<Self, Self::Error> {
        Self::parse(&pattern).ok_or("not a name, or a prefix with * at its end")
    }
}
