//! Observe mode: Istio's own filter sends, removes and answers; this filter only reads and stores.

use crate::support::{
    ID, METADATA, Proxy, UPSTREAM, Workload, assert_sent_by, assert_stored, assert_stripped,
    header_value, state,
};
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, Properties, Stream};

fn observer(overrides: &Json) -> Proxy {
    let mut configuration = overrides.clone();
    configuration["mode"] = json!("observe");
    Proxy::of(&Workload::new("local"), &configuration)
}

/// Runs a stream between a caller and a callee that both send everything.
fn between(proxy: &mut Proxy, properties: Properties) -> Stream {
    let stream = proxy.vm.open(&proxy.root, properties);
    proxy.request(&stream, &Workload::new("caller").headers());
    proxy.response(&stream, &Workload::new("callee").headers());
    proxy.vm.finish(&stream).expect("no trap");
    stream
}

/// Asserts that both header maps are as they were sent.
#[track_caller]
fn assert_undisturbed(stream: &Stream) {
    assert_sent_by(&stream.request_headers(), &Workload::new("caller"));
    assert_sent_by(&stream.response_headers(), &Workload::new("callee"));
}

#[test]
fn each_side_is_stored_and_no_header_is_touched() {
    let (caller, callee) = (Workload::new("caller"), Workload::new("callee"));
    for (direction, downstream, upstream) in [
        (Direction::Inbound, Some(&caller), None),
        (Direction::Outbound, None, Some(&callee)),
        (Direction::Unspecified, Some(&caller), Some(&callee)),
    ] {
        let mut proxy = observer(&json!({}));
        // First as a new peer, then from the cache.
        for _ in 0..2 {
            let properties = Properties::new().direction(direction);
            let properties = properties.flag(&["connection", "mtls"], true);
            let stream = between(&mut proxy, properties);
            assert_stored(&stream, downstream, upstream);
            assert_undisturbed(&stream);
        }
    }
}

#[test]
fn nothing_is_added_where_nobody_sent_anything() {
    for direction in [
        Direction::Inbound,
        Direction::Outbound,
        Direction::Unspecified,
    ] {
        let stream = observer(&json!({})).exchange(direction, &Headers::new(), &Headers::new());
        assert_stripped(&stream.request_headers());
        assert_stripped(&stream.response_headers());
        assert_stored(&stream, None, None);
    }
}

#[test]
fn the_host_is_asked_only_for_what_is_stored() {
    for (direction, expected) in [
        (
            Direction::Inbound,
            &[
                "get_property xds.listener_direction",
                "get_header request x-envoy-peer-metadata",
                "get_header request x-envoy-peer-metadata-id",
                "set_property downstream_peer",
                "set_property downstream_peer_id",
            ][..],
        ),
        (
            Direction::Outbound,
            &[
                "get_property xds.listener_direction",
                "get_property xds.cluster_name",
                "get_header response x-envoy-peer-metadata",
                "get_header response x-envoy-peer-metadata-id",
                "set_property upstream_peer",
                "set_property upstream_peer_id",
            ],
        ),
    ] {
        let mut proxy = observer(&json!({}));
        let properties = || Properties::new().direction(direction);
        between(&mut proxy, properties());
        proxy.vm.take_calls();
        between(&mut proxy, properties());
        let calls = proxy.vm.take_calls().into_iter();
        let calls: Vec<_> = calls.map(|recorded| recorded.call.to_string()).collect();
        assert_eq!(calls, expected, "{direction:?}");
    }
}

#[test]
fn whom_it_does_not_trust_it_leaves_to_the_other_filter() {
    for overrides in [
        json!({ "trust": "none", "upstream_trust": "none" }),
        json!({ "trust": "mtls", "upstream_trust": "mtls" }),
        json!({ "max_received_bytes": 16 }),
    ] {
        let mut proxy = observer(&overrides);
        let stream = between(&mut proxy, Properties::new());
        assert_stored(&stream, None, None);
        assert_undisturbed(&stream);
    }
}

/// The cluster is read with the response, when it can no longer change.
#[test]
fn a_callee_outside_the_mesh_is_believed_only_if_clusters_outside_are() {
    for (overrides, is_believed) in [
        (json!({}), false),
        (json!({"external_clusters": "send"}), true),
    ] {
        let mut proxy = observer(&overrides);
        let stream = proxy.open(Direction::Outbound);
        proxy.request(&stream, &Workload::new("caller").headers());
        stream.update_properties(|properties| {
            properties.bytes(&["xds", "cluster_name"], "PassthroughCluster")
        });
        proxy.response(&stream, &Workload::new("callee").headers());
        proxy.vm.finish(&stream).expect("no trap");

        let callee = Workload::new("callee");
        assert_stored(&stream, None, is_believed.then_some(&callee));
        assert_undisturbed(&stream);
        assert_eq!(proxy.counter("external_skipped"), u64::from(!is_believed));
    }
}

/// Istio's filter sends other metadata for this node than this filter would: newer releases send fewer fields.
#[test]
fn an_echo_is_known_by_its_id() {
    let local = Workload::new("local");
    let value = header_value(&json!({ "NAME": "local-1", "NAMESPACE": "shop" }));
    let echo = Headers::from([(METADATA, value), (ID, local.id)]);
    for (overrides, is_self) in [(json!({}), true), (json!({"accept_own": true}), false)] {
        let mut proxy = observer(&overrides);
        let stream = proxy.outbound(&echo);
        assert_eq!(state(&stream, UPSTREAM).is_none(), is_self);
        assert_eq!(proxy.counter("own"), u64::from(is_self));
    }
}

#[test]
fn the_local_node_is_recorded_as_ever() {
    let local = Workload::new("local");
    let mut proxy = observer(&json!({ "record_local_node": true }));
    let inbound = between(&mut proxy, Properties::new().direction(Direction::Inbound));
    assert_stored(&inbound, Some(&Workload::new("caller")), Some(&local));
    let outbound = between(&mut proxy, Properties::new().direction(Direction::Outbound));
    assert_stored(&outbound, Some(&local), Some(&Workload::new("callee")));
}
