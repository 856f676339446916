//! The proxy-wasm ABI 0.2.1: the callbacks that the host calls, and the host
//! calls, each as a safe function that returns the host's status. The only file
//! with unsafe code.
//!
//! Shapes and statuses:
//! <https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::RefCell;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::slice;
use core::time::Duration;

use log::{Level, LevelFilter};

use super::{Root, logger, vm};
use crate::config::admission::SharedData;
use crate::host::{HeaderMap, Host, HostError, HostResult, StateKey};

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;

/// The answer to header callbacks: go on.
const CONTINUE: u32 = 0;

// The callbacks. Envoy skips those that a module does not export: nothing is
// called for bodies, for trailers, and when a stream is done.

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    unsafe extern "C" {
        fn __wasm_call_ctors();
    }
    // SAFETY: the host calls this once, before all else.
    unsafe { __wasm_call_ctors() };
    logger::install();
}

/// Gives the host memory to answer in; [`Received`] takes it over.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    if size > BLOCK {
        return Box::into_raw(Box::<[u8]>::new_uninit_slice(size)).cast();
    }
    let block = AT_HAND.borrow_mut().pop();
    Box::into_raw(block.unwrap_or_else(Box::new_uninit)).cast()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(id: u32, parent: u32) {
    vm::with(|vm| vm.on_context_create(id, parent));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_vm_start(id: u32, _configuration_size: usize) -> bool {
    vm::with(|vm| vm.root(id).map(|root| root.on_vm_start()).is_some())
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(id: u32, _configuration_size: usize) -> bool {
    vm::with(|vm| vm.root(id).is_some_and(Root::on_configure))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(id: u32) {
    vm::with(|vm| vm.on_tick(id));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(id: u32, count: usize, _end_of_stream: bool) -> u32 {
    vm::with(|vm| vm.stream(id).map(|stream| stream.on_request_headers(count)));
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(id: u32, count: usize, _end_of_stream: bool) -> u32 {
    vm::with(|vm| {
        vm.stream(id)
            .map(|stream| stream.on_response_headers(count))
    });
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(id: u32) {
    vm::with(|vm| vm.stream(id).map(|stream| stream.on_log()));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(id: u32) {
    vm::with(|vm| vm.on_delete(id));
}

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
    fn proxy_get_header_map_size(map: u32, size: *mut usize) -> u32;
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

/// The clock that never goes back.
const MONOTONIC: u32 = 1;

/// The proxy that runs this VM.
pub(super) struct Envoy;

/// A metric that Envoy knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetricId(u32);

/// The type of a metric.
#[derive(Clone, Copy)]
pub(super) enum MetricType {
    Counter = 0,
    Gauge = 1,
}

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

/// A static variable of the only thread that a VM has.
pub(super) struct Single<T>(RefCell<T>);

// SAFETY: there is no other thread that it could be shared with.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }
}

impl<T> Deref for Single<T> {
    type Target = RefCell<T>;

    fn deref(&self) -> &RefCell<T> {
        &self.0
    }
}

/// Memory for what the host answers: any header or attribute of a usual size.
type Block = MaybeUninit<[u8; BLOCK]>;
const BLOCK: usize = 4096;

/// Blocks that are kept for the next answer: as many as one callback holds at
/// once. To allocate and free anew costs more than all else with an answer.
const ROOM: usize = 4;

static AT_HAND: Single<Vec<Box<Block>>> = Single::new(Vec::new());

/// What the host answered, in memory from [`proxy_on_memory_allocate`].
pub(super) struct Received {
    data: NonNull<u8>,
    size: usize,
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the host filled that many bytes.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.size) }
    }
}

impl Drop for Received {
    #[inline(always)]
    fn drop(&mut self) {
        if self.size == 0 {
            return;
        }
        let data = self.data.as_ptr();
        if self.size > BLOCK {
            let data = ptr::slice_from_raw_parts_mut(data.cast::<MaybeUninit<u8>>(), self.size);
            // SAFETY: it was made as a boxed slice of this size.
            drop(unsafe { Box::from_raw(data) });
            return;
        }
        // SAFETY: it was made as a block.
        let block: Box<Block> = unsafe { Box::from_raw(data.cast()) };
        let mut at_hand = AT_HAND.borrow_mut();
        if at_hand.len() < ROOM {
            at_hand.push(block);
        }
    }
}

/// What the host answers to `call`, which must have it write address and size of
/// memory that it allocated for this; `None` if it has no such thing.
fn received(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> HostResult<Option<Received>> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    match call(&raw mut data, &raw mut size) {
        // The host takes no memory for an empty answer.
        OK => Ok(Some(
            NonNull::new(data).map_or(Received::EMPTY, |data| Received { data, size }),
        )),
        NOT_FOUND => Ok(None),
        status => Err(HostError(status)),
    }
}

impl Received {
    const EMPTY: Self = Self {
        data: NonNull::dangling(),
        size: 0,
    };
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
    type Bytes = Received;

    #[inline(always)]
    fn header(&self, map: HeaderMap, name: &'static str) -> HostResult<Option<Received>> {
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

    #[inline(always)]
    fn header_bytes(&self, map: HeaderMap) -> HostResult<usize> {
        let mut size = 0;
        ok(unsafe { proxy_get_header_map_size(map_type(map), &raw mut size) })?;
        Ok(size)
    }

    #[inline(always)]
    fn property(&self, path: &str) -> HostResult<Option<Received>> {
        received(|value, size| unsafe {
            proxy_get_property(path.as_ptr(), path.len(), value, size)
        })
    }

    fn store(&self, key: StateKey, value: &[u8]) -> HostResult<()> {
        let path = key.name();
        ok(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
    }
}

impl SharedData for Envoy {
    fn read(&self, key: &str) -> HostResult<Option<(Vec<u8>, u32)>> {
        let mut number = 0;
        let value = received(|value, size| unsafe {
            proxy_get_shared_data(key.as_ptr(), key.len(), value, size, &raw mut number)
        })?;
        Ok(value.map(|value| (value.to_vec(), number)))
    }

    fn write(&self, key: &str, value: &[u8], number: u32) -> HostResult<()> {
        ok(unsafe {
            proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), number)
        })
    }

    fn now(&self) -> HostResult<u64> {
        let mut now = 0;
        ok(unsafe { clock_time_get(MONOTONIC, 0, &raw mut now) })?;
        Ok(now)
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
pub(super) fn buffer(buffer: Buffer) -> HostResult<Received> {
    let bytes = received(|data, size| unsafe {
        proxy_get_buffer_bytes(buffer as u32, 0, usize::MAX, data, size)
    })?;
    Ok(bytes.unwrap_or(Received::EMPTY))
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

/// Defines a metric, or finds the one of that name.
pub(super) fn define_metric(kind: MetricType, name: &str) -> HostResult<MetricId> {
    let mut id = 0;
    ok(unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id) })?;
    Ok(MetricId(id))
}

/// Adds `offset` to a counter, or to a gauge, where it may be negative.
pub(super) fn increment_metric(id: MetricId, offset: i64) -> HostResult<()> {
    ok(unsafe { proxy_increment_metric(id.0, offset) })
}

/// The allocator of the target's C library: small, and quick on one thread.
struct System;

#[global_allocator]
static ALLOCATOR: System = System;

/// What `malloc` aligns to.
const ALIGNMENT: usize = 16;

// SAFETY: as C's `malloc`, `realloc` and `free` promise.
unsafe impl GlobalAlloc for System {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > ALIGNMENT {
            return ptr::null_mut();
        }
        unsafe { malloc(layout.size()) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        unsafe { free(memory) }
    }

    unsafe fn realloc(&self, memory: *mut u8, _: Layout, size: usize) -> *mut u8 {
        unsafe { realloc(memory, size) }
    }
}

#[link(name = "c")]
unsafe extern "C" {
    fn malloc(size: usize) -> *mut u8;
    fn realloc(memory: *mut u8, size: usize) -> *mut u8;
    fn free(memory: *mut u8);
}
