//! The exchange over TCP, with fake proxies whose bytes arrive in any pieces.

#![allow(clippy::similar_names)] // Caller and callee are the terms.

use std::collections::VecDeque;

use metadata_exchange::config::Config;
use metadata_exchange::counters::Counter;
use metadata_exchange::exchange::tcp::{Connection, Flow, MAX_HELD_TICKS};
use metadata_exchange::host::Data::{self, Downstream, Upstream};
use metadata_exchange::local::LocalNode;
use metadata_exchange::peer::flat;
use metadata_exchange::peer::frame::{Frame, HEADER_BYTES, Start, TELLING_BYTES};
use metadata_exchange::peer::header::{self, Limits};
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value as Json, json};

use crate::exchange::Counted;
use crate::support::{FakeHost, local, message_of, metadata_message, vectors};

const SENDS: &str = r#"{"protocol": "tcp", "tcp_clusters": ["db"]}"#;
const PLAIN: &str = r#"{"protocol": "tcp"}"#;

/// A proxy with one connection.
struct Proxy {
    exchange: Counted,
    host: FakeHost,
    connection: Connection,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Proxy {
    fn new(config: &str, local: LocalNode, direction: i64) -> Self {
        let config = Config::parse(config.as_bytes()).unwrap();
        let host = FakeHost::with_direction(direction);
        host.set_property("xds.cluster_name", b"db");
        Self {
            exchange: Counted::new(config, local),
            host,
            connection: Connection::new(7),
            to_server: Vec::new(),
            to_client: Vec::new(),
        }
    }

    fn inbound() -> Self {
        Self::new(PLAIN, named("callee"), 1)
    }

    fn outbound() -> Self {
        Self::new(SENDS, named("caller"), 2)
    }

    /// Bytes arrive; returns those that pass.
    fn arrive(&mut self, data: Data, bytes: &[u8], is_end: bool) -> Vec<u8> {
        self.host.bytes(data).borrow_mut().extend(bytes);
        let size = self.host.bytes(data).borrow().len();
        let Self {
            exchange,
            host,
            connection,
            ..
        } = self;
        let flow = match data {
            Downstream => exchange.on_downstream_data(connection, host, size, is_end),
            Upstream => exchange.on_upstream_data(connection, host, size, is_end),
        };
        if flow == Flow::Hold {
            assert!(!is_end, "held at the end");
            return Vec::new();
        }
        let passed = self.host.bytes(data).take();
        match data {
            Downstream => self.to_server.extend(&passed),
            Upstream => self.to_client.extend(&passed),
        }
        passed
    }

    fn end(&mut self) {
        self.exchange
            .on_connection_end(&mut self.connection, &self.host);
    }

    fn count(&self, counter: Counter) -> u64 {
        self.exchange.counters().take(counter)
    }

    /// The workload stored as that peer.
    fn peer(&self, key: &str) -> Option<String> {
        let stored = self.host.state(key)?;
        flat::read(&stored).unwrap().workload_name
    }
}

fn metadata(workload: &str) -> Json {
    json!({"NAME": format!("{workload}-1"), "NAMESPACE": "shop", "WORKLOAD_NAME": workload})
}

fn named(workload: &str) -> LocalNode {
    local(&format!("sidecar~{workload}"), &metadata(workload))
}

fn frame(workload: &str) -> Vec<u8> {
    let frame = Frame {
        metadata: message_of(&metadata(workload)),
        id: format!("sidecar~{workload}").into(),
    };
    frame.encode()
}

/// A frame with this behind its length.
fn framed(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&frame("x")[..4], &length.to_be_bytes(), payload].concat()
}

