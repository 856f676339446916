//! Arbitrary bytes as the plugin configuration.

use metadata_exchange::config::Config;
use serde_json::Value as Json;

/// An accepted configuration means the same in any JSON formatting; a refused one has an error in a
/// single line, and is not plainly valid.
pub fn run(data: &[u8]) {
    if let Ok(json) = serde_json::from_slice::<Json>(data)
        && is_plainly_valid(&json)
    {
        let parsed = Config::parse(json.to_string().as_bytes());
        assert!(parsed.is_ok(), "{json}: {parsed:?}");
    }
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

/// Whether the configuration is obviously valid: for all keys, every value of the type is allowed,
/// or every number in a range common to all limits. This covers only some valid configurations.
fn is_plainly_valid(json: &Json) -> bool {
    let is_valid = |(key, value): (&String, &Json)| match key.as_str() {
        "accept_own" | "endpoint_fallback" | "record_local_node" => value.is_boolean(),
        "max_id_bytes"
        | "max_labels"
        | "max_peer_cache_size"
        | "max_received_bytes"
        | "max_sent_bytes" => value
            .as_u64()
            .is_some_and(|number| (1..=65_536).contains(&number)),
        "direction" => {
            let names = ["auto", "inbound", "outbound", "gateway"];
            value.as_str().is_some_and(|name| names.contains(&name))
        }
        _ => false,
    };
    json.as_object()
        .is_some_and(|fields| fields.iter().all(is_valid))
}
