//! Round trips of the codec, and what it rejects.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use metadata_exchange::config::Config;
use metadata_exchange::peer::header::Limits;
use metadata_exchange::peer::wire;
use metadata_exchange::peer::{Field, Peer, RejectReason, Slot, flat, header};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::support::message_of;

fn limits() -> Limits {
    Config::default().limits
}

fn decode(message: &[u8]) -> Result<Peer, RejectReason> {
    wire::decode(message, limits().max_labels)
}

/// The peer in a header that holds `message`.
fn decode_header(message: &[u8]) -> Result<Peer, RejectReason> {
    header::decode(STANDARD.encode(message).as_bytes(), limits())
}

/// An arbitrary text that a peer may carry.
fn text() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{0,12}"
}

fn peer() -> impl Strategy<Value = Peer> {
    let texts = proptest::collection::vec(proptest::option::of(text()), Field::ALL.len());
    let map = || proptest::option::of(proptest::collection::btree_map(text(), text(), 0..8));
    (texts, map(), map()).prop_map(|(texts, labels, platform_metadata)| {
        let mut peer = Peer::default();
        for (field, text) in Field::ALL.into_iter().zip(texts) {
            if let Slot::Text(slot) | Slot::Names(slot) = peer.slot(field) {
                *slot = text;
            }
        }
        let map = |map: std::collections::BTreeMap<_, _>| map.into_iter().collect();
        peer.labels = labels.map(map);
        peer.platform_metadata = platform_metadata.map(map);
        peer
    })
}

proptest! {
    #[test]
    fn encoding_round_trips(peer in peer()) {
        let message = wire::encode(&peer);
        let decoded = decode(&message).unwrap();
        prop_assert_eq!(&decoded, &peer);
        prop_assert_eq!(wire::encode(&decoded), message);
        if !peer.is_empty() {
            let value = header::encode(&peer);
            prop_assert_eq!(header::decode(value.as_bytes(), limits()), Ok(peer));
        }
    }

    #[test]
    fn the_flat_node_round_trips_except_empty_maps(mut peer in peer()) {
        let bytes = flat::write(&peer);
        for field in [Field::Labels, Field::PlatformMetadata] {
            if let Slot::Map(map) = peer.slot(field)
                && map.as_ref().is_some_and(Vec::is_empty)
            {
                *map = None;
            }
        }
        prop_assert_eq!(flat::read(&bytes).unwrap(), peer);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = header::decode(&bytes, limits());
        let _ = decode(&bytes);
        let _ = flat::read(&bytes);
        let _ = header::id(&bytes, limits());
    }

    #[test]
    fn no_broken_message_panics(
        peer in peer(),
        index in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut message = wire::encode(&peer);
        if !message.is_empty() {
            let index = index.index(message.len());
            let _ = decode(&message[..index]);
            message[index] = byte;
            let _ = decode(&message);
        }
    }
}

/// What each dialect in Istio's history sends, and how it is decoded.
#[test]
fn every_dialect_is_understood() {
    let labels = json!({"app": "pay", "service.istio.io/canonical-name": "pay"});
    let dialects: [(&str, Json); 6] = [
        (
            "1.4 to 1.7",
            json!({"NAME": "pay-1", "NAMESPACE": "shop", "INSTANCE_IPS": "10.0.0.1",
                "LABELS": labels, "OWNER": "o", "PLATFORM_METADATA": {}, "WORKLOAD_NAME": "pay",
                "CANONICAL_TELEMETRY_SERVICE": "pay", "MESH_ID": "m", "SERVICE_ACCOUNT": "sa"}),
        ),
        (
            "1.8 to 1.13",
            json!({"NAME": "pay-1", "NAMESPACE": "shop", "OWNER": "o", "WORKLOAD_NAME": "pay",
                "ISTIO_VERSION": "1.8.0", "MESH_ID": "m", "CLUSTER_ID": "c", "LABELS": labels,
                "PLATFORM_METADATA": {"zone": "a"}, "APP_CONTAINERS": "pay,log"}),
        ),
        (
            "1.14 to 1.23",
            json!({"NAME": "pay-1", "NAMESPACE": "shop", "OWNER": "o", "WORKLOAD_NAME": "pay",
                "ISTIO_VERSION": "1.14.0", "MESH_ID": "m", "CLUSTER_ID": "c", "LABELS": labels,
                "APP_CONTAINERS": "pay,log", "INSTANCE_IPS": "10.0.0.1,fe80::1"}),
        ),
        (
            "1.24 to 1.28",
            json!({"NAME": "pay-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "pay",
                "CLUSTER_ID": "c", "LABELS": labels}),
        ),
        (
            "1.29 and later",
            json!({"NAME": "pay-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "pay",
                "CLUSTER_ID": "c", "LABELS": labels, "REGION": "r", "AVAILABILITY_ZONE": "z",
                "IDENTITY": "spiffe://td/ns/shop/sa/pay"}),
        ),
        (
            "raw node metadata",
            json!({"NAME": "pay-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "pay",
                "LABELS": labels, "ENVOY_STATUS_PORT": 15021, "PILOT_SAN": ["a", "b"],
                "APP_CONTAINERS": ["pay", "log"], "PROXY_CONFIG": {"a": {"b": [{"c": null}]}}}),
        ),
    ];
    for (dialect, metadata) in dialects {
        let message = message_of(&metadata);
        for value in [STANDARD.encode(&message), STANDARD_NO_PAD.encode(&message)] {
            let peer = header::decode(value.as_bytes(), limits()).unwrap();
            assert_eq!(peer.name.as_deref(), Some("pay-1"), "{dialect}");
            assert_eq!(peer.namespace.as_deref(), Some("shop"), "{dialect}");
            assert_eq!(peer.workload_name.as_deref(), Some("pay"), "{dialect}");
            assert_eq!(peer.labels.as_ref().map(Vec::len), Some(2), "{dialect}");
            if metadata.get("APP_CONTAINERS").is_some() {
                assert_eq!(peer.app_containers.as_deref(), Some("pay,log"), "{dialect}");
            }
        }
    }
}

