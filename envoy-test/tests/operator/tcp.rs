//! `mxctl` and the network filter.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use envoy_test::tcp::{Link, Options, Pair};
use envoy_test::{Lab, Release};
use mxctl::admin;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::tool::{Tool, run};

/// The client's bytes of a connection; the server sends twice as many.
const BYTES: usize = 1000;
/// The connections of each link.
const CONNECTIONS: usize = 3;

/// Answers what it receives up to its end, twice.
async fn server() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = vec![0; BYTES];
                stream.read_exact(&mut bytes).await?;
                stream.write_all(&bytes.repeat(2)).await?;
                stream.shutdown().await
            });
        }
    });
    Ok(address)
}

async fn call(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&[b'x'; BYTES]).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer == [b'x'; 2 * BYTES], "{} bytes", answer.len());
    Ok(())
}

/// Each finding as `code place`.
fn doctor(arguments: &[&str]) -> Result<Vec<String>> {
    let done = run(&[&["doctor", "--json"], arguments].concat(), b"")?;
    let reports = done.json()?;
    let findings = reports[0]["findings"].as_array();
    let findings = findings.with_context(|| format!("{done:?}"))?.iter();
    let line = |one: &Value| {
        let text = |key: &str| one[key].as_str().unwrap_or_default();
        format!("{} {}", text("code"), text("place"))
    };
    Ok(findings.map(line).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_through_the_oldest_envoy() -> Result<()> {
    connections(Release::Oldest).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_through_the_newest_envoy() -> Result<()> {
    connections(Release::Newest).await
}

/// The edge has every connection and its bytes, and the doctor finds nothing wrong with either sidecar.
async fn connections(release: Release) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("connections.jsonl");
    let out = path.to_str().context("a path that is not UTF-8")?;
    let mut tool = Tool::start(&["collect", "--listen", "127.0.0.1:0", "--out", out])?;
    let lab = Lab::new(&release.binary()?)
        .await?
        .logging_to(tool.collector()?);
    let to = server().await?;
    let links = [("echo-plain", false), ("echo-tls", true)];
    let links = links.map(|(name, is_mutual_tls)| Link {
        name: name.to_owned(),
        is_mutual_tls,
        to,
    });
    let pair = Pair::start(&lab, "tcp", &links, &Options::default()).await?;
    for link in &links {
        for _ in 0..CONNECTIONS {
            call(pair.address(&link.name)?).await?;
        }
    }
    let all = u64::try_from(links.len() * CONNECTIONS)?;
    lab.lines(&path, 2 * links.len() * CONNECTIONS).await?;
    let dump = dir.path().join("config_dump.json");
    let file = dump.to_str().context("a path that is not UTF-8")?;
    for envoy in [&pair.client, &pair.server] {
        // The labs' filters do not fail open.
        let expected = ["not_fail_open metadata_exchange"];
        assert_eq!(doctor(&[&envoy.admin_url()])?, expected);
    }
    // What Envoy dumps, with one fault each.
    for (envoy, right, wrong, found) in [
        (
            &pair.server,
            r#"\"protocol\":\"tcp\""#,
            r#"\"protocol\":\"http\""#,
            "filter_idle echo-plain",
        ),
        (
            &pair.client,
            r#"\"echo-plain\""#,
            r#"\"echo-other\""#,
            "unknown_cluster echo-plain",
        ),
        (
            &pair.client,
            r#""OUTBOUND""#,
            r#""UNSPECIFIED""#,
            "no_direction echo-plain",
        ),
        (
            &pair.server,
            r#""wasm.downstream_peer","#,
            "",
            "keys_not_logged echo-plain",
        ),
    ] {
        let configured = admin::get(&envoy.admin_url(), "/config_dump").await?;
        let configured = configured.to_string();
        ensure!(configured.contains(right), "{configured}");
        std::fs::write(&dump, configured.replace(right, wrong))?;
        let findings = doctor(&["--file", file])?;
        ensure!(findings.iter().any(|one| one == found), "{findings:?}");
    }
    tool.signal("-INT")?;
    let done = tool.end()?;
    ensure!(done.status.success(), "{done:?}");
    let lines = done
        .stdout
        .lines()
        .filter(|line| line.contains("productpage-v1.default -> ratings.default  TCP 127.0.0.1:"));
    assert_eq!(lines.count(), done.stdout.lines().count(), "{done:?}");

    for reading in ["mesh", "skywalking"] {
        let graph = run(&["topology", out, "--json", "--as", reading], b"")?.json()?;
        let edges = graph["edges"].as_array().context("no edges")?;
        let [edge] = edges.as_slice() else {
            anyhow::bail!("{graph:#}");
        };
        let name = |end: &str| {
            let number = edge[end].as_u64().unwrap_or_default();
            let workload = graph.pointer(&format!("/workloads/{number}/name"));
            workload.and_then(Value::as_str)
        };
        let ends = (name("from"), name("to"));
        assert_eq!(
            ends,
            (Some("productpage-v1.default"), Some("ratings.default"))
        );
        let bytes = all * u64::try_from(BYTES)?;
        let number = |side: &str, key: &str| edge[side]["tcp"][key].as_u64();
        for side in ["client", "server"] {
            assert_eq!(edge[side]["calls"], json!(0));
            let connections = (reading == "mesh").then_some(all);
            assert_eq!(number(side, "connections"), connections, "{edge:#}");
            assert_eq!(number(side, "open"), None, "{edge:#}");
        }
        assert_eq!(number("client", "received_bytes"), Some(bytes), "{edge:#}");
        assert_eq!(number("client", "sent_bytes"), Some(2 * bytes), "{edge:#}");
        // With the frames.
        assert!(number("server", "received_bytes") > Some(bytes), "{edge:#}");
        assert!(number("server", "sent_bytes") > Some(2 * bytes), "{edge:#}");
    }
    Ok(())
}
