//! Logs to the proxy, at its level.

use log::{Level, LevelFilter, Log, Metadata, Record};
use proxy_wasm::types::LogLevel;

use super::imports;
use crate::host::HostResult;

struct Logger;

/// Sends log lines to the proxy. (The SDK's logger panics if the proxy cannot
/// log.)
pub(super) fn install() {
    // The only error is that a logger is already installed.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
}

/// Sets the maximum level to the proxy's, so that no line is formatted for a
/// disabled level.
pub(super) fn follow_level() -> HostResult<()> {
    log::set_max_level(match imports::log_level()? {
        0 => LevelFilter::Trace,
        1 => LevelFilter::Debug,
        2 => LevelFilter::Info,
        3 => LevelFilter::Warn,
        // At the level critical, errors are still logged.
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
        // There is no other place to report a failing log.
        let _ = imports::log(level, &record.args().to_string());
    }

    fn flush(&self) {}
}
