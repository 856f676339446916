//! Header maps with Envoy's rules: lower-case names, several values for a name, arbitrary bytes as values.

use std::fmt;

/// A header or trailer map, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// No header at all.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same headers and one more value of `name`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.add(name, value.as_ref());
        self
    }

    /// The first value of `name`, which is what Envoy's ABI returns.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// Every value of `name`.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let name = name.to_ascii_lowercase();
        self.iter()
            .filter(move |(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// Whether `name` has a value, possibly an empty one.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()))
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all names and values.
    pub(crate) fn byte_size(&self) -> u32 {
        let sizes = self.iter().map(|(name, value)| name.len() + value.len());
        u32::try_from(sizes.sum::<usize>()).unwrap_or(u32::MAX)
    }

    pub(crate) fn add(&mut self, name: &str, value: &[u8]) {
        self.0.push((name.to_ascii_lowercase(), value.to_vec()));
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        self.0.retain(|(key, _)| *key != name);
    }

    pub(crate) fn replace(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.add(name, value);
    }
}

impl<const N: usize, V: AsRef<[u8]>> From<[(&str, V); N]> for Headers {
    fn from(pairs: [(&str, V); N]) -> Self {
        pairs
            .into_iter()
            .fold(Self::new(), |headers, (name, value)| {
                headers.with(name, value)
            })
    }
}

/// One of a stream's header maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// The request's headers.
    Request,
    /// The request's trailers.
    RequestTrailers,
    /// The response's headers.
    Response,
    /// The response's trailers.
    ResponseTrailers,
}

impl MapKind {
    pub(crate) const COUNT: usize = 4;

    pub(crate) fn from_guest(value: u32) -> Option<Self> {
        Some(match value {
            0 => Self::Request,
            1 => Self::RequestTrailers,
            2 => Self::Response,
            3 => Self::ResponseTrailers,
            _ => return None,
        })
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Request => 0,
            Self::RequestTrailers => 1,
            Self::Response => 2,
            Self::ResponseTrailers => 3,
        }
    }
}

impl fmt::Display for MapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::RequestTrailers => "request_trailers",
            Self::Response => "response",
            Self::ResponseTrailers => "response_trailers",
        })
    }
}
