//! What bounds the memory of a server, and how much a message may need.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// What bounds the memory of a server. What was received and is not yet dropped
/// takes at most [`Limits::memory_bytes`]; each stream may hold a message that is
/// still coming in, and of its sender twice as much again.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many streams at a time, at most [`MAX_STREAMS`]; more are refused. An
    /// Envoy has one for each worker and log.
    pub streams: usize,
    /// The longest message, in bytes, at most [`MAX_MESSAGE_BYTES`]. Envoy's are
    /// 16 KiB and an entry, unless it is configured otherwise.
    pub message_bytes: usize,
}

/// No [`Limits::streams`] are more.
pub const MAX_STREAMS: usize = 1 << 20;
/// No [`Limits::message_bytes`] are more.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// How many entries, or other parts, a message may have. Those of Envoy's usual
/// messages are some dozens.
pub(crate) const MAX_PARTS: usize = 4096;
/// What a part of a message takes at most, besides its bytes.
const PART_BYTES: usize = 2 << 10;
/// How many bytes one byte of a message becomes at most, within a part.
const GROWTH: usize = 64;
/// Room for a hundred messages of the usual size.
const MEMORY_BYTES: usize = 128 << 20;

impl Limits {
    /// How many bytes what was received may take.
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

/// The room that a message may need.
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

/// How many entries the message has, and fields of the node that sends it: each
/// may be two bytes of the message, and is hundreds in memory.
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

/// Calls `each` with the tag and the bytes of each field that may be a message.
fn for_each_message<'m>(
    mut message: &'m [u8],
    mut each: impl FnMut(u32, &'m [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !message.is_empty() {
        let (tag, wire) = decode_key(&mut message)?;
        if wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
            // One that is cut off is told when it is read.
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
        // Entries may be told in several fields, which then are one list.
        let twice = [[0x12, 4, 0x0a, 0, 0x0a, 0], [0x12, 4, 0x0a, 0, 0x0a, 0]].concat();
        assert_eq!(parts_of(&twice), Ok(4));
        assert!(parts_of(&[0xff]).is_err());
        assert_eq!(parts_of(&[0x12, 9]), Ok(0));
    }

    #[test]
    fn limits_without_measure_are_cut() {
        let limits = Limits {
            streams: usize::MAX,
            message_bytes: usize::MAX,
        };
        let limits = limits.within_bounds();
        assert!(limits.streams <= Semaphore::MAX_PERMITS);
        assert!(u32::try_from(limits.memory_bytes()).is_ok());
    }
}
