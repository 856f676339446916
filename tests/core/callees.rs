//! Which sources name a callee that sent no usable metadata, and in which order.

use metadata_exchange::config::Config;
use metadata_exchange::counters::Counter;
use metadata_exchange::exchange::Stream;
use metadata_exchange::host::HeaderMap;
use metadata_exchange::peer::flat;
use metadata_exchange::peer::header::{PEER_METADATA as METADATA, PEER_METADATA_ID as ID};
use serde_json::{Value as Json, json};

use crate::exchange::{Counted, assert_no_peer, exchange, round_trip};
use crate::support::{FakeHost, local, metadata_message};

const WORKLOAD: &str = "xds.upstream_host_metadata.filter_metadata.istio.workload";

/// A request to this cluster with these `istio` metadata.
fn call(cluster: &str, istio: &Json) -> FakeHost {
    to(FakeHost::outbound(), cluster, istio)
}

fn to(host: FakeHost, cluster: &str, istio: &Json) -> FakeHost {
    host.set_property("xds.cluster_name", cluster.as_bytes());
    let metadata = metadata_message(&json!({ "istio": istio }));
    host.set_property("xds.cluster_metadata", &metadata);
    host
}

fn services(services: &[(&str, &str, &str)]) -> Json {
    let services = services.iter().map(
        |(host, name, namespace)| json!({ "host": host, "name": name, "namespace": namespace }),
    );
    json!({ "services": services.collect::<Vec<_>>() })
}

/// A response of a callee with this metadata.
fn answer(exchange: &Counted, host: &FakeHost, metadata: &Json) {
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, host, 1);
    let header = local("", metadata).header;
    host.response_header(METADATA, header.unwrap());
    host.response_header(ID, "callee-id");
    exchange.on_response_headers(&mut stream, host, 1);
}

/// Name, namespace and labels of the stored callee, and its id.
fn stored(host: &FakeHost) -> Option<(Json, Option<Vec<u8>>)> {
    let bytes = host.state("upstream_peer")?;
    let peer = flat::read(&bytes).unwrap();
    let text = |text: &Option<String>| text.as_deref().map(Json::from);
    let labels = peer.labels.iter().flatten();
    let labels: serde_json::Map<_, _> = labels
        .map(|(key, value)| (key.clone(), Json::from(value.as_str())))
        .collect();
    let fields = [
        ("name", text(&peer.name)),
        ("namespace", text(&peer.namespace)),
        ("labels", (!labels.is_empty()).then(|| labels.into())),
    ];
    let fields = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Some((
        Json::Object(fields.collect()),
        host.state("upstream_peer_id"),
    ))
}

fn assert_named(host: &FakeHost, expected: &Json) {
    assert_eq!(stored(host), Some((expected.clone(), None)));
}

fn service(name: &str, namespace: &str) -> Json {
    json!({ "labels": { "service.istio.io/canonical-name": name }, "namespace": namespace })
}

fn external(host: &str) -> Json {
    json!({ "labels": { "service.istio.io/canonical-name": host } })
}

const CLUSTER: &str = "outbound|80||pay.shop.svc.cluster.local";

#[test]
fn the_best_source_names_a_silent_callee() {
    let metadata = services(&[("pay.shop.svc.cluster.local", "pay-by-metadata", "shop")]);
    let answering =
        json!({"NAME": "pay-1", "NAMESPACE": "shop", "LABELS": {"app": "pay", "x": "y"}});
    let known = json!({"namespace": "shop", "labels": {"app": "pay"}});
    for (endpoint, istio, has_answered, counter, expected) in [
        (
            Some("pay-v1;shop;pay-by-endpoint;v1;east"),
            &metadata,
            true,
            Counter::UpstreamPeerFromEndpoint,
            json!({"name": "pay-v1", "namespace": "shop", "labels": {
                "service.istio.io/canonical-name": "pay-by-endpoint",
                "service.istio.io/canonical-revision": "v1",
            }}),
        ),
        (
            Some(";;;;Kubernetes"),
            &metadata,
            true,
            Counter::UpstreamPeerFromClusterMetadata,
            service("pay-by-metadata", "shop"),
        ),
        (
            None,
            &json!({}),
            true,
            Counter::UpstreamPeerFromKnownService,
            known,
        ),
        (
            None,
            &json!({}),
            false,
            Counter::UpstreamPeerFromClusterName,
            service("pay", "shop"),
        ),
    ] {
        let exchange = exchange("");
        if has_answered {
            answer(&exchange, &call(CLUSTER, istio), &answering);
        }
        let host = call(CLUSTER, istio);
        if let Some(endpoint) = endpoint {
            host.set_property(WORKLOAD, endpoint.as_bytes());
        }
        round_trip(&exchange, &host);
        assert_named(&host, &expected);
        assert_eq!(exchange.counters().take(counter), 1, "{counter:?}");
    }
}

