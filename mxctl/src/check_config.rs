//! Checks a plugin configuration with the filter's own parser.

use anyhow::{Context as _, Result, bail};
use metadata_exchange::config::{Config, ConfigError, KEYS};
use serde_json::Value;

use crate::envoy_yaml;

/// Where the configuration was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The whole file.
    File,
    /// `spec.pluginConfig` of a `WasmPlugin`.
    WasmPlugin,
}

/// The configuration in a file: JSON as the filter reads it, or a `WasmPlugin`.
///
/// # Errors
///
/// If the filter would reject it; the error suggests a similar key.
pub fn check(name: &str, content: &str) -> Result<(Found, Config)> {
    let (found, json) = configuration_in(name, content)?;
    match Config::parse(json.as_bytes()) {
        Ok(config) => Ok((found, config)),
        Err(error) => match suggestion(&error, &json) {
            Some(meant) => bail!("{error}; did you mean {meant:?}?"),
            None => bail!("{error}"),
        },
    }
}

/// Istio passes `pluginConfig` as JSON; Envoy passes the text unchanged.
fn configuration_in(name: &str, content: &str) -> Result<(Found, String)> {
    let begins = content.trim_start();
    if begins.is_empty() || begins.starts_with(['{', '[']) {
        return Ok((Found::File, content.to_owned()));
    }
    let yaml = envoy_yaml::parse(content)
        .with_context(|| format!("{name} is neither JSON nor a WasmPlugin in YAML"))?;
    if yaml["kind"] == "WasmPlugin" {
        let config = &yaml["spec"]["pluginConfig"];
        let json = if config.is_null() {
            String::new()
        } else {
            config.to_string()
        };
        return Ok((Found::WasmPlugin, json));
    }
    if yaml.is_object() {
        bail!(
            "it is YAML but not a WasmPlugin: the filter reads JSON, such as {{\"trust\": \
             \"mtls\"}}"
        );
    }
    // The filter's parser reports what is wrong.
    Ok((Found::File, content.to_owned()))
}

/// The known key that is most similar to the unknown one.
fn suggestion(error: &ConfigError, json: &str) -> Option<&'static str> {
    match error {
        ConfigError::UnknownKey(key) => alike(key, KEYS.map(|(key, _)| key)),
        // An unknown key inside `share` is reported as an invalid value.
        ConfigError::Invalid { key: "share", .. } => {
            let json: Value = serde_json::from_str(json).ok()?;
            let keys = ["fields", "labels"];
            let mut unknown = json["share"].as_object()?.keys();
            let unknown = unknown.find(|key| !keys.contains(&key.as_str()))?;
            alike(unknown, keys)
        }
        _ => None,
    }
}

/// The most similar candidate, if it is similar enough: it may differ in case,
/// hyphens or a few letters.
fn alike<const N: usize>(key: &str, candidates: [&'static str; N]) -> Option<&'static str> {
    /// The lowest similarity for a suggestion; 1 is equal.
    const ENOUGH: f64 = 0.8;
    let plain = snake(key);
    let likeness = |candidate: &str| strsim::jaro_winkler(&plain, candidate);
    let best = candidates
        .into_iter()
        .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(best) >= ENOUGH).then_some(best)
}

/// Converts `maxSentBytes` and `max-sent-bytes` to `max_sent_bytes`.
fn snake(key: &str) -> String {
    let mut snake = String::with_capacity(key.len());
    for char in key.chars() {
        if char.is_uppercase() && !snake.is_empty() && !snake.ends_with('_') {
            snake.push('_');
        }
        match char {
            '-' | ' ' | '.' => snake.push('_'),
            other => snake.extend(other.to_lowercase()),
        }
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content: &str) -> String {
        format!("{:#}", check("a.json", content).unwrap_err())
    }

    #[test]
    fn a_valid_configuration_is_accepted() {
        for content in ["", " \n", "{}", r#"{ "trust": "mtls" }"#] {
            assert_eq!(
                check("a.json", content).unwrap().0,
                Found::File,
                "{content}"
            );
        }
    }

    #[test]
    fn an_unknown_key_has_a_suggestion() {
        for (key, meant) in [
            ("trsut", "trust"),
            ("Trust", "trust"),
            ("max_peer_cache", "max_peer_cache_size"),
            ("maxSentBytes", "max_sent_bytes"),
            ("max-sent-bytes", "max_sent_bytes"),
            ("upstreamTrust", "upstream_trust"),
            ("trust_domain", "trust_domains"),
            ("external_cluster", "external_clusters"),
            ("record_local", "record_local_node"),
        ] {
            let error = refused(&format!(r#"{{ "{key}": 1 }}"#));
            let expected = format!("did you mean {meant:?}?");
            assert!(error.ends_with(&expected), "{key}: {error}");
        }
        let error = refused(r#"{ "share": { "feilds": ["NAME"] } }"#);
        assert!(error.ends_with("did you mean \"fields\"?"), "{error}");
    }

    #[test]
    fn a_dissimilar_key_has_no_suggestion() {
        for content in [
            r#"{ "zzz": 1 }"#,
            r#"{ "mode": "exchnage" }"#,
            r#"{ "share": { "fields": ["X"] } }"#,
            "[]",
            "trust=any",
        ] {
            let error = refused(content);
            assert!(!error.contains("did you mean"), "{content}: {error}");
        }
    }

    #[test]
    fn a_wasm_plugin_has_its_configuration_checked() {
        let plugin = |config: &str| {
            format!(
                "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nspec:\n  {config}\n"
            )
        };
        for config in [
            "url: oci://a",
            "pluginConfig: {}",
            "pluginConfig: { trust: mtls }",
        ] {
            let (found, _) = check("a.yaml", &plugin(config)).unwrap();
            assert_eq!(found, Found::WasmPlugin, "{config}");
        }
        let error = refused(&plugin("pluginConfig: { trsut: mtls }"));
        assert!(error.contains("unknown key \"trsut\""), "{error}");
        let error = refused("trust: mtls\n");
        assert!(error.contains("it is YAML but not a WasmPlugin"), "{error}");
    }
}
