//! Bounds on a server's memory, and how much a message may need.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Bounds on a server's memory. Received messages take at most
/// [`Limits::memory_bytes`] until they are dropped; in addition, each stream
/// may hold one incoming message, and twice as much for its sender.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most concurrent streams, at most [`MAX_STREAMS`]; further ones are
    /// refused. An Envoy opens one for each worker and log.
    pub streams: usize,
    /// The longest message in bytes, at most [`MAX_MESSAGE_BYTES`]. By default,
    /// Envoy's are 16 KiB plus an entry.
    pub message_bytes: usize,
}

/// The upper limit for [`Limits::streams`].
pub const MAX_STREAMS: usize = 1 << 20;
/// The upper limit for [`Limits::message_bytes`].
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// The most entries, or other parts, of a message. Envoy's usual messages have
/// a few dozen.
pub(crate) const MAX_PARTS: usize = 4096;
/// The most memory that a part of a message takes in addition to its bytes.
const PART_BYTES: usize = 2 << 10;
/// The most bytes that one byte of a message becomes within a part.
const GROWTH: usize = 64;
/// Room for a hundred messages of the usual size.
const MEMORY_BYTES: usize = 128 << 20;

impl Limits {
    /// The most memory that received messages may take, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        MEMORY_BYTES.max(room_of(self.message_bytes, MAX_PARTS))
    }

    pub(crate) fn within_bounds(self) -> Self {
        Self {
            streams: self.streams.min(MAX_STREAMS),
            message_bytes: self.message_bytes.min(MAX_MESSAGE_BYTES),
        }
    }
}

/// The memory that a message may need.
pub(crate) fn room_of(bytes: usize, parts: usize) -> usize {
    bytes * GROWTH + parts * PART_BYTES
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 1024,
            message_bytes: 1 << 20,
        }
    }
}

/// Counts a message's entries and the fields of its node: each may take two
/// bytes of the message, but hundreds in memory.
pub(crate) fn parts_of(message: &[u8]) -> Result<usize, DecodeError> {
    const IDENTIFIER: u32 = 1;
    const NODE: u32 = 1;
    const ENTRIES: [u32; 2] = [2, 3];
    let mut parts = 0;
    for_each_message(message, |tag, inner| {
        if ENTRIES.contains(&tag) {
            for_each_message(inner, |_, _| {
                parts += 1;
                Ok(())
            })
        } else if tag == IDENTIFIER {
            for_each_message(inner, |tag, node| {
                if tag != NODE {
                    return Ok(());
                }
                for_each_message(node, |_, _| {
                    parts += 1;
                    Ok(())
                })
            })
        } else {
            Ok(())
        }
    })?;
    Ok(parts)
}

/// How many messages lie at `levels` and above: those of the first tag, in each of them those of the second, and so on.
pub(crate) fn parts_at(message: &[u8], levels: &[u32]) -> Result<usize, DecodeError> {
    let Some((wanted, below)) = levels.split_first() else {
        return Ok(0);
    };
    let mut parts = 0;
    for_each_message(message, |tag, inner| {
        if tag == *wanted {
            parts += 1 + parts_at(inner, below)?;
        }
        Ok(())
    })?;
    Ok(parts)
}

/// Calls `each` with the tag and the bytes of each field that may be a message.
fn for_each_message<'m>(
    mut message: &'m [u8],
    mut each: impl FnMut(u32, &'m [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !message.is_empty() {
        let (tag, wire) = decode_key(&mut message)?;
        if wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
            // A truncated field is reported when the message is decoded.
            let Some((field, rest)) = message.split_at_checked(length) else {
                return Ok(());
            };
            message = rest;
            each(tag, field)?;
        } else {
            skip_field(wire, tag, &mut message, DecodeContext::default())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{Extension, Node};
    use envoy_types::pb::envoy::data::accesslog::v3::{HttpAccessLogEntry, TcpAccessLogEntry};
    use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
    use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
        HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
    };
    use prost::Message as _;
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn the_parts_of_a_message_are_counted_before_it_is_read() {
        let node = Node {
            extensions: vec![Extension::default(); 5],
            ..Node::default()
        };
        let identifier = Identifier {
            node: Some(node),
            log_name: "a".to_owned(),
        };
        let http = LogEntries::HttpLogs(HttpAccessLogEntries {
            log_entry: vec![HttpAccessLogEntry::default(); 7],
        });
        let tcp = LogEntries::TcpLogs(TcpAccessLogEntries {
            log_entry: vec![TcpAccessLogEntry::default(); 3],
        });
        for (entries, expected) in [(http, 12), (tcp, 8)] {
            let message = StreamAccessLogsMessage {
                identifier: Some(identifier.clone()),
                log_entries: Some(entries),
            };
            assert_eq!(parts_of(&message.encode_to_vec()), Ok(expected));
        }
        // Entries may be spread over several fields, which form one list.
        let twice = [[0x12, 4, 0x0a, 0, 0x0a, 0], [0x12, 4, 0x0a, 0, 0x0a, 0]].concat();
        assert_eq!(parts_of(&twice), Ok(4));
        assert!(parts_of(&[0xff]).is_err());
        assert_eq!(parts_of(&[0x12, 9]), Ok(0));
    }

    #[test]
    fn the_parts_at_each_level_are_counted() {
        // In a message of tag 1 two of tag 2, in the second of which is one of tag 6, and one that is none of them.
        let message = [0x0a, 8, 0x12, 0, 0x12, 2, 0x32, 0, 0x1a, 0];
        assert_eq!(parts_at(&message, &[1, 2, 6]), Ok(4));
        assert_eq!(parts_at(&message, &[1, 2]), Ok(3));
        assert_eq!(parts_at(&message, &[2]), Ok(0));
        assert!(parts_at(&[0xff], &[1]).is_err());
        assert_eq!(parts_at(&[0x0a, 9], &[1]), Ok(0));
    }

    #[test]
    fn excessive_limits_are_capped() {
        let limits = Limits {
            streams: usize::MAX,
            message_bytes: usize::MAX,
        };
        let limits = limits.within_bounds();
        assert!(limits.streams <= Semaphore::MAX_PERMITS);
        assert!(u32::try_from(limits.memory_bytes()).is_ok());
    }
}
