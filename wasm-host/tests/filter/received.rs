//! What counts as received: what is stored, removed and answered if a caller or callee sends unusual headers.

use crate::support::{
    DOWNSTREAM, DOWNSTREAM_ID, ID, METADATA, Proxy, Workload, assert_sent_by, assert_stored,
    assert_stripped, assert_values, peer, state, struct_value,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use metadata_exchange::peer::flat;
use metadata_exchange::peer::header::{self, Limits};
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, Stream};

fn local() -> Workload {
    Workload::new("local")
}

fn caller() -> Workload {
    Workload::new("caller")
}

/// Asserts what the caller receives; all peer headers must be removed on the way to the app.
#[track_caller]
fn assert_answered(stream: &Stream, metadata: bool, id: bool) {
    assert_stripped(&stream.request_headers());
    let (value, own_id) = (local().value(), local().id);
    let answer = stream.response_headers();
    assert_values(
        &answer,
        METADATA,
        &[value.as_str()][..usize::from(metadata)],
    );
    assert_values(&answer, ID, &[own_id.as_str()][..usize::from(id)]);
}

#[track_caller]
fn assert_nothing_stored(stream: &Stream) {
    assert_eq!(stream.filter_state_keys(), [""; 0]);
}

#[test]
fn metadata_without_an_id_is_stored_and_answered_alone() {
    let mut proxy = Proxy::plain("local");
    let stream = proxy.inbound(&Headers::from([(METADATA, caller().value())]));
    assert_answered(&stream, true, false);
    assert_eq!(peer(&stream, DOWNSTREAM), Some(caller().metadata));
    assert_eq!(stream.filter_state_keys(), [DOWNSTREAM]);
}

#[test]
fn an_id_alone_is_answered_with_the_id_and_stores_nothing() {
    let mut proxy = Proxy::plain("local");
    let stream = proxy.inbound(&Headers::from([(ID, caller().id)]));
    assert_answered(&stream, false, true);
    assert_nothing_stored(&stream);
    let stream = proxy.outbound(&Headers::from([(ID, caller().id)]));
    assert_stripped(&stream.response_headers());
    assert_nothing_stored(&stream);
}

#[test]
fn an_empty_header_is_stripped_and_not_received() {
    let mut proxy = Proxy::plain("local");
    let stream = proxy.inbound(&Headers::from([(METADATA, ""), (ID, "")]));
    assert_answered(&stream, false, false);
    assert_nothing_stored(&stream);
    let stream = proxy.inbound(&Headers::from([
        (METADATA, String::new()),
        (ID, caller().id),
    ]));
    assert_answered(&stream, false, true);
    assert_nothing_stored(&stream);
    let stream = proxy.inbound(&Headers::from([
        (METADATA, caller().value()),
        (ID, String::new()),
    ]));
    assert_answered(&stream, true, false);
    assert_eq!(stream.filter_state_keys(), [DOWNSTREAM]);
    let stream = proxy.outbound(&Headers::from([(METADATA, ""), (ID, "")]));
    assert_stripped(&stream.response_headers());
    assert_nothing_stored(&stream);
}

#[test]
fn of_duplicates_the_first_counts_and_all_are_stripped() {
    let mut proxy = Proxy::plain("local");
    let mut both = caller().headers();
    for (name, value) in Workload::new("other").headers().iter() {
        both = both.with(name, value);
    }
    let stream = proxy.inbound(&both);
    assert_answered(&stream, true, true);
    assert_stored(&stream, Some(&caller()), None);
    let stream = proxy.outbound(&both);
    assert_stripped(&stream.response_headers());
    assert_stored(&stream, None, Some(&caller()));
}

#[test]
fn a_first_value_that_is_empty_hides_the_second() {
    let mut proxy = Proxy::plain("local");
    let mut headers = Headers::from([(METADATA, ""), (ID, "")]);
    for (name, value) in caller().headers().iter() {
        headers = headers.with(name, value);
    }
    let stream = proxy.inbound(&headers);
    assert_answered(&stream, false, false);
    assert_nothing_stored(&stream);
}

#[test]
fn padding_is_optional() {
    for name in ["caller", "caller2", "caller33"] {
        let workload = Workload::new(name);
        let bytes = STANDARD.decode(workload.value()).expect("base64");
        let value = STANDARD_NO_PAD.encode(bytes);
        let stream = Proxy::plain("local").inbound(&Headers::from([(METADATA, value)]));
        assert_answered(&stream, true, false);
        assert_eq!(peer(&stream, DOWNSTREAM), Some(workload.metadata));
    }
}

