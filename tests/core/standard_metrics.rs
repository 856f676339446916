//! Istio's standard metrics, with a fake proxy.

use metadata_exchange::counters::Counter;
use metadata_exchange::exchange::Stream;
use metadata_exchange::host::HeaderMap::{Request, Response};
use metadata_exchange::peer::header::PEER_METADATA as METADATA;
use serde_json::{Value as Json, json};

use crate::exchange::{Counted, exchange};
use crate::support::{FakeHost, local, metadata_message};

const ON: &str = r#"{"standard_metrics": true}"#;

fn caller(workload: &str) -> String {
    let node = json!({"NAME": "caller-1", "NAMESPACE": "shop", "WORKLOAD_NAME": workload, "CLUSTER_ID": "east",
        "LABELS": {"app": "caller", "version": "v2", "service.istio.io/canonical-name": "caller-c",
            "service.istio.io/canonical-revision": "r1"}});
    local("caller-id", &node).header.unwrap()
}

fn number(host: &FakeHost, path: &str, number: u64) {
    host.set_property(path, &number.to_le_bytes());
}

/// A host whose stream ended with these attributes.
fn ended(host: FakeHost, code: u64) -> FakeHost {
    number(&host, "response.code", code);
    number(&host, "request.duration", 12_999_999);
    number(&host, "request.total_size", 100);
    number(&host, "response.total_size", 2_000);
    host
}

fn call(exchange: &Counted, host: &FakeHost) {
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, host, host.count(Request));
    exchange.on_response_headers(&mut stream, host, host.count(Response));
    exchange.on_log(&mut stream, host);
}

/// The labels of the only series, with its values.
fn only_series(host: &FakeHost) -> (Json, Vec<Vec<u64>>) {
    let metrics = host.metrics.borrow();
    let names: Vec<_> = metrics
        .iter()
        .map(|(name, _)| name.rsplit_once(";.;").unwrap())
        .collect();
    let metric_names: Vec<_> = names.iter().map(|(_, name)| *name).collect();
    assert_eq!(
        metric_names,
        [
            "istio_requests_total",
            "istio_request_duration_milliseconds",
            "istio_request_bytes",
            "istio_response_bytes"
        ]
    );
    let (labels, _) = names[0];
    assert!(names.iter().all(|(other, _)| *other == labels));
    let labels = labels
        .split(";.;")
        .map(|label| label.split_once("=.=").unwrap())
        .map(|(key, value)| (key.to_owned(), json!(value)));
    let values = metrics.iter().map(|(_, values)| values.clone());
    (Json::Object(labels.collect()), values.collect())
}

#[test]
fn a_destination_names_the_caller_and_itself() {
    let exchange = exchange(ON);
    let host = ended(FakeHost::inbound(), 503).request_header(METADATA, caller("caller-w"));
    number(&host, "response.flags", 1 << 2);
    host.set_property("connection.mtls", &[1]);
    host.set_property(
        "connection.uri_san_peer_certificate",
        b"spiffe://td/ns/shop/sa/caller",
    );
    host.set_property(
        "connection.uri_san_local_certificate",
        b"spiffe://td/ns/shop/sa/own",
    );
    let services = json!({"istio": {"services": [{"host": "own.shop.svc", "name": "own", "namespace": "shop"}]}});
    host.set_property("xds.cluster_name", b"inbound|80||");
    host.set_property("xds.cluster_metadata", &metadata_message(&services));
    call(&exchange, &host);
    call(&exchange, &host);
    let (labels, values) = only_series(&host);
    assert_eq!(
        labels,
        json!({
            "reporter": "destination",
            "source_workload": "caller-w",
            "source_workload_namespace": "shop",
            "source_cluster": "east",
            "source_app": "caller",
            "source_version": "v2",
            "source_canonical_service": "caller-c",
            "source_canonical_revision": "r1",
            "source_principal": "spiffe://td/ns/shop/sa/caller",
            "destination_workload": "unknown",
            "destination_workload_namespace": "shop",
            "destination_cluster": "unknown",
            "destination_app": "unknown",
            "destination_version": "unknown",
            "destination_canonical_service": "unknown",
            "destination_canonical_revision": "unknown",
            "destination_principal": "spiffe://td/ns/shop/sa/own",
            "destination_service": "own.shop.svc",
            "destination_service_name": "own",
            "destination_service_namespace": "shop",
            "request_protocol": "http",
            "response_code": "503",
            "grpc_response_status": "",
            "response_flags": "UT",
            "connection_security_policy": "mutual_tls",
        })
    );
    assert_eq!(values, [[1, 1], [12, 12], [100, 100], [2_000, 2_000]]);
}

