//! Whether a message has room for the local node's headers: a proxy on the path
//! rejects messages over one of its header limits, and telemetry must not cost
//! a request.

use super::Exchange;
use super::headers::{Both, EACH, ID_ALONE, NEITHER, PeerHeaders};
use crate::config::Config;
use crate::counters::Counter;
use crate::header_limits::{Headers, MAX_HEADER_BYTES};
use crate::host::{HeaderMap, Host};
use crate::local::LocalNode;
use crate::peer::header::{PEER_METADATA, PEER_METADATA_ID};

/// The limits of a message, and what the local node's headers add.
#[derive(Debug)]
pub(super) struct Room {
    request: Headers,
    response: Headers,
    /// The bytes of each of the local node's headers, name and value: 0 if
    /// there is none.
    local: Both<usize>,
}

impl Room {
    pub(super) fn new(config: &Config, local: &LocalNode) -> Self {
        let size = |name: &str, value: &Option<_>| match value.as_ref().map(String::len) {
            Some(value) => match name.len().saturating_add(value) {
                size if size <= MAX_HEADER_BYTES => size,
                _ => usize::MAX,
            },
            None => 0,
        };
        let room = Self {
            request: config.request_headers.with_room(),
            response: config.response_headers.with_room(),
            local: Both {
                metadata: size(PEER_METADATA, &local.header),
                id: size(PEER_METADATA_ID, &local.id),
            },
        };
        let added = room.local(EACH).headers();
        if !added.fit(room.request) || !added.fit(room.response) {
            log::warn!(
                "node metadata of {} bytes exceed the header limits of every request or response, \
                 and are not sent there: lower max_sent_bytes",
                local.header.as_ref().map_or(0, String::len)
            );
        }
        room
    }

    fn most(&self, map: HeaderMap) -> Headers {
        match map {
            HeaderMap::Request => self.request,
            HeaderMap::Response => self.response,
        }
    }

    /// Those of the local node's headers that should be sent.
    fn local(&self, give: Both<bool>) -> Both<usize> {
        Both {
            metadata: if give.metadata {
                self.local.metadata
            } else {
                0
            },
            id: if give.id { self.local.id } else { 0 },
        }
    }
}

impl Both<usize> {
    /// The number and bytes of these headers; those with 0 bytes are absent.
    fn headers(self) -> Headers {
        let is_there = |bytes| usize::from(bytes != 0);
        Headers {
            count: is_there(self.metadata).wrapping_add(is_there(self.id)),
            bytes: self.metadata.saturating_add(self.id),
        }
    }
}

impl Headers {
    fn and(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn without(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_sub(other.count),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl Exchange {
    /// Which of the headers `give` fit into `map`, which has `count` headers:
    /// all, the id alone, or none. `headers` is what was read, if anything.
    pub(super) fn fitting(
        &self,
        host: &impl Host,
        map: HeaderMap,
        count: usize,
        headers: Option<&PeerHeaders>,
        give: Both<bool>,
    ) -> Both<bool> {
        let local = self.room.local(give);
        if local.metadata == 0 && local.id == 0 {
            return give;
        }
        if let Some(headers) = headers {
            // Replacing a header of the same length adds nothing.
            let there = headers.sizes();
            if local.metadata <= there.metadata && local.id <= there.id {
                return give;
            }
        }
        // Assumes that none of them is in the map, so that nothing need be
        // read.
        let (local, most) = (local.headers(), self.room.most(map));
        let count_alone = Headers { count, bytes: 0 };
        if count_alone.and(local).fit(most) {
            let Some(bytes) = host.header_bytes(map).ok() else {
                return NEITHER;
            };
            if (Headers { count, bytes }).and(local).fit(most) {
                return give;
            }
        }
        self.fitting_barely(host, map, count, headers, give)
    }

    /// The same close to a limit, where headers that are replaced make room.
    fn fitting_barely(
        &self,
        host: &impl Host,
        map: HeaderMap,
        count: usize,
        headers: Option<&PeerHeaders>,
        give: Both<bool>,
    ) -> Both<bool> {
        // Both may be in the map, and at least one is added.
        let least = Headers {
            count: count.saturating_sub(1),
            bytes: 0,
        };
        let fitting = if least.fit(self.room.most(map)) {
            let there = match headers {
                Some(headers) => headers.sizes(),
                None => PeerHeaders::read(host, map).sizes(),
            };
            self.fitting_beside(host, map, count, there.headers(), give)
        } else {
            NEITHER
        };
        if fitting != give {
            self.counters.count(Counter::TooLargeToSend);
        }
        fitting
    }

    /// The same if the headers in `there` are replaced or removed.
    fn fitting_beside(
        &self,
        host: &impl Host,
        map: HeaderMap,
        count: usize,
        there: Headers,
        give: Both<bool>,
    ) -> Both<bool> {
        let Some(bytes) = host.header_bytes(map).ok() else {
            return NEITHER;
        };
        let others = Headers { count, bytes }.without(there);
        let fits = |give| {
            let local = self.room.local(give).headers();
            others.and(local).fit(self.room.most(map))
        };
        if fits(give) {
            give
        } else if give.id && fits(ID_ALONE) {
            ID_ALONE
        } else {
            NEITHER
        }
    }
}

impl PeerHeaders {
    /// The bytes of each header, name and value: 0 if it is absent, or cannot be
    /// read.
    fn sizes(&self) -> Both<usize> {
        let size = |name: &str, value: Option<usize>| {
            value.map_or(0, |value| name.len().saturating_add(value))
        };
        Both {
            metadata: size(PEER_METADATA, self.metadata.size()),
            id: size(PEER_METADATA_ID, self.id.size()),
        }
    }
}
