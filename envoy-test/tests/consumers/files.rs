//! What the files of `examples/` have in common, and what their tops say.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use envoy_test::consumers::{Consumer, Example};
use envoy_test::{repository, versions};
use mxctl::doctor::{Evidence, FILTER, Severity, examine};
use serde_json::{Value, json};

/// Where the module is on a VM.
pub(crate) const MODULE: &str = "/etc/envoy/metadata_exchange.wasm";

/// The configuration of the filter where something is decided by the caller.
const SPIFFE: &str = r#"{"trust": "spiffe", "trust_domains": ["cluster.local"]}"#;

/// The configuration of the filter where both sides are told.
const BOTH_SIDES: &str = r#"{"local_peer": true}"#;

/// The consumers that decide by the caller.
const DECIDING: [Consumer; 3] = [
    Consumer::Policy,
    Consumer::RateLimit,
    Consumer::CallerHeader,
];

fn list(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("it is an array")
}

fn object(value: &mut Value) -> &mut serde_json::Map<String, Value> {
    value.as_object_mut().expect("it is an object")
}

/// A bootstrap without what only its consumer needs: what is left is common to all.
fn common(mut bootstrap: Value) -> Value {
    const OWN_FILTERS: [&str; 2] = [
        "envoy.filters.http.rbac",
        "envoy.filters.http.local_ratelimit",
    ];
    const CLUSTERS: [&str; 3] = ["app", "productpage", "payments"];
    object(&mut bootstrap).remove("bootstrap_extensions");
    object(&mut bootstrap).remove("stats_config");
    let resources = &mut bootstrap["static_resources"];
    for listener in list(&mut resources["listeners"]) {
        let chain = &mut listener["filter_chains"][0];
        object(chain).remove("transport_socket");
        let manager = &mut chain["filters"][0]["typed_config"];
        for key in ["access_log", "tracing"] {
            object(manager).remove(key);
        }
        let filters = list(&mut manager["http_filters"]);
        filters.retain(|filter| !OWN_FILTERS.iter().any(|own| filter["name"] == *own));
        // It is compared apart.
        filters[0]["typed_config"]["config"]["configuration"]["value"] = Value::Null;
        for host in list(&mut manager["route_config"]["virtual_hosts"]) {
            let host = object(host);
            host.remove("request_headers_to_add");
            if let Some(removed) = host.get_mut("request_headers_to_remove") {
                list(removed)
                    .retain(|name| !name.as_str().unwrap_or_default().starts_with("x-caller-"));
            }
        }
    }
    let clusters = list(&mut resources["clusters"]);
    clusters.retain(|cluster| CLUSTERS.iter().any(|name| cluster["name"] == *name));
    for cluster in clusters {
        object(cluster).remove("transport_socket");
        // What names the service, and not what says that it is external.
        if !cluster["metadata"]["filter_metadata"]["istio"]["services"].is_null() {
            object(cluster).remove("metadata");
        }
    }
    bootstrap
}

/// The configurations of the filter on all listeners.
fn configurations(bootstrap: &Value) -> Vec<&Value> {
    let listeners = bootstrap["static_resources"]["listeners"].as_array();
    let of = |listener| -> &Value {
        let listener: &Value = listener;
        let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
        &manager["http_filters"][0]["typed_config"]["config"]["configuration"]["value"]
    };
    listeners.into_iter().flatten().map(of).collect()
}

#[test]
fn each_is_the_sidecar_of_deploy_envoy_plus_what_its_consumer_needs() -> Result<()> {
    let text = std::fs::read_to_string(repository("deploy/envoy/sidecar.yaml"))?;
    let deployed: Value = serde_saphyr::from_str(&text)?;
    let expected = common(deployed);
    for consumer in Consumer::ALL {
        let file = consumer.file();
        let bootstrap = Example::read(file)?.bootstrap()?;
        let configuration = match consumer {
            _ if DECIDING.contains(&consumer) => SPIFFE,
            Consumer::FilterMetrics => r#"{"standard_metrics": true}"#,
            _ => BOTH_SIDES,
        };
        assert_eq!(configurations(&bootstrap), [configuration; 2], "{file}");
        assert_eq!(common(bootstrap), expected, "{file}");
    }
    Ok(())
}

/// Every file in examples/ is run by a consumer, or is no bootstrap.
#[test]
fn every_bootstrap_is_tested() -> Result<()> {
    let mut found = BTreeSet::new();
    for dir in repository("examples").read_dir()? {
        let dir = dir?.path();
        for file in dir.read_dir().with_context(|| dir.display().to_string())? {
            let path = file?.path();
            let text = std::fs::read_to_string(&path)?;
            if text.contains("\nstatic_resources:") {
                let name = path.file_name().context("no name")?.to_string_lossy();
                let dir = dir.file_name().context("no name")?.to_string_lossy();
                found.insert(format!("examples/{dir}/{name}"));
            }
        }
    }
    let run = Consumer::ALL.map(|consumer| consumer.file().to_owned());
    assert_eq!(found, run.into());
    Ok(())
}

