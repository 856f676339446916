//! The limits of proxies on the headers of a message, and how much of them this
//! filter leaves free.

/// The limits on requests or on responses, in Envoy's terms: those of the
/// proxies that receive the message after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLimits {
    /// `max_request_headers_kb`, `max_response_headers_kb`: KiB of all headers.
    pub max_kb: u32,
    /// `max_request_headers_count`, `max_response_headers_count`: headers.
    pub max_count: u32,
}

/// The number and size of headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// The number of headers, including pseudo-headers.
    pub count: usize,
    /// The bytes of their names and values.
    pub bytes: usize,
}

/// The longest header, name and value, that every codec of Envoy accepts,
/// whatever its limit on all headers: HTTP/2 allows 64 KiB.
pub const MAX_HEADER_BYTES: usize = 60 << 10;

impl HeaderLimits {
    /// Envoy's defaults.
    pub const DEFAULT: Self = Self {
        max_kb: 60,
        max_count: 100,
    };

    /// The most that a message may have, including this filter's headers: a
    /// fifth of the number and an eighth of the bytes are left for headers that
    /// Envoy itself and later proxies add.
    #[must_use]
    pub fn with_room(self) -> Headers {
        let count = self.max_count as usize;
        let bytes = (self.max_kb as usize).saturating_mul(1024);
        Headers {
            count: count.saturating_sub(count / 5),
            bytes: bytes.saturating_sub(bytes / 8),
        }
    }
}

impl Headers {
    /// The overhead of a header in addition to its name and value: 32 bytes by
    /// RFC 9113, 10.5.1, and in HTTP/3. Envoy counts none in HTTP/2, and in
    /// HTTP/1.1 the 4 bytes of `: ` and the end of the line.
    const OVERHEAD: usize = 32;

    /// Whether these do not exceed `most`, in number and in bytes.
    #[must_use]
    pub fn fit(self, most: Self) -> bool {
        let overhead = self.count.saturating_mul(Self::OVERHEAD);
        self.count <= most.count && self.bytes.saturating_add(overhead) <= most.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_room_is_left_for_twenty_headers_and_7_5_kib() {
        let most = HeaderLimits::DEFAULT.with_room();
        let (count, bytes) = (100 - 20, 61_440 - 7680);
        assert_eq!(most, Headers { count, bytes });
    }

    #[test]
    fn each_header_counts_32_bytes_more() {
        let most = HeaderLimits::DEFAULT.with_room();
        let bytes = most.bytes - 10 * 32;
        let headers = |count, bytes| Headers { count, bytes };
        assert!(headers(10, bytes).fit(most));
        assert!(!headers(10, bytes + 1).fit(most));
        assert!(!headers(11, bytes).fit(most));
        assert!(headers(80, 0).fit(most));
        assert!(!headers(81, 0).fit(most));
        assert!(!headers(usize::MAX, usize::MAX).fit(most));
    }

    #[test]
    fn the_smallest_limits_leave_nothing_out_of_range() {
        let limits = HeaderLimits {
            max_kb: 1,
            max_count: 1,
        };
        let (count, bytes) = (1, 896);
        assert_eq!(limits.with_room(), Headers { count, bytes });
    }
}
