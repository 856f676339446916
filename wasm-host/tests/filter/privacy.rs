//! What leaves the proxy, and where it goes.

use crate::support::{
    ID, METADATA, Proxy, UPSTREAM, UPSTREAM_ID, Workload, assert_sent_by, assert_stored,
    assert_stripped, assert_values, peer, state, struct_value,
};
use prost::Message;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use wasm_host::{Direction, Headers, Node, Properties, Stream};

/// `envoy.config.core.v3.Metadata`.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(btree_map = "string, message", tag = "1")]
    filter_metadata: BTreeMap<String, prost_types::Struct>,
}

/// A cluster with these `istio` metadata.
fn cluster(name: &str, istio: &Json) -> Properties {
    let filter_metadata = BTreeMap::from([("istio".to_owned(), Node::new("", istio).metadata)]);
    let metadata = Metadata { filter_metadata };
    Properties::new()
        .direction(Direction::Outbound)
        .bytes(&["xds", "cluster_name"], name)
        .bytes(&["xds", "cluster_metadata"], metadata.encode_to_vec())
}

/// A call by an app that sets peer headers itself, to a callee that answers.
fn call(proxy: &mut Proxy, properties: Properties) -> Stream {
    let stream = proxy.vm.open(&proxy.root, properties);
    proxy.request(&stream, &Workload::new("app").headers());
    proxy.response(&stream, &Workload::new("callee").headers());
    proxy.vm.finish(&stream).expect("no trap");
    assert_stripped(&stream.response_headers());
    stream
}

fn proxy(configuration: &Json) -> Proxy {
    Proxy::of(&Workload::new("local"), configuration)
}

#[track_caller]
fn assert_sent_metadata(stream: &Stream) {
    assert_sent_by(&stream.request_headers(), &Workload::new("local"));
    assert_stored(stream, None, Some(&Workload::new("callee")));
}

/// Nothing is sent, foreign headers are removed, and the answer is not believed.
#[track_caller]
fn assert_skipped(stream: &Stream) {
    assert_stripped(&stream.request_headers());
    assert_stored(stream, None, None);
}

/// Nothing is sent, and the callee is named by its host only: the answer is not
/// believed.
#[track_caller]
fn assert_named_by_host(stream: &Stream, host: &str) {
    assert_stripped(&stream.request_headers());
    let named = json!({"LABELS": {"service.istio.io/canonical-name": host}});
    assert_eq!(peer(stream, UPSTREAM), Some(named));
    assert_eq!(state(stream, UPSTREAM_ID), None);
}

#[test]
fn clusters_of_the_mesh_are_sent_metadata() {
    let mut proxy = proxy(&json!({}));
    for istio in [
        json!({}),
        json!({"external": false}),
        json!({"disable_mx": false}),
        json!({"external": "yes"}),
    ] {
        let name = format!("outbound|80||{istio}");
        assert_sent_metadata(&call(&mut proxy, cluster(&name, &istio)));
    }
    let no_metadata = Properties::new()
        .direction(Direction::Outbound)
        .bytes(&["xds", "cluster_name"], "plain");
    assert_sent_metadata(&call(&mut proxy, no_metadata));
    let no_cluster = Properties::new().direction(Direction::Outbound);
    assert_sent_metadata(&call(&mut proxy, no_cluster));
}

#[test]
fn external_clusters_are_skipped() {
    let mut proxy = proxy(&json!({ "external_cluster_names": ["exact", "prefix-*"] }));
    for round in 0..2 {
        assert_skipped(&call(&mut proxy, cluster("PassthroughCluster", &json!({}))));
        assert_skipped(&call(
            &mut proxy,
            cluster("bank", &json!({"external": true})),
        ));
        let istio = cluster("outbound|443||bank.com", &json!({"external": true}));
        assert_named_by_host(&call(&mut proxy, istio), "bank.com");
        assert_skipped(&call(&mut proxy, cluster("exact", &json!({}))));
        assert_skipped(&call(&mut proxy, cluster("prefix-1", &json!({}))));
        assert_sent_metadata(&call(&mut proxy, cluster("exact-not", &json!({}))));
        assert_sent_metadata(&call(&mut proxy, cluster("not-prefix-1", &json!({}))));
        assert_eq!(proxy.counter("external_skipped"), 5 * (round + 1));
    }
}

#[test]
fn a_gateway_skips_external_clusters() {
    let mut proxy = proxy(&json!({ "direction": "gateway" }));
    let stream = proxy
        .vm
        .open(&proxy.root, cluster("PassthroughCluster", &json!({})));
    let caller = Workload::new("caller");
    proxy.request(&stream, &caller.headers());
    proxy.response(&stream, &Workload::new("callee").headers());
    assert_stripped(&stream.request_headers());
    // The caller is inside the mesh, and is answered.
    assert_sent_by(&stream.response_headers(), &Workload::new("local"));
    assert_stored(&stream, Some(&caller), None);
}

