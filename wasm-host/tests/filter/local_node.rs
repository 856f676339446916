//! What the filter sends of the local node, even with unusual metadata.

use crate::support::{
    DOWNSTREAM, ID, METADATA, Proxy, UPSTREAM_ID, Workload, assert_sent_by, assert_stored,
    assert_stripped, assert_values, peer, struct_value,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, LogLevel, MetadataKind, Node, Properties, Settings, Status};

/// The headers that a proxy of this node adds to a request.
fn sent_by(proxy: &mut Proxy) -> Headers {
    proxy.outbound(&Headers::new()).request_headers()
}

#[track_caller]
fn assert_sends(node: &Node, expected: &Json) {
    let headers = sent_by(&mut Proxy::of_node(node, &json!({})));
    assert_values(&headers, METADATA, &[&struct_value(expected)]);
}

fn full_metadata() -> Json {
    json!({
        "APP_CONTAINERS": "app,log", "CLUSTER_ID": "c", "INSTANCE_IPS": "10.0.0.1,fe80::1",
        "ISTIO_VERSION": "1.17", "LABELS": {"app": "shop", "zone": "z", "a": ""}, "MESH_ID": "m",
        "NAME": "n", "NAMESPACE": "ns", "OWNER": "o", "PLATFORM_METADATA": {"gcp_project": "p"},
        "WORKLOAD_NAME": "w",
    })
}

#[test]
fn all_eleven_fields_are_sent_and_no_other() {
    let mut metadata = full_metadata();
    metadata["SERVICE_ACCOUNT"] = json!("secret");
    metadata["PROXY_CONFIG"] = json!({"concurrency": 2});
    metadata["app"] = json!("top level label");
    assert_sends(&Node::new("id", &metadata), &full_metadata());
}

#[test]
fn absent_stays_absent() {
    let metadata = json!({"NAME": "n"});
    assert_sends(&Node::new("id", &metadata), &metadata);
}

#[test]
fn numbers_and_bools_become_their_text() {
    for (value, text) in [
        (json!(15090), "15090"),
        (json!(-3), "-3"),
        (json!(0), "0"),
        (json!(0.5), "0.5"),
        (json!(1.1), "1.1"),
        (json!(9_007_199_254_740_991_i64), "9007199254740991"),
        (json!(true), "true"),
        (json!(false), "false"),
    ] {
        let node = Node::new(
            "id",
            &json!({"NAME": value, "LABELS": {"k": value, "l": "x"}}),
        );
        assert_sends(
            &node,
            &json!({"NAME": text, "LABELS": {"k": text, "l": "x"}}),
        );
    }
}

#[test]
fn values_that_are_not_texts_are_left_out() {
    for odd in [
        json!(null),
        json!(["a"]),
        json!({"a": "b"}),
        json!({}),
        json!([]),
    ] {
        let node = Node::new(
            "id",
            &json!({"NAME": odd, "NAMESPACE": "ns", "WORKLOAD_NAME": "w"}),
        );
        assert_sends(&node, &json!({"NAMESPACE": "ns", "WORKLOAD_NAME": "w"}));
        let labels = json!({"odd": odd, "app": "shop"});
        let node = Node::new("id", &json!({"LABELS": labels, "NAME": "n"}));
        assert_sends(&node, &json!({"LABELS": {"app": "shop"}, "NAME": "n"}));
    }
    for odd in [
        json!(null),
        json!("text"),
        json!(7),
        json!(true),
        json!(["a"]),
    ] {
        let node = Node::new(
            "id",
            &json!({"LABELS": odd, "PLATFORM_METADATA": odd, "NAME": "n"}),
        );
        assert_sends(&node, &json!({"NAME": "n"}));
    }
}

#[test]
fn values_that_are_not_numbers_are_left_out() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let odd = Some(MetadataKind::NumberValue(number));
        let node = Node::new("id", &json!({"NAMESPACE": "ns"})).with_metadata("NAME", odd);
        assert_sends(&node, &json!({"NAMESPACE": "ns"}));
    }
    let node = Node::new("id", &json!({"NAMESPACE": "ns"})).with_metadata("NAME", None);
    assert_sends(&node, &json!({"NAMESPACE": "ns"}));
}

