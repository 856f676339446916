//! Headers, `FlatNode`s and log messages, whole and broken.

use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use metadata_exchange::peer::Peer;

use super::*;

fn peer() -> Peer {
    Peer {
        name: Some("pay-1".into()),
        labels: Some(vec![("app".into(), "pay".into())]),
        ..Peer::default()
    }
}

fn broken(form: Form, input: &[u8]) -> (Option<usize>, String) {
    let broken = decode(form, input).unwrap_err();
    (broken.offset, broken.reason)
}

#[test]
fn a_header_decodes_to_its_metadata() {
    let value = format!(" {}\n", header::encode(&peer()));
    let decoded = decode(Form::Header, value.as_bytes()).unwrap();
    assert_eq!(
        decoded["metadata"],
        json!({ "NAME": "pay-1", "LABELS": { "app": "pay" } })
    );
    assert_eq!(decoded["accepted"], json!(true));
}

#[test]
fn a_header_that_the_filter_refuses_is_decoded() {
    let labels = (0..300).map(|number| (format!("l{number}"), String::new()));
    let peer = Peer {
        labels: Some(labels.collect()),
        ..peer()
    };
    let decoded = decode(Form::Header, header::encode(&peer).as_bytes()).unwrap();
    assert_eq!(decoded["accepted"], json!(false));
    assert_eq!(
        decoded["refused"],
        json!("more than max_labels 256 entries in a map or list")
    );
    assert_eq!(
        decoded["metadata"]["LABELS"].as_object().unwrap().len(),
        300
    );
    // {OTHER: ""}
    let empty = decode(Form::Header, b"CgsKBU9USEVSEgIaAA==").unwrap();
    assert_eq!(empty["refused"], json!("says nothing about the workload"));
}

#[test]
fn an_empty_header_is_an_error() {
    for form in [Form::Header, Form::FlatNode, Form::Als] {
        for input in ["", " \n", "''", "x-envoy-peer-metadata: "] {
            let broken = decode(form, input.as_bytes()).unwrap_err();
            assert!(broken.is_empty(), "{form:?} {input:?}: {broken}");
        }
    }
    assert!(!decode(Form::Header, b"_").unwrap_err().is_empty());
}

