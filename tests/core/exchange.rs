//! The decisions of the exchange, with a fake proxy.

use std::ops::Deref;
use std::rc::Rc;

use metadata_exchange::config::Config;
use metadata_exchange::counters::{Counter, Counters};
use metadata_exchange::exchange::{Exchange, Stream};
use metadata_exchange::host::HeaderMap::{Request, Response};
use metadata_exchange::local::LocalNode;
use metadata_exchange::peer::flat;
use metadata_exchange::peer::header::{PEER_METADATA as METADATA, PEER_METADATA_ID as ID};
use serde_json::json;

use crate::support::{FakeHost, local, metadata_message};

/// An exchange with its counters.
pub(crate) struct Counted {
    exchange: Exchange,
    counters: Rc<Counters>,
}

impl Counted {
    pub(crate) fn new(config: Config, local: LocalNode) -> Self {
        let counters = Rc::<Counters>::default();
        let exchange = Exchange::new(config, local, Rc::clone(&counters));
        Self { exchange, counters }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Deref for Counted {
    type Target = Exchange;

    fn deref(&self) -> &Exchange {
        &self.exchange
    }
}

pub(crate) fn exchange(config: &str) -> Counted {
    let config = Config::parse(config.as_bytes()).unwrap();
    let node = json!({"NAME": "own", "NAMESPACE": "shop"});
    Counted::new(config, local("own-id", &node))
}

/// The header of a peer of this name.
pub(crate) fn header(name: &str) -> String {
    local("", &json!({"NAME": name, "NAMESPACE": "shop"}))
        .header
        .unwrap()
}

fn own_header() -> String {
    header("own")
}

pub(crate) fn request(exchange: &Counted, host: &FakeHost) -> Stream {
    let mut stream = Stream::default();
    exchange.on_request_headers(&mut stream, host, host.count(Request));
    stream
}

pub(crate) fn round_trip(exchange: &Counted, host: &FakeHost) {
    let mut stream = request(exchange, host);
    exchange.on_response_headers(&mut stream, host, host.count(Response));
}

pub(crate) fn name_in(host: &FakeHost, key: &str) -> Option<String> {
    let flat = host.state(key)?;
    Some(flat::read(&flat).unwrap().name.unwrap())
}

/// Asserts that nothing is stored.
pub(crate) fn assert_no_peer(host: &FakeHost) {
    assert!(host.state.borrow().is_empty(), "{:?}", host.state);
}

fn caller() -> FakeHost {
    FakeHost::inbound()
        .request_header(METADATA, header("caller"))
        .request_header(ID, "caller-id")
}

fn assert_stripped(host: &FakeHost, map: metadata_exchange::host::HeaderMap) {
    for name in [METADATA, ID] {
        assert!(host.values(map, name).is_empty(), "{map:?} {name}");
    }
}

#[test]
fn inbound_stores_and_answers_the_caller() {
    let (exchange, host) = (exchange(""), caller());
    round_trip(&exchange, &host);
    assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
    assert_eq!(host.state("downstream_peer_id").unwrap(), b"caller-id");
    assert_stripped(&host, Request);
    assert_eq!(host.values(Response, METADATA), [own_header().as_bytes()]);
    assert_eq!(host.values(Response, ID), [b"own-id"]);
}

#[test]
fn each_header_is_answered_only_if_it_was_received() {
    let only_metadata = FakeHost::inbound().request_header(METADATA, header("caller"));
    round_trip(&exchange(""), &only_metadata);
    assert_eq!(
        name_in(&only_metadata, "downstream_peer").as_deref(),
        Some("caller")
    );
    assert_eq!(only_metadata.state("downstream_peer_id"), None);
    assert_eq!(only_metadata.values(Response, METADATA).len(), 1);
    assert_eq!(only_metadata.values(Response, ID).len(), 0);

    let only_id = FakeHost::inbound().request_header(ID, "caller-id");
    round_trip(&exchange(""), &only_id);
    assert!(only_id.state.borrow().is_empty());
    assert_stripped(&only_id, Request);
    assert_eq!(only_id.values(Response, METADATA).len(), 0);
    assert_eq!(only_id.values(Response, ID), [b"own-id"]);
}

#[test]
fn inbound_removes_what_the_app_sends_and_answers_only_senders() {
    let host = FakeHost::inbound();
    host.response_header(METADATA, "x");
    host.response_header(ID, "y");
    round_trip(&exchange(""), &host);
    assert_stripped(&host, Response);
    assert!(host.state.borrow().is_empty());
}

#[test]
fn empty_malformed_and_repeated_headers_are_stripped_and_not_answered() {
    for value in ["", "%%%", "AAAA", "ChQ", "e30"] {
        let exchange = exchange("");
        let host = FakeHost::inbound()
            .request_header(METADATA, value)
            .request_header(METADATA, header("second"));
        round_trip(&exchange, &host);
        assert!(host.state.borrow().is_empty(), "{value:?}");
        assert_stripped(&host, Request);
        assert_stripped(&host, Response);
    }
}

#[test]
fn the_first_of_repeated_headers_is_used() {
    let host = caller()
        .request_header(METADATA, header("second"))
        .request_header(ID, "second-id");
    round_trip(&exchange(""), &host);
    assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
    assert_eq!(host.state("downstream_peer_id").unwrap(), b"caller-id");
    assert_stripped(&host, Request);
}

#[test]
fn outbound_replaces_what_the_app_sent_and_stores_the_answer() {
    let host = FakeHost::outbound()
        .request_header(METADATA, "forged")
        .request_header(METADATA, "twice")
        .request_header(ID, "forged");
    let exchange = exchange("");
    let mut stream = request(&exchange, &host);
    assert_eq!(host.values(Request, METADATA), [own_header().as_bytes()]);
    assert_eq!(host.values(Request, ID), [b"own-id"]);
    assert!(host.state.borrow().is_empty());

    host.response_header(METADATA, header("callee"));
    host.response_header(ID, "callee-id");
    exchange.on_response_headers(&mut stream, &host, host.count(Response));
    assert_eq!(name_in(&host, "upstream_peer").as_deref(), Some("callee"));
    assert_eq!(host.state("upstream_peer_id").unwrap(), b"callee-id");
    assert_stripped(&host, Response);
}

#[test]
fn a_gateway_does_both_on_both_sides() {
    let certified = || {
        let host = FakeHost::default();
        host.set_property("connection.mtls", &[1]);
        host
    };
    let undirected = certified();
    undirected.set_property("xds.listener_direction", &0_i64.to_le_bytes());
    for (host, config) in [
        (undirected, ""),
        (certified(), ""),
        (FakeHost::with_direction(0), r#"{"direction": "gateway"}"#),
    ] {
        let host = host
            .request_header(METADATA, header("caller"))
            .request_header(ID, "caller-id");
        let exchange = exchange(config);
        let mut stream = request(&exchange, &host);
        assert_eq!(host.values(Request, METADATA), [own_header().as_bytes()]);
        host.response_header(METADATA, header("callee"));
        host.response_header(ID, "callee-id");
        exchange.on_response_headers(&mut stream, &host, host.count(Response));
        assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
        assert_eq!(name_in(&host, "upstream_peer").as_deref(), Some("callee"));
        assert_eq!(host.values(Response, METADATA), [own_header().as_bytes()]);
        assert_eq!(host.values(Response, ID), [b"own-id"]);
    }
}

/// Other control planes than Istio's give no listener of a gateway a direction.
#[test]
fn without_direction_a_stranger_is_neither_stored_nor_answered() {
    for host in [FakeHost::with_direction(0), FakeHost::default()] {
        let host = host
            .request_header(METADATA, header("caller"))
            .request_header(ID, "caller-id");
        let exchange = exchange("");
        let mut stream = request(&exchange, &host);
        assert_eq!(host.values(Request, METADATA), [own_header().as_bytes()]);
        host.response_header(METADATA, header("callee"));
        exchange.on_response_headers(&mut stream, &host, host.count(Response));
        assert_eq!(name_in(&host, "downstream_peer"), None);
        assert_eq!(name_in(&host, "upstream_peer").as_deref(), Some("callee"));
        assert_stripped(&host, Response);
        assert_eq!(exchange.counters().take(Counter::RefusedNoDirection), 1);
    }
}

#[test]
fn the_configured_direction_overrides_the_listeners() {
    let host = caller().request_header("x", "y");
    round_trip(&exchange(r#"{"direction": "outbound"}"#), &host);
    assert!(host.state.borrow().is_empty());
    assert_eq!(host.values(Request, METADATA), [own_header().as_bytes()]);
    assert!(
        !host
            .calls
            .borrow()
            .iter()
            .any(|call| call.contains("direction"))
    );
}

#[test]
fn its_own_headers_are_not_a_peer() {
    let own = || {
        FakeHost::inbound()
            .request_header(METADATA, own_header())
            .request_header(ID, "own-id")
    };
    let (exchange_, host) = (exchange(""), own());
    round_trip(&exchange_, &host);
    assert!(host.state.borrow().is_empty());
    assert_stripped(&host, Request);
    assert_stripped(&host, Response);
    assert_eq!(exchange_.counters().take(Counter::Own), 1);

    let (exchange_, host) = (exchange(r#"{"accept_own": true}"#), own());
    round_trip(&exchange_, &host);
    assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("own"));
    assert_eq!(host.values(Response, ID).len(), 1);

    // The same metadata under another id is another instance.
    let other = FakeHost::inbound()
        .request_header(METADATA, own_header())
        .request_header(ID, "other");
    round_trip(&exchange(""), &other);
    assert_eq!(name_in(&other, "downstream_peer").as_deref(), Some("own"));
}

#[test]
fn changed_metadata_under_a_known_id_is_noticed() {
    let exchange = exchange("");
    for name in ["a", "b", "a", "b"] {
        let host = FakeHost::inbound()
            .request_header(METADATA, header(name))
            .request_header(ID, "id");
        round_trip(&exchange, &host);
        assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some(name));
    }
    assert_eq!(exchange.counters().take(Counter::CacheMiss), 2);
    assert_eq!(exchange.counters().take(Counter::CacheHit), 2);
}

#[test]
fn a_refused_peer_leaves_no_trace() {
    let exchange = exchange("");
    for _ in 0..2 {
        let host = FakeHost::inbound()
            .request_header(METADATA, "%%%")
            .request_header(ID, "id");
        round_trip(&exchange, &host);
        assert!(host.state.borrow().is_empty());
        assert_eq!(host.values(Response, METADATA).len(), 0);
        assert_eq!(host.values(Response, ID).len(), 1, "the id was fine");
    }
    assert_eq!(exchange.counters().take(Counter::CacheHit), 0);
    assert_eq!(exchange.counters().take(Counter::RefusedBase64), 2);
    let host = FakeHost::inbound()
        .request_header(METADATA, header("a"))
        .request_header(ID, "id");
    round_trip(&exchange, &host);
    assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("a"));
}

#[test]
fn a_bad_id_refuses_the_peer() {
    for (id, counter) in [
        (&b"a\x7fb"[..], Counter::RefusedControlCharacter),
        (b"\xff", Counter::RefusedUtf8),
        (&[b'a'; 1025], Counter::RefusedIdTooLong),
    ] {
        for metadata in [Some(header("a")), None] {
            let exchange = exchange("");
            let mut host = FakeHost::inbound().request_header(ID, id);
            if let Some(metadata) = metadata {
                host = host.request_header(METADATA, metadata);
            }
            round_trip(&exchange, &host);
            assert!(host.state.borrow().is_empty());
            assert_stripped(&host, Request);
            assert_stripped(&host, Response);
            assert_eq!(exchange.counters().take(counter), 1);
        }
    }
}

#[test]
fn record_local_node_stores_both_sides() {
    let config = r#"{"record_local_node": true}"#;
    let host = caller();
    request(&exchange(config), &host);
    assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
    assert_eq!(name_in(&host, "upstream_peer").as_deref(), Some("own"));
    assert_eq!(host.state("upstream_peer_id").unwrap(), b"own-id");

    let host = FakeHost::outbound();
    request(&exchange(config), &host);
    assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("own"));
    assert_eq!(host.state("downstream_peer_id").unwrap(), b"own-id");
    assert_eq!(name_in(&host, "upstream_peer"), None);

    let host = FakeHost::default();
    request(&exchange(config), &host);
    assert!(host.state.borrow().is_empty());
}

#[test]
fn a_node_without_fields_sends_and_answers_only_its_id_and_without_id_nothing() {
    let config = || Config::default();
    let only_id = Counted::new(config(), local("own-id", &json!({})));
    let host = FakeHost::outbound().request_header(METADATA, "forged");
    request(&only_id, &host);
    assert_eq!(host.values(Request, METADATA).len(), 0);
    assert_eq!(host.values(Request, ID), [b"own-id"]);

    let nothing = Counted::new(config(), local("", &json!({})));
    let host = FakeHost::outbound().request_header(ID, "forged");
    let mut stream = request(&nothing, &host);
    assert_stripped(&host, Request);
    // If nothing was sent, no answer is believed.
    host.response_header(METADATA, header("callee"));
    nothing.on_response_headers(&mut stream, &host, host.count(Response));
    assert_eq!(host.state("upstream_peer"), None);
    assert_stripped(&host, Response);
}

#[test]
fn no_status_of_the_host_fails_a_request() {
    for failing in ["get", "bytes", "set", "remove", "property", "store"] {
        for mut host in [caller(), FakeHost::outbound(), FakeHost::default()] {
            host.failing = Some(failing);
            host.response_header(METADATA, header("callee"));
            let exchange = exchange(r#"{"record_local_node": true}"#);
            round_trip(&exchange, &host);
            let failed = host
                .calls
                .borrow()
                .iter()
                .filter(|call| call.contains(failing))
                .count();
            let counted = exchange.counters().take(Counter::HostError);
            assert_eq!(counted, failed as u64, "{failing}");
        }
    }
}

#[test]
fn a_response_without_its_request_is_stripped() {
    for direction in [1, 2, 0] {
        let host = FakeHost::with_direction(direction);
        host.response_header(METADATA, header("callee"));
        exchange("").on_response_headers(&mut Stream::default(), &host, host.count(Response));
        assert_stripped(&host, Response);
        assert_no_peer(&host);
    }
}

mod trust {
    use super::*;

    fn with(config: &str, mtls: Option<&[u8]>, san: Option<&str>) -> (FakeHost, Counted) {
        let host = caller();
        if let Some(mtls) = mtls {
            host.set_property("connection.mtls", mtls);
        }
        if let Some(san) = san {
            host.set_property("connection.uri_san_peer_certificate", san.as_bytes());
        }
        let exchange = exchange(config);
        round_trip(&exchange, &host);
        (host, exchange)
    }

    fn assert_refused(host: &FakeHost, exchange: &Counted, counter: Counter) {
        assert!(host.state.borrow().is_empty());
        assert_stripped(host, Request);
        assert_stripped(host, Response);
        assert_eq!(exchange.counters().take(counter), 1, "{counter:?}");
    }

    #[test]
    fn none_believes_nobody() {
        let (host, exchange) = with(r#"{"trust": "none"}"#, Some(&[1]), None);
        assert_refused(&host, &exchange, Counter::RefusedTrustNone);
    }

    #[test]
    fn mtls_asks_for_a_certificate() {
        let config = r#"{"trust": "mtls"}"#;
        for without in [None, Some(&[0][..])] {
            let (host, exchange) = with(config, without, None);
            assert_refused(&host, &exchange, Counter::RefusedTrustMtls);
        }
        let (host, _) = with(config, Some(&[1]), None);
        assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
    }

    #[test]
    fn spiffe_asks_for_the_namespace() {
        let config = r#"{"trust": "spiffe", "trust_domains": ["td"]}"#;
        let (host, _) = with(config, Some(&[1]), Some("spiffe://td/ns/shop/sa/x"));
        assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
        for other in [
            None,
            Some("spiffe://td/ns/bank/sa/x"),
            Some("spiffe://other/ns/shop/sa/x"),
        ] {
            let (host, exchange) = with(config, Some(&[1]), other);
            assert_refused(&host, &exchange, Counter::RefusedTrustSpiffe);
        }
        let (host, exchange) = with(config, None, Some("spiffe://td/ns/shop/sa/x"));
        assert_refused(&host, &exchange, Counter::RefusedTrustMtls);
    }

    #[test]
    fn spiffe_asks_for_every_field_of_the_pattern() {
        let config = r#"{"trust": "spiffe", "spiffe_patterns":
            ["spiffe://{trust_domain}/ns/{NAMESPACE}/dc/{_}/svc/{NAME}", "spiffe://td/{NAMESPACE}"]}"#;
        for san in [
            "spiffe://x.consul/ns/shop/dc/dc1/svc/caller",
            "spiffe://td/shop",
        ] {
            let (host, _) = with(config, Some(&[1]), Some(san));
            assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
        }
        for other in [
            "spiffe://x.consul/ns/shop/dc/dc1/svc/other",
            "spiffe://x.consul/ns/bank/dc/dc1/svc/caller",
            "spiffe://td/ns/shop/sa/x",
        ] {
            let (host, exchange) = with(config, Some(&[1]), Some(other));
            assert_refused(&host, &exchange, Counter::RefusedTrustSpiffe);
        }
    }

    mod certificate {
        use super::*;

        const KUMA: &str = r#""spiffe_patterns": ["spiffe://{MESH_ID}/{WORKLOAD_NAME}"], "name_from_certificate": true"#;
        const SAN: &[u8] = b"spiffe://default/backend";

        fn named(host: &FakeHost, key: &str) {
            let peer = flat::read(&host.state(key).unwrap()).unwrap();
            let text = |text: &str| Some(text.to_owned());
            assert_eq!(peer.mesh_id, text("default"));
            assert_eq!(
                (&peer.name, &peer.workload_name),
                (&text("backend"), &text("backend"))
            );
            assert_eq!(peer.service_name(), Some("backend"));
            assert_eq!(host.state(&format!("{key}_id")), None);
        }

        #[test]
        fn it_names_a_caller_that_sends_no_metadata() {
            let exchange = exchange(&format!(r#"{{"trust": "mtls", {KUMA}}}"#));
            for host in [
                FakeHost::inbound(),
                FakeHost::inbound().request_header(ID, "caller-id"),
            ] {
                host.set_property("connection.mtls", &[1]);
                host.set_property("connection.uri_san_peer_certificate", SAN);
                round_trip(&exchange, &host);
                named(&host, "downstream_peer");
                // A second filter in the chain sees a caller whose headers are gone.
                round_trip(&exchange, &host);
                let counted = exchange
                    .counters()
                    .take(Counter::DownstreamPeerFromCertificate);
                assert_eq!(counted, 1);
            }
        }

        #[test]
        fn it_names_a_callee_behind_the_metadata_of_its_cluster() {
            let exchange = exchange(&format!(r#"{{"upstream_trust": "spiffe", {KUMA}}}"#));
            let callee = |cluster: &str| {
                let host = FakeHost::outbound();
                host.set_property("xds.cluster_name", cluster.as_bytes());
                host.set_property("upstream.sha256_peer_certificate_digest", b"ab");
                host.set_property("upstream.uri_san_peer_certificate", SAN);
                host
            };
            let host = callee("outbound|80||pay.shop.svc.cluster.local");
            round_trip(&exchange, &host);
            named(&host, "upstream_peer");
            assert_eq!(
                exchange
                    .counters()
                    .take(Counter::UpstreamPeerFromCertificate),
                1
            );
            // Outside the mesh, only the host is named.
            let host = callee("api.example.com");
            let external = json!({"istio": {"external": true}});
            host.set_property("xds.cluster_metadata", &metadata_message(&external));
            round_trip(&exchange, &host);
            let peer = flat::read(&host.state("upstream_peer").unwrap()).unwrap();
            assert_eq!(peer.service_name(), Some("api.example.com"));
        }

        #[test]
        fn it_names_nobody_without_a_certificate_or_trust_or_a_matching_pattern() {
            let trusting = format!(r#"{{"trust": "mtls", {KUMA}}}"#);
            let other_side = format!(r#"{{"upstream_trust": "mtls", {KUMA}}}"#);
            let confined = format!(r#"{{"trust": "mtls", "trust_domains": ["other"], {KUMA}}}"#);
            for (config, mtls, san) in [
                (&trusting, 0, SAN),
                (&trusting, 1, b""),
                (&trusting, 1, b"spiffe://default/ns/shop/sa/x"),
                (&trusting, 1, b"spiffe://default/back\nend"),
                (&other_side, 1, SAN),
                (&confined, 1, SAN),
            ] {
                let host = FakeHost::inbound();
                host.set_property("connection.mtls", &[mtls]);
                host.set_property("connection.uri_san_peer_certificate", san);
                round_trip(&exchange(config), &host);
                assert_no_peer(&host);
            }
        }

        #[test]
        fn a_peer_that_sends_metadata_is_not_renamed() {
            let exchange = exchange(&format!(r#"{{"trust": "mtls", {KUMA}}}"#));
            let host = caller();
            host.set_property("connection.mtls", &[1]);
            host.set_property("connection.uri_san_peer_certificate", SAN);
            round_trip(&exchange, &host);
            assert_eq!(name_in(&host, "downstream_peer").as_deref(), Some("caller"));
        }
    }

    #[test]
    fn the_verdict_is_never_cached() {
        let exchange = exchange(r#"{"trust": "spiffe"}"#);
        for (san, is_stored) in [("shop", true), ("bank", false), ("shop", true)] {
            let host = caller();
            host.set_property("connection.mtls", &[1]);
            let san = format!("spiffe://td/ns/{san}/sa/x");
            host.set_property("connection.uri_san_peer_certificate", san.as_bytes());
            round_trip(&exchange, &host);
            assert_eq!(host.state("downstream_peer").is_some(), is_stored, "{san}");
        }
    }

    #[test]
    fn an_id_alone_claims_no_namespace() {
        let exchange = exchange(r#"{"trust": "spiffe"}"#);
        let host = FakeHost::inbound().request_header(ID, "caller-id");
        host.set_property("connection.mtls", &[1]);
        host.set_property(
            "connection.uri_san_peer_certificate",
            b"spiffe://td/ns/shop/sa/x",
        );
        round_trip(&exchange, &host);
        assert_refused(&host, &exchange, Counter::RefusedTrustSpiffe);
    }

    #[test]
    fn upstream_trust_judges_answers_and_not_what_is_sent() {
        for (config, property, is_stored) in [
            (r#"{"trust": "none"}"#, None, true),
            (r#"{"upstream_trust": "none"}"#, None, false),
            (r#"{"upstream_trust": "mtls"}"#, None, false),
            (r#"{"upstream_trust": "mtls"}"#, Some("ab12"), true),
        ] {
            let exchange = exchange(config);
            let host = FakeHost::outbound();
            if let Some(digest) = property {
                host.set_property("upstream.sha256_peer_certificate_digest", digest.as_bytes());
            }
            let mut stream = request(&exchange, &host);
            assert_eq!(host.values(Request, METADATA), [own_header().as_bytes()]);
            host.response_header(METADATA, header("callee"));
            exchange.on_response_headers(&mut stream, &host, host.count(Response));
            assert_eq!(host.state("upstream_peer").is_some(), is_stored, "{config}");
            assert_stripped(&host, Response);
        }
    }
}

mod privacy {
    use super::*;
    use crate::support::metadata_message;

    fn cluster(name: &str, istio: &serde_json::Value) -> FakeHost {
        let host = FakeHost::outbound()
            .request_header(METADATA, "forged")
            .request_header(ID, "forged");
        host.set_property("xds.cluster_name", name.as_bytes());
        host.set_property(
            "xds.cluster_metadata",
            &metadata_message(&json!({"other": {"external": true}, "istio": istio})),
        );
        host
    }

    #[test]
    fn clusters_outside_the_mesh_are_sent_nothing_and_not_believed() {
        let names = r#"{"external_cluster_names": ["db", "ext-*"]}"#;
        let none = json!({});
        for (config, name, istio, is_sent_to) in [
            ("", "outbound|80||pay", &none, true),
            ("", "PassthroughCluster", &none, false),
            ("", "outbound:passthrough:ipv4", &none, false),
            ("", "outbound:pass", &none, true),
            ("", "pay", &json!({"external": true}), false),
            ("", "pay", &json!({"external": false}), true),
            ("", "pay", &json!({"disable_mx": true}), false),
            (names, "db", &none, false),
            (names, "db2", &none, true),
            (names, "ext-1", &none, false),
            (
                r#"{"external_clusters": "send"}"#,
                "PassthroughCluster",
                &json!({"external": true}),
                true,
            ),
            (
                r#"{"external_clusters": "send"}"#,
                "pay",
                &json!({"disable_mx": true}),
                false,
            ),
        ] {
            let (exchange, host) = (exchange(config), cluster(name, istio));
            let mut stream = request(&exchange, &host);
            let sent = host.values(Request, METADATA);
            if is_sent_to {
                assert_eq!(sent, [own_header().as_bytes()], "{config} {name} {istio}");
            } else {
                assert_stripped(&host, Request);
            }
            host.response_header(METADATA, header("callee"));
            exchange.on_response_headers(&mut stream, &host, host.count(Response));
            assert_eq!(host.state("upstream_peer").is_some(), is_sent_to);
            assert_stripped(&host, Response);
        }
    }

    #[test]
    fn a_known_cluster_costs_one_property_until_it_is_refreshed() {
        let exchange = exchange("");
        let asked = |host: &FakeHost| {
            host.calls
                .borrow()
                .iter()
                .filter(|call| call.contains("cluster"))
                .count()
        };
        let host = cluster("pay", &json!({}));
        request(&exchange, &host);
        let host = cluster("pay", &json!({"external": true}));
        request(&exchange, &host);
        assert_eq!(asked(&host), 1);
        assert_eq!(host.values(Request, METADATA).len(), 1);
        exchange.refresh_clusters();
        let host = cluster("pay", &json!({"external": true}));
        request(&exchange, &host);
        assert_stripped(&host, Request);
    }
}

mod endpoint_fallback {
    use super::*;

    const WORKLOAD: &str = "xds.upstream_host_metadata.filter_metadata.istio.workload";

    fn silent() -> FakeHost {
        let host = FakeHost::outbound();
        host.set_property(WORKLOAD, b"pay;shop;payment;v1;east");
        host
    }

    #[test]
    fn a_silent_callee_is_stored_from_its_endpoint_without_id() {
        let exchange = exchange("");
        for _ in 0..2 {
            let host = silent();
            round_trip(&exchange, &host);
            assert_eq!(name_in(&host, "upstream_peer").as_deref(), Some("pay"));
            assert_eq!(host.state("upstream_peer_id"), None);
        }
        assert_eq!(
            exchange.counters().take(Counter::UpstreamPeerFromEndpoint),
            2
        );
        assert_eq!(exchange.counters().take(Counter::UpstreamPeerStored), 0);
    }

    #[test]
    fn a_callee_that_answers_is_never_overridden() {
        let (exchange, host) = (exchange(""), silent());
        let mut stream = request(&exchange, &host);
        host.response_header(METADATA, header("callee"));
        exchange.on_response_headers(&mut stream, &host, host.count(Response));
        assert_eq!(name_in(&host, "upstream_peer").as_deref(), Some("callee"));
    }

    #[test]
    fn it_can_be_turned_off_and_inbound_has_none() {
        let host = silent();
        round_trip(&exchange(r#"{"endpoint_fallback": false}"#), &host);
        assert_eq!(host.state("upstream_peer"), None);
        let host = silent();
        round_trip(&exchange(r#"{"direction": "inbound"}"#), &host);
        assert_eq!(host.state("upstream_peer"), None);
    }
}

mod observe {
    use super::*;

    fn observer() -> Counted {
        exchange(r#"{"mode": "observe"}"#)
    }

    /// The response of a filter ahead of this one: the callee received nothing.
    #[test]
    fn a_response_without_a_request_is_not_believed() {
        let host = FakeHost::outbound();
        host.response_header(METADATA, header("callee"));
        observer().on_response_headers(&mut Stream::default(), &host, host.count(Response));
        assert_no_peer(&host);
        assert_eq!(host.values(Response, METADATA).len(), 1);
    }

    #[test]
    fn a_proxy_without_id_knows_its_echo_by_the_metadata() {
        let config = Config::parse(br#"{"mode": "observe"}"#).unwrap();
        let own = json!({"NAME": "own", "NAMESPACE": "shop"});
        let exchange = Counted::new(config, local("", &own));
        for name in ["own", "callee"] {
            let host = FakeHost::outbound();
            host.response_header(METADATA, header(name));
            round_trip(&exchange, &host);
            assert_eq!(host.state("upstream_peer").is_some(), name != "own");
        }
        assert_eq!(exchange.counters().take(Counter::Own), 1);
    }
}