#[test]
fn the_last_of_repeated_keys_is_used() {
    let both = [
        message_of(&json!({"NAME": "first", "LABELS": {"a": "1", "b": "1"}})),
        message_of(&json!({"NAME": "second", "LABELS": {"b": "2"}})),
    ]
    .concat();
    let peer = decode(&both).unwrap();
    assert_eq!(peer.name.as_deref(), Some("second"));
    assert_eq!(peer.labels, Some(vec![("b".into(), "2".into())]));
    // The same label twice, which no map can represent.
    let label = |value: &str| message_of(&json!({"k": value, "z": "z"}));
    let labels = [label("1"), label("2")].concat();
    let mut value = vec![5 << 3 | 2, u8::try_from(labels.len()).unwrap()];
    value.extend(labels);
    let mut entry = vec![1 << 3 | 2, 6];
    entry.extend(b"LABELS");
    entry.extend([2 << 3 | 2, u8::try_from(value.len()).unwrap()]);
    entry.extend(value);
    let mut message = vec![1 << 3 | 2, u8::try_from(entry.len()).unwrap()];
    message.extend(entry);
    let expected = vec![("k".into(), "2".into()), ("z".into(), "z".into())];
    assert_eq!(decode(&message).unwrap().labels, Some(expected));
}

#[test]
fn other_base64_is_refused() {
    let message = message_of(&json!({"NAME": "\u{3ff}\u{3ff}??>>~~"}));
    let url_safe = URL_SAFE.encode(&message);
    assert!(
        url_safe.contains(['-', '_']),
        "the case must distinguish them"
    );
    for value in [
        url_safe.as_str(),
        "A",
        "AAAAA",
        "AB==",
        "A===",
        "AAAA=",
        "A A=",
        "ä",
        "=",
        "\n",
    ] {
        assert_eq!(
            header::decode(value.as_bytes(), limits()),
            Err(RejectReason::Base64),
            "{value:?}"
        );
    }
}

#[test]
fn each_limit_has_its_own_reason() {
    let limits = Limits {
        max_received_bytes: 8,
        max_labels: 2,
        max_id_bytes: 4,
    };
    let too_long = RejectReason::TooLong { len: 9, max: 8 };
    assert_eq!(header::decode(b"AAAAAAAAA", limits), Err(too_long));
    assert_eq!(
        header::decode(b"AAAAAAAA", limits),
        Err(RejectReason::Protobuf)
    );
    let labels = |n: usize| {
        let labels: serde_json::Map<_, _> = (0..n).map(|n| (n.to_string(), json!(""))).collect();
        message_of(&json!({"LABELS": labels}))
    };
    assert!(wire::decode(&labels(2), 2).is_ok());
    let too_many = Err(RejectReason::TooManyLabels { max: 2 });
    assert_eq!(wire::decode(&labels(3), 2), too_many);
    let too_long = Err(RejectReason::IdTooLong { len: 5, max: 4 });
    assert_eq!(header::id(b"abcde", limits), too_long);
    assert_eq!(header::id(b"abcd", limits), Ok("abcd"));
}

#[test]
fn deeply_nested_values_are_refused_under_every_key() {
    let nested = |depth: usize| (0..depth).fold(json!("x"), |value, _| json!({"k": [value]}));
    for key in ["NAME", "LABELS", "APP_CONTAINERS", "UNKNOWN"] {
        let message = message_of(&json!({"WORKLOAD_NAME": "pay", key: nested(4)}));
        assert!(decode(&message).is_ok(), "{key}");
        let message = message_of(&json!({"WORKLOAD_NAME": "pay", key: nested(6)}));
        assert_eq!(decode(&message), Err(RejectReason::TooDeep), "{key}");
    }
}

