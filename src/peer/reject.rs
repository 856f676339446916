//! Why a received peer is rejected.

use std::fmt;

/// Why a received peer is rejected. The request is still served; each reason
/// has its own counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// The header is longer than the receiver allows.
    TooLong {
        /// Bytes received.
        len: usize,
        /// Bytes allowed (`max_received_bytes`).
        max: usize,
    },
    /// Not standard base64: another alphabet, a single last character, or
    /// unused bits that are set.
    Base64,
    /// Not a `google.protobuf.Struct`, including strings that are not UTF-8 and
    /// messages nested more than 100 times.
    Protobuf,
    /// Lists and structs nested deeper than [`super::wire::MAX_DEPTH`].
    TooDeep,
    /// More labels, platform metadata, containers or addresses than the receiver
    /// allows.
    TooManyLabels {
        /// Entries allowed (`max_labels`).
        max: usize,
    },
    /// An id that is not UTF-8.
    Utf8,
    /// A text with a control character (C0, DEL or C1), which could forge log
    /// lines.
    ControlCharacter,
    /// The id is longer than the receiver allows.
    IdTooLong {
        /// Bytes received.
        len: usize,
        /// Bytes allowed (`max_id_bytes`).
        max: usize,
    },
    /// A valid message that does not describe a workload.
    Empty,
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { len, max } => {
                write!(f, "{len} bytes, over max_received_bytes {max}")
            }
            Self::Base64 => f.write_str("not standard base64"),
            Self::Protobuf => f.write_str("not a google.protobuf.Struct"),
            Self::TooDeep => f.write_str("values nested too deeply"),
            Self::TooManyLabels { max } => {
                write!(f, "more than max_labels {max} entries in a map or list")
            }
            Self::Utf8 => f.write_str("a text that is not UTF-8"),
            Self::ControlCharacter => f.write_str("a control character in a text"),
            Self::IdTooLong { len, max } => {
                write!(f, "an id of {len} bytes, over max_id_bytes {max}")
            }
            Self::Empty => f.write_str("says nothing about the workload"),
        }
    }
}

impl std::error::Error for RejectReason {}