#[test]
fn a_frame_is_that_of_istio() {
    for vector in vectors() {
        let metadata = vector.node["metadata"].clone();
        let LocalNode { id, header, .. } = local(&vector.id, &metadata);
        let mut proxy = Proxy::new(SENDS, local(&vector.id, &metadata), 2);
        let sent = proxy.arrive(Downstream, b"hello", false);
        let Some(header) = header else {
            assert_eq!(vector.name, "empty");
            continue;
        };
        let metadata = header::to_message(header.as_bytes()).unwrap();
        // As protobuf's own Struct and Any encode it.
        let message = prost_types::Struct {
            fields: [
                (
                    "x-envoy-peer-metadata",
                    prost_types::value::Kind::StructValue(
                        prost_types::Struct::decode(metadata.as_slice()).unwrap(),
                    ),
                ),
                (
                    "x-envoy-peer-metadata-id",
                    prost_types::value::Kind::StringValue(id.unwrap_or_default()),
                ),
            ]
            .map(|(key, kind)| {
                let kind = Some(kind);
                (key.to_owned(), prost_types::Value { kind })
            })
            .into(),
        };
        let any = prost_types::Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: message.encode_to_vec(),
        };
        let payload = any.encode_to_vec();
        let mut expected = vec![0x3D, 0x23, 0x04, 0x67];
        expected.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        expected.extend(payload);
        expected.extend(b"hello");
        assert_eq!(sent, expected, "{}", vector.name);

        let mut callee = Proxy::inbound();
        assert_eq!(callee.arrive(Downstream, &sent, false), b"hello");
        let read = header::decode(header.as_bytes(), Limits::DEFAULT).unwrap();
        assert_eq!(
            callee.host.state("downstream_peer"),
            Some(flat::write(&read))
        );
        let id = callee.host.state("downstream_peer_id").unwrap_or_default();
        assert_eq!(id, vector.id.as_bytes());
    }
}

#[test]
fn each_side_stores_the_other() {
    let (mut caller, mut callee) = (Proxy::outbound(), Proxy::inbound());
    let sent = caller.arrive(Downstream, b"hello", false);
    assert_eq!(sent, [frame("caller"), b"hello".to_vec()].concat());
    assert_eq!(callee.arrive(Downstream, &sent, false), b"hello");
    let answer = callee.arrive(Upstream, b"world", false);
    assert_eq!(answer, [frame("callee"), b"world".to_vec()].concat());
    assert_eq!(caller.arrive(Upstream, &answer, false), b"world");
    for _ in 0..3 {
        let more = caller.arrive(Downstream, b"more", false);
        assert_eq!(callee.arrive(Downstream, &more, false), b"more");
        let more = callee.arrive(Upstream, b"less", false);
        assert_eq!(caller.arrive(Upstream, &more, false), b"less");
    }
    assert_eq!(callee.peer("downstream_peer").as_deref(), Some("caller"));
    assert_eq!(caller.peer("upstream_peer").as_deref(), Some("callee"));
    let id = callee.host.state("downstream_peer_id");
    assert_eq!(id.as_deref(), Some(&b"sidecar~caller"[..]));
    assert_eq!(callee.count(Counter::DownstreamPeerStored), 1);
    assert_eq!(caller.count(Counter::UpstreamPeerStored), 1);
    for (proxy, call) in [(&caller, "data Downstream"), (&callee, "data Upstream")] {
        assert!(!proxy.host.calls.borrow().iter().any(|made| made == call));
    }
}

#[test]
fn nothing_is_called_after_the_exchange() {
    let mut callee = Proxy::inbound();
    callee.arrive(
        Downstream,
        &[frame("caller"), b"a".to_vec()].concat(),
        false,
    );
    callee.arrive(Upstream, b"b", false);
    callee.host.calls.borrow_mut().clear();
    for _ in 0..10 {
        callee.arrive(Downstream, b"=#\x04g", false);
        callee.arrive(Upstream, b"=#\x04g", false);
    }
    assert!(callee.host.calls.borrow().is_empty());
}

#[test]
fn a_known_peer_is_not_decoded_again() {
    let mut callee = Proxy::inbound();
    for _ in 0..3 {
        callee.connection = Connection::new(8);
        callee.arrive(Downstream, &frame("caller"), false);
    }
    assert_eq!(callee.count(Counter::CacheMiss), 1);
    assert_eq!(callee.count(Counter::CacheHit), 2);
}

/// A proxy that reads a frame of that side, and the key of the peer in it.
fn reader(data: Data) -> (Proxy, &'static str) {
    match data {
        Downstream => (Proxy::inbound(), "downstream_peer"),
        Upstream => {
            let mut caller = Proxy::outbound();
            caller.arrive(Downstream, b"hello", false);
            (caller, "upstream_peer")
        }
    }
}