#[test]
fn containers_and_addresses_may_be_lists() {
    let node = Node::new(
        "id",
        &json!({"APP_CONTAINERS": ["a", "b"], "INSTANCE_IPS": ["10.0.0.1"]}),
    );
    assert_sends(
        &node,
        &json!({"APP_CONTAINERS": "a,b", "INSTANCE_IPS": "10.0.0.1"}),
    );
    let node = Node::new(
        "id",
        &json!({"APP_CONTAINERS": ["a", 7, null], "NAME": "n"}),
    );
    let headers = sent_by(&mut Proxy::of_node(&node, &json!({})));
    let value = headers.get(METADATA).expect("sent");
    let bytes = STANDARD.decode(value).expect("base64");
    let sent = prost_types::Struct::decode(bytes.as_slice()).expect("a struct");
    assert!(
        sent.fields.contains_key("NAME"),
        "a neighbour stays: {sent:?}"
    );
}

#[test]
fn left_out_values_are_logged_once_with_their_key() {
    let node = Node::new(
        "id",
        &json!({"OWNER": ["odd"], "LABELS": {"app": "a", "bad": null}, "NAME": "n"}),
    );
    let mut proxy = Proxy::of_node(&node, &json!({}));
    for _ in 0..3 {
        proxy.outbound(&Headers::new());
        proxy.inbound(&Workload::new("caller").headers());
    }
    for key in ["OWNER", "bad"] {
        let lines: Vec<_> = proxy
            .log(LogLevel::Trace)
            .into_iter()
            .filter(|line| line.contains(key))
            .collect();
        assert_eq!(lines.len(), 1, "{key}: {lines:?}");
    }
}

#[test]
fn the_large_node_of_a_real_envoy_is_read() {
    let node = Workload::new("local").node().with_extensions(1200);
    assert!(node.to_bytes().len() > 60_000);
    let headers = sent_by(&mut Proxy::of_node(&node, &json!({})));
    assert_sent_by(&headers, &Workload::new("local"));
}

#[test]
fn an_unreadable_node_is_ignored() {
    let truncated = &Workload::new("local").node().to_bytes()[..40];
    for bytes in [&b"\x0a\xff\xff"[..], truncated, b""] {
        let properties = Properties::new().bytes(&["xds", "node"], bytes);
        let mut proxy = Proxy::in_host(properties, &json!({}));
        let stream = proxy.inbound(&Workload::new("caller").headers());
        assert_stored(&stream, Some(&Workload::new("caller")), None);
    }
    for status in Status::FAILURES {
        let properties = Properties::new().failing(&["xds", "node"], status);
        let mut proxy = Proxy::in_host(properties, &json!({}));
        let headers = sent_by(&mut proxy);
        assert_stripped(&headers);
    }
}

#[test]
fn without_an_id_only_metadata_is_sent_and_answered() {
    let metadata = Workload::new("local").metadata;
    let mut proxy = Proxy::of_node(&Node::new("", &metadata), &json!({}));
    let foreign = Workload::new("app").headers();
    let stream = proxy.exchange(wasm_host::Direction::Outbound, &foreign, &Headers::new());
    assert_values(
        &stream.request_headers(),
        METADATA,
        &[&struct_value(&metadata)],
    );
    assert_values(&stream.request_headers(), ID, &[]);
    let stream = proxy.inbound(&Workload::new("caller").headers());
    assert_values(
        &stream.response_headers(),
        METADATA,
        &[&struct_value(&metadata)],
    );
    assert_values(&stream.response_headers(), ID, &[]);
}

#[test]
fn without_a_field_only_the_id_is_sent_and_answered() {
    let mut proxy = Proxy::of_node(&Node::new("the-id", &json!({"OTHER": "x"})), &json!({}));
    let foreign = Workload::new("app").headers();
    let stream = proxy.exchange(wasm_host::Direction::Outbound, &foreign, &Headers::new());
    assert_values(&stream.request_headers(), METADATA, &[]);
    assert_values(&stream.request_headers(), ID, &["the-id"]);
    let stream = proxy.inbound(&Workload::new("caller").headers());
    assert_values(&stream.response_headers(), METADATA, &[]);
    assert_values(&stream.response_headers(), ID, &["the-id"]);
}

mod size {
    use super::*;

    fn sent_within(max_sent_bytes: usize, metadata: &Json) -> (Option<Json>, usize, Vec<String>) {
        let configuration = json!({ "max_sent_bytes": max_sent_bytes });
        let mut proxy = Proxy::of_node(&Node::new("the-id", metadata), &configuration);
        let headers = sent_by(&mut proxy);
        assert_values(&headers, ID, &["the-id"]);
        sent_by(&mut proxy);
        let warnings = proxy
            .log(LogLevel::Warn)
            .into_iter()
            .map(str::to_owned)
            .collect();
        let Some(value) = headers.get(METADATA) else {
            return (None, 0, warnings);
        };
        let mut other = Proxy::plain("other");
        let stream = other.inbound(&Headers::new().with(METADATA, value));
        (peer(&stream, DOWNSTREAM), value.len(), warnings)
    }