/// The deepest header does not exhaust the stack: the library stops at 100 nested messages.
#[test]
fn values_nested_thousands_of_times_are_refused() {
    let field = |tag: u8, inner: &[u8]| {
        let mut outer = vec![tag << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        [&outer, inner].concat()
    };
    // Value { list_value { values: Value { ... } } }
    let mut list = Vec::new();
    for _ in 0..5_000 {
        list = field(6, &field(1, &list));
    }
    for key in ["NAME", "LABELS", "APP_CONTAINERS", "UNKNOWN"] {
        let entry = [field(1, key.as_bytes()), field(2, &list)].concat();
        assert_eq!(
            decode(&field(1, &entry)),
            Err(RejectReason::Protobuf),
            "{key}"
        );
    }
}

#[test]
fn a_text_that_could_forge_a_log_line_is_refused() {
    for bad in ["a\nb", "\u{7f}", "\u{85}", "\0"] {
        for metadata in [
            json!({"NAME": bad}),
            json!({"LABELS": {"k": bad}}),
            json!({"LABELS": {bad: "v"}}),
            json!({"APP_CONTAINERS": ["ok", bad]}),
            json!({"PLATFORM_METADATA": {"k": bad}}),
        ] {
            let refused = decode(&message_of(&metadata)).map(|_| ());
            assert_eq!(refused, Err(RejectReason::ControlCharacter), "{metadata}");
        }
        assert_eq!(
            header::id(bad.as_bytes(), limits()),
            Err(RejectReason::ControlCharacter)
        );
    }
    assert_eq!(header::id(b"\xff", limits()), Err(RejectReason::Utf8));
    let mut message = message_of(&json!({"NAME": "@@"}));
    for byte in &mut message {
        if *byte == b'@' {
            *byte = 0xFF;
        }
    }
    assert_eq!(decode(&message), Err(RejectReason::Protobuf));
}

#[test]
fn a_broken_message_is_refused() {
    let good = message_of(&json!({"NAME": "pay"}));
    let broken = [&good[..], &[0x0A, 0x7F]].concat();
    assert_eq!(decode(&broken), Err(RejectReason::Protobuf));
    for bytes in [
        &[0x0B][..],   // a group without end
        &[0x0C],       // the end of one
        &[0x0E],       // no such wire type
        &[0x00, 0x00], // field 0
        &[0x80],       // half a tag
        &[0xFF; 10],   // a tag beyond 64 bits
        &[
            0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02,
        ],
        &[
            0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01,
        ], // a length of 2^64 - 1
    ] {
        assert_eq!(decode(bytes), Err(RejectReason::Protobuf), "{bytes:x?}");
    }
}

#[test]
fn an_empty_peer_is_refused() {
    for metadata in [
        json!({}),
        json!({"OTHER": "x"}),
        json!({"NAME": "", "LABELS": {}, "APP_CONTAINERS": ""}),
        json!({"NAME": null, "LABELS": "x"}),
    ] {
        let message = message_of(&metadata);
        assert_eq!(
            decode_header(&message),
            Err(RejectReason::Empty),
            "{metadata}"
        );
    }
}

/// What gRPC's own metadata exchange sends, with its keys and its value for unknown.
#[test]
fn grpcs_own_metadata_is_read() {
    let read = |json: &serde_json::Value| {
        let message = crate::support::message_of(json);
        let peer = decode_header(&message)?;
        Ok::<_, RejectReason>(format!(
            "{:?} {:?} {:?} {:?} {:?}",
            peer.name, peer.workload_name, peer.namespace, peer.cluster_id, peer.labels
        ))
    };
    let csm = serde_json::json!({
        "type": "gcp_kubernetes_engine", "workload_name": "pay-v1", "namespace_name": "shop",
        "cluster_name": "east", "location": "europe-west1", "project_id": "p",
        "canonical_service": "pay",
    });
    assert_eq!(
        read(&csm).unwrap(),
        r#"None Some("pay-v1") Some("shop") Some("east") Some([("service.istio.io/canonical-name", "pay")])"#
    );
    let unknown = serde_json::json!({
        "type": "unknown", "workload_name": "unknown", "canonical_service": "unknown",
    });
    assert_eq!(read(&unknown), Err(RejectReason::Empty));
    let bad = serde_json::json!({"canonical_service": "a\nb"});
    assert_eq!(read(&bad), Err(RejectReason::ControlCharacter));
    // Istio's keys win.
    let mut both = csm.clone();
    both["NAME"] = "own".into();
    assert_eq!(read(&both).unwrap(), r#"Some("own") None None None None"#);
    let mut some = csm;
    some["NAMESPACE"] = "own".into();
    some["LABELS"] = serde_json::json!({"version": "1", "a": "b"});
    assert_eq!(
        read(&some).unwrap(),
        r#"None Some("pay-v1") Some("own") Some("east") Some([("a", "b"), ("service.istio.io/canonical-name", "pay"), ("version", "1")])"#
    );
}