#[test]
fn a_frame_may_arrive_in_any_two_pieces() {
    for data in [Downstream, Upstream] {
        let whole = [frame("peer"), b"application".to_vec()].concat();
        for end in 0..=whole.len() {
            let (mut proxy, key) = reader(data);
            let (first, second) = whole.split_at(end);
            let mut passed = proxy.arrive(data, first, false);
            passed.extend(proxy.arrive(data, second, false));
            assert_eq!(passed, b"application", "{end}");
            assert_eq!(proxy.peer(key).as_deref(), Some("peer"), "{end}");
        }
    }
}

#[test]
fn a_frame_may_arrive_byte_by_byte_and_is_read_a_few_times() {
    for data in [Downstream, Upstream] {
        let (mut proxy, key) = reader(data);
        let mut passed = Vec::new();
        for byte in [frame("peer"), b"application".to_vec()].concat() {
            passed.extend(proxy.arrive(data, &[byte], false));
        }
        assert_eq!(passed, b"application");
        assert_eq!(proxy.peer(key).as_deref(), Some("peer"));
        let reads = proxy.host.calls.borrow();
        let reads = reads.iter().filter(|call| call.starts_with("data"));
        assert!(reads.count() <= 32);
    }
}

#[test]
fn a_stream_that_ends_inside_a_frame_passes_as_it_is() {
    for data in [Downstream, Upstream] {
        let whole = frame("peer");
        for end in 1..whole.len() {
            for is_end_apart in [false, true] {
                let (mut proxy, key) = reader(data);
                let mut passed = proxy.arrive(data, &whole[..end], !is_end_apart);
                if is_end_apart {
                    assert_eq!(passed, b"");
                    passed = proxy.arrive(data, b"", true);
                }
                assert_eq!(passed, whole[..end], "{end}");
                assert_ne!(proxy.peer(key).as_deref(), Some("peer"));
            }
        }
    }
}

#[test]
fn a_stream_may_end_with_its_frame() {
    let mut callee = Proxy::inbound();
    assert_eq!(callee.arrive(Downstream, &frame("caller"), true), b"");
    assert_eq!(callee.peer("downstream_peer").as_deref(), Some("caller"));
    let answer = callee.arrive(Upstream, b"bye", true);
    assert_eq!(answer, [frame("callee"), b"bye".to_vec()].concat());
}

#[test]
fn what_is_no_frame_passes_at_once() {
    for data in [Downstream, Upstream] {
        let mut lying = frame("peer");
        lying[7] -= 1;
        let mut type_of_another_domain = frame("peer");
        type_of_another_domain[HEADER_BYTES + 3] = b'T';
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"=#\x04h".to_vec(),
            b"=#\x04g\0\0\0\0".to_vec(),
            b"=#\x04g\0\0\0\x40 from an application".to_vec(),
            lying,
            type_of_another_domain,
        ] {
            let (mut proxy, key) = reader(data);
            assert_eq!(proxy.arrive(data, &bytes, false), bytes);
            assert_eq!(proxy.arrive(data, &frame("late"), false), frame("late"));
            assert_eq!(proxy.peer(key), None);
        }
    }
}

#[test]
fn a_frame_over_the_bound_passes() {
    let mut callee = Proxy::inbound();
    let long = json!({"NAME": "n".repeat(20_000)});
    let long = Frame {
        metadata: message_of(&long),
        id: Vec::new(),
    };
    let long = long.encode();
    assert_eq!(callee.arrive(Downstream, &long[..100], false), long[..100]);
    assert_eq!(callee.count(Counter::RefusedTooLong), 1);
}

#[test]
fn other_messages_are_removed_and_not_answered() {
    let any = |type_url: &str, value: &[u8]| {
        let (type_url, value) = (type_url.to_owned(), value.to_vec());
        framed(&prost_types::Any { type_url, value }.encode_to_vec())
    };
    for bytes in [
        any("type.googleapis.com/google.protobuf.Duration", b"\x08\x01"),
        any("type.googleapis.com/google.protobuf.Struct", b""),
        any("type.googleapis.com/google.protobuf.Struct", b"\xff"),
    ] {
        let mut callee = Proxy::inbound();
        let whole = [bytes, b"hello".to_vec()].concat();
        assert_eq!(callee.arrive(Downstream, &whole, false), b"hello");
        assert_eq!(callee.arrive(Upstream, b"world", false), b"world");
        assert_eq!(callee.count(Counter::RefusedEmpty), 1);
        assert_eq!(callee.peer("downstream_peer"), None);
    }
}