/// Header values that are not a peer, each with its counter.
fn refused() -> Vec<(&'static str, Vec<u8>)> {
    let field = |json: Json| struct_value(&json).into_bytes();
    let raw = |bytes: &[u8]| STANDARD.encode(bytes).into_bytes();
    let name = |bytes: &[u8]| {
        let mut value = vec![0x1a, u8::try_from(bytes.len()).expect("short")];
        value.extend(bytes);
        let mut entry = b"\x0a\x04NAME\x12".to_vec();
        entry.push(u8::try_from(value.len()).expect("short"));
        entry.extend(value);
        let mut message = vec![0x0a, u8::try_from(entry.len()).expect("short")];
        message.extend(entry);
        raw(&message)
    };
    let labels: serde_json::Map<_, _> = (0..300).map(|n| (format!("k{n}"), json!("v"))).collect();
    vec![
        ("refused_base64", b"%%%%".to_vec()),
        ("refused_base64", b"AAAAA".to_vec()),
        ("refused_base64", b"CgA=CgA=".to_vec()),
        (
            "refused_base64",
            URL_SAFE.encode([0xfb, 0xff, 0xfe]).into_bytes(),
        ),
        ("refused_base64", b"Cg\xff\xfe".to_vec()),
        ("refused_protobuf", raw(b"\x0a\xff\xff\xff\xff\x0f")),
        ("refused_protobuf", raw(b"\x0a")),
        ("refused_protobuf", raw(b"no protobuf at all")),
        (
            "refused_empty",
            field(json!({"SERVICE_ACCOUNT": "unknown to FlatNode"})),
        ),
        ("refused_protobuf", name(b"\xff\xfe")),
        ("refused_control_character", name(b"line\nline")),
        ("refused_control_character", name(b"nul\0")),
        ("refused_control_character", name(b"del\x7f")),
        ("refused_control_character", name("c1\u{85}".as_bytes())),
        (
            "refused_too_long",
            field(json!({"NAME": "x".repeat(20_000)})),
        ),
        (
            "refused_too_many_labels",
            field(json!({"NAME": "n", "LABELS": labels})),
        ),
    ]
}

#[test]
fn what_is_refused_is_stripped_counted_and_leaves_no_trace() {
    for (counter, value) in refused() {
        let shown = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
        let mut proxy = Proxy::plain("local");
        let headers = Headers::new().with(METADATA, &value).with(ID, caller().id);
        for round in 1..=2 {
            let stream = proxy.inbound(&headers);
            assert_answered(&stream, false, true);
            assert_nothing_stored(&stream);
            assert_eq!(proxy.counter(counter), round, "{counter}: {shown}");
        }
        let stream = proxy.outbound(&headers);
        assert_stripped(&stream.response_headers());
        assert_nothing_stored(&stream);
        assert_eq!(proxy.counter(counter), 3, "{counter}: {shown}");
        assert_eq!(proxy.counter("cache_hit"), 0, "{counter}: {shown}");
        assert_eq!(
            proxy.counter("downstream_peer_stored"),
            0,
            "{counter}: {shown}"
        );
        assert_eq!(proxy.counter("host_error"), 0, "{counter}: {shown}");
        // The rightful owner of the id is still stored.
        let stream = proxy.inbound(&caller().headers());
        assert_stored(&stream, Some(&caller()), None);
    }
}

#[test]
fn an_id_that_is_refused_takes_its_peer_along() {
    for (id, counter) in [
        (b"line\nline".to_vec(), "refused_control_character"),
        (b"\xff\xfe".to_vec(), "refused_utf8"),
        (vec![b'x'; 2000], "refused_id_too_long"),
    ] {
        let mut proxy = Proxy::plain("local");
        let headers = Headers::new().with(METADATA, caller().value()).with(ID, id);
        let stream = proxy.inbound(&headers);
        assert_stripped(&stream.request_headers());
        assert_nothing_stored(&stream);
        assert_values(&stream.response_headers(), ID, &[]);
        assert_eq!(proxy.counter(counter), 1);
    }
}

#[test]
fn fields_of_every_dialect_are_understood() {
    for (sent, stored) in [
        // Lists as current tools write them.
        (
            json!({"NAME": "n", "INSTANCE_IPS": ["10.0.0.1", "fe80::1"], "APP_CONTAINERS": ["a", "b"]}),
            json!({"NAME": "n", "INSTANCE_IPS": "10.0.0.1,fe80::1", "APP_CONTAINERS": "a,b"}),
        ),
        // Istio 1.4 to 1.7 and 1.29 send more fields than a FlatNode has.
        (
            json!({"NAME": "n", "SERVICE_ACCOUNT": "s", "CANONICAL_TELEMETRY_SERVICE": "c", "REGION": "r",
                "AVAILABILITY_ZONE": "z", "IDENTITY": "spiffe://td/ns/n/sa/s"}),
            json!({"NAME": "n"}),
        ),
        // Istio 1.24 and newer.
        (
            json!({"NAME": "n", "NAMESPACE": "ns", "WORKLOAD_NAME": "w", "CLUSTER_ID": "c", "OWNER": "o",
                "LABELS": {}}),
            json!({"NAME": "n", "NAMESPACE": "ns", "WORKLOAD_NAME": "w", "CLUSTER_ID": "c", "OWNER": "o"}),
        ),
    ] {
        let stream =
            Proxy::plain("local").inbound(&Headers::from([(METADATA, struct_value(&sent))]));
        let mut seen = peer(&stream, DOWNSTREAM).expect("stored");
        if sent["LABELS"] == json!({}) {
            // An empty map may be stored or left out; readers see no difference.
            seen.as_object_mut()
                .expect("an object")
                .retain(|_, value| *value != json!({}));
        }
        assert_eq!(seen, stored);
    }
}

