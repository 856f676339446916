//! What an Envoy or a file provides.

use std::time::Duration;

use serde_json::Value;

/// When the statistics are read again: the filter ticks every second.
pub const LATER: Duration = Duration::from_secs(3);

/// What is known of an Envoy.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// `/config_dump`, whole or in parts; or a bootstrap.
    pub documents: Vec<Value>,
    /// `/stats?format=json`, if an Envoy was asked.
    pub stats: Option<Value>,
    /// The statistics [`LATER`], if it was necessary to wait.
    pub later: Option<Value>,
    /// `/server_info`, if an Envoy was asked.
    pub server_info: Option<Value>,
    /// `/clusters?format=json`, if an Envoy was asked.
    pub clusters: Option<Value>,
    /// Why `/config_dump` could not be read as a whole.
    pub unreadable: Option<String>,
}
