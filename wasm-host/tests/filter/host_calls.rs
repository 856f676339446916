//! The exact host calls of a cached exchange: what a request costs beyond guest instructions, and a guard for every
//! change of the hot path.

use crate::support::{Proxy, Workload};
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, Status};

/// The host calls between two points of a stream.
fn steps(proxy: &mut Proxy) -> Vec<String> {
    let calls = proxy.vm.take_calls();
    let failed: Vec<_> = calls
        .iter()
        .filter(|recorded| !matches!(recorded.status, Status::Ok | Status::NotFound))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    calls
        .into_iter()
        .map(|recorded| recorded.call.to_string())
        .collect()
}

/// The host calls of the request, of the response and of the rest, the second time around.
fn cached(direction: Direction, request: &Headers, response: &Headers) -> [Vec<String>; 3] {
    cached_in(Proxy::plain("local"), direction, request, response)
}

fn cached_in(
    mut proxy: Proxy,
    direction: Direction,
    request: &Headers,
    response: &Headers,
) -> [Vec<String>; 3] {
    proxy.exchange(direction, request, response);
    let stream = proxy.open(direction);
    proxy.vm.take_calls();
    proxy.request(&stream, request);
    let of_request = steps(&mut proxy);
    proxy.response(&stream, response);
    let of_response = steps(&mut proxy);
    proxy.vm.finish(&stream).expect("no trap");
    [of_request, of_response, steps(&mut proxy)]
}

/// What the configuration says of the node costs nothing for a request, and `local_peer` one call.
#[test]
fn the_local_side_costs_one_call() {
    let caller = Workload::new("caller").headers();
    let calls_with = |configuration: Json| {
        let proxy = Proxy::of(&Workload::new("local"), &configuration);
        cached_in(proxy, Direction::Inbound, &caller, &Headers::new())
    };
    let without = cached(Direction::Inbound, &caller, &Headers::new());
    let node = json!({ "NAME": "${node:/id}", "OWNER": "${env:OWNER:-}" });
    assert_eq!(calls_with(json!({ "node": node })), without);
    let [mut request, response, rest] = calls_with(json!({ "node": node, "local_peer": true }));
    assert_eq!(request.pop().as_deref(), Some("set_property local_peer"));
    assert_eq!([request, response, rest], without);
}

/// Only on a listener without direction, and only of a caller that sends something.
#[test]
fn a_certificate_is_looked_for_where_there_is_no_direction() {
    let asks = |direction, caller: &Headers| {
        let [request, ..] = cached(direction, caller, &Headers::new());
        let mut calls = request.iter();
        calls.any(|call| call == "get_property connection.mtls")
    };
    let caller = Workload::new("caller").headers();
    assert!(asks(Direction::Unspecified, &caller));
    assert!(!asks(Direction::Unspecified, &Headers::new()));
    assert!(!asks(Direction::Inbound, &caller));
}

#[test]
fn inbound() {
    let caller = Workload::new("caller").headers();
    let [request, response, rest] = cached(Direction::Inbound, &caller, &Headers::new());
    assert_eq!(
        request,
        [
            "get_property xds.listener_direction",
            "get_header request x-envoy-peer-metadata",
            "get_header request x-envoy-peer-metadata-id",
            "set_property downstream_peer",
            "set_property downstream_peer_id",
            "remove_header request x-envoy-peer-metadata",
            "remove_header request x-envoy-peer-metadata-id",
        ]
    );
    assert_eq!(
        response,
        [
            "get_headers_size response",
            "replace_header response x-envoy-peer-metadata",
            "replace_header response x-envoy-peer-metadata-id",
        ]
    );
    assert_eq!(rest, [""; 0]);
}

#[test]
fn outbound() {
    let callee = Workload::new("callee").headers();
    let [request, response, rest] = cached(Direction::Outbound, &Headers::new(), &callee);
    assert_eq!(
        request,
        [
            "get_property xds.listener_direction",
            "get_property xds.cluster_name",
            "get_headers_size request",
            "replace_header request x-envoy-peer-metadata",
            "replace_header request x-envoy-peer-metadata-id",
        ]
    );
    assert_eq!(
        response,
        [
            "get_header response x-envoy-peer-metadata",
            "get_header response x-envoy-peer-metadata-id",
            "set_property upstream_peer",
            "set_property upstream_peer_id",
            "remove_header response x-envoy-peer-metadata",
            "remove_header response x-envoy-peer-metadata-id",
        ]
    );
    assert_eq!(rest, [""; 0]);
}

#[test]
fn a_silent_callee_costs_two_more_reads() {
    let [_, response, rest] = cached(Direction::Outbound, &Headers::new(), &Headers::new());
    assert_eq!(
        response,
        [
            "get_header response x-envoy-peer-metadata",
            "get_header response x-envoy-peer-metadata-id",
            "get_property upstream_peer",
            "get_property xds.cluster_name",
            "get_property xds.upstream_host_metadata.filter_metadata.istio.workload",
        ]
    );
    assert_eq!(rest, [""; 0]);
}

#[test]
fn a_stranger_costs_two_reads() {
    let [request, response, rest] = cached(Direction::Inbound, &Headers::new(), &Headers::new());
    assert_eq!(
        request,
        [
            "get_property xds.listener_direction",
            "get_header request x-envoy-peer-metadata",
            "get_header request x-envoy-peer-metadata-id",
        ]
    );
    // What an app sends is removed without reading it.
    assert_eq!(
        response,
        [
            "remove_header response x-envoy-peer-metadata",
            "remove_header response x-envoy-peer-metadata-id",
        ]
    );
    assert_eq!(rest, [""; 0]);
}

#[test]
fn an_idle_tick_is_cheap() {
    let mut proxy = Proxy::plain("local");
    proxy.inbound(&Workload::new("caller").headers());
    proxy.vm.tick(&proxy.root).expect("no trap");
    proxy.vm.take_calls();
    proxy.vm.tick(&proxy.root).expect("no trap");
    assert_eq!(
        steps(&mut proxy),
        [
            "get_log_level",
            "increment_metric metadata_exchange.ticks 1",
            "clock_time_get",
            "set_shared_data metadata_exchange///in_force",
        ]
    );
}

#[test]
fn a_tick_publishes_what_was_counted() {
    let mut proxy = Proxy::plain("local");
    proxy.inbound(&Workload::new("caller").headers());
    proxy.inbound(&Workload::new("caller").headers());
    proxy.vm.take_calls();
    proxy.vm.tick(&proxy.root).expect("no trap");
    assert_eq!(
        steps(&mut proxy),
        [
            "get_log_level",
            "increment_metric metadata_exchange.downstream_peer_stored 2",
            "increment_metric metadata_exchange.cache_hit 1",
            "increment_metric metadata_exchange.cache_miss 1",
            "increment_metric metadata_exchange.ticks 1",
            "clock_time_get",
            "set_shared_data metadata_exchange///in_force",
        ]
    );
}
