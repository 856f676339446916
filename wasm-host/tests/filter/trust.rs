//! Which peers the filter believes: each request's own connection decides.

use crate::support::{
    DOWNSTREAM, ID, METADATA, Proxy, Workload, assert_sent_by, assert_stored, assert_stripped,
    assert_values,
};
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, Properties, Stream};

const RIGHT: &str = "spiffe://mesh.local/ns/shop/sa/caller";

/// What the peer of a connection presented.
#[derive(Clone, Copy)]
enum Certificate<'a> {
    None,
    Of(&'a str),
}

fn downstream(certificate: Certificate<'_>) -> Properties {
    let properties = Properties::new().direction(Direction::Inbound);
    match certificate {
        Certificate::None => properties.flag(&["connection", "mtls"], false),
        Certificate::Of(san) => properties
            .flag(&["connection", "mtls"], true)
            .bytes(&["connection", "uri_san_peer_certificate"], san),
    }
}

fn upstream(certificate: Certificate<'_>) -> Properties {
    let properties = Properties::new().direction(Direction::Outbound);
    match certificate {
        Certificate::None => properties,
        Certificate::Of(san) => properties
            .bytes(&["upstream", "sha256_peer_certificate_digest"], "digest")
            .bytes(&["upstream", "uri_san_peer_certificate"], san),
    }
}

fn call(
    proxy: &mut Proxy,
    properties: Properties,
    request: &Headers,
    response: &Headers,
) -> Stream {
    let stream = proxy.vm.open(&proxy.root, properties);
    proxy.request(&stream, request);
    proxy.response(&stream, response);
    proxy.vm.finish(&stream).expect("no trap");
    stream
}

fn proxy(configuration: &Json) -> Proxy {
    Proxy::of(&Workload::new("local"), configuration)
}

#[track_caller]
fn assert_believed(proxy: &mut Proxy, certificate: Certificate<'_>) {
    let caller = Workload::new("caller");
    let stream = call(
        proxy,
        downstream(certificate),
        &caller.headers(),
        &Headers::new(),
    );
    assert_stored(&stream, Some(&caller), None);
    assert_stripped(&stream.request_headers());
    assert_sent_by(&stream.response_headers(), &Workload::new("local"));
}

/// A refused caller is treated as one that sent nothing.
#[track_caller]
fn assert_refused(proxy: &mut Proxy, certificate: Certificate<'_>, counter: &str) {
    let before = proxy.counter(counter);
    let caller = Workload::new("caller").headers();
    let id_alone = Headers::from([(ID, Workload::new("caller").id)]);
    for headers in [caller, id_alone] {
        let stream = call(proxy, downstream(certificate), &headers, &Headers::new());
        assert_eq!(stream.filter_state_keys(), [""; 0]);
        assert_stripped(&stream.request_headers());
        assert_stripped(&stream.response_headers());
    }
    assert_eq!(proxy.counter(counter), before + 2, "{counter}");
}

#[test]
fn any_believes_everyone() {
    let mut proxy = proxy(&json!({ "trust": "any" }));
    assert_believed(&mut proxy, Certificate::None);
}

#[test]
fn mtls_wants_a_certificate() {
    let mut proxy = proxy(&json!({ "trust": "mtls" }));
    assert_refused(&mut proxy, Certificate::None, "refused_trust_mtls");
    assert_believed(&mut proxy, Certificate::Of("spiffe://other/ns/other/sa/x"));
    assert_refused(&mut proxy, Certificate::None, "refused_trust_mtls");
}

#[test]
fn mtls_is_not_assumed_where_it_is_unknown() {
    let mut proxy = proxy(&json!({ "trust": "mtls" }));
    let caller = Workload::new("caller").headers();
    let unknown = Properties::new().direction(Direction::Inbound);
    let stream = call(&mut proxy, unknown, &caller, &Headers::new());
    assert_eq!(stream.filter_state_keys(), [""; 0]);
}

#[test]
fn none_believes_nobody() {
    let mut proxy = proxy(&json!({ "trust": "none" }));
    assert_refused(&mut proxy, Certificate::Of(RIGHT), "refused_trust_none");
}

