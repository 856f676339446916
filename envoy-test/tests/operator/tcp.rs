//! `mxctl` and the network filter.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use envoy_test::bootstrap::wasm_network_filter;
use envoy_test::tcp::{Link, Options, Pair};
use envoy_test::{FailurePolicy, Lab, Node, Plugin, Release, until};
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
    for envoy in [&pair.client, &pair.server] {
        // The labs' filters do not fail open.
        let expected = ["not_fail_open metadata_exchange"];
        assert_eq!(doctor(&[&envoy.admin_url()])?, expected);
    }
    faults_are_found(&pair).await?;
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

/// What Envoy dumps, with one fault each.
async fn faults_are_found(pair: &Pair) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dump = dir.path().join("config_dump.json");
    let file = dump.to_str().context("a path that is not UTF-8")?;
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
    Ok(())
}

envoy_test::stories!(an_open_connection_counts_once);

/// Envoy logs a connection when it is connected, while it is open, and at its end.
async fn an_open_connection_counts_once(lab: &Lab) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("connections.jsonl");
    let out = path.to_str().context("a path that is not UTF-8")?;
    let mut tool = Tool::start(&["collect", "--listen", "127.0.0.1:0", "--out", out])?;
    let bootstrap = logging_open_connections(lab, server().await?, tool.collector()?)?;
    let envoy = lab.start_envoy(&bootstrap).await?;
    // Of connections alone, whether they are open or not.
    let figures = || -> Result<Value> {
        let graph = run(&["topology", out, "--json"], b"")?.json()?;
        let edges = graph["edges"].as_array().context("no edges")?;
        let [edge] = edges.as_slice() else {
            anyhow::bail!("{graph:#}");
        };
        let callee = edge["to"].as_u64().unwrap_or_default();
        let callee = graph.pointer(&format!("/workloads/{callee}/name"));
        assert_eq!(callee, Some(&json!("db.shop")), "{graph:#}");
        assert_eq!(graph["notes"], json!([]));
        Ok(edge["client"]["tcp"].clone())
    };
    let logged = async |wanted: &str| {
        until(wanted, async || {
            let lines = std::fs::read_to_string(&path).unwrap_or_default();
            Ok(lines
                .lines()
                .any(|line| line.contains(wanted))
                .then_some(()))
        })
        .await
    };

    let mut stream = TcpStream::connect(envoy.listener("db").await?).await?;
    stream.write_all(&[b'x'; 10]).await?;
    logged(r#""received_bytes":10,"#).await?;
    let open =
        json!({ "connections": 0, "open": 1, "errors": 0, "received_bytes": 10, "sent_bytes": 0 });
    assert_eq!(figures()?, open);
    assert_eq!(doctor(&[&envoy.admin_url()])?, ["logged_in_progress db"]);
    stream.write_all(&[b'x'; BYTES - 10]).await?;
    stream.read_to_end(&mut Vec::new()).await?;
    drop(stream);
    until("the end", async || {
        let lines = std::fs::read_to_string(&path).unwrap_or_default();
        let is_end = |line: &str| line.ends_with('}') && !line.contains(r#""intermediate":true"#);
        Ok(lines.lines().any(is_end).then_some(()))
    })
    .await?;
    let ended = json!({ "connections": 1, "open": 0, "errors": 0, "received_bytes": BYTES, "sent_bytes": 2 * BYTES });
    assert_eq!(figures()?, ended);
    tool.signal("-INT")?;
    tool.end()?;
    Ok(())
}

/// An outbound sidecar, whose `tcp_proxy` logs open connections.
fn logging_open_connections(lab: &Lab, server: SocketAddr, collector: SocketAddr) -> Result<Value> {
    const SERVICE: &str = "outbound|5432||db.shop.svc.cluster.local";
    let node = Node::pod_client()?;
    let plugin = Plugin {
        configuration: json!({ "protocol": "tcp" }),
        failure_policy: FailurePolicy::Open,
        ..Plugin::default()
    };
    let address = |at: SocketAddr| json!({ "socket_address": { "address": at.ip(), "port_value": at.port() } });
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let cluster = |name: &str, at: SocketAddr| {
        json!({ "name": name, "load_assignment": { "cluster_name": name, "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": address(at) } }] },
        ] } })
    };
    let mut logs = cluster("logs", collector);
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    logs["typed_extension_protocol_options"] = json!({ options: {
        "@type": format!("type.googleapis.com/{options}"),
        "explicit_http_config": { "http2_protocol_options": {} },
    } });
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "db",
        "cluster": SERVICE,
        "access_log_options": {
            "access_log_flush_interval": "0.1s",
            "flush_access_log_on_connected": true,
        },
        "access_log": [{ "name": "envoy.access_loggers.tcp_grpc", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
            "common_config": {
                "log_name": "db/outbound",
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": "logs" } },
                "buffer_size_bytes": 0,
                "filter_state_objects_to_log": ["wasm.upstream_peer", "wasm.upstream_peer_id"],
            },
        } }],
    });
    Ok(json!({
        "node": { "id": node.id, "cluster": "productpage", "metadata": node.metadata },
        "admin": { "address": address(any) },
        "static_resources": {
            "listeners": [{
                "name": "db",
                "address": address(any),
                "traffic_direction": "OUTBOUND",
                "filter_chains": [{ "filters": [
                    wasm_network_filter(&plugin, lab.module()),
                    { "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy },
                ] }],
            }],
            "clusters": [cluster(SERVICE, server), logs],
        },
    }))
}
