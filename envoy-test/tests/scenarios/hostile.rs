//! Headers that no proxy sends are removed and refused, and the request is
//! served.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use envoy_test::client::{CALL, PEER_HEADERS, Protocol, raw};
use envoy_test::peer::header;
use envoy_test::soak::{self, Options};
use envoy_test::traffic::{Plan, Shape};
use envoy_test::{Lab, Node, Side, Workload};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{assert_no_peer, assert_peer};

envoy_test::stories!(
    malformed_headers_come_in,
    duplicate_headers_come_in,
    the_longest_headers_come_in,
    thousands_are_hostile_over_http_1,
    thousands_are_hostile_over_http_2,
    what_http_forbids_does_not_arrive_over_http_1,
    what_http_forbids_does_not_arrive_over_http_2,
);

/// Invalid values of the metadata header, with the counter of each.
const MALFORMED: [(&[u8], Option<&str>); 6] = [
    (b"", None),
    (b"!!!!", Some("refused_base64")),
    (b"CgsKBE5BTUUSAxoBeA-_", Some("refused_base64")),
    (b"\xff\xfe", Some("refused_base64")),
    (b"Cv8=", Some("refused_protobuf")),
    (b"CgwKBE5BTUUSBBoCw/8=", Some("refused_protobuf")),
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

/// The first of several headers counts, and all are removed.
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
    assert_eq!(peer.map(|peer| &peer["NAME"]), Some(&json!("x")));
    let received = mesh.app("ratings")?.received("duplicates");
    assert!(
        received
            .iter()
            .all(|one| !one.headers.contains_key(PEER_HEADERS[0]))
    );
    Ok(())
}

