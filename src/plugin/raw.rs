//! The only file with unsafe code: the raw host calls of the proxy-wasm ABI
//! 0.2.1, each as a safe function that returns the host's status instead of
//! panicking.
//!
//! Shapes and statuses:
//! <https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>

use std::ptr;
use std::time::Duration;

use log::{Level, LevelFilter};

use crate::host::{HeaderMap, Host, HostError, HostResult, StateKey};

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;

const METRIC_COUNTER: u32 = 0;

proxy_wasm::main! {{ super::start(); }}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, message: *const u8, message_size: usize) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        value: *mut *mut u8,
        value_size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, name_size: usize) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        value: *mut *mut u8,
        value_size: *mut usize,
    ) -> u32;
    fn proxy_set_property(
        path: *const u8,
        path_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_size: usize,
        arguments: *const u8,
        arguments_size: usize,
        results: *mut *mut u8,
        results_size: *mut usize,
    ) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
}

/// The proxy that runs this VM.
pub(super) struct Envoy;

/// A metric that Envoy knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetricId(u32);

/// What can be read as a whole.
#[derive(Clone, Copy)]
pub(super) enum Buffer {
    PluginConfiguration = 7,
}

fn ok(status: u32) -> HostResult<()> {
    match status {
        OK => Ok(()),
        status => Err(HostError(status)),
    }
}

/// Bytes that the host places in memory which it allocated in this VM: `call`
/// has it write their address and size. `None` if the host has no such bytes.
fn received(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> HostResult<Option<Vec<u8>>> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    match call(&raw mut data, &raw mut size) {
        // The host gives no memory for an empty value.
        OK if data.is_null() => Ok(Some(Vec::new())),
        // SAFETY: the host got the memory from `proxy_on_memory_allocate`, which
        // makes it as a boxed slice of `size` bytes, and hands it over.
        OK => Ok(Some(unsafe {
            Box::from_raw(ptr::slice_from_raw_parts_mut(data, size)).into_vec()
        })),
        NOT_FOUND => Ok(None),
        status => Err(HostError(status)),
    }
}

fn map_type(map: HeaderMap) -> u32 {
    match map {
        HeaderMap::Request => 0,
        HeaderMap::Response => 2,
    }
}

// SAFETY of all calls below: each pointer is of a live slice or local variable,
// with its own length, and the host keeps none of them after the call.

impl Host for Envoy {
    fn header(&self, map: HeaderMap, name: &'static str) -> HostResult<Option<Vec<u8>>> {
        received(|value, size| unsafe {
            proxy_get_header_map_value(map_type(map), name.as_ptr(), name.len(), value, size)
        })
    }

    fn set_header(&self, map: HeaderMap, name: &'static str, value: &[u8]) -> HostResult<()> {
        ok(unsafe {
            proxy_replace_header_map_value(
                map_type(map),
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            )
        })
    }

    fn remove_header(&self, map: HeaderMap, name: &'static str) -> HostResult<()> {
        ok(unsafe { proxy_remove_header_map_value(map_type(map), name.as_ptr(), name.len()) })
    }

    fn property(&self, path: &str) -> HostResult<Option<Vec<u8>>> {
        received(|value, size| unsafe {
            proxy_get_property(path.as_ptr(), path.len(), value, size)
        })
    }

    fn store(&self, key: StateKey, value: &[u8]) -> HostResult<()> {
        let path = key.name();
        ok(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
    }
}

/// Writes a line to the proxy's log.
pub(super) fn log(level: Level, message: &str) -> HostResult<()> {
    let level = match level {
        Level::Trace => 0,
        Level::Debug => 1,
        Level::Info => 2,
        Level::Warn => 3,
        Level::Error => 4,
    };
    ok(unsafe { proxy_log(level, message.as_ptr(), message.len()) })
}

/// The level that the operator set for this proxy's Wasm log.
pub(super) fn log_level() -> HostResult<LevelFilter> {
    let mut level = 0;
    ok(unsafe { proxy_get_log_level(&raw mut level) })?;
    Ok(match level {
        0 => LevelFilter::Trace,
        1 => LevelFilter::Debug,
        2 => LevelFilter::Info,
        3 => LevelFilter::Warn,
        // Critical: also what an error says.
        _ => LevelFilter::Error,
    })
}

/// Has `proxy_on_tick` called once per `period`.
pub(super) fn set_tick_period(period: Duration) -> HostResult<()> {
    let period = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
    ok(unsafe { proxy_set_tick_period_milliseconds(period) })
}

/// The whole of a buffer; empty if there is none.
pub(super) fn buffer(buffer: Buffer) -> HostResult<Vec<u8>> {
    let bytes = received(|data, size| unsafe {
        proxy_get_buffer_bytes(buffer as u32, 0, usize::MAX, data, size)
    })?;
    Ok(bytes.unwrap_or_default())
}

/// Calls a function of Envoy's that is outside the ABI, for its effect.
pub(super) fn call_foreign_function(name: &str, arguments: &[u8]) -> HostResult<()> {
    received(|results, size| unsafe {
        proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            arguments.as_ptr(),
            arguments.len(),
            results,
            size,
        )
    })?
    .map(|_| ())
    .ok_or(HostError(NOT_FOUND))
}

/// Defines a counter, or finds the one of that name.
pub(super) fn define_counter(name: &str) -> HostResult<MetricId> {
    let mut id = 0;
    ok(unsafe { proxy_define_metric(METRIC_COUNTER, name.as_ptr(), name.len(), &raw mut id) })?;
    Ok(MetricId(id))
}

/// Adds `offset` to a counter.
pub(super) fn increment_metric(id: MetricId, offset: i64) -> HostResult<()> {
    ok(unsafe { proxy_increment_metric(id.0, offset) })
}
