//! A callee that sends nothing is named by its endpoint's metadata.

use crate::support::{Proxy, UPSTREAM, UPSTREAM_ID, Workload, assert_stored, peer, state};
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, Stream};

const PATH: [&str; 5] = [
    "xds",
    "upstream_host_metadata",
    "filter_metadata",
    "istio",
    "workload",
];

fn run(
    configuration: &Json,
    direction: Direction,
    workload: Option<&str>,
    response: &Headers,
) -> Stream {
    let mut proxy = Proxy::of(&Workload::new("local"), configuration);
    let stream = proxy.open(direction);
    proxy.request(&stream, &Headers::new());
    if let Some(workload) = workload {
        stream.update_properties(|properties| properties.bytes(&PATH, workload));
    }
    proxy.response(&stream, response);
    proxy.vm.finish(&stream).expect("no trap");
    stream
}

const WORKLOAD: Option<&str> = Some("pay;shop;payment;v2;east");

fn named() -> Json {
    json!({
        "NAME": "pay", "WORKLOAD_NAME": "pay", "NAMESPACE": "shop", "CLUSTER_ID": "east",
        "LABELS": {"service.istio.io/canonical-name": "payment", "service.istio.io/canonical-revision": "v2"},
    })
}

#[test]
fn a_silent_callee_is_named_without_an_id() {
    for direction in [Direction::Outbound, Direction::Unspecified] {
        for response in [Headers::new(), Headers::from([(":status", "503")])] {
            let stream = run(&json!({}), direction, WORKLOAD, &response);
            assert_eq!(peer(&stream, UPSTREAM), Some(named()));
            assert_eq!(state(&stream, UPSTREAM_ID), None);
        }
    }
}

#[test]
fn a_callee_that_answers_names_itself() {
    let callee = Workload::new("callee");
    let stream = run(&json!({}), Direction::Outbound, WORKLOAD, &callee.headers());
    assert_stored(&stream, None, Some(&callee));
}

#[test]
fn a_callee_that_is_not_believed_is_named_by_its_endpoint() {
    let callee = Workload::new("callee").headers();
    let stream = run(
        &json!({"upstream_trust": "none"}),
        Direction::Outbound,
        WORKLOAD,
        &callee,
    );
    assert_eq!(peer(&stream, UPSTREAM), Some(named()));
    assert_eq!(state(&stream, UPSTREAM_ID), None);
}

#[test]
fn an_app_is_not_a_callee() {
    let stream = run(&json!({}), Direction::Inbound, WORKLOAD, &Headers::new());
    assert_stored(&stream, None, None);
}

#[test]
fn it_can_be_turned_off() {
    let off = json!({ "endpoint_fallback": false });
    let stream = run(&off, Direction::Outbound, WORKLOAD, &Headers::new());
    assert_stored(&stream, None, None);
}

#[test]
fn an_endpoint_without_a_name_is_not_stored() {
    for workload in [
        None,
        Some(""),
        Some("pay"),
        Some("pay;"),
        Some(";shop"),
        Some(";;;;"),
        Some("a\nb;shop"),
    ] {
        let stream = run(&json!({}), Direction::Outbound, workload, &Headers::new());
        assert_stored(&stream, None, None);
    }
}

#[test]
fn parts_may_be_missing_or_empty() {
    let stream = run(
        &json!({}),
        Direction::Outbound,
        Some("pay;shop;;;east"),
        &Headers::new(),
    );
    let expected = json!({
        "NAME": "pay", "WORKLOAD_NAME": "pay", "NAMESPACE": "shop", "CLUSTER_ID": "east",
        "LABELS": {"service.istio.io/canonical-name": "pay"},
    });
    assert_eq!(peer(&stream, UPSTREAM), Some(expected));
}