#[test]
fn each_source_can_be_turned_off() {
    let istio = services(&[("h", "pay", "shop")]);
    let named = |config: &str| {
        let host = call(CLUSTER, &istio);
        host.set_property(WORKLOAD, b"wl;shop");
        round_trip(&exchange(config), &host);
        stored(&host).map(|(peer, _)| peer)
    };
    assert_eq!(
        named(r#"{"endpoint_fallback": false}"#),
        Some(service("pay", "shop"))
    );
    let off = named(r#"{"endpoint_fallback": false, "service_fallback": false}"#);
    assert_eq!(off, None);
    let endpoint = named(r#"{"service_fallback": false}"#).unwrap();
    assert_eq!(endpoint["name"], "wl");
}

#[test]
fn cluster_metadata_without_exactly_one_service_is_ignored() {
    let two = services(&[("a", "a", "shop"), ("b", "b", "shop")]);
    for istio in [
        two,
        services(&[]),
        services(&[("a", "a", "")]),
        services(&[("a", "", "shop")]),
        services(&[("a", "a\nb", "shop")]),
        json!({"services": {"name": "a", "namespace": "shop"}}),
        json!({"services": ["a"]}),
        json!({"services": "a"}),
    ] {
        let host = call("plain", &istio);
        round_trip(&exchange(""), &host);
        assert_no_peer(&host);
    }
}

#[test]
fn a_cluster_with_several_services_stays_unnamed() {
    let exchange = exchange("");
    let none = json!({});
    let of = |labels: &Json| json!({"NAME": "n", "NAMESPACE": "shop", "LABELS": labels});
    let silent = || {
        let host = call("plain", &none);
        round_trip(&exchange, &host);
        stored(&host).map(|(peer, _)| peer)
    };
    assert_eq!(silent(), None);
    answer(&exchange, &call("plain", &none), &of(&json!({"app": "a"})));
    assert_eq!(
        silent(),
        Some(json!({"namespace": "shop", "labels": {"app": "a"}}))
    );
    // The same service with more metadata, and a callee without a name.
    let more = json!({"app": "a", "k8s-app": "z", "version": "2"});
    answer(&exchange, &call("plain", &none), &of(&more));
    answer(
        &exchange,
        &call("plain", &none),
        &json!({"ISTIO_VERSION": "1.30"}),
    );
    exchange.refresh_clusters();
    assert!(silent().is_some());
    // Another cluster knows nothing of it.
    let other = call("other", &none);
    round_trip(&exchange, &other);
    assert_no_peer(&other);

    answer(&exchange, &call("plain", &none), &of(&json!({"app": "b"})));
    assert_eq!(silent(), None);
    for _ in 0..3 {
        answer(&exchange, &call("plain", &none), &of(&json!({"app": "a"})));
        exchange.refresh_clusters();
    }
    assert_eq!(silent(), None);
}

#[test]
fn a_peer_with_no_or_a_too_long_service_counts_as_another_service() {
    let none = json!({});
    let long = "a".repeat(2000);
    for other in [
        json!({"NAME": "n", "NAMESPACE": "shop"}),
        json!({"NAME": "n", "NAMESPACE": "shop", "LABELS": {"app": long}}),
        json!({"NAME": "n", "NAMESPACE": "bank", "LABELS": {"app": "a"}}),
    ] {
        let exchange = exchange("");
        let one = json!({"NAME": "n", "NAMESPACE": "shop", "LABELS": {"app": "a"}});
        answer(&exchange, &call("plain", &none), &one);
        answer(&exchange, &call("plain", &none), &other);
        let host = call("plain", &none);
        round_trip(&exchange, &host);
        assert_no_peer(&host);
    }
}

#[test]
fn nothing_is_learned_from_a_peer_that_is_not_believed() {
    let exchange = exchange(r#"{"upstream_trust": "mtls"}"#);
    let one = json!({"NAME": "n", "NAMESPACE": "shop", "LABELS": {"app": "a"}});
    answer(&exchange, &call("plain", &json!({})), &one);
    let host = call("plain", &json!({}));
    round_trip(&exchange, &host);
    assert_no_peer(&host);
}

#[test]
fn a_filter_that_changes_the_route_does_not_mix_services() {
    let exchange = exchange("");
    let host = call("before", &json!({}));
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, &host, 1);
    let host = to(host, "behind", &json!({}));
    let node = json!({"NAME": "n", "NAMESPACE": "shop", "LABELS": {"app": "a"}});
    host.response_header(METADATA, local("", &node).header.unwrap());
    exchange.on_response_headers(&mut stream, &host, 1);
    for (cluster, is_known) in [("before", false), ("behind", true)] {
        let host = call(cluster, &json!({}));
        round_trip(&exchange, &host);
        assert_eq!(stored(&host).is_some(), is_known, "{cluster}");
    }
}

#[test]
fn a_host_outside_the_mesh_is_not_a_workload() {
    let istio = json!({"external": true, "services": [
        {"host": "card.example.com", "name": "card.example.com", "namespace": "default"}]});
    let bare = json!({"external": true});
    let names = r#"{"external_cluster_names": ["card.example.com", "card"]}"#;
    for (config, cluster, istio, expected) in [
        (
            "",
            "outbound|80||other.example.com",
            &istio,
            Some("card.example.com"),
        ),
        (
            "",
            "outbound|80||card.example.com",
            &bare,
            Some("card.example.com"),
        ),
        (
            "",
            "outbound|80||pay.shop.svc.cluster.local",
            &bare,
            Some("pay.shop.svc.cluster.local"),
        ),
        ("", "card", &bare, None),
        ("", "PassthroughCluster", &json!({}), None),
        (
            names,
            "card.example.com",
            &json!({}),
            Some("card.example.com"),
        ),
        (names, "card", &json!({}), None),
        (
            r#"{"external_clusters": "send"}"#,
            "card",
            &istio,
            Some("card.example.com"),
        ),
    ] {
        let exchange = exchange(config);
        let host = call(cluster, istio);
        host.set_property(
            WORKLOAD,
            b"card-network-0;default;card-network-0;;Kubernetes",
        );
        round_trip(&exchange, &host);
        match expected {
            Some(name) => assert_named(&host, &external(name)),
            None => assert_no_peer(&host),
        }
        assert_eq!(
            exchange.counters().take(Counter::UpstreamPeerFromEndpoint),
            0
        );
    }
}

#[test]
fn a_stored_peer_is_not_overwritten_by_a_poorer_one() {
    let host = call(CLUSTER, &services(&[("h", "pay", "shop")]));
    host.set_property(WORKLOAD, b"wl;shop");
    let node = json!({"NAME": "true", "NAMESPACE": "shop"});
    // A second filter is nearer to the callee and sees the answer first.
    let (near, far) = (exchange(""), exchange(""));
    let (mut of_far, mut of_near) = (Stream::default(), Stream::default());
    far.on_request_headers(&mut of_far, &host, 1);
    near.on_request_headers(&mut of_near, &host, 1);
    host.response_header(METADATA, local("", &node).header.unwrap());
    host.response_header(ID, "true-id");
    near.on_response_headers(&mut of_near, &host, 1);
    far.on_response_headers(&mut of_far, &host, 1);
    far.on_log(&mut of_far, &host);
    let expected = json!({"name": "true", "namespace": "shop"});
    assert_eq!(stored(&host), Some((expected, Some(b"true-id".to_vec()))));
}

#[test]
fn an_answer_without_a_name_is_replaced_by_another_source() {
    let weak = json!({"ISTIO_VERSION": "1.30.0", "NAMESPACE": "shop", "LABELS": {"version": "v1"}});
    let host = call("plain", &json!({}));
    host.set_property(WORKLOAD, b"wl;shop");
    answer(&exchange(""), &host, &weak);
    assert_eq!(stored(&host).unwrap().0["name"], "wl");
    assert_eq!(host.state("upstream_peer_id"), None);

    // Better than no callee.
    let host = call("plain", &json!({}));
    answer(&exchange(""), &host, &weak);
    assert_eq!(stored(&host).unwrap().0["namespace"], "shop");
    assert_eq!(host.state("upstream_peer_id").unwrap(), b"callee-id");

    for named in [
        json!({"NAME": "x"}),
        json!({"WORKLOAD_NAME": "x"}),
        json!({"LABELS": {"k8s-app": "x"}}),
    ] {
        let host = call("plain", &json!({}));
        host.set_property(WORKLOAD, b"wl;shop");
        answer(&exchange(""), &host, &named);
        assert_eq!(
            host.state("upstream_peer_id").unwrap(),
            b"callee-id",
            "{named}"
        );
    }
}

#[test]
fn a_stream_that_ends_before_its_response_is_named_when_it_is_logged() {
    let exchange = exchange("");
    // The client is gone, or a filter ahead of this one has replied.
    for has_request in [true, false] {
        let host = call(CLUSTER, &json!({}));
        let mut stream = Stream::default();
        if has_request {
            exchange.on_request_headers(&mut stream, &host, 1);
        }
        exchange.on_log(&mut stream, &host);
        assert_named(&host, &service("pay", "shop"));
    }
    // A redirected request will have another callee.
    let host = call(CLUSTER, &json!({}));
    host.set_property("response.code_details", b"internal_redirect");
    exchange.on_log(&mut Stream::default(), &host);
    assert_no_peer(&host);
    // A stream that had its response is left alone, and costs no host call.
    let host = call(CLUSTER, &json!({}));
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, &host, 1);
    exchange.on_response_headers(&mut stream, &host, 1);
    host.calls.borrow_mut().clear();
    exchange.on_log(&mut stream, &host);
    assert!(host.calls.borrow().is_empty());
    // An app is not a callee.
    let host = to(FakeHost::inbound(), CLUSTER, &json!({}));
    exchange.on_log(&mut Stream::default(), &host);
    assert_no_peer(&host);
}

#[test]
fn a_gateways_entry_always_has_a_key() {
    let own = json!({"NAME": "own", "NAMESPACE": "shop"});
    let gateway = |id| Counted::new(Config::default(), local(id, &own));
    let router = "router~10.0.0.1~own.shop~shop.svc.cluster.local";
    let nobody = [("upstream_peer_id", &b""[..])];
    for (id, host, is_marked) in [
        (router, FakeHost::outbound(), true),
        (router, FakeHost::inbound(), false),
        (router, FakeHost::default(), true),
        ("own-id", FakeHost::default(), false),
        (
            "sidecar~10.0.0.1~own.shop~shop.svc.cluster.local",
            FakeHost::outbound(),
            false,
        ),
    ] {
        for is_logged_only in [false, true] {
            host.state.borrow_mut().clear();
            let exchange = gateway(id);
            if is_logged_only {
                exchange.on_log(&mut Stream::default(), &host);
            } else {
                round_trip(&exchange, &host);
            }
            let state = host.state.borrow();
            let state: Vec<_> = state.iter().map(|(key, value)| (*key, &**value)).collect();
            assert_eq!(
                state,
                &nobody[..usize::from(is_marked)],
                "{id} {is_logged_only}"
            );
        }
    }
    // If there is a key, none is added.
    let host = FakeHost::default().request_header(METADATA, crate::exchange::header("caller"));
    host.set_property("connection.mtls", &[1]);
    round_trip(&gateway(router), &host);
    assert_eq!(host.state("upstream_peer_id"), None);
}

#[test]
fn a_waypoint_is_a_gateway_for_every_listener_direction() {
    let own = json!({"NAME": "own", "NAMESPACE": "shop"});
    let waypoint = local("waypoint~10.0.0.1~own.shop~shop.svc.cluster.local", &own);
    let exchange = Counted::new(Config::default(), waypoint);
    let cluster = "inbound-vip|80|http|pay.shop.svc.cluster.local";
    let host = to(FakeHost::inbound(), cluster, &json!({}));
    let host = host.request_header(METADATA, crate::exchange::header("caller"));
    round_trip(&exchange, &host);
    assert_eq!(
        crate::exchange::name_in(&host, "downstream_peer").as_deref(),
        Some("caller")
    );
    assert_named(&host, &service("pay", "shop"));
}

#[test]
fn the_endpoint_of_the_last_attempt_is_named() {
    // The router retries between request and response: the filter sees the last attempt.
    let exchange = exchange("");
    let host = call("plain", &json!({}));
    host.set_property(WORKLOAD, b"first;shop");
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, &host, 1);
    host.set_property(WORKLOAD, b"last;shop");
    exchange.on_response_headers(&mut stream, &host, 1);
    assert_eq!(stored(&host).unwrap().0["name"], "last");
}

/// `testdata/istio/callees.json`: clusters and endpoints as istiod makes them.
#[test]
fn silent_callees_of_a_real_istio_are_named() {
    let recorded = include_str!("../../testdata/istio/callees.json");
    let recorded: Vec<Json> = serde_json::from_str(recorded).unwrap();
    let mut found = Vec::new();
    for callee in &recorded {
        let exchange = exchange("");
        let cluster = callee["cluster"].as_str().unwrap();
        let host = match &callee["istio"] {
            Json::Null => call(cluster, &json!({})),
            istio => call(cluster, istio),
        };
        if let Some(workload) = callee["workload"].as_str() {
            host.set_property(WORKLOAD, workload.as_bytes());
        }
        round_trip(&exchange, &host);
        let is_sent_to = !host.values(HeaderMap::Request, METADATA).is_empty();
        let name = stored(&host).map(|(peer, _)| {
            let service = &peer["labels"]["service.istio.io/canonical-name"];
            let namespace = &peer["namespace"];
            let text = |value: &Json| value.as_str().unwrap_or("-").to_owned();
            format!("{}.{}", text(service), text(namespace))
        });
        found.push((cluster, is_sent_to, name));
    }
    let named = |cluster, is_sent_to, name: &str| (cluster, is_sent_to, Some(name.to_owned()));
    assert_eq!(
        found,
        [
            ("PassthroughCluster", false, None),
            named("outbound|80||card.example.com", false, "card.example.com.-"),
            named(
                "outbound|80||istio-egressgateway.istio-system.svc.cluster.local",
                true,
                "istio-egressgateway.istio-system"
            ),
            named(
                "outbound|80||plain.outside.svc.cluster.local",
                true,
                "plain.outside"
            ),
            named(
                "outbound|9080|v1|ratings.default.svc.cluster.local",
                true,
                "ratings.default"
            ),
            named("outbound|9080||legacy.internal", true, "legacy.default"),
            named(
                "outbound|9080||ratings.default.svc.cluster.local",
                true,
                "ratings.default"
            ),
            named(
                "outbound|9080||ratings.vms.svc.cluster.local",
                true,
                "ratings.vms"
            ),
            // Its endpoints are reached over HBONE only.
            named(
                "outbound|9080||ratings.default.svc.cluster.local",
                false,
                "ratings.default"
            ),
        ]
    );
}

/// Rules for the metadata of other control planes, in the shapes that these were recorded with.
mod rules {
    use super::*;

    fn endpoint(host: &FakeHost, metadata: &Json) {
        host.set_property("xds.upstream_host_metadata", &metadata_message(metadata));
    }

    #[test]
    fn kuma_names_a_callee_by_its_endpoint_else_by_the_listener() {
        let exchange = exchange(r#"{"callee": "kuma"}"#);
        let host = call("backend", &json!({}));
        endpoint(
            &host,
            &json!({
                "envoy.lb": {"version": "v2", "team": "store", "kuma.io/zone": "zone-1"},
                "io.kuma.labels": {"kuma.io/workload": "backend", "kuma.io/mesh": "default", "kuma.io/zone": "zone-1"},
            }),
        );
        round_trip(&exchange, &host);
        let labels = json!({"service.istio.io/canonical-name": "backend", "version": "v2"});
        assert_named(&host, &json!({"name": "backend", "labels": labels}));
        let peer = flat::read(&host.state("upstream_peer").unwrap()).unwrap();
        assert_eq!(peer.mesh_id.as_deref(), Some("default"));
        assert_eq!(peer.cluster_id.as_deref(), Some("zone-1"));

        let host = call("backend", &json!({}));
        let tags = json!({"io.kuma.tags": {"kuma.io/service": "backend"}});
        host.set_property("xds.listener_metadata", &metadata_message(&tags));
        round_trip(&exchange, &host);
        let labels = json!({"service.istio.io/canonical-name": "backend"});
        assert_named(&host, &json!({"name": "backend", "labels": labels}));
        let counted = exchange.counters().take(Counter::UpstreamPeerFromRules);
        assert_eq!(counted, 2);
    }

    #[test]
    fn envoy_gateway_names_a_callee_by_the_locality_of_its_endpoint() {
        let exchange = exchange(r#"{"callee": "envoy-gateway"}"#);
        let host = call("httproute/shop/web/rule/0", &json!({}));
        let backend = json!({"envoy-gateway": {"resources": [{"kind": "Service", "namespace": "shop", "name": "backend"}]}});
        host.set_property(
            "xds.upstream_host_locality_metadata",
            &metadata_message(&backend),
        );
        for _ in 0..2 {
            host.state.borrow_mut().clear();
            host.calls.borrow_mut().clear();
            round_trip(&exchange, &host);
            let labels = json!({"service.istio.io/canonical-name": "backend"});
            assert_named(
                &host,
                &json!({"name": "backend", "namespace": "shop", "labels": labels}),
            );
            let calls = host.calls.borrow();
            let read = calls
                .iter()
                .filter(|call| call.contains("locality_metadata"))
                .count();
            assert_eq!(read, 1, "{calls:?}");
            assert!(
                !calls.iter().any(|call| call.ends_with("listener_metadata")),
                "{calls:?}"
            );
        }
    }

    #[test]
    fn rules_come_after_the_endpoint_and_before_the_cluster() {
        let exchange = exchange(r#"{"callee": [{"NAME": "rule-${cluster_name:}"}]}"#);
        let known = services(&[("pay.shop.svc", "pay", "shop")]);
        let host = call("c", &known);
        round_trip(&exchange, &host);
        assert_named(&host, &json!({"name": "rule-c"}));
        let host = call("c", &known);
        host.set_property(WORKLOAD, b"w;shop;w;v1;c");
        round_trip(&exchange, &host);
        assert_eq!(stored(&host).unwrap().0["name"], "w");
        // Outside the mesh, the callee is named by its host only.
        let host = call("api.example.com", &json!({"external": true}));
        round_trip(&exchange, &host);
        assert_named(&host, &external("api.example.com"));
    }

    #[test]
    fn a_rule_needs_no_reference() {
        let exchange = exchange(r#"{"callee": [{"WORKLOAD_NAME": "pay", "NAMESPACE": "shop"}]}"#);
        for cluster in ["c", "d"] {
            let host = call(cluster, &json!({}));
            round_trip(&exchange, &host);
            let labels = json!({"service.istio.io/canonical-name": "pay"});
            assert_named(
                &host,
                &json!({"name": "pay", "namespace": "shop", "labels": labels}),
            );
        }
    }

    #[test]
    fn a_rule_without_a_name_is_skipped_and_a_hostile_value_is_absent() {
        let exchange = exchange(
            r#"{"callee": [{"NAMESPACE": "${endpoint:/f/ns}"}, {"NAME": "${endpoint:/f/name}"}, {"NAME": "last"}]}"#,
        );
        for (metadata, name) in [
            (json!({"f": {"ns": "shop", "name": "n"}}), "n"),
            (json!({"f": {"ns": "shop"}}), "last"),
            (json!({"f": {"name": "a\nb"}}), "last"),
            (json!({"f": {"name": ["a"]}}), "last"),
        ] {
            let host = call("c", &json!({}));
            endpoint(&host, &metadata);
            round_trip(&exchange, &host);
            assert_eq!(stored(&host).unwrap().0["name"], name, "{metadata}");
        }
        let host = call("c", &json!({}));
        host.set_property("xds.upstream_host_metadata", b"\xff\xff");
        round_trip(&exchange, &host);
        assert_named(&host, &json!({"name": "last"}));
    }
}