#[test]
fn send_includes_external_clusters_but_respects_disable_mx() {
    let mut proxy =
        proxy(&json!({ "external_clusters": "send", "external_cluster_names": ["exact"] }));
    assert_sent_metadata(&call(&mut proxy, cluster("PassthroughCluster", &json!({}))));
    assert_sent_metadata(&call(
        &mut proxy,
        cluster("bank", &json!({"external": true})),
    ));
    assert_sent_metadata(&call(&mut proxy, cluster("exact", &json!({}))));
    assert_skipped(&call(
        &mut proxy,
        cluster("hbone", &json!({"disable_mx": true})),
    ));
}

#[test]
fn disable_mx_is_always_respected() {
    let mut proxy = proxy(&json!({}));
    assert_skipped(&call(
        &mut proxy,
        cluster("hbone", &json!({"disable_mx": true})),
    ));
}

#[test]
fn a_known_cluster_costs_one_property() {
    let mut proxy = proxy(&json!({}));
    let reads = |proxy: &mut Proxy| {
        proxy.vm.take_calls();
        call(proxy, cluster("outbound|80||shop", &json!({})));
        let calls = proxy
            .vm
            .take_calls()
            .into_iter()
            .map(|recorded| recorded.call.to_string());
        calls
            .filter(|call| call.contains("cluster"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        reads(&mut proxy),
        [
            "get_property xds.cluster_name",
            "get_property xds.cluster_metadata",
            // The service of its callees is new.
            "get_property xds.cluster_name",
        ]
    );
    assert_eq!(reads(&mut proxy), ["get_property xds.cluster_name"]);
}

#[test]
fn a_replaced_cluster_is_noticed_within_ten_seconds() {
    let mut proxy = proxy(&json!({}));
    assert_sent_metadata(&call(&mut proxy, cluster("shop", &json!({}))));
    for _ in 0..10 {
        proxy.vm.tick(&proxy.root).expect("no trap");
    }
    assert_skipped(&call(
        &mut proxy,
        cluster("shop", &json!({"external": true})),
    ));
}

mod share {
    use super::*;

    fn local() -> Workload {
        let mut local = Workload::new("local");
        local.metadata["MESH_ID"] = json!("m");
        local.metadata["INSTANCE_IPS"] = json!("10.0.0.1");
        local.metadata["LABELS"] = json!({
            "app": "local", "version": "v1", "secret": "s", "service.istio.io/canonical-name": "local",
        });
        local
    }

    #[track_caller]
    fn assert_shares(share: &Json, expected: &Json) {
        let mut proxy = Proxy::of(&local(), &json!({ "share": share }));
        let sent = proxy.outbound(&Headers::new()).request_headers();
        assert_values(&sent, METADATA, &[&struct_value(expected)]);
        assert_values(&sent, ID, &[&local().id]);
        let answered = proxy
            .inbound(&Workload::new("caller").headers())
            .response_headers();
        assert_values(&answered, METADATA, &[&struct_value(expected)]);
    }

    #[test]
    fn all_is_all() {
        assert_shares(&json!("all"), &local().metadata);
    }

    #[test]
    fn minimal_is_what_the_native_filter_sends() {
        let mut expected = local().metadata;
        let fields = expected.as_object_mut().expect("an object");
        fields.remove("MESH_ID");
        fields.remove("INSTANCE_IPS");
        fields["LABELS"]
            .as_object_mut()
            .expect("labels")
            .remove("secret");
        assert_shares(&json!("minimal"), &expected);
    }

    #[test]
    fn fields_and_labels_can_be_chosen() {
        assert_shares(
            &json!({"fields": ["NAME", "LABELS"], "labels": ["app", "service.istio.io/*"]}),
            &json!({"NAME": "local-1", "LABELS": {"app": "local", "service.istio.io/canonical-name": "local"}}),
        );
        assert_shares(&json!({"fields": ["NAME"]}), &json!({"NAME": "local-1"}));
        let mut without_labels = local().metadata;
        without_labels["LABELS"] = json!({"version": "v1"});
        assert_shares(&json!({"labels": ["version"]}), &without_labels);
    }

    #[test]
    fn what_is_not_shared_is_still_recorded_at_home_or_not_at_all() {
        let configuration = json!({ "share": {"fields": ["NAME"]}, "record_local_node": true });
        let mut proxy = Proxy::of(&local(), &configuration);
        let stream = proxy.inbound(&Headers::new());
        let recorded = crate::support::peer(&stream, crate::support::UPSTREAM).expect("recorded");
        assert_eq!(recorded["NAME"], "local-1");
    }
}
