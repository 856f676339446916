//! The log of the proxy, under its level.

use alloc::format;
use alloc::string::ToString;
use core::panic::PanicInfo;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::raw;
use crate::host::HostResult;

struct Logger;

/// Sends what is logged to the proxy.
pub(super) fn install() {
    // Err is only that a logger is installed already.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
}

/// Says where, then fails the VM. What is wrong is not said, for the texts of all
/// that can be would be a tenth of the module.
#[panic_handler]
fn on_panic(panic: &PanicInfo<'_>) -> ! {
    if let Some(place) = panic.location() {
        let _ = raw::log(Level::Error, &format!("panicked at {place}"));
    }
    core::arch::wasm32::unreachable()
}

/// Logs what the operator's log level lets through, so that nothing is built
/// for a log that is off.
pub(super) fn follow_level() -> HostResult<()> {
    log::set_max_level(raw::log_level()?);
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // A log that fails has nowhere to be told.
            let _ = raw::log(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}