#[test]
fn a_server_that_speaks_first_is_never_interrupted() {
    let (mut caller, mut callee) = (Proxy::outbound(), Proxy::inbound());
    caller.host.set_property(
        "xds.cluster_name",
        b"outbound|3306||mysql.shop.svc.cluster.local",
    );
    let config = r#"{"protocol": "tcp", "tcp_clusters": ["outbound|3306|*"]}"#;
    caller.exchange = Counted::new(Config::parse(config.as_bytes()).unwrap(), named("caller"));
    assert_eq!(callee.arrive(Upstream, b"greeting", false), b"greeting");
    assert_eq!(caller.arrive(Upstream, b"greeting", false), b"greeting");
    let sent = caller.arrive(Downstream, b"login", false);
    assert_eq!(callee.arrive(Downstream, &sent, false), b"login");
    assert_eq!(callee.arrive(Upstream, b"ok", false), b"ok");
    assert_eq!(caller.arrive(Upstream, b"ok", false), b"ok");
    assert_eq!(callee.peer("downstream_peer").as_deref(), Some("caller"));
    let stored = caller.host.state("upstream_peer").unwrap();
    assert_eq!(flat::read(&stored).unwrap().service_name(), Some("mysql"));
    assert_eq!(caller.count(Counter::UpstreamPeerFromClusterName), 1);
}

/// The client's frame is under way while the server greets.
#[test]
fn a_greeting_between_the_pieces_of_a_frame_is_not_interrupted() {
    let mut callee = Proxy::inbound();
    let whole = [frame("caller"), b"login".to_vec()].concat();
    assert_eq!(callee.arrive(Downstream, &whole[..50], false), b"");
    assert_eq!(callee.arrive(Upstream, b"greeting", false), b"greeting");
    assert_eq!(callee.arrive(Downstream, &whole[50..], false), b"login");
    assert_eq!(callee.arrive(Upstream, b"ok", false), b"ok");
    assert_eq!(callee.peer("downstream_peer").as_deref(), Some("caller"));
}

#[test]
#[allow(clippy::too_many_lines)] // A table.
fn only_who_expects_a_frame_is_sent_one() {
    let istio =
        json!({"istio": {"services": [{"host": "db.shop", "name": "db", "namespace": "shop"}]}});
    let external = json!({"istio": {"external": true}, "metadata_exchange": {"tcp": true}});
    let no_bool = json!({"metadata_exchange": {"tcp": "true"}});
    for (config, cluster, endpoint, address, is_sent) in [
        (PLAIN, json!({}), None, "", false),
        (PLAIN, istio, None, "", false),
        (PLAIN, no_bool, None, "", false),
        (
            PLAIN,
            json!({"metadata_exchange": {"tcp": false}}),
            None,
            "",
            false,
        ),
        (
            PLAIN,
            json!({"metadata_exchange": {"tcp": true}}),
            None,
            "",
            true,
        ),
        (PLAIN, json!({}), Some(1), "", true),
        (PLAIN, json!({}), Some(0), "", false),
        (PLAIN, external.clone(), None, "", false),
        (PLAIN, external.clone(), Some(1), "", false),
        (SENDS, json!({}), None, "", true),
        (
            SENDS,
            json!({"istio": {"disable_mx": true}}),
            None,
            "",
            false,
        ),
        (SENDS, external, None, "", false),
        (
            r#"{"protocol": "tcp", "tcp_clusters": ["d*"]}"#,
            json!({}),
            None,
            "",
            true,
        ),
        (
            r#"{"protocol": "tcp", "tcp_clusters": ["d"]}"#,
            json!({}),
            None,
            "",
            false,
        ),
        (
            r#"{"protocol": "tcp", "tcp_clusters": ["db"], "external_cluster_names": ["db"]}"#,
            json!({}),
            None,
            "",
            false,
        ),
        (
            r#"{"protocol": "tcp", "tcp_endpoints": ["10.0.0.7:3306"]}"#,
            json!({}),
            None,
            "10.0.0.7:3306",
            true,
        ),
        (
            r#"{"protocol": "tcp", "tcp_endpoints": ["10.0.0.*"]}"#,
            json!({}),
            None,
            "10.0.0.7:3306",
            true,
        ),
        (
            r#"{"protocol": "tcp", "tcp_endpoints": ["10.0.0.*"]}"#,
            json!({}),
            None,
            "10.0.1.7:3306",
            false,
        ),
        (
            r#"{"protocol": "tcp", "tcp_clusters": ["db"], "mode": "observe"}"#,
            json!({}),
            None,
            "",
            false,
        ),
    ] {
        let mut caller = Proxy::new(config, named("caller"), 2);
        let host = &caller.host;
        host.set_property("xds.cluster_metadata", &metadata_message(&cluster));
        host.set_property("upstream.address", address.as_bytes());
        if let Some(endpoint) = endpoint {
            let path = "xds.upstream_host_metadata.filter_metadata.metadata_exchange.tcp";
            host.set_property(path, &[endpoint]);
        }
        let passed = caller.arrive(Downstream, b"hello", false);
        let expected = if is_sent { frame("caller") } else { Vec::new() };
        assert_eq!(
            passed,
            [expected, b"hello".to_vec()].concat(),
            "{config} {cluster}"
        );
    }
}

