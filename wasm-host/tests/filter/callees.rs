//! A callee that no other source names is stored as the service of its cluster, also if its stream ended before a
//! response.

use crate::support::{Proxy, UPSTREAM, UPSTREAM_ID, Workload, peer, state};
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, Properties, Stream};

const CLUSTER: &str = "outbound|80||pay.shop.svc.cluster.local";

fn open(proxy: &mut Proxy, direction: Direction) -> Stream {
    let properties = Properties::new()
        .direction(direction)
        .bytes(&["xds", "cluster_name"], CLUSTER);
    proxy.vm.open(&proxy.root, properties)
}

fn named() -> Json {
    json!({"NAMESPACE": "shop", "LABELS": {"service.istio.io/canonical-name": "pay"}})
}

#[test]
fn a_stream_that_ends_before_its_response_is_named_when_it_is_logged() {
    for is_asked in [true, false] {
        let mut proxy = Proxy::plain("local");
        let stream = open(&mut proxy, Direction::Outbound);
        if is_asked {
            proxy.request(&stream, &Headers::new());
        }
        assert_eq!(peer(&stream, UPSTREAM), None);
        proxy.vm.finish(&stream).expect("no trap");
        assert_eq!(peer(&stream, UPSTREAM), Some(named()));
        assert_eq!(state(&stream, UPSTREAM_ID), None);
        assert_eq!(proxy.counter("upstream_peer_from_cluster_name"), 1);
    }
}

#[test]
fn an_inbound_stream_is_not_looked_at_when_it_is_logged() {
    let mut proxy = Proxy::plain("local");
    let stream = open(&mut proxy, Direction::Inbound);
    proxy.request(&stream, &Headers::new());
    proxy.vm.take_calls();
    proxy.vm.finish(&stream).expect("no trap");
    assert!(proxy.vm.take_calls().is_empty());
    assert_eq!(peer(&stream, UPSTREAM), None);
}

#[test]
fn a_failed_callee_belongs_to_the_service_that_answered_before() {
    let mut proxy = Proxy::plain("local");
    let stream = open(&mut proxy, Direction::Outbound);
    proxy.request(&stream, &Headers::new());
    proxy.response(&stream, &Workload::new("payment").headers());
    proxy.vm.finish(&stream).expect("no trap");
    let dead = open(&mut proxy, Direction::Outbound);
    proxy.request(&dead, &Headers::new());
    proxy.response(&dead, &Headers::from([(":status", "503")]));
    proxy.vm.finish(&dead).expect("no trap");
    let known = json!({"NAMESPACE": "shop", "LABELS": {"app": "payment"}});
    assert_eq!(peer(&dead, UPSTREAM), Some(known));
    assert_eq!(state(&dead, UPSTREAM_ID), None);
    assert_eq!(proxy.counter("upstream_peer_from_known_service"), 1);
}