/// With raised limits: Envoy returns random numbers for the cache's keys only
/// in pieces, and limits the VM's memory.
async fn the_longest_headers_come_in(lab: &Lab) -> Result<()> {
    const PEERS: usize = 300;
    let raised = json!({ "max_received_bytes": 1_048_576, "max_peer_cache_size": 10_000_000 });
    let ratings = Workload::sidecar("ratings", Node::vm_server()?)
        .configured(&raised)
        .listener("inbound", |listener| {
            listener.connection_manager = json!({ "max_request_headers_kb": 96 });
        });
    let mesh = lab.start([ratings]).await?;
    let address = mesh.address("ratings")?;
    let value = |peer: usize| {
        let name = format!("peer-{peer}-{}", "n".repeat(60_000));
        header(&json!({ "NAME": name }))
    };

    for peer in 0..PEERS {
        let call = format!("longest-{peer}");
        let reply = raw(address, &request(&call, &[value(peer).as_bytes()])).await?;
        assert!(reply.starts_with(b"HTTP/1.1 200 "), "{call}");
    }

    let counter = "wasmcustom.metadata_exchange.downstream_peer_stored";
    mesh.envoy("ratings")?.counts(counter, PEERS as u64).await?;
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

const SEED: u64 = 20_260_714;

async fn thousands_are_hostile_over_http_1(lab: &Lab) -> Result<()> {
    thousands_are_hostile(lab, Protocol::Http1, 12_000).await
}

async fn thousands_are_hostile_over_http_2(lab: &Lab) -> Result<()> {
    thousands_are_hostile(lab, Protocol::Http2, 8_000).await
}

/// Half of the requests are hostile, and no two of these are alike.
async fn thousands_are_hostile(lab: &Lab, protocol: Protocol, requests: u64) -> Result<()> {
    let options = Options {
        requests,
        workers: 2,
        shape: Shape {
            protocol,
            connections: 16,
            at_a_time: 4,
        },
        ..Options::default()
    };
    let plan = Plan::of_hostility(SEED, usize::try_from(requests)?);

    let report = soak::run(lab, options, plan).await?;

    println!("{report}");
    assert_eq!(report.faults(), [""; 0]);
    // Every reason to refuse a header occurred.
    let refusals = report.counts.iter();
    let unmet = refusals
        .filter(|(name, count)| name.starts_with("refused_") && **count == 0)
        .map(|(name, _)| name.as_str());
    let of_trust = [
        "refused_no_direction",
        "refused_trust_mtls",
        "refused_trust_none",
        "refused_trust_spiffe",
    ];
    assert_eq!(unmet.collect::<Vec<_>>(), of_trust);
    Ok(())
}

/// Values that no header may have. Envoy itself rejects such a request.
const FORBIDDEN: [&[u8]; 4] = [b"a\0b", b"a\nb", b"a\x1bb", b"a\x7fb"];

async fn what_http_forbids_does_not_arrive_over_http_1(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([Workload::sidecar("ratings", Node::vm_server()?)])
        .await?;
    let ratings = mesh.address("ratings")?;
    let beyond_60_kib = vec![b'A'; 62_000];

    for value in FORBIDDEN {
        let reply = raw(ratings, &request("forbidden", &[value])).await?;
        assert!(
            reply.starts_with(b"HTTP/1.1 400 "),
            "{value:?}: {}",
            reply.escape_ascii()
        );
    }
    let reply = raw(ratings, &request("forbidden", &[&beyond_60_kib])).await?;
    assert!(
        reply.starts_with(b"HTTP/1.1 431 "),
        "{}",
        reply.escape_ascii()
    );

    assert_eq!(mesh.app("ratings")?.requests(), 0);
    let reply = raw(ratings, &request("allowed", &[b"\xff"])).await?;
    assert!(reply.starts_with(b"HTTP/1.1 200 "));
    Ok(())
}

async fn what_http_forbids_does_not_arrive_over_http_2(lab: &Lab) -> Result<()> {
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::sidecar("ratings", Node::vm_server()?),
        ])
        .await?;
    let ratings = mesh.address("ratings")?;

    for value in FORBIDDEN {
        let answer = http2(ratings, value).await?;
        assert_eq!(answer, Answer::Refused, "{value:?}");
    }

    assert_eq!(mesh.app("ratings")?.requests(), 0);
    // 0x88 is the one byte of `:status: 200`.
    assert_eq!(http2(ratings, b"\xff").await?, Answer::Headers(0x88));
    let reply = mesh.call("productpage", "ratings")?.send().await?;
    let inbound = lab.entry("ratings/inbound", &reply.call).await?;
    assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)
}

/// The outcome of a request over HTTP/2.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The first byte of the header block.
    Headers(u8),
    /// The stream is reset or the connection ends.
    Refused,
}

/// Sends a request whose metadata header is `value` in handmade frames, because
/// libraries refuse to send what HTTP forbids.
async fn http2(to: SocketAddr, value: &[u8]) -> Result<Answer> {
    // GET, http, `/`, and the authority as a literal without indexing.
    let mut block = b"\x82\x86\x84\x01\x07ratings".to_vec();
    block.push(0);
    for text in [PEER_HEADERS[0].as_bytes(), value] {
        block.push(u8::try_from(text.len())?);
        block.extend(text);
    }
    let length = u8::try_from(block.len())?;
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS, empty; HEADERS with END_STREAM and END_HEADERS on stream 1.
    request.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    request.extend([0, 0, length, 1, 5, 0, 0, 0, 1]);
    request.extend(block);

    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&request).await?;
    let answer = timeout(Duration::from_secs(30), answer(&mut stream));
    answer.await.context("no answer")?
}

async fn answer(stream: &mut TcpStream) -> Result<Answer> {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return Ok(Answer::Refused);
        }
        let [high, middle, low, kind, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let mut payload = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut payload).await?;
        match kind {
            // HEADERS, RST_STREAM, GOAWAY
            1 => return Ok(Answer::Headers(*payload.first().context("no headers")?)),
            3 | 7 => return Ok(Answer::Refused),
            _ => {}
        }
    }
}