mod own {
    use super::*;

    fn run(configuration: &Json, direction: Direction, headers: &Headers) -> (Stream, u64) {
        let mut proxy = Proxy::of(&local(), configuration);
        let stream = match direction {
            Direction::Outbound => proxy.outbound(headers),
            _ => proxy.exchange(direction, headers, &Headers::new()),
        };
        (stream, proxy.counter("own"))
    }

    #[test]
    fn an_echo_of_this_proxy_is_not_a_peer() {
        let (stream, counted) = run(&json!({}), Direction::Inbound, &local().headers());
        assert_answered(&stream, false, false);
        assert_nothing_stored(&stream);
        assert_eq!(counted, 1);
        let (stream, counted) = run(&json!({}), Direction::Outbound, &local().headers());
        assert_stripped(&stream.response_headers());
        assert_nothing_stored(&stream);
        assert_eq!(counted, 1);
    }

    #[test]
    fn accept_own_turns_that_off() {
        let accept = json!({ "accept_own": true });
        let (stream, counted) = run(&accept, Direction::Inbound, &local().headers());
        assert_answered(&stream, true, true);
        assert_stored(&stream, Some(&local()), None);
        assert_eq!(counted, 0);
        let (stream, counted) = run(&accept, Direction::Outbound, &local().headers());
        assert_stored(&stream, None, Some(&local()));
        assert_eq!(counted, 0);
    }

    #[test]
    fn half_of_it_is_someone_else() {
        let same_id = Headers::from([(METADATA, caller().value()), (ID, local().id)]);
        let same_value = Headers::from([(METADATA, local().value()), (ID, caller().id)]);
        for headers in [same_id, same_value] {
            let (stream, counted) = run(&json!({}), Direction::Inbound, &headers);
            assert_answered(&stream, true, true);
            assert_eq!(stream.filter_state_keys(), [DOWNSTREAM, DOWNSTREAM_ID]);
            assert_eq!(counted, 0);
        }
    }

    #[test]
    fn an_internal_redirect_keeps_the_first_caller() {
        // The second pass of a gateway's request carries the headers that the first pass set, in a new context with the
        // same filter state.
        let configuration = json!({ "direction": "gateway" });
        let mut proxy = Proxy::of(&local(), &configuration);
        let first = proxy.open(Direction::Unspecified);
        proxy.request(&first, &caller().headers());
        let second = proxy.open(Direction::Unspecified);
        for key in first.filter_state_keys() {
            let object = first.filter_state(&key).expect("just seen");
            second.set_filter_state(&key, object);
        }
        proxy.request(&second, &first.request_headers());
        assert_stored(&second, Some(&caller()), None);
        assert_sent_by(&second.request_headers(), &local());
        // The caller no longer shows in the headers, so it is not answered.
        proxy.response(&second, &Headers::new());
        assert_stripped(&second.response_headers());
    }
}

#[test]
fn where_nothing_was_sent_nothing_is_believed() {
    let nobody = wasm_host::Node::new("", &json!({}));
    let mut proxy = Proxy::of_node(&nobody, &json!({}));
    let stream = proxy.outbound(&caller().headers());
    assert_stripped(&stream.request_headers());
    assert_stripped(&stream.response_headers());
    assert_nothing_stored(&stream);
}

#[test]
fn every_character_at_every_position_is_read_as_natively() {
    let mut proxy = Proxy::plain("local");
    let mut caller = caller();
    caller.metadata = json!({"NAME": "a-name-of-some-length", "LABELS": {"app": "caller"}});
    let value = caller.value().into_bytes();
    for index in 0..value.len() {
        for character in 0..=u8::MAX {
            let mut value = value.clone();
            value[index] = character;
            let stream = proxy.inbound(&Headers::from([(METADATA, value.clone())]));
            let native = header::decode(&value, Limits::DEFAULT).map(|peer| flat::write(&peer));
            assert_eq!(
                state(&stream, DOWNSTREAM),
                native.ok(),
                "{character} at {index}"
            );
        }
    }
}