#[test]
fn an_inbound_listener_sends_nothing_to_its_application_and_answers_only_a_frame() {
    let mut callee = Proxy::new(SENDS, named("callee"), 1);
    assert_eq!(callee.arrive(Downstream, b"hello", false), b"hello");
    assert_eq!(callee.arrive(Upstream, b"world", false), b"world");
}

/// What nobody was asked for is not believed.
#[test]
fn a_frame_that_was_not_asked_for_passes() {
    let mut caller = Proxy::new(PLAIN, named("caller"), 2);
    caller.arrive(Downstream, b"hello", false);
    assert_eq!(
        caller.arrive(Upstream, &frame("callee"), false),
        frame("callee")
    );
    assert_eq!(caller.peer("upstream_peer"), None);
}

#[test]
fn a_gateway_does_both() {
    let config = r#"{"protocol": "tcp", "tcp_clusters": ["db"], "direction": "gateway"}"#;
    let mut gateway = Proxy::new(config, named("gateway"), 0);
    assert_eq!(gateway.arrive(Downstream, &frame("caller"), false), b"");
    let sent = gateway.arrive(Downstream, b"hello", false);
    assert_eq!(sent, [frame("gateway"), b"hello".to_vec()].concat());
    let answer = [frame("callee"), b"world".to_vec()].concat();
    let answered = gateway.arrive(Upstream, &answer, false);
    assert_eq!(answered, [frame("gateway"), b"world".to_vec()].concat());
    assert_eq!(gateway.peer("downstream_peer").as_deref(), Some("caller"));
    assert_eq!(gateway.peer("upstream_peer").as_deref(), Some("callee"));
}

#[test]
fn held_bytes_pass_after_the_time_limit() {
    for (direction, config) in [(1, PLAIN), (0, SENDS)] {
        let mut proxy = Proxy::new(config, named("callee"), direction);
        let whole = frame("caller");
        assert_eq!(proxy.arrive(Downstream, &whole[..50], false), b"");
        for _ in 0..MAX_HELD_TICKS {
            assert_eq!(proxy.exchange.overdue(), Vec::<u32>::new());
            assert_eq!(proxy.arrive(Downstream, b"", false), b"");
        }
        assert_eq!(proxy.exchange.overdue(), [7]);
        assert_eq!(proxy.exchange.overdue(), Vec::<u32>::new());
        assert_eq!(proxy.count(Counter::FrameTimedOut), 1);
        // The proxy passes them on without a callback.
        proxy.host.bytes(Downstream).take();
        assert_eq!(proxy.arrive(Downstream, &whole, false), whole);
        assert_eq!(proxy.arrive(Upstream, b"world", false), b"world");
    }
}

#[test]
fn a_frame_that_came_in_time_is_not_overdue() {
    let mut callee = Proxy::inbound();
    let whole = frame("caller");
    callee.arrive(Downstream, &whole[..50], false);
    callee.arrive(Downstream, &whole[50..], false);
    let mut ended = Proxy::inbound();
    ended.arrive(Downstream, b"=#", false);
    ended.end();
    for _ in 0..=MAX_HELD_TICKS {
        assert_eq!(callee.exchange.overdue(), Vec::<u32>::new());
        assert_eq!(ended.exchange.overdue(), Vec::<u32>::new());
    }
}

