//! Why a configuration is rejected.

use std::fmt;

use serde_json::Value;

use super::KEYS;

/// Why a configuration is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a JSON object.
    NotJson(String),
    /// No such key.
    UnknownKey(String),
    /// A key is repeated; with the keys that lead to it: `node.LABELS.app`.
    RepeatedKey(String),
    /// The value is not allowed.
    Invalid {
        /// The key.
        key: &'static str,
        /// The value, as JSON.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A value inside that of a key is not allowed.
    Inside {
        /// The keys that lead to it: `node.LABELS.app`.
        path: String,
        /// The value, as JSON.
        value: String,
        /// What is allowed, or what is wrong.
        problem: String,
    },
    /// Two keys exclude each other, or one needs the other.
    Conflict(&'static str),
}

impl ConfigError {
    pub(super) fn invalid(key: &'static str, value: &Value) -> Self {
        let allowed = KEYS.into_iter().find(|(name, _)| *name == key);
        Self::Invalid {
            key,
            value: shortened(value),
            allowed: allowed.map_or("", |(_, allowed)| allowed),
        }
    }

    #[inline(never)]
    pub(super) fn inside(path: &[&str], value: &Value, problem: &[&str]) -> Self {
        Self::Inside {
            path: path.concat(),
            value: shortened(value),
            problem: problem.concat(),
        }
    }
}

/// A value as JSON, short enough for a log line.
fn shortened(value: &Value) -> String {
    const MAX_CHARS: usize = 100;
    let json = value.to_string();
    match json.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", json.get(..end).unwrap_or_default()),
        None => json,
    }
}

impl From<serde_json::Error> for ConfigError {
    /// A repeated key is named only in the message.
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        let repeated = text.strip_prefix("duplicate field `");
        match repeated.and_then(|repeated| repeated.split_once('`')) {
            Some((key, _)) => Self::RepeatedKey(key.to_owned()),
            None => Self::NotJson(text),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson(error) => write!(f, "not a JSON object: {error}"),
            Self::UnknownKey(key) => {
                let keys = KEYS.map(|(key, _)| key).join(", ");
                write!(f, "unknown key {key:?}; allowed are {keys}")
            }
            Self::RepeatedKey(key) => write!(f, "not a JSON object: {key:?} stands twice"),
            Self::Invalid {
                key,
                value,
                allowed,
            } => write!(f, "\"{key}\" is {value}; allowed is {allowed}"),
            Self::Inside {
                path,
                value,
                problem,
            } => write!(f, "{path:?} is {value}; {problem}"),
            Self::Conflict(conflict) => f.write_str(conflict),
        }
    }
}

impl std::error::Error for ConfigError {}
