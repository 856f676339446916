//! The log of the proxy, under its level.

use log::{Level, LevelFilter, Log, Metadata, Record};
use proxy_wasm::types::LogLevel;

use super::imports;
use crate::host::HostResult;

struct Logger;

/// Sends what is logged to the proxy. (The SDK's logger panics where the proxy
/// cannot log.)
pub(super) fn install() {
    // Err is only that a logger is installed already.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
}

/// Logs what the operator's log level lets through, so that nothing is built
/// for a log that is off.
pub(super) fn follow_level() -> HostResult<()> {
    log::set_max_level(match imports::log_level()? {
        0 => LevelFilter::Trace,
        1 => LevelFilter::Debug,
        2 => LevelFilter::Info,
        3 => LevelFilter::Warn,
        // Critical: also what an error says.
        _ => LevelFilter::Error,
    });
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Trace => LogLevel::Trace,
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        };
        // There is nowhere else to report a log that fails.
        let _ = imports::log(level, &record.args().to_string());
    }

    fn flush(&self) {}
}