#[test]
fn a_source_names_the_callee_and_the_host_that_it_asked_for() {
    let exchange = exchange(ON);
    let host =
        ended(FakeHost::outbound(), 200).request_header("content-type", "application/grpc+proto");
    host.set_property("xds.cluster_name", b"pay");
    host.set_property("request.host", b"pay.example:80");
    number(&host, "response.grpc_status", 14);
    host.response_header(METADATA, caller("pay-w"));
    call(&exchange, &host);
    let (labels, _) = only_series(&host);
    for (key, value) in [
        ("reporter", "source"),
        ("source_workload_namespace", "shop"),
        ("destination_workload", "pay-w"),
        ("destination_service", "pay.example:80"),
        ("destination_service_name", "pay.example:80"),
        ("destination_service_namespace", "unknown"),
        ("request_protocol", "grpc"),
        ("grpc_response_status", "14"),
        ("connection_security_policy", "unknown"),
    ] {
        assert_eq!(labels[key], value, "{key}");
    }
}

#[test]
fn a_caller_without_metadata_is_unknown_and_its_host_is_no_service() {
    let exchange = exchange(ON);
    let host = ended(FakeHost::inbound(), 200);
    host.set_property("request.host", b"chosen.by.caller");
    call(&exchange, &host);
    let (labels, _) = only_series(&host);
    for key in [
        "source_workload",
        "source_principal",
        "destination_service",
        "destination_service_name",
    ] {
        assert_eq!(labels[key], "unknown", "{key}");
    }
    assert_eq!(labels["connection_security_policy"], "none");
}

#[test]
fn made_up_callers_stay_below_the_bound_and_are_still_counted() {
    let exchange = exchange(r#"{"standard_metrics": true, "max_metric_series": 3}"#);
    let host = ended(FakeHost::inbound(), 200);
    let mut of_caller = |number: u32| {
        host.request.borrow_mut().clear();
        let header = (
            METADATA.to_owned(),
            caller(&format!("w{number}")).into_bytes(),
        );
        host.request.borrow_mut().push(header);
        call(&exchange, &host);
    };
    (0..50).for_each(&mut of_caller);
    // A known one keeps its labels.
    of_caller(0);
    let metrics = host.metrics.borrow();
    let requests = metrics
        .iter()
        .filter(|(name, _)| name.ends_with("requests_total"));
    let requests: Vec<_> = requests
        .map(|(name, values)| {
            let workload = name.split("source_workload=.=").nth(1).unwrap();
            (workload.split(';').next().unwrap(), values.len())
        })
        .collect();
    assert_eq!(requests, [("w0", 2), ("w1", 1), ("w2", 1), ("unknown", 47)]);
    assert_eq!(exchange.counters().take(Counter::MetricSeriesOverLimit), 47);
}

#[test]
fn an_internal_redirect_is_one_call() {
    let exchange = exchange(ON);
    let host = ended(FakeHost::outbound(), 302);
    host.set_property("response.code_details", b"internal_redirect");
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, &host, 0);
    exchange.on_log(&mut stream, &host);
    assert_eq!(*host.metrics.borrow(), []);
}

#[test]
fn a_host_without_metrics_costs_nothing_else() {
    let exchange = exchange(ON);
    let mut host = ended(FakeHost::inbound(), 200).request_header(METADATA, caller("w"));
    host.failing = Some("define");
    call(&exchange, &host);
    assert_eq!(*host.metrics.borrow(), []);
    assert!(host.state("downstream_peer").is_some());
    assert_eq!(exchange.counters().take(Counter::HostError), 1);
}

#[test]
fn nothing_is_read_or_recorded_by_default() {
    let exchange = exchange("");
    let host = ended(FakeHost::inbound(), 200).request_header(METADATA, caller("w"));
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, &host, 1);
    exchange.on_response_headers(&mut stream, &host, 0);
    host.calls.borrow_mut().clear();
    exchange.on_log(&mut stream, &host);
    assert_eq!(*host.calls.borrow(), [""; 0]);
}
