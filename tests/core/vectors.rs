//! Compares the codec with inputs and outputs of the C++ plugin.

use crate::support::{local, node, vectors};
use metadata_exchange::config::Config;
use metadata_exchange::local::Note;
use metadata_exchange::peer::{Field, Peer, RejectReason, Value, flat, header};
use serde_json::{Map, Value as Json, json};

/// The peer in a header's value.
fn decoded(value: &str) -> Result<Json, RejectReason> {
    let peer = header::decode(value.as_bytes(), Config::default().limits)?;
    let flat = flat::write(&peer);
    Ok(fields_of(&flat::read(&flat).unwrap()))
}

/// A peer as the vectors write a `FlatNode`.
fn fields_of(peer: &Peer) -> Json {
    let mut fields = Map::new();
    for field in Field::ALL {
        let value = match (field, peer.value(field)) {
            (_, None) => continue,
            (Field::AppContainers | Field::InstanceIps, Some(Value::Text(names))) => {
                json!(names.split(',').collect::<Vec<_>>())
            }
            (_, Some(Value::Text(text))) => json!(text),
            (_, Some(Value::Map(map))) => map
                .iter()
                .map(|(key, value)| json!({"key": key, "value": value}))
                .collect(),
        };
        fields.insert(field.key().to_lowercase(), value);
    }
    Json::Object(fields)
}

/// Labels in the order of their keys: the C++ plugin does not sort them.
fn sorted(mut peer: Json) -> Json {
    for map in ["labels", "platform_metadata"] {
        if let Some(entries) = peer.get_mut(map).and_then(Json::as_array_mut) {
            entries.sort_by_key(|entry| entry["key"].as_str().unwrap().to_owned());
        }
    }
    peer
}

#[test]
fn a_header_of_the_cpp_plugin_is_decoded_alike() {
    for vector in vectors() {
        let peer = decoded(&vector.header);
        match vector.name.as_str() {
            // The plugin stores an empty node, which readers would draw.
            "empty" => assert_eq!(peer, Err(RejectReason::Empty)),
            // The plugin lets a newline into logs.
            "containers_edge" => assert_eq!(peer, Err(RejectReason::ControlCharacter)),
            name => assert_eq!(peer, Ok(sorted(vector.peer)), "{name}"),
        }
    }
}

#[test]
fn a_flat_node_of_the_cpp_plugin_is_read() {
    for vector in vectors() {
        let peer = flat::read(&vector.flat).unwrap();
        assert_eq!(fields_of(&peer), sorted(vector.peer), "{}", vector.name);
    }
}

#[test]
fn a_node_with_all_fields_is_sent_byte_for_byte_as_the_cpp_plugin_sends_it() {
    let mut complete = 0;
    for vector in vectors() {
        let metadata = &vector.node["metadata"];
        let has = |field: &Field| metadata.get(field.key()).is_some();
        let sent = local(vector.node["id"].as_str().unwrap(), metadata);
        assert_eq!(sent.id, Some(vector.id), "{}", vector.name);
        if Field::ALL.iter().all(has) {
            complete += 1;
            if vector.name == "empty_strings" {
                // For an empty map key, prost writes nothing and protobuf in C++ an empty field,
                // which is the same message.
                assert_eq!(decoded(&sent.header.unwrap()), decoded(&vector.header));
            } else {
                assert_eq!(sent.header, Some(vector.header), "{}", vector.name);
            }
        }
    }
    assert_eq!(complete, 3, "vectors with all eleven fields");
}

#[test]
fn missing_fields_are_absent() {
    for vector in vectors() {
        let metadata = &vector.node["metadata"];
        let sent = local("id", metadata).header;
        match vector.name.as_str() {
            "empty" => assert_eq!(sent, None),
            // Two labels have control characters, see below.
            "containers_edge" => {}
            name => {
                let mut expected = sorted(vector.peer);
                let fields = expected.as_object_mut().unwrap();
                fields.retain(|key, _| metadata.get(key.to_uppercase()).is_some());
                assert_eq!(decoded(&sent.unwrap()), Ok(expected), "{name}");
            }
        }
    }
}

#[test]
fn a_label_that_peers_would_refuse_is_left_out_and_noted() {
    let vectors = vectors();
    let edge = vectors
        .iter()
        .find(|vector| vector.name == "containers_edge")
        .unwrap();
    let mut notes = Vec::new();
    let node = node("id", &edge.node["metadata"]);
    let labels = node.peer(&mut notes).labels.unwrap();
    assert_eq!(labels, [("a,b".into(), "c,d".into())]);
    let left_out = ["LABELS.nl", "LABELS.nul"].map(|key| Note::LeftOut { key: key.into() });
    assert_eq!(notes, left_out);
}
