//! What the configuration's `node` says over the bootstrap's.

use metadata_exchange::config::Config;
use metadata_exchange::local::identity::Identity;
use metadata_exchange::local::{Locality, Node, Note};
use serde_json::{Value as Json, json};

use crate::support::node;

fn identity(node: &Json) -> Identity {
    Config::parse(json!({ "node": node }).to_string().as_bytes())
        .unwrap()
        .node
}

/// The id and metadata that `stated` makes of `node`, as a log line has them, and what is noted.
fn over(stated: &Json, node: &Node) -> (String, String, Vec<Note>) {
    let env = |name: &str| {
        let value = match name {
            "POD_NAME" => "web-1",
            "EMPTY" => "",
            "FORGED" => "a\nb",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let mut notes = Vec::new();
    let node = identity(stated).over(node, &env, &mut notes);
    let metadata = node.peer(&mut Vec::new()).to_string();
    (String::from_utf8(node.id).unwrap(), metadata, notes)
}

fn bootstrap() -> Node {
    let metadata = json!({
        "NAME": "b-1", "NAMESPACE": "shop", "LABELS": {"app": "b", "version": "v2"},
        "dataplane.resource": r#"{"networking": {"inbound": [{"tags": {"kuma.io/service": "web"}}]}}"#,
    });
    Node {
        cluster: "b".into(),
        locality: Some(Locality {
            region: "eu".into(),
            zone: "eu-1".into(),
            sub_zone: "rack-1".into(),
        }),
        ..node("b-id", &metadata)
    }
}

fn absent(key: &str, template: &str) -> Note {
    Note::Absent {
        key: key.into(),
        template: template.into(),
    }
}

#[test]
fn absent_or_empty_it_leaves_every_byte() {
    let node = Node {
        metadata: b"\x0a\x04\x0a\x00\x12\x00".to_vec(),
        ..bootstrap()
    };
    let mut notes = Vec::new();
    for stated in [Identity::default(), identity(&json!({}))] {
        assert_eq!(stated.over(&node, &|_| None, &mut notes), node);
    }
    assert_eq!(notes, []);
}

#[test]
fn each_field_and_label_replaces_its_own() {
    let stated = json!({
        "id": "${env:POD_NAME}.${node:/id}", "NAME": "${env:POD_NAME}",
        "LABELS": {"app": "${node:/cluster}-app", "zone": "${node:/locality/zone}"},
        "PLATFORM_METADATA": {"region": "${node:/locality/region}/${node:/locality/sub_zone}"},
        "WORKLOAD_NAME":
            "${node:/metadata/dataplane.resource/networking/inbound/0/tags/kuma.io~1service}",
    });
    let (id, metadata, notes) = over(&stated, &bootstrap());
    assert_eq!(id, "web-1.b-id");
    assert_eq!(
        metadata,
        r#"LABELS={app="b-app" version="v2" zone="eu-1"} NAME="web-1" NAMESPACE="shop" PLATFORM_METADATA={region="eu/rack-1"} WORKLOAD_NAME="web""#
    );
    assert_eq!(notes, []);
}

#[test]
fn the_environment_alone_names_a_node() {
    let stated = json!({
        "id": "${env:POD_NAME}", "NAME": "${env:POD_NAME}", "LABELS": {"app": "web"},
    });
    let (id, metadata, notes) = over(&stated, &Node::default());
    assert_eq!(id, "web-1");
    assert_eq!(metadata, r#"LABELS={app="web"} NAME="web-1""#);
    assert_eq!(notes, []);
}

#[test]
fn where_a_source_gives_nothing_the_bootstrap_stays() {
    let stated = json!({
        "id": "${env:UNSET}", "NAME": "${env:EMPTY}", "NAMESPACE": "${env:FORGED}",
        "LABELS": {"app": "${node:/metadata/none}", "new": "a-${env:UNSET}"},
    });
    let (id, metadata, notes) = over(&stated, &bootstrap());
    assert_eq!(id, "b-id");
    assert_eq!(
        metadata,
        r#"LABELS={app="b" version="v2"} NAME="b-1" NAMESPACE="shop""#
    );
    let expected = [
        absent("LABELS.app", "${node:/metadata/none}"),
        absent("LABELS.new", "a-${env:UNSET}"),
        absent("NAME", "${env:EMPTY}"),
        absent("NAMESPACE", "${env:FORGED}"),
        absent("id", "${env:UNSET}"),
    ];
    assert_eq!(notes, expected);
}

#[test]
fn an_empty_default_says_that_a_value_may_be_absent() {
    let stated = json!({ "NAME": "${env:UNSET:-}", "OWNER": "${env:UNSET:-}", "MESH_ID": "" });
    let (_, metadata, notes) = over(&stated, &node("id", &json!({ "NAME": "b-1" })));
    assert_eq!(metadata, r#"NAME="b-1""#);
    assert_eq!(notes, []);
}

/// Keys of the bootstrap may have any case, and its `LABELS` may be no map.
#[test]
fn odd_metadata_are_replaced() {
    let stated = json!({ "NAME": "${env:POD_NAME}", "LABELS": {"app": "web"} });
    for (metadata, expected) in [
        (
            json!({ "name": "b", "labels": {"version": "v2"} }),
            r#"LABELS={app="web" version="v2"} NAME="web-1""#,
        ),
        (
            json!({ "NAME": 5, "LABELS": "b" }),
            r#"LABELS={app="web"} NAME="web-1""#,
        ),
    ] {
        assert_eq!(over(&stated, &node("id", &metadata)).1, expected);
    }
    let malformed = Node {
        metadata: b"\xff".to_vec(),
        ..Node::default()
    };
    let (_, metadata, notes) = over(&stated, &malformed);
    assert_eq!(metadata, r#"LABELS={app="web"} NAME="web-1""#);
    assert!(matches!(notes[..], [Note::BadMetadata(_)]), "{notes:?}");
}

/// With one configuration for a mesh, the id or the name must differ between its proxies.
#[test]
fn a_mesh_of_equal_proxies_is_noted() {
    let common = node("test-id", &json!({}));
    let of_id = node("web-1", &json!({}));
    let of_name = node("test-id", &json!({ "NAME": "web-1" }));
    for (stated, node, is_noted) in [
        (json!({ "NAME": "web" }), &common, true),
        (json!({ "NAME": "${node:/id}" }), &common, true),
        (json!({ "NAME": "${node:/cluster:-web}" }), &common, true),
        (json!({ "NAME": "${env:UNSET:-web}" }), &common, true),
        (
            json!({ "id": "web", "LABELS": {"app": "web"} }),
            &common,
            true,
        ),
        (
            json!({ "LABELS": {"app": "${env:POD_NAME}"} }),
            &common,
            true,
        ),
        (json!({ "id": "web", "NAME": "web" }), &of_id, true),
        (json!({ "NAME": "web" }), &Node::default(), true),
        (json!({ "NAME": "web" }), &of_id, false),
        (json!({ "NAME": "${node:/id}" }), &of_id, false),
        (json!({ "id": "web", "NAME": "${node:/id}" }), &of_id, false),
        (json!({ "NAME": "${env:POD_NAME}" }), &common, false),
        (json!({ "id": "${env:POD_NAME}" }), &common, false),
        (
            json!({ "NAME": "${node:/metadata/NAME}-a" }),
            &of_name,
            false,
        ),
        (json!({ "LABELS": {"app": "web"} }), &of_name, false),
        (json!({ "NAME": "${env:UNSET:-}" }), &of_name, false),
    ] {
        let (_, _, notes) = over(&stated, node);
        assert_eq!(notes.contains(&Note::SameEverywhere), is_noted, "{stated}");
    }
}
