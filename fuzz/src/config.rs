//! Any bytes as the plugin configuration.

use metadata_exchange::config::Config;
use serde_json::Value as Json;

/// What is accepted means the same however the JSON is written; what is refused
/// is refused in one line.
pub fn run(data: &[u8]) {
    match Config::parse(data) {
        Ok(config) if data.trim_ascii().is_empty() => assert_eq!(config, Config::default()),
        Ok(config) => {
            let json: Json = serde_json::from_slice(data).expect("JSON");
            assert_eq!(Config::parse(json.to_string().as_bytes()), Ok(config));
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains(['\n', '\r']), "{line:?}");
        }
    }
}
