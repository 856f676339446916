//! The log of the proxy, under its level.

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::raw;
use crate::host::HostResult;

struct Logger;

/// Sends what is logged to the proxy. A panic says so there, too, before the VM
/// fails.
pub(super) fn install() {
    // Err is only that a logger is installed already.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
    std::panic::set_hook(Box::new(|panic| {
        let _ = raw::log(Level::Error, &panic.to_string());
    }));
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