#[test]
fn istios_filter_removes_the_frame_that_this_one_observes() {
    let config = r#"{"protocol": "tcp", "mode": "observe"}"#;
    let mut callee = Proxy::new(config, named("callee"), 1);
    let whole = [frame("caller"), b"hello".to_vec()].concat();
    assert_eq!(callee.arrive(Downstream, &whole, false), whole);
    assert_eq!(callee.peer("downstream_peer").as_deref(), Some("caller"));
    assert_eq!(callee.arrive(Upstream, b"world", false), b"world");
}

#[test]
fn trust_is_as_over_http() {
    let spiffe = r#"{"protocol": "tcp", "trust": "spiffe"}"#;
    let named_by = r#"{"protocol": "tcp", "trust": "spiffe", "name_from_certificate": true,
        "spiffe_patterns": ["spiffe://td/ns/{NAMESPACE}/sa/{WORKLOAD_NAME}"]}"#;
    let shop = Some("spiffe://td/ns/shop/sa/caller");
    let bank = Some("spiffe://td/ns/bank/sa/caller");
    let (sent, silent) = (frame("caller"), Vec::new());
    for (config, san, bytes, stored) in [
        (spiffe, shop, &sent, Some("caller")),
        (spiffe, bank, &sent, None),
        (spiffe, None, &sent, None),
        (named_by, bank, &silent, Some("caller")),
        (named_by, None, &silent, None),
        (r#"{"protocol": "tcp", "trust": "none"}"#, shop, &sent, None),
        (r#"{"protocol": "tcp", "trust": "mtls"}"#, None, &sent, None),
        (
            r#"{"protocol": "tcp", "trust": "mtls"}"#,
            bank,
            &sent,
            Some("caller"),
        ),
    ] {
        let mut callee = Proxy::new(config, named("callee"), 1);
        if let Some(san) = san {
            callee.host.set_property("connection.mtls", &[1]);
            let path = "connection.uri_san_peer_certificate";
            callee.host.set_property(path, san.as_bytes());
        }
        let whole = [bytes.as_slice(), b"hello"].concat();
        assert_eq!(callee.arrive(Downstream, &whole, false), b"hello");
        assert_eq!(
            callee.peer("downstream_peer").as_deref(),
            stored,
            "{config}"
        );
        let is_answered = stored.is_some() && !bytes.is_empty();
        let answer = if is_answered {
            frame("callee")
        } else {
            Vec::new()
        };
        let answered = callee.arrive(Upstream, b"world", false);
        assert_eq!(answered, [answer, b"world".to_vec()].concat(), "{config}");
    }
}

#[test]
fn a_silent_connection_is_named_at_its_end() {
    let istio =
        json!({"istio": {"services": [{"host": "db.shop", "name": "db", "namespace": "shop"}]}});
    let mut caller = Proxy::new(PLAIN, named("caller"), 2);
    let metadata = metadata_message(&istio);
    caller.host.set_property("xds.cluster_metadata", &metadata);
    caller.end();
    let stored = caller.host.state("upstream_peer").unwrap();
    assert_eq!(flat::read(&stored).unwrap().service_name(), Some("db"));
}

/// Envoy can wait for the client's first bytes before it chooses an endpoint.
#[test]
fn a_callee_is_named_once_envoy_has_connected() {
    let mut caller = Proxy::new(PLAIN, named("caller"), 2);
    caller.arrive(Downstream, b"hello", false);
    assert_eq!(caller.peer("upstream_peer"), None);
    let path = "xds.upstream_host_metadata.filter_metadata.istio.workload";
    caller.host.set_property(path, b"db;shop;db;v1;east");
    caller.arrive(Upstream, b"world", false);
    assert_eq!(caller.peer("upstream_peer").as_deref(), Some("db"));

    let mut caller = Proxy::new(PLAIN, named("caller"), 2);
    caller.host.set_property(path, b"db;shop;db;v1;east");
    caller
        .host
        .set_property("upstream.address", b"10.0.0.7:3306");
    caller.arrive(Downstream, b"hello", false);
    assert_eq!(caller.peer("upstream_peer").as_deref(), Some("db"));
}

#[test]
fn its_own_frame_is_ignored() {
    let mut proxy = Proxy::inbound();
    let whole = [frame("callee"), b"hello".to_vec()].concat();
    assert_eq!(proxy.arrive(Downstream, &whole, false), b"hello");
    assert_eq!(proxy.peer("downstream_peer"), None);
    assert_eq!(proxy.count(Counter::Own), 1);
}

#[test]
fn failing_host_calls_lose_no_byte() {
    for failing in ["data", "replace", "property", "store"] {
        let (mut caller, mut callee) = (Proxy::outbound(), Proxy::inbound());
        caller.host.failing = Some(failing);
        let sent = caller.arrive(Downstream, b"hello", false);
        assert!(sent.ends_with(b"hello"), "{failing}");
        callee.host.failing = Some(failing);
        assert!(callee.arrive(Downstream, &sent, false).ends_with(b"hello"));
        let answer = callee.arrive(Upstream, b"world", false);
        assert!(caller.arrive(Upstream, &answer, false).ends_with(b"world"));
    }
}

/// What arrives at one end of a connection, in order.
#[derive(Clone, Debug)]
enum Event {
    Client(Vec<u8>),
    Server(Vec<u8>),
}

fn pieces() -> impl Strategy<Value = Vec<Event>> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..40),
        // What begins like a frame.
        (1_usize..60).prop_map(|end| frame("app")[..end].to_vec()),
        Just(b"=#\x04g\0\0\0\x20\x0a\x14type.googleapis.com/".to_vec()),
    ];
    let event = prop_oneof![
        bytes.clone().prop_map(Event::Client),
        bytes.prop_map(Event::Server)
    ];
    prop::collection::vec(event, 0..12)
}

