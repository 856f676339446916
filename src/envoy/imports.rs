//! The host calls that the SDK's wrappers do not cover, and the only unsafe code.
//!
//! All but two of the SDK's wrappers for these panic on an unexpected status (`hostcalls.rs` of proxy-wasm 0.2.5), and
//! a panic fails the VM, after which every request gets 503. The filter promises that no status does this. The SDK also
//! converts the status to an enum that lacks some of the ABI's values.
//!
//! | call | reason |
//! |---|---|
//! | `proxy_log` | panics; a log line must not end a VM |
//! | `proxy_get_log_level`, `proxy_set_tick_period_milliseconds` | panic |
//! | `proxy_get_buffer_bytes` | panics unless Ok or `NotFound` |
//! | `proxy_set_buffer_bytes`, `proxy_set_effective_context`, `proxy_continue_stream` | panic |
//! | `proxy_get_header_map_value` | panics on `BadArgument`, which Envoy gives without a map |
//! | `proxy_replace_header_map_value`, `proxy_remove_header_map_value` | panic |
//! | `proxy_get_header_map_size` | the SDK has none |
//! | `proxy_get_property` | panics on `BadArgument` |
//! | `proxy_set_property` | panics on `BadArgument` and `NotFound`, which Envoy gives for a key of another filter |
//! | `proxy_call_foreign_function` | panics on Unimplemented, and on what a function returns |
//! | `proxy_define_metric`, `proxy_increment_metric`, `proxy_record_metric` | panic |
//! | `proxy_get_shared_data`, `proxy_set_shared_data` | panic |
//! | `clock_time_get` of WASI | the SDK has no clock that never goes back, and std's panics |
//!
//! Shapes and statuses:
//! <https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>

use std::ptr;
use std::time::Duration;

use proxy_wasm::types::{BufferType, Bytes, LogLevel, MapType, MetricType, StreamType};

use crate::host::{HostError, HostResult};

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: LogLevel, message: *const u8, message_size: usize) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: BufferType,
        start: usize,
        max_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_buffer_bytes(
        buffer: BufferType,
        start: usize,
        size: usize,
        data: *const u8,
        data_size: usize,
    ) -> u32;
    fn proxy_set_effective_context(id: u32) -> u32;
    fn proxy_continue_stream(stream: StreamType) -> u32;
    fn proxy_get_header_map_value(
        map: MapType,
        name: *const u8,
        name_size: usize,
        value: *mut *mut u8,
        value_size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: MapType,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: MapType, name: *const u8, name_size: usize) -> u32;
    fn proxy_get_header_map_size(map: MapType, size: *mut usize) -> u32;
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
    fn proxy_define_metric(
        kind: MetricType,
        name: *const u8,
        name_size: usize,
        id: *mut u32,
    ) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;

    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        value: *mut *mut u8,
        value_size: *mut usize,
        number: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        number: u32,
    ) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u32;
}

fn check(status: u32) -> HostResult<()> {
    match status {
        OK => Ok(()),
        status => Err(HostError(status)),
    }
}

/// The result of `call`, which must make the host write its address and size; `None` if the host returns `NotFound`.
fn answer(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> HostResult<Option<Bytes>> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    match call(&raw mut data, &raw mut size) {
        // The host allocates no memory for an empty result.
        OK if data.is_null() => Ok(Some(Bytes::new())),
        // SAFETY: the host filled `size` bytes that it has from the SDK's
        // `proxy_on_memory_allocate`, a boxed slice of that size.
        OK => Ok(Some(
            unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(data, size)) }.into_vec(),
        )),
        NOT_FOUND => Ok(None),
        status => Err(HostError(status)),
    }
}

// SAFETY of all calls below: each pointer is of a live slice or local variable,
// with its own length, and the host keeps none of them after the call.

/// Writes a line to the proxy's log.
pub(super) fn log(level: LogLevel, message: &str) -> HostResult<()> {
    check(unsafe { proxy_log(level, message.as_ptr(), message.len()) })
}

/// The configured level of this proxy's Wasm log, as a number.
pub(super) fn log_level() -> HostResult<u32> {
    let mut level = 0;
    check(unsafe { proxy_get_log_level(&raw mut level) })?;
    Ok(level)
}