    fn large_metadata() -> Json {
        json!({
            "NAME": "n", "NAMESPACE": "ns",
            "LABELS": {"app": "shop", "service.istio.io/canonical-name": "shop", "zz": "x".repeat(300)},
            "PLATFORM_METADATA": {"k": "p".repeat(300)},
            "APP_CONTAINERS": "c".repeat(300),
            "INSTANCE_IPS": "i".repeat(300),
        })
    }

    #[test]
    fn what_passes_every_header_limit_is_not_sent_and_said_once() {
        let metadata = json!({ "NAME": "n", "OWNER": "o".repeat(60_000) });
        let (sent, _, warnings) = sent_within(1_048_576, &metadata);
        assert_eq!(sent, None);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("lower max_sent_bytes"), "{warnings:?}");
    }

    #[test]
    fn parts_are_left_out_in_a_fixed_order() {
        let full = large_metadata();
        let (sent, length, warnings) = sent_within(16_384, &full);
        assert_eq!(sent, Some(full.clone()));
        assert_eq!(warnings, [""; 0]);
        let mut expected = full.clone();
        expected["LABELS"]
            .as_object_mut()
            .expect("labels")
            .remove("zz");
        let mut limit = length - 1;
        for dropped in ["PLATFORM_METADATA", "APP_CONTAINERS", "INSTANCE_IPS", ""] {
            let (sent, length, warnings) = sent_within(limit, &full);
            assert!(length <= limit, "{length} > {limit}");
            assert_eq!(sent, Some(expected.clone()));
            assert!(!warnings.is_empty(), "it is logged");
            limit = length - 1;
            expected.as_object_mut().expect("an object").remove(dropped);
        }
        assert_eq!(
            sent_within(limit, &full).0,
            None,
            "then only the id is sent"
        );
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        let full = large_metadata();
        let (_, length, _) = sent_within(16_384, &full);
        assert_eq!(sent_within(length, &full).0, Some(full));
    }

    #[test]
    fn a_node_of_many_labels_stays_within_the_default() {
        let mut metadata = Workload::new("local").metadata;
        for index in 0..2000 {
            metadata["LABELS"][format!("label-{index:04}")] = json!("x".repeat(20));
        }
        let headers = sent_by(&mut Proxy::of_node(&Node::new("id", &metadata), &json!({})));
        let value = headers.get(METADATA).expect("sent");
        assert!(value.len() <= 16_384, "{}", value.len());
        let stream = Proxy::plain("other").inbound(&Headers::new().with(METADATA, value));
        let seen = peer(&stream, DOWNSTREAM).expect("stored");
        assert_eq!(seen["LABELS"]["app"], "local");
    }

    #[test]
    fn what_is_left_out_is_logged_once() {
        let (_, _, warnings) = sent_within(400, &large_metadata());
        let about: Vec<_> = warnings
            .iter()
            .filter(|line| line.contains("PLATFORM_METADATA"))
            .collect();
        assert_eq!(about.len(), 1, "{warnings:?}");
    }
}

#[test]
fn the_vm_says_who_it_is_and_then_keeps_quiet() {
    let mut proxy = Proxy::plain("local");
    let id = Workload::new("local").id;
    let started: Vec<_> = proxy
        .log(LogLevel::Info)
        .into_iter()
        .filter(|line| line.contains(&id))
        .collect();
    assert_eq!(started.len(), 1, "{started:?}");
    assert!(
        started[0].contains(env!("CARGO_PKG_VERSION")),
        "{started:?}"
    );
    let before = proxy.log(LogLevel::Trace).len();
    proxy.inbound(&Workload::new("caller").headers());
    proxy.inbound(&Headers::from([(METADATA, "%%"), (ID, "x\ny")]));
    proxy.outbound(&Workload::new("callee").headers());
    assert_eq!(
        proxy.log(LogLevel::Trace).len(),
        before,
        "{:?}",
        proxy.vm.logs()
    );
}

/// A proxy whose node and environment are these, with the `node` of this configuration.
fn proxy_with_environment(node: &Node, environment: &[(&str, &str)], stated: &Json) -> Proxy {
    let environment = environment.iter();
    let settings = Settings {
        properties: Properties::new().xds_node(node),
        environment: environment
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Settings::default()
    };
    Proxy::with(settings, &json!({ "node": stated }))
}

