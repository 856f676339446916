//! Headers that no proxy sends: stripped and refused, and the request served.

use anyhow::Result;
use envoy_test::client::{CALL, PEER_HEADERS, raw};
use envoy_test::{Lab, Node, Side, Workload};

use crate::assert_no_peer;

envoy_test::stories!(malformed_headers_come_in, duplicate_headers_come_in);

/// Values of the metadata header that mean nothing, with the counter of each.
const MALFORMED: [(&[u8], Option<&str>); 6] = [
    (b"", None),
    (b"!!!!", Some("refused_base64")),
    (b"CgsKBE5BTUUSAxoBeA-_", Some("refused_base64")),
    (b"\xff\xfe", Some("refused_base64")),
    (b"Cv8=", Some("refused_protobuf")),
    (b"CgwKBE5BTUUSBBoCw/8=", Some("refused_utf8")),
];

async fn malformed_headers_come_in(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::bare("outsider"),
            Workload::sidecar("ratings", Node::vm_server()?),
        ])
        .await?;
    let ratings = mesh.address("ratings")?;

    for (number, (value, counter)) in MALFORMED.into_iter().enumerate() {
        let call = format!("malformed-{number}");
        let reply = raw(ratings, &request(&call, &[value])).await?;

        assert!(reply.starts_with(b"HTTP/1.1 200 "), "{call}");
        assert!(!has_peer_header(&reply), "{call}");
        let received = mesh.app("ratings")?.received(&call);
        assert!(
            received
                .iter()
                .all(|one| !one.headers.contains_key(PEER_HEADERS[0]))
        );
        assert_eq!(received.len(), 1, "{call}");
        let inbound = lab.entry("ratings/inbound", &call).await?;
        assert_no_peer(&inbound, Side::Downstream)?;
        if let Some(counter) = counter {
            let counter = format!("wasmcustom.metadata_exchange.{counter}");
            mesh.envoy("ratings")?.counts(&counter, 1).await?;
        }
    }
    Ok(())
}

/// The first of several headers counts, and all are stripped.
async fn duplicate_headers_come_in(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([Workload::sidecar("ratings", Node::vm_server()?)])
        .await?;
    let ratings = mesh.address("ratings")?;
    // {"NAME": "x"}, {"NAME": "y"}
    let (x, y) = (b"CgsKBE5BTUUSAxoBeA==", b"CgsKBE5BTUUSAxoBeQ==");

    let reply = raw(ratings, &request("duplicates", &[x, y, b""])).await?;

    assert!(reply.starts_with(b"HTTP/1.1 200 "));
    let inbound = lab.entry("ratings/inbound", "duplicates").await?;
    let peer = inbound.peer(Side::Downstream)?;
    assert_eq!(peer.and_then(|peer| peer.name).as_deref(), Some("x"));
    let received = mesh.app("ratings")?.received("duplicates");
    assert!(
        received
            .iter()
            .all(|one| !one.headers.contains_key(PEER_HEADERS[0]))
    );
    Ok(())
}

fn request(call: &str, values: &[&[u8]]) -> Vec<u8> {
    let mut request = b"GET / HTTP/1.1\r\nhost: ratings\r\nconnection: close\r\n".to_vec();
    request.extend(format!("{CALL}: {call}\r\n").bytes());
    for value in values {
        request.extend(format!("{}: ", PEER_HEADERS[0]).bytes());
        request.extend(*value);
        request.extend(b"\r\n");
    }
    request.extend(b"\r\n");
    request
}

fn has_peer_header(reply: &[u8]) -> bool {
    String::from_utf8_lossy(reply).contains(PEER_HEADERS[0])
}