/// The error names what the input looks like.
#[test]
fn an_error_says_what_the_input_looks_like() {
    let encoded = header::encode(&peer());
    let flat = BASE64_STANDARD.encode(flat::write(&peer()));
    let identifier = Identifier {
        log_name: "log".to_owned(),
        ..Identifier::default()
    };
    let log = StreamAccessLogsMessage {
        identifier: Some(identifier),
        ..StreamAccessLogsMessage::default()
    };
    let log = BASE64_STANDARD.encode(log.encode_to_vec());
    let twice = BASE64_STANDARD.encode(&encoded);
    let (of_json, of_bytes) = (
        BASE64_STANDARD.encode(r#"{"NAME":"a"}"#),
        json!({
            "@type": "type.googleapis.com/google.protobuf.BytesValue", "value": flat,
        }),
    );
    let of_bytes = of_bytes.to_string();
    let log_json = json!({ "httpLogs": { "logEntry": [] } }).to_string();
    for (form, input, expected) in [
        (Form::Header, "Cgw-KBE_", "URL-safe base64"),
        (Form::Header, "Cgw%2BKBE%3D", "percent-encoded"),
        (Form::Header, "CgwKBE5BTUUS...", "cut short"),
        (Form::Header, "sidecar~10.0.0.1~a.b~c.svc", "a node id"),
        (
            Form::Header,
            "x-envoy-peer-metadata-id: a",
            "x-envoy-peer-metadata-id",
        ),
        (Form::Header, "0a0c0a044e414d4512041a0261", "hexadecimal"),
        (Form::Header, r#"{"NAME": "a"}"#, "mxctl encode"),
        (Form::Header, &of_bytes, "mxctl decode flat-node"),
        (Form::Header, &log_json, "mxctl decode als"),
        (Form::Header, r#"{"a": "#, "begins like JSON"),
        (Form::Header, &flat, "mxctl decode flat-node"),
        (Form::Header, &log, "mxctl decode als"),
        (Form::Header, &of_json, "base64 of JSON"),
        (Form::Header, &twice, "base64 of base64"),
        (Form::Header, "eyJhbGciOi.eyJz.x", "JSON Web Token"),
        (Form::Header, "-----BEGIN CERTIFICATE-----", "PEM"),
        (Form::Header, "not a header, really", "plain text"),
        (Form::FlatNode, &encoded, "mxctl decode header"),
        (Form::FlatNode, &log, "mxctl decode als"),
        (Form::FlatNode, r#"{"NAME": "a"}"#, "mxctl encode"),
        (Form::FlatNode, "Cgw-KBE_", "URL-safe base64"),
        (Form::Als, &flat, "mxctl decode flat-node"),
        (Form::Als, &encoded, "mxctl decode header"),
        (Form::Als, &of_bytes, "mxctl decode flat-node"),
        (Form::Als, r#"{"NAME": "a"}"#, "mxctl encode"),
        (
            Form::Als,
            r#"{"version":1,"reporter":{},"protocol":"http"}"#,
            "mxctl topology",
        ),
    ] {
        let broken = decode(form, input.as_bytes()).unwrap_err();
        assert!(
            broken.reason.contains(expected),
            "{form:?} {input}: {broken}"
        );
    }
}

#[test]
fn a_pasted_header_line_is_decoded() {
    let value = header::encode(&peer());
    let (first, second) = value.split_at(20);
    for pasted in [
        format!("x-envoy-peer-metadata: {value}"),
        format!("'x-envoy-peer-metadata', '{value}'"),
        format!("[\"{value}\"]"),
        format!("{first}\n    {second}"),
    ] {
        let decoded = decode(Form::Header, pasted.as_bytes()).unwrap();
        assert_eq!(decoded["metadata"]["NAME"], json!("pay-1"), "{pasted}");
    }
}

#[test]
fn an_als_message_may_be_json() {
    let flat = BASE64_STANDARD.encode(flat::write(&peer()));
    let bytes = "type.googleapis.com/google.protobuf.BytesValue";
    let text = "type.googleapis.com/google.protobuf.Struct";
    let named_as_json = json!({
        "identifier": { "node": { "id": "sidecar~1", "metadata": { "NAME": "a" } },
                        "logName": "log" },
        "httpLogs": { "logEntry": [{
            "commonProperties": {
                "startTime": "2026-11-27T19:00:00.25Z",
                "timeToLastDownstreamTxByte": "0.003500s",
                "upstreamCluster": "outbound|80||b",
                "upstreamRemoteAddress": {
                    "socketAddress": { "address": "10.0.0.1", "portValue": 80 } },
                "downstreamRemoteAddress": { "pipe": { "path": "/a" } },
                "responseFlags": { "upstreamRequestTimeout": true,
                                   "unauthorizedDetails": {} },
                "filterStateObjects": {
                    "wasm.upstream_peer": { "@type": bytes, "value": flat },
                    "wasm.upstream_peer_id": { "@type": bytes, "value": "Yg==" },
                    "upstream_peer": { "@type": text, "value": { "name": "b" } },
                },
                "accessLogType": "DownstreamPeriodic",
            },
            "request": { "requestMethod": "GET", "authority": "b", "path": "/x" },
            "response": { "responseCode": 504 },
        }] },
    });
    let declared = crate::declared_names::with_declared_names(named_as_json.clone());
    let twice = format!("{named_as_json}\n{declared}");
    for (input, count) in [
        (named_as_json.to_string(), 1),
        (declared.to_string(), 1),
        (json!([named_as_json, declared]).to_string(), 2),
        (twice, 2),
    ] {
        let decoded = decode(Form::Als, input.as_bytes()).unwrap();
        assert_eq!(decoded["reporter"]["metadata"]["NAME"], json!("a"));
        let entries = decoded["entries"].as_array().unwrap();
        assert_eq!(entries.len(), count);
        for entry in entries {
            let mut entry = entry.clone();
            entry.as_object_mut().unwrap().remove("reporter");
            let peer = json!({ "NAME": "pay-1", "LABELS": { "app": "pay" } });
            let state = &entry["state"];
            assert_eq!(state["wasm.upstream_peer"]["metadata"], peer);
            assert_eq!(state["wasm.upstream_peer_id"]["id"], json!("b"));
            let native = json!({ "name": "b" });
            assert_eq!(state["upstream_peer"]["metadata"], native);
            entry.as_object_mut().unwrap().remove("state");
            assert_eq!(
                entry,
                json!({
                    "version": entry["version"], "protocol": "http",
                    "start": "2026-11-27T19:00:00.25Z", "duration_us": 3500,
                    "method": "GET", "authority": "b", "path": "/x", "status": 504,
                    "flags": ["UT", "UAEX"], "upstream_cluster": "outbound|80||b",
                    "downstream_address": "/a", "upstream_address": "10.0.0.1:80",
                    "intermediate": true,
                })
            );
        }
    }
    let tcp = json!({ "tcpLogs": { "logEntry": [{ "commonProperties": {} }] } });
    let decoded = decode(Form::Als, tcp.to_string().as_bytes()).unwrap();
    assert_eq!(decoded["entries"][0]["protocol"], json!("tcp"));
    // 64-bit numbers are strings in Protobuf's JSON.
    let connection = json!({ "receivedBytes": "5000000000", "sentBytes": 7 });
    let common = json!({ "streamId": "one", "accessLogType": "TcpPeriodic" });
    let tcp = json!({ "tcpLogs": { "logEntry": [
        { "commonProperties": common, "connectionProperties": connection },
    ] } });
    let decoded = decode(Form::Als, tcp.to_string().as_bytes()).unwrap();
    let entry = &decoded["entries"][0];
    assert_eq!(entry["stream_id"], json!("one"));
    assert_eq!(entry["received_bytes"], json!(5_000_000_000_u64));
    assert_eq!(entry["sent_bytes"], json!(7));
    assert_eq!(entry["intermediate"], json!(true));
    for (wrong, expected) in [
        (json!({ "startTime": "yesterday" }), "RFC 3339"),
        (json!({ "duration": 5 }), "a duration"),
        (
            json!({ "filterStateObjects": { "a": {} } }),
            "filter state a: no @type",
        ),
    ] {
        let wrong = json!({ "tcpLogs": { "logEntry": [{ "commonProperties": wrong }] } });
        let (_, reason) = broken(Form::Als, wrong.to_string().as_bytes());
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn an_error_has_the_offset_in_the_header() {
    let (offset, reason) = broken(Form::Header, b"  AAAA_AAA");
    assert_eq!(offset, Some(6));
    assert!(reason.starts_with("not standard base64"), "{reason}");
    assert_eq!(broken(Form::Header, b"AAAAA").0, Some(5), "its end");
    let message = wire::encode(&peer());
    let cut = BASE64_STANDARD.encode(&message[..message.len() - 3]);
    let (offset, reason) = broken(Form::Header, cut.as_bytes());
    assert!(offset.is_some_and(|offset| offset < message.len()));
    assert!(
        reason.starts_with("not a google.protobuf.Struct: "),
        "{reason}"
    );
}

#[test]
fn a_bad_text_has_its_offset_and_key() {
    let message = wire::encode(&peer());
    let index = message
        .windows(3)
        .position(|three| three == b"pay")
        .unwrap();
    let broken_by = |byte| {
        let mut message = message.clone();
        message[index + 1] = byte;
        broken(Form::Header, BASE64_STANDARD.encode(&message).as_bytes())
    };
    let (offset, reason) = broken_by(b'\n');
    assert_eq!(reason, "a control character in a text of LABELS.app");
    assert_eq!(offset, Some(index + 1));
    // The library reports where it stopped, and that a string is not UTF-8.
    let (offset, reason) = broken_by(0xFF);
    assert!(reason.contains("UTF-8"), "{reason}");
    assert!(offset.is_some_and(|offset| offset > index), "{offset:?}");
}

/// If there are several, the first by key is reported; keys that the filter does not read are
/// ignored.
#[test]
fn the_offset_is_that_of_the_reported_text() {
    let text = |key: &str| {
        let value = [&[3 << 3 | 2, 3], &b"a\nb"[..]].concat();
        let key = [&[10, u8::try_from(key.len()).unwrap()], key.as_bytes()].concat();
        let entry = [&key[..], &[18, 5], &value].concat();
        [&[10, u8::try_from(entry.len()).unwrap()], &entry[..]].concat()
    };
    let unread = text("SOMETHING_ELSE");
    for (message, whose, index) in [
        (
            [unread.clone(), text("OWNER")].concat(),
            "OWNER",
            unread.len() + 14,
        ),
        ([text("OWNER"), text("NAME")].concat(), "NAME", 16 + 13),
    ] {
        let (offset, said) = broken(Form::Header, BASE64_STANDARD.encode(message).as_bytes());
        assert_eq!(said, format!("a control character in a text of {whose}"));
        assert_eq!(offset, Some(index));
    }
}

#[test]
fn a_flat_node_is_decoded_bare_or_from_a_log() {
    let bytes = flat::write(&peer());
    let text = BASE64_STANDARD.encode(&bytes);
    let typed = json!({ "@type": "type.googleapis.com/google.protobuf.BytesValue", "value": text });
    let envelope = BytesValue { value: bytes }.encode_to_vec();
    for input in [text, typed.to_string(), BASE64_STANDARD.encode(envelope)] {
        let decoded = decode(Form::FlatNode, input.as_bytes()).unwrap();
        assert_eq!(decoded["metadata"]["NAME"], json!("pay-1"), "{input}");
    }
    let (offset, reason) = broken(Form::FlatNode, b"//////8=");
    assert!(offset.is_none_or(|offset| offset <= 5), "{reason}");
    assert!(reason.starts_with("not a FlatNode: "), "{reason}");
    let mut cut = flat::write(&peer());
    cut.truncate(cut.len() - 8);
    let (offset, reason) = broken(Form::FlatNode, BASE64_STANDARD.encode(&cut).as_bytes());
    assert!(
        offset.is_some_and(|offset| offset <= cut.len()),
        "{offset:?} {reason}"
    );
    assert!(broken(Form::FlatNode, b"{}").1.contains("\"value\""));
}

#[test]
fn an_als_message_decodes_to_its_entries() {
    use envoy_types::pb::envoy::config::core::v3::Node;
    use envoy_types::pb::envoy::data::accesslog::v3::{HttpAccessLogEntry, HttpRequestProperties};
    use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
        HttpAccessLogEntries, LogEntries,
    };
    let request = HttpRequestProperties {
        path: "/pay".to_owned(),
        ..HttpRequestProperties::default()
    };
    let log_entry = vec![HttpAccessLogEntry {
        request: Some(request),
        ..HttpAccessLogEntry::default()
    }];
    let node = Node {
        id: "sidecar~1".to_owned(),
        ..Node::default()
    };
    let message = StreamAccessLogsMessage {
        identifier: Some(Identifier {
            node: Some(node),
            log_name: "log".to_owned(),
        }),
        log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry })),
    }
    .encode_to_vec();
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(&message);
    let twice = [framed.clone(), framed].concat();
    let text = BASE64_STANDARD.encode(&message).into_bytes();
    for (input, count) in [(&message, 1), (&twice, 2), (&text, 1)] {
        let decoded = decode(Form::Als, input).unwrap();
        assert_eq!(decoded["reporter"]["id"], json!("sidecar~1"));
        assert_eq!(decoded["entries"].as_array().unwrap().len(), count);
        assert_eq!(decoded["entries"][0]["path"], json!("/pay"));
    }
    let (offset, reason) = broken(Form::Als, &message[..message.len() - 2]);
    assert!(
        offset.is_some_and(|offset| offset <= message.len()),
        "{reason}"
    );
    assert!(reason.contains("failed to decode"), "{reason}");
    let mut bad = twice;
    let start = 2 * 5 + message.len();
    bad[start] = 7;
    assert_eq!(broken(Form::Als, &bad).0, Some(start + 1));
}
