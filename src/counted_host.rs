//! A wrapper that counts failed host calls.

use crate::counters::{Counter, Counters};
use crate::host::{
    Data, HeaderMap, Host, HostError, HostResult, MetricKind, Property, StateKey, TcpHost,
};

/// A host that counts its failed calls.
#[derive(Debug)]
pub struct CountedHost<'a, H> {
    host: &'a H,
    counters: &'a Counters,
}

impl<'a, H> CountedHost<'a, H> {
    /// Counts the failed calls of `host` in `counters`.
    pub fn new(host: &'a H, counters: &'a Counters) -> Self {
        Self { host, counters }
    }

    fn counted<T>(&self, result: HostResult<T>) -> HostResult<T> {
        count_error(&result, self.counters);
        result
    }
}

/// Counts a host call if it failed.
pub fn count_error<T>(result: &HostResult<T>, counters: &Counters) {
    if let Err(HostError(status)) = result {
        log::debug!("host call failed with status {status}");
        counters.count(Counter::HostError);
    }
}

impl<H: Host> Host for CountedHost<'_, H> {
    fn header(&self, map: HeaderMap, name: &'static str) -> HostResult<Option<Vec<u8>>> {
        self.counted(self.host.header(map, name))
    }

    fn set_header(&self, map: HeaderMap, name: &'static str, value: &[u8]) -> HostResult<()> {
        self.counted(self.host.set_header(map, name, value))
    }

    fn remove_header(&self, map: HeaderMap, name: &'static str) -> HostResult<()> {
        self.counted(self.host.remove_header(map, name))
    }

    fn header_bytes(&self, map: HeaderMap) -> HostResult<usize> {
        self.counted(self.host.header_bytes(map))
    }

    fn property(&self, property: Property) -> HostResult<Option<Vec<u8>>> {
        self.counted(self.host.property(property))
    }

    fn store(&self, key: StateKey, value: &[u8]) -> HostResult<()> {
        self.counted(self.host.store(key, value))
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> HostResult<u32> {
        self.counted(self.host.define_metric(kind, name))
    }

    fn increment_metric(&self, id: u32, offset: i64) -> HostResult<()> {
        self.counted(self.host.increment_metric(id, offset))
    }

    fn record_metric(&self, id: u32, value: u64) -> HostResult<()> {
        self.counted(self.host.record_metric(id, value))
    }
}

impl<H: TcpHost> TcpHost for CountedHost<'_, H> {
    fn data(&self, data: Data, max: usize) -> HostResult<Vec<u8>> {
        self.counted(self.host.data(data, max))
    }

    fn replace_data(&self, data: Data, size: usize, bytes: &[u8]) -> HostResult<()> {
        self.counted(self.host.replace_data(data, size, bytes))
    }
}
