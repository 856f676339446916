//! The JSON Schema of the configuration agrees with the code.

use metadata_exchange::config::{Config, KEYS};
use metadata_exchange::peer::Field;
use serde_json::{Map, Value as Json, json};

fn schema() -> Json {
    serde_json::from_str(include_str!("../../schema/plugin-config.schema.json")).unwrap()
}

/// A key's schema, with its references resolved.
fn resolved(schema: &Json, property: &Json) -> Map<String, Json> {
    let mut property = property.as_object().unwrap().clone();
    if let Some(Json::String(reference)) = property.remove("$ref") {
        let target = schema
            .pointer(reference.strip_prefix('#').unwrap())
            .unwrap();
        property.extend(target.as_object().unwrap().clone());
    }
    property
}

#[test]
fn it_has_every_key_and_no_other_each_described() {
    let schema = schema();
    let properties = schema["properties"].as_object().unwrap();
    let mut keys: Vec<_> = properties.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, KEYS.map(|(key, _)| key));
    for (key, property) in properties {
        assert!(
            property["description"]
                .as_str()
                .is_some_and(|text| text.len() > 20),
            "{key}"
        );
    }
}

#[test]
fn its_defaults_are_the_defaults() {
    let schema = schema();
    for (key, property) in schema["properties"].as_object().unwrap() {
        let default = resolved(&schema, property)["default"].clone();
        let config = json!({ key: default }).to_string();
        assert_eq!(
            Config::parse(config.as_bytes()),
            Ok(Config::default()),
            "{config}"
        );
    }
}

/// Values to try with every key: each type, and the values around each limit.
fn candidates() -> Vec<Json> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(false),
        json!(""),
        json!("x"),
        json!({}),
        json!([]),
        json!([1]),
        json!([""]),
        json!(["a"]),
        json!(["a*"]),
        json!(["*"]),
        json!(["a*b"]),
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!({"x": []}),
        json!({"id": "a", "NAME": "${env:A:-${node:/id}}", "LABELS": {"app": "a-$$"}}),
        json!({"NAME": "$A"}),
        json!({"NAME": "${file:/a}"}),
        json!({"NAME": 5}),
        json!({"name": "a"}),
        json!({"LABELS": "a"}),
        json!({"LABELS": {"app": 5}}),
        json!("kuma"),
        json!("envoy-gateway"),
        json!([{"NAME": "a-${endpoint:/f/k:-${cluster_name:}}", "LABELS": {"app": "${route:/a/0}"}}]),
        json!([{"NAME": "${env:A}"}]),
        json!([{"id": "a"}]),
        json!([{"LABELS": "a"}]),
        json!({"fields": ["NAMES"]}),
        json!({"labels": ["a*b"]}),
        json!({"labels": null}),
        json!({"fields": Field::ALL.map(Field::key), "labels": ["app", "service.istio.io/*"]}),
    ];
    let words = "http tcp auto inbound outbound gateway any mtls spiffe none skip send all minimal exchange \
                 observe";
    values.extend(words.split(' ').map(|word| json!(word)));
    for limit in [0, 1, 8192, 65_536, 1_048_576, 10_000_000_u64] {
        values.extend([json!(limit), json!(limit + 1)]);
    }
    values
}

#[test]
fn it_allows_what_the_code_allows() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut allowed = 0;
    for (key, _) in KEYS {
        for value in candidates() {
            let mut config = json!({ key: value });
            if ["trust_domains", "spiffe_patterns", "name_from_certificate"].contains(&key) {
                config["trust"] = json!("spiffe");
            }
            if ["tcp_clusters", "tcp_endpoints"].contains(&key) {
                config["protocol"] = json!("tcp");
            }
            if key == "name_from_certificate" {
                config["spiffe_patterns"] = json!(["spiffe://{_}/{NAME}"]);
            }
            let parsed = Config::parse(config.to_string().as_bytes());
            assert_eq!(
                validator.is_valid(&config),
                parsed.is_ok(),
                "{config}: {parsed:?}"
            );
            allowed += usize::from(parsed.is_ok());
        }
    }
    assert!(allowed > KEYS.len(), "too little is allowed to compare");
    assert!(!validator.is_valid(&json!({"unknown": 1})));
    assert!(!validator.is_valid(&json!([])));
}
