//! What is sent of the local node.

use metadata_exchange::config::Config;
use metadata_exchange::local::service::Service;
use metadata_exchange::local::share::Share;
use metadata_exchange::local::{LocalNode, Node, Note};
use metadata_exchange::peer::{Peer, RejectReason, flat, header};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::support::{local, node};

fn left_out(keys: &[&str]) -> Vec<Note> {
    let note = |key: &&str| Note::LeftOut { key: (*key).into() };
    keys.iter().map(note).collect()
}

/// The peer that a receiver decodes from the header sent for `metadata`.
fn sent(metadata: &Json, share: &str) -> Option<Peer> {
    let config = Config::parse(format!(r#"{{"share": {share}}}"#).as_bytes()).unwrap();
    let local = LocalNode::new(
        &node("id", metadata),
        &config.share,
        16_384,
        &mut Vec::new(),
    );
    let peer = header::decode(local.header?.as_bytes(), config.limits).unwrap();
    Some(flat::read(&flat::write(&peer)).unwrap())
}

#[test]
fn values_of_other_types_become_texts_or_are_left_out() {
    let mut notes = Vec::new();
    let node = node(
        "id",
        &json!({
            "NAME": 15090, "NAMESPACE": true, "OWNER": null, "WORKLOAD_NAME": ["pay"],
            "MESH_ID": 0.5, "CLUSTER_ID": {"a": "b"}, "ISTIO_VERSION": "1.29",
            "LABELS": {"app": "pay", "n": 1, "b": false, "null": null, "list": [1], "map": {}},
            "PLATFORM_METADATA": "none", "APP_CONTAINERS": ["a", "b", 3, null, {}],
            "INSTANCE_IPS": [],
        }),
    );
    let text = |text: &str| Some(text.to_owned());
    let expected = Peer {
        name: text("15090"),
        namespace: text("true"),
        mesh_id: text("0.5"),
        istio_version: text("1.29"),
        labels: Some(vec![
            ("app".into(), "pay".into()),
            ("b".into(), "false".into()),
            ("n".into(), "1".into()),
        ]),
        app_containers: text("a,b,3"),
        ..Peer::default()
    };
    assert_eq!(node.peer(&mut notes), expected);
    let no_text = |key: &str| Note::NoText { key: key.into() };
    assert_eq!(notes[..2], [no_text("NAME"), no_text("NAMESPACE")]);
    assert_eq!(
        notes[2..],
        left_out(&[
            "APP_CONTAINERS",
            "CLUSTER_ID",
            "LABELS.list",
            "LABELS.map",
            "LABELS.null",
            "OWNER",
            "PLATFORM_METADATA",
            "WORKLOAD_NAME",
        ])
    );
}

#[test]
fn nothing_is_sent_for_an_empty_node() {
    assert_eq!(local("", &json!({})), LocalNode::default());
    assert_eq!(
        local("", &json!({"ENVOY_STATUS_PORT": 15021})),
        LocalNode::default()
    );
    for nothing in [
        json!({"LABELS": {}}),
        json!({"NAME": "", "APP_CONTAINERS": ""}),
    ] {
        assert_eq!(local("", &nothing), LocalNode::default(), "{nothing}");
    }
    let only_id = local("id", &json!({"NAME": null}));
    assert_eq!((only_id.id.as_deref(), only_id.header), (Some("id"), None));
}

#[test]
fn an_id_that_would_corrupt_a_header_is_not_sent() {
    for (id, refused) in [
        (&b"a\nb"[..], RejectReason::ControlCharacter),
        (b"\xff", RejectReason::Utf8),
        (
            &[b'a'; 1025],
            RejectReason::IdTooLong {
                len: 1025,
                max: 1024,
            },
        ),
    ] {
        let node = Node {
            id: id.to_vec(),
            ..Node::default()
        };
        let mut notes = Vec::new();
        assert_eq!(LocalNode::new(&node, &Share::All, 100, &mut notes).id, None);
        assert_eq!(notes, [Note::BadId(refused), Note::Nameless]);
    }
}

#[test]
fn only_id_and_metadata_of_a_node_message_are_read() {
    // id = 1, cluster = 2, metadata = 3, user_agent_name = 6
    let message = b"\x0a\x02id\x12\x07cluster\x1a\x03abc\x32\x05envoy";
    let node = Node::from_message(message);
    assert_eq!(
        (&node.id[..], &node.metadata[..]),
        (&b"id"[..], &b"abc"[..])
    );
    assert_eq!(Node::from_message(b"\xff"), Node::default());
}

#[test]
fn over_the_limit_parts_are_left_out_in_a_fixed_order() {
    let long = |n: usize| "x".repeat(n);
    let metadata = json!({
        "NAME": "pay-1", "NAMESPACE": "shop",
        "LABELS": {"app": "pay", "k8s-app": "pay", "app.kubernetes.io/name": "pay",
            "service.istio.io/canonical-name": "pay", "version": long(1000)},
        "PLATFORM_METADATA": {"zone": long(800)},
        "APP_CONTAINERS": long(600),
        "INSTANCE_IPS": long(400),
    });
    let order = [
        "labels that do not name a service",
        "PLATFORM_METADATA",
        "APP_CONTAINERS",
        "INSTANCE_IPS",
        "all other metadata",
    ];
    let fit = |max| {
        let mut notes = Vec::new();
        let node = node("id", &metadata);
        (
            LocalNode::new(&node, &Share::All, max, &mut notes).header,
            notes,
        )
    };
    let whole = fit(16_384).0.unwrap().len();
    // Each limit is one byte below the previous size.
    let mut max = whole;
    assert_eq!(fit(max).1, []);
    for dropped in 1..=order.len() {
        max -= 1;
        let (header, notes) = fit(max);
        assert_eq!(
            notes,
            [Note::TooLong {
                left_out: order[..dropped].to_vec(),
                max
            }]
        );
        assert_eq!(fit(max).0, header, "it is deterministic");
        match header {
            Some(header) => {
                assert!(header.len() <= max);
                max = header.len();
            }
            None => assert_eq!(dropped, order.len()),
        }
    }
}

#[test]
fn more_labels_than_peers_accept_are_not_sent() {
    let labels = |count: usize| {
        let mut labels: serde_json::Map<_, _> =
            (1..count).map(|n| (format!("l{n}"), json!("v"))).collect();
        labels.insert("app".into(), json!("pay"));
        json!({"NAME": "n", "LABELS": labels})
    };
    let sent = |metadata| sent(&metadata, r#""all""#).unwrap().labels.unwrap().len();
    assert_eq!(sent(labels(256)), 256);
    assert_eq!(sent(labels(257)), 1);
}

proptest! {
    #[test]
    fn the_header_never_exceeds_its_limit(
        labels in proptest::collection::btree_map("[a-z]{1,9}", "[a-z]{0,40}", 0..40),
        max in 0_usize..3000,
    ) {
        let node = node("id", &json!({"NAME": "n", "LABELS": labels}));
        let local = LocalNode::new(&node, &Share::All, max, &mut Vec::new());
        prop_assert!(local.header.is_none_or(|header| header.len() <= max));
    }
}

#[test]
fn only_what_is_shared_is_sent() {
    let metadata = json!({
        "NAME": "pay-1", "NAMESPACE": "shop", "WORKLOAD_NAME": "pay", "CLUSTER_ID": "c",
        "OWNER": "o", "MESH_ID": "m", "ISTIO_VERSION": "1", "APP_CONTAINERS": "pay",
        "INSTANCE_IPS": "10.0.0.1", "PLATFORM_METADATA": {"zone": "a"},
        "LABELS": {"app": "old", "app.kubernetes.io/name": "pay", "secret": "s",
            "app.kubernetes.io/version": "v2", "service.istio.io/canonical-name": "pay"},
    });
    let labels = |peer: &Peer| {
        let labels = peer.labels.clone().unwrap_or_default();
        labels
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
    };
    let all = sent(&metadata, r#""all""#).unwrap();
    assert_eq!(labels(&all).len(), 5);

    let minimal = sent(&metadata, r#""minimal""#).unwrap();
    assert_eq!(
        labels(&minimal),
        [
            "app=pay",
            "service.istio.io/canonical-name=pay",
            "version=v2"
        ]
    );
    assert_eq!(minimal.owner.as_deref(), Some("o"));
    assert_eq!(
        (minimal.mesh_id, minimal.instance_ips, minimal.istio_version),
        (None, None, None)
    );

    let some = sent(&metadata, r#"{"labels": ["app", "service.istio.io/*"]}"#).unwrap();
    assert_eq!(
        labels(&some),
        ["app=old", "service.istio.io/canonical-name=pay"]
    );
    assert_eq!(some.mesh_id.as_deref(), Some("m"));

    let fields = sent(&metadata, r#"{"fields": ["NAME", "NAMESPACE"]}"#).unwrap();
    assert_eq!(
        fields,
        Peer {
            name: all.name,
            namespace: all.namespace,
            ..Peer::default()
        }
    );

    assert_eq!(sent(&metadata, r#"{"fields": []}"#), None);
}

/// The service that `SkyWalking` reads from what is sent for `metadata`, and
/// the notes.
fn service(metadata: &Json, share: &str, max_sent_bytes: usize) -> (String, Vec<Note>) {
    let config = Config::parse(format!(r#"{{"share": {share}}}"#).as_bytes()).unwrap();
    let mut notes = Vec::new();
    let node = node("id", metadata);
    let local = LocalNode::new(&node, &config.share, max_sent_bytes, &mut notes);
    let peer = header::decode(local.header.unwrap().as_bytes(), config.limits).unwrap();
    (Service::of_peer(&peer).to_string(), notes)
}

#[test]
fn a_peer_is_named_as_its_own_node_is() {
    let pod = |labels: Json| json!({ "NAME": "a-1", "NAMESPACE": "shop", "LABELS": labels });
    let cases = [
        pod(json!({ "service.istio.io/canonical-name": "a", "app": "x", "team": "t" })),
        pod(json!({ "app.kubernetes.io/name": "a", "app": "x" })),
        pod(json!({ "app.kubernetes.io/name": "", "app": "a" })),
        pod(json!({ "app": "a" })),
        pod(json!({ "k8s-app": "a", "team": "t" })),
        pod(json!({ "App": "a" })),
        pod(json!({ "K8S-APP": "a", "app": "" })),
        pod(json!({ "Service.Istio.Io/Canonical-Name": "a", "app": "x" })),
        json!({ "NAME": "a-1", "NAMESPACE": "shop", "SERVICE": "a" }),
        json!({ "NAME": "a-1", "NAMESPACE": "shop", "SERVICE": "a", "LABELS": { "team": "t" } }),
        json!({ "NAME": "a-1", "NAMESPACE": "shop", "SERVICE": "x", "LABELS": { "app": "a" } }),
        json!({ "name": "a-1", "namespace": "shop", "labels": { "app": "a" } }),
        json!({ "Name": "a-1", "Namespace": "shop", "service": "a" }),
    ];
    for metadata in cases {
        for share in [r#""all""#, r#""minimal""#] {
            let named = service(&metadata, share, 16_384);
            assert_eq!(named, ("a.shop".to_owned(), vec![]), "{share}: {metadata}");
        }
    }
}

#[test]
fn a_service_that_is_not_sent_is_noted() {
    let filler = "x".repeat(3000);
    let metadata = json!({
        "NAME": "a-1", "NAMESPACE": "shop", "LABELS": { "app": "a", "team": "t", "filler": filler },
    });
    let two = |sent: &str| {
        let [node, sent] = ["a.shop", sent].map(|name| {
            let (service, namespace) = name.split_once('.').unwrap();
            let part = |part: &str| (part != "-").then(|| part.to_owned());
            Service {
                name: part(service),
                namespace: part(namespace),
            }
        });
        Note::OtherService { node, sent }
    };
    for (share, sent) in [
        (r#"{"labels": ["team"]}"#, "-.shop"),
        (r#"{"labels": []}"#, "-.shop"),
        (r#"{"fields": ["NAME", "NAMESPACE"]}"#, "-.shop"),
        (r#"{"fields": ["NAME", "LABELS"]}"#, "a.-"),
    ] {
        let said = service(&metadata, share, 16_384);
        assert_eq!(said, (sent.to_owned(), vec![two(sent)]), "{share}");
    }
    // Labels that do not name a service go first, and the node keeps its
    // service.
    let (sent, notes) = service(&metadata, r#""all""#, 1000);
    assert_eq!(sent, "a.shop");
    assert!(!notes.contains(&two("a.shop")), "{notes:?}");
    let said = two("-.shop").to_string();
    assert!(said.contains("a.shop") && said.contains("-.shop"), "{said}");
}

#[test]
fn a_name_that_is_not_a_string_is_noted() {
    let metadata =
        json!({ "NAME": 7, "NAMESPACE": "shop", "LABELS": { "app": 7, "n": 8, "k8s-app": true } });
    let (sent, notes) = service(&metadata, r#""all""#, 16_384);
    assert_eq!(sent, "7.shop");
    let no_text = |key: &str| Note::NoText { key: key.into() };
    assert_eq!(notes, ["NAME", "LABELS.app", "LABELS.k8s-app"].map(no_text));
}

#[test]
fn a_node_without_a_name_is_noted() {
    let noted = |metadata: &Json| {
        let mut notes = Vec::new();
        let _ = LocalNode::new(&node("id", metadata), &Share::All, 16_384, &mut notes);
        notes
    };
    for metadata in [
        json!({}),
        json!({"NAMESPACE": "shop"}),
        json!({"LABELS": {"version": "1"}, "NAME": ""}),
    ] {
        assert_eq!(noted(&metadata), [Note::Nameless], "{metadata}");
    }
    for metadata in [
        json!({"NAME": "a"}),
        json!({"workload_name": "a"}),
        json!({"LABELS": {"App": "a"}}),
        json!({"SERVICE": "a"}),
    ] {
        assert_eq!(noted(&metadata), [], "{metadata}");
    }
}