#[test]
fn spiffe_wants_the_namespace_that_the_metadata_claims() {
    let mut proxy = proxy(&json!({ "trust": "spiffe" }));
    assert_believed(&mut proxy, Certificate::Of(RIGHT));
    for san in [
        "spiffe://mesh.local/ns/other/sa/caller",
        "spiffe://mesh.local/ns/shop2/sa/caller",
        "spiffe://mesh.local/ns/shop/sa/",
        "spiffe://mesh.local/ns/shop/sa/caller/more",
        "spiffe://mesh.local/ns/shop",
        "spiffe:///ns/shop/sa/caller",
        "https://mesh.local/ns/shop/sa/caller",
        "SPIFFE://mesh.local/ns/shop/sa/caller",
        "x spiffe://mesh.local/ns/shop/sa/caller",
        "",
    ] {
        assert_refused(&mut proxy, Certificate::Of(san), "refused_trust_spiffe");
    }
    assert_refused(&mut proxy, Certificate::None, "refused_trust_mtls");
    // The right certificate is believed again: a verdict is never cached.
    assert_believed(&mut proxy, Certificate::Of(RIGHT));
}

#[test]
fn spiffe_may_be_confined_to_trust_domains() {
    let mut proxy =
        proxy(&json!({ "trust": "spiffe", "trust_domains": ["mesh.local", "cluster.local"] }));
    assert_believed(&mut proxy, Certificate::Of(RIGHT));
    assert_believed(
        &mut proxy,
        Certificate::Of("spiffe://cluster.local/ns/shop/sa/caller"),
    );
    let foreign = Certificate::Of("spiffe://mesh.local.evil/ns/shop/sa/caller");
    assert_refused(&mut proxy, foreign, "refused_trust_spiffe");
}

#[test]
fn spiffe_refuses_metadata_without_a_namespace() {
    let mut proxy = proxy(&json!({ "trust": "spiffe" }));
    let mut caller = Workload::new("caller");
    for namespace in [None, Some("")] {
        let fields = caller.metadata.as_object_mut().expect("an object");
        fields.remove("NAMESPACE");
        if let Some(namespace) = namespace {
            fields.insert("NAMESPACE".to_owned(), json!(namespace));
        }
        for san in [RIGHT, "spiffe://mesh.local/ns//sa/caller"] {
            let properties = downstream(Certificate::Of(san));
            let stream = call(&mut proxy, properties, &caller.headers(), &Headers::new());
            assert_eq!(stream.filter_state(DOWNSTREAM), None);
            assert_stripped(&stream.response_headers());
        }
    }
}

#[test]
fn answers_are_judged_by_upstream_trust_alone() {
    let callee = Workload::new("callee");
    let nobody = Headers::new();
    for (configuration, certificate, believed) in [
        (json!({"trust": "none"}), Certificate::None, true),
        (json!({"upstream_trust": "any"}), Certificate::None, true),
        (json!({"upstream_trust": "mtls"}), Certificate::None, false),
        (
            json!({"upstream_trust": "mtls"}),
            Certificate::Of("anything"),
            true,
        ),
        (
            json!({"upstream_trust": "spiffe"}),
            Certificate::Of(RIGHT),
            true,
        ),
        (
            json!({"upstream_trust": "spiffe"}),
            Certificate::Of("spiffe://m/ns/x/sa/y"),
            false,
        ),
        (
            json!({"upstream_trust": "spiffe", "trust_domains": ["m"]}),
            Certificate::Of(RIGHT),
            false,
        ),
        (
            json!({"upstream_trust": "none"}),
            Certificate::Of(RIGHT),
            false,
        ),
    ] {
        let mut proxy = proxy(&configuration);
        let stream = call(
            &mut proxy,
            upstream(certificate),
            &nobody,
            &callee.headers(),
        );
        assert_stored(&stream, None, believed.then_some(&callee));
        assert_stripped(&stream.response_headers());
        // What is sent does not depend on trust.
        assert_sent_by(&stream.request_headers(), &Workload::new("local"));
    }
}

#[test]
fn a_refused_caller_does_not_reach_the_app_of_a_gateway() {
    let configuration = json!({ "direction": "gateway", "trust": "none" });
    let mut proxy = proxy(&configuration);
    let caller = Workload::new("caller").headers();
    let stream = call(&mut proxy, Properties::new(), &caller, &Headers::new());
    assert_sent_by(&stream.request_headers(), &Workload::new("local"));
    assert_values(&stream.response_headers(), METADATA, &[]);
    assert_values(&stream.response_headers(), ID, &[]);
    assert_stored(&stream, None, None);
}