#[test]
fn each_header_comment_says_what_it_shows_and_how_it_starts() -> Result<()> {
    for consumer in Consumer::ALL {
        let file = consumer.file();
        let example = Example::read(file)?;
        assert_eq!(
            example.said("Start")?,
            format!("envoy --disable-hot-restart --config-path {file}")
        );
        let unsafe_if = example.said("Unsafe")?;
        assert!(
            unsafe_if.contains(r#""trust": "any""#),
            "{file}: {unsafe_if}"
        );
        let begins_with = if DECIDING.contains(&consumer) {
            r#"with "trust": "any""#
        } else {
            "nothing is decided"
        };
        assert!(unsafe_if.starts_with(begins_with), "{file}: {unsafe_if}");
        // It is read, and the file claims some.
        assert!(example.runs_on("1.40.0")?, "{file}");
    }
    Ok(())
}

/// Both tags of a span and fields of a log have the same names on both sides of a call.
#[test]
fn both_listeners_log_the_same_names() -> Result<()> {
    for consumer in Consumer::ALL {
        let bootstrap = Example::read(consumer.file())?.bootstrap()?;
        let listeners = bootstrap["static_resources"]["listeners"]
            .as_array()
            .context("none")?;
        let names = |listener: &Value| -> Vec<String> {
            let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
            let mut names = Vec::new();
            keys(&manager["access_log"], &mut names);
            keys(&manager["tracing"], &mut names);
            names.retain(|name| name.contains("source_") || name.contains("destination_"));
            names
        };
        let [inbound, outbound] = [names(&listeners[0]), names(&listeners[1])];
        assert_eq!(inbound, outbound, "{}", consumer.file());
        let expected = match consumer {
            _ if DECIDING.contains(&consumer) => 0,
            // The filter makes them.
            Consumer::FilterMetrics => 0,
            // Eight of each end and three of the service, for each of four metrics.
            Consumer::Metrics => 4 * (8 + 8 + 3),
            _ => 10,
        };
        assert_eq!(inbound.len(), expected, "{}: {inbound:?}", consumer.file());
    }
    Ok(())
}

/// The keys of a log's fields, attributes or tags.
fn keys(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_metrics_tag = name == "name" && fields.contains_key("value_format");
                if is_metrics_tag || ["key", "tag"].contains(&name.as_str()) {
                    names.extend(value.as_str().map(str::to_owned));
                } else if value.is_string() {
                    names.push(name.clone());
                }
                keys(value, names);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, names)),
        _ => {}
    }
}

/// The snippets of `docs/consumers.md` are parts of the files that it names.
#[test]
fn each_snippet_of_the_documentation_is_in_its_file() -> Result<()> {
    let page = std::fs::read_to_string(repository("docs/consumers.md"))?;
    let mut named = BTreeSet::new();
    for part in page.split("\nFrom [`").skip(1) {
        let (file, rest) = part.split_once('`').context("no file")?;
        let (_, snippet) = rest.split_once("```yaml\n").context("no snippet")?;
        let (snippet, _) = snippet.split_once("\n```").context("no end")?;
        let text = std::fs::read_to_string(repository(file)).context(file.to_owned())?;
        let snippet: Vec<&str> = snippet.lines().collect();
        let lines: Vec<&str> = text.lines().collect();
        let is_it = |window: &[&str]| {
            let indentation = window[0].len() - window[0].trim_start().len();
            window
                .iter()
                .zip(&snippet)
                .all(|(line, quoted)| line.get(indentation..) == Some(*quoted))
        };
        assert!(
            lines.windows(snippet.len()).any(is_it),
            "{file} has no {snippet:#?}"
        );
        named.insert(file.to_owned());
    }
    let blocks = page.matches("```yaml").count();
    assert_eq!(
        page.matches("\nFrom [`").count(),
        blocks,
        "a snippet without a file"
    );
    assert!(named.len() >= 7, "{named:?}");
    // Each bootstrap is in the table, too.
    for consumer in Consumer::ALL {
        assert!(
            page.contains(&format!("](../{})", consumer.file())),
            "{}",
            consumer.file()
        );
    }
    Ok(())
}

/// What the doctor says of a bootstrap for an Envoy of that version: codes of errors and warnings.
fn doctor(bootstrap: Value, version: &str) -> Result<Vec<&'static str>> {
    let evidence = Evidence {
        documents: vec![bootstrap],
        server_info: Some(json!({ "version": format!("/{version}/") })),
        ..Evidence::default()
    };
    let findings = examine(&evidence, FILTER)?;
    let findings = findings.iter().filter(|one| one.severity != Severity::Info);
    Ok(findings.map(|finding| finding.code.name()).collect())
}

#[test]
fn the_doctor_finds_only_missing_features_and_missing_trust() -> Result<()> {
    for consumer in Consumer::ALL {
        let file = consumer.file();
        let example = Example::read(file)?;
        for version in versions() {
            let expected: &[&str] = if example.runs_on(version)? {
                &[]
            } else {
                &["needs_newer_envoy"]
            };
            let mut found = doctor(example.bootstrap()?, version)?;
            found.dedup();
            assert_eq!(found, expected, "{file}, Envoy {version}");
        }
        let text = std::fs::read_to_string(repository(file))?;
        let credulous = text.replace(
            r#""trust": "spiffe", "trust_domains": ["cluster.local"]"#,
            r#""trust": "any""#,
        );
        let bootstrap = serde_saphyr::from_str(&credulous)?;
        let expected: &[&str] = if DECIDING.contains(&consumer) {
            &["policy_without_trust"]
        } else {
            &[]
        };
        assert_eq!(doctor(bootstrap, "1.40.0")?, expected, "{file}");
    }
    Ok(())
}
