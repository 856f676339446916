//! Envoy as the exchange's [`Host`].

use proxy_wasm::types::{BufferType, MapType, MetricType};

use super::imports;
use crate::config::admission::SharedData;
use crate::host::{Data, HeaderMap, Host, HostResult, MetricKind, Property, StateKey, TcpHost};

/// The proxy that runs this VM.
pub(super) struct Envoy;

impl Host for Envoy {
    fn header(&self, map: HeaderMap, name: &'static str) -> HostResult<Option<Vec<u8>>> {
        imports::header(map_type(map), name)
    }

    fn set_header(&self, map: HeaderMap, name: &'static str, value: &[u8]) -> HostResult<()> {
        imports::set_header(map_type(map), name, value)
    }

    fn remove_header(&self, map: HeaderMap, name: &'static str) -> HostResult<()> {
        imports::remove_header(map_type(map), name)
    }

    fn header_bytes(&self, map: HeaderMap) -> HostResult<usize> {
        imports::header_bytes(map_type(map))
    }

    fn property(&self, property: Property) -> HostResult<Option<Vec<u8>>> {
        imports::property(property.path())
    }

    fn store(&self, key: StateKey, value: &[u8]) -> HostResult<()> {
        imports::set_property(key.name(), value)
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> HostResult<u32> {
        let kind = match kind {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Histogram => MetricType::Histogram,
        };
        imports::define_metric(kind, name)
    }

    fn increment_metric(&self, id: u32, offset: i64) -> HostResult<()> {
        imports::increment_metric(id, offset)
    }

    fn record_metric(&self, id: u32, value: u64) -> HostResult<()> {
        imports::record_metric(id, value)
    }
}

impl TcpHost for Envoy {
    fn data(&self, data: Data, max: usize) -> HostResult<Vec<u8>> {
        imports::buffer(buffer_type(data), max)
    }

    fn replace_data(&self, data: Data, size: usize, bytes: &[u8]) -> HostResult<()> {
        imports::replace_buffer(buffer_type(data), size, bytes)
    }
}

impl SharedData for Envoy {
    fn read(&self, key: &str) -> HostResult<Option<(Vec<u8>, u32)>> {
        imports::shared_data(key)
    }

    fn write(&self, key: &str, value: &[u8], number: u32) -> HostResult<()> {
        imports::set_shared_data(key, value, number)
    }

    fn now(&self) -> HostResult<u64> {
        imports::monotonic_time()
    }
}

fn map_type(map: HeaderMap) -> MapType {
    match map {
        HeaderMap::Request => MapType::HttpRequestHeaders,
        HeaderMap::Response => MapType::HttpResponseHeaders,
    }
}

fn buffer_type(data: Data) -> BufferType {
    match data {
        Data::Downstream => BufferType::DownstreamData,
        Data::Upstream => BufferType::UpstreamData,
    }
}