#[test]
fn the_environment_names_a_node_that_the_bootstrap_does_not() {
    let stated = json!({
        "id": "${env:POD_NAME}", "NAME": "${env:POD_NAME}", "NAMESPACE": "${env:POD_NAMESPACE:-shop}",
        "LABELS": {"app": "${env:APP}", "version": "${env:VERSION}"},
    });
    let environment = [("POD_NAME", "web-1"), ("APP", "web"), ("UNUSED", "secret")];
    let mut proxy = proxy_with_environment(&Node::new("", &json!({})), &environment, &stated);
    let web = Workload {
        id: "web-1".into(),
        metadata: json!({ "NAME": "web-1", "NAMESPACE": "shop", "LABELS": {"app": "web"} }),
    };
    assert_sent_by(&sent_by(&mut proxy), &web);
    let lines = proxy.log(LogLevel::Info);
    let identity =
        r#"this proxy is "web-1", LABELS={app="web"} NAME="web-1" NAMESPACE="shop""#.to_owned();
    assert_eq!(
        lines.iter().filter(|line| **line == identity).count(),
        1,
        "{lines:?}"
    );
    let warnings = proxy.log(LogLevel::Warn);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains(r#""LABELS.version" is "${env:VERSION}""#),
        "{warnings:?}"
    );
    assert!(
        !lines.iter().any(|line| line.contains("secret")),
        "{lines:?}"
    );
    assert_eq!(proxy.counter("node_without_name"), 0);
}

/// Its own headers come back to a proxy that the configuration names.
#[test]
fn a_proxy_knows_itself_by_what_the_configuration_says() {
    let stated = json!({ "id": "${env:POD_NAME}", "NAME": "${env:POD_NAME}" });
    let node = Node::new("bootstrap", &json!({ "NAMESPACE": "shop" }));
    let mut proxy = proxy_with_environment(&node, &[("POD_NAME", "web-1")], &stated);
    let own = sent_by(&mut proxy);
    let stream = proxy.inbound(&own);
    assert_stored(&stream, None, None);
    assert_eq!(proxy.counter("own"), 1);
}

/// The role of a gateway is that of its bootstrap's id, which Istio gives and `SkyWalking` reads.
#[test]
fn the_role_stays_that_of_the_bootstrap() {
    for (bootstrap, stated, is_marked) in [
        (
            "router~10.0.0.1~edge.shop~shop.svc.cluster.local",
            "edge-1",
            true,
        ),
        (
            "edge-1",
            "router~10.0.0.1~edge.shop~shop.svc.cluster.local",
            false,
        ),
    ] {
        let node = Node::new(bootstrap, &json!({ "NAME": "edge-1" }));
        let mut proxy = proxy_with_environment(&node, &[], &json!({ "id": stated }));
        let stream = proxy.outbound(&Headers::new());
        let marked = stream
            .filter_state_keys()
            .iter()
            .any(|key| key == UPSTREAM_ID);
        assert_eq!(marked, is_marked, "{bootstrap}");
    }
}

/// Readers name this proxy by its own key, in every direction, also if a filter ahead of this one
/// replied, so that only the log is called.
#[test]
fn the_local_peer_is_stored_under_its_own_key() {
    const LOCAL: &str = "wasm.local_peer";
    let stated = json!({ "local_peer": true, "share": "minimal",
        "node": { "NAME": "web-1", "LABELS": {"tier": "front"} } });
    let node = Node::new("id", &json!({ "NAMESPACE": "shop" }));
    let expected = json!({ "NAME": "web-1", "NAMESPACE": "shop", "LABELS": {"tier": "front"} });
    for direction in [
        Direction::Inbound,
        Direction::Outbound,
        Direction::Unspecified,
    ] {
        let mut proxy = Proxy::of_node(&node, &stated);
        let stream = proxy.open(direction);
        proxy.request(&stream, &Headers::new());
        assert_eq!(peer(&stream, LOCAL), Some(expected.clone()));
        let stream = proxy.open(direction);
        proxy.vm.finish(&stream).expect("no trap");
        assert_eq!(peer(&stream, LOCAL), Some(expected.clone()));
    }
    let mut proxy = Proxy::of_node(&node, &json!({}));
    assert_eq!(peer(&proxy.inbound(&Headers::new()), LOCAL), None);
    let mut proxy = Proxy::of_node(&Node::new("id", &json!({})), &json!({ "local_peer": true }));
    assert_eq!(peer(&proxy.inbound(&Headers::new()), LOCAL), None);
}