/// Schedules `proxy_on_tick` once per `period`.
pub(super) fn set_tick_period(period: Duration) -> HostResult<()> {
    let period = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
    check(unsafe { proxy_set_tick_period_milliseconds(period) })
}

/// The first bytes of a buffer, at most `max`; empty if there is none.
pub(super) fn buffer(buffer: BufferType, max: usize) -> HostResult<Bytes> {
    let bytes = answer(|data, size| unsafe { proxy_get_buffer_bytes(buffer, 0, max, data, size) })?;
    Ok(bytes.unwrap_or_default())
}

/// Replaces the first `size` bytes of a buffer.
pub(super) fn replace_buffer(buffer: BufferType, size: usize, bytes: &[u8]) -> HostResult<()> {
    check(unsafe { proxy_set_buffer_bytes(buffer, 0, size, bytes.as_ptr(), bytes.len()) })
}

/// Makes the context `id` that of the next host calls.
pub(super) fn set_effective_context(id: u32) -> HostResult<()> {
    check(unsafe { proxy_set_effective_context(id) })
}

/// Passes on what a stream of the effective context holds.
pub(super) fn continue_stream(stream: StreamType) -> HostResult<()> {
    check(unsafe { proxy_continue_stream(stream) })
}

/// The first value of a header.
pub(super) fn header(map: MapType, name: &str) -> HostResult<Option<Bytes>> {
    answer(|value, size| unsafe {
        proxy_get_header_map_value(map, name.as_ptr(), name.len(), value, size)
    })
}

/// Replaces all values of a header by one.
pub(super) fn set_header(map: MapType, name: &str, value: &[u8]) -> HostResult<()> {
    check(unsafe {
        proxy_replace_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

/// Removes all values of a header.
pub(super) fn remove_header(map: MapType, name: &str) -> HostResult<()> {
    check(unsafe { proxy_remove_header_map_value(map, name.as_ptr(), name.len()) })
}

/// The total size of all names and values in a header map.
pub(super) fn header_bytes(map: MapType) -> HostResult<usize> {
    let mut size = 0;
    check(unsafe { proxy_get_header_map_size(map, &raw mut size) })?;
    Ok(size)
}

/// The attribute at `path`, its segments separated by NUL.
pub(super) fn property(path: &str) -> HostResult<Option<Bytes>> {
    answer(|value, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), value, size) })
}

/// Writes filter state.
pub(super) fn set_property(path: &str, value: &[u8]) -> HostResult<()> {
    check(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
}

/// Calls a foreign function of Envoy and discards its result.
pub(super) fn call_foreign_function(name: &str, arguments: &[u8]) -> HostResult<()> {
    answer(|results, size| unsafe {
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

/// Defines a metric, or finds the existing one of that name.
pub(super) fn define_metric(kind: MetricType, name: &str) -> HostResult<u32> {
    let mut id = 0;
    check(unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &raw mut id) })?;
    Ok(id)
}

/// Adds `offset` to a counter, or to a gauge, where it may be negative.
pub(super) fn increment_metric(id: u32, offset: i64) -> HostResult<()> {
    check(unsafe { proxy_increment_metric(id, offset) })
}

/// Records a value in a histogram.
pub(super) fn record_metric(id: u32, value: u64) -> HostResult<()> {
    check(unsafe { proxy_record_metric(id, value) })
}

/// The value under `key` in the shared data, with the number of its write.
pub(super) fn shared_data(key: &str) -> HostResult<Option<(Bytes, u32)>> {
    let mut number = 0;
    let value = answer(|value, size| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), value, size, &raw mut number)
    })?;
    Ok(value.map(|value| (value, number)))
}

/// Writes shared data if its last write is `number`; 0 writes unconditionally.
pub(super) fn set_shared_data(key: &str, value: &[u8], number: u32) -> HostResult<()> {
    check(unsafe {
        proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), number)
    })
}

/// Nanoseconds on a monotonic clock.
pub(super) fn monotonic_time() -> HostResult<u64> {
    const MONOTONIC: u32 = 1;
    let mut time = 0;
    check(unsafe { clock_time_get(MONOTONIC, 0, &raw mut time) })?;
    Ok(time)
}