/// Feeds what waits to a proxy in pieces of at most `size` bytes.
fn feed(proxy: &mut Proxy, data: Data, waiting: &mut VecDeque<u8>, size: usize) -> Vec<u8> {
    let mut passed = Vec::new();
    while !waiting.is_empty() {
        let piece: Vec<u8> = waiting.drain(..size.min(waiting.len())).collect();
        passed.extend(proxy.arrive(data, &piece, false));
    }
    passed
}

proptest! {
    /// Whatever the applications say and however it is cut into pieces, each hears exactly what the other said.
    #[test]
    fn no_byte_is_lost_repeated_or_reordered(
        events in pieces(),
        size in 1_usize..90,
        sends in any::<bool>(),
    ) {
        let (mut caller, mut callee) = (Proxy::outbound(), Proxy::inbound());
        if !sends {
            caller = Proxy::new(PLAIN, named("caller"), 2);
        }
        let (mut said, mut heard) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for event in &events {
            match event {
                Event::Client(bytes) => {
                    said[0].extend(bytes);
                    let mut waiting = bytes.iter().copied().collect();
                    let mut sent = feed(&mut caller, Downstream, &mut waiting, size).into();
                    heard[0].extend(feed(&mut callee, Downstream, &mut sent, size));
                }
                Event::Server(bytes) => {
                    said[1].extend(bytes);
                    let mut waiting = bytes.iter().copied().collect();
                    let mut sent = feed(&mut callee, Upstream, &mut waiting, size).into();
                    heard[1].extend(feed(&mut caller, Upstream, &mut sent, size));
                }
            }
        }
        // Both ends close.
        let last = caller.arrive(Downstream, b"", true);
        heard[0].extend(callee.arrive(Downstream, &last, true));
        let last = callee.arrive(Upstream, b"", true);
        heard[1].extend(caller.arrive(Upstream, &last, true));
        let frame = if sends { 0 } else { frame_bytes(&said[0]) };
        prop_assert_eq!(&heard[0], &said[0][frame..]);
        // A client that speaks frames is a peer, and is answered.
        if frame == 0 {
            prop_assert_eq!(&heard[1], &said[1]);
        }
    }
}

/// The bytes of the frame with which this begins.
fn frame_bytes(bytes: &[u8]) -> usize {
    let max = Limits::DEFAULT.max_received_bytes;
    match Start::of(&bytes[..TELLING_BYTES.min(bytes.len())], bytes.len(), max) {
        Start::Frame(whole) if Frame::decode(&bytes[HEADER_BYTES..whole]).is_some() => whole,
        _ => 0,
    }
}
