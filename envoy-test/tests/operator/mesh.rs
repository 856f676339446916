//! `mxctl` with the logs of real Envoys.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use envoy_test::consumers::log_by_otlp;
use envoy_test::consumers::metrics::prometheus;
use envoy_test::{Lab, Node, Release, Workload, boutique};
use serde_json::Value;

use crate::tool::{Done, PATIENCE, Tool, run};

/// `caller -> callee (kinds) seen by`
fn edges(graph: &Value) -> Result<Vec<String>> {
    let workloads = graph["workloads"].as_array().context("no workloads")?;
    let end = |number: &Value| {
        let number = usize::try_from(number.as_u64().unwrap_or(u64::MAX)).ok()?;
        let workload = workloads.get(number)?;
        Some(format!(
            "{} {}",
            workload["kind"].as_str()?,
            workload["name"].as_str()?
        ))
    };
    let edges = graph["edges"].as_array().context("no edges")?.iter();
    let line = |edge: &Value| {
        let calls = |side: &str| edge[side]["calls"].as_u64().unwrap_or(0);
        let (from, to) = (end(&edge["from"])?, end(&edge["to"])?);
        Some(format!(
            "{from} -> {to}: {}/{}",
            calls("client"),
            calls("server")
        ))
    };
    edges
        .map(|edge| line(edge).context("an edge without caller or callee"))
        .collect()
}

/// What a workload runs on, in front of its name.
const KINDS: [&str; 4] = ["pod", "vm", "gateway", "unknown"];

fn topology(path: &str, reading: &str) -> Result<Value> {
    let done: Done = run(&["topology", path, "--json", "--as", reading], b"")?;
    ensure!(done.status.success(), "{done:?}");
    done.json()
}

envoy_test::stories!(the_topology_from_otlp_logs);

/// Records of the OpenTelemetry log are entries like those of the gRPC access log.
async fn the_topology_from_otlp_logs(lab: &Lab) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("calls.jsonl");
    let mut tool = Tool::start(&[
        "collect",
        "--listen",
        "127.0.0.1:0",
        "--out",
        path.to_str().context("a path that is no text")?,
    ])?;
    let _sidecars = log_by_otlp(lab, tool.collector()?).await?;
    // Fourteen records, the last of which Envoy sends within a second.
    lab.lines(&path, 14).await?;
    tool.signal("-INT")?;
    let done = tool.end()?;
    ensure!(done.status.success(), "{done:?}");

    let entries: Vec<Value> = std::fs::read_to_string(&path)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let failed = entries.iter().filter(|entry| entry["status"] == 503);
    assert_eq!(failed.count(), 4);
    for entry in &entries {
        assert_eq!(entry["method"], "GET", "{entry}");
        assert!(
            entry["start"]
                .as_str()
                .is_some_and(|start| start.starts_with("20")),
            "{entry}"
        );
        assert!(entry["duration_us"].is_u64(), "{entry}");
        let id = entry["reporter"]["id"].as_str().unwrap_or_default();
        assert!(id.starts_with("sidecar~"), "{entry}");
    }
    let path = path.to_str().context("a path that is no text")?;
    let edges = edges(&topology(path, "mesh")?)?;
    for (from, to) in [
        ("ratings.vms -> ", "productpage.default: 5/5"),
        ("checkout.shop -> ", "ratings.vms: 0/2"),
    ] {
        let is_it = |edge: &String| edge.contains(from) && edge.ends_with(to);
        assert!(edges.iter().any(is_it), "{edges:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topology_of_a_mesh_of_real_envoys() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("calls.jsonl");
    let path = path.to_str().context("a path that is not UTF-8")?;
    let mut tool = Tool::start(&["collect", "--listen", "127.0.0.1:0", "--out", path])?;
    let lab = Lab::new(&Release::Newest.binary()?)
        .await?
        .logging_to(tool.collector()?);
    let mesh = lab
        .start([
            Workload::sidecar("productpage", Node::pod_client()?),
            Workload::sidecar("ratings", Node::vm_server()?),
            Workload::istio_gateway("gateway", Node::gateway()?),
            Workload::bare("legacy"),
        ])
        .await?;
    // Entries of a gateway, two sidecars and a single one.
    for (from, to, path) in [
        ("gateway", "productpage", "/status/200"),
        ("productpage", "ratings", "/status/503"),
        ("productpage", "ratings", "/status/200"),
        ("legacy", "ratings", "/status/404"),
    ] {
        mesh.call(from, to)?.path(path).send().await?;
    }
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..7 {
        let line = tool.line()?;
        ensure!(Instant::now() < deadline, "the entries are late: {line}");
    }
    let encoded = run(
        &[
            "encode",
            "--json",
            "--admin",
            &mesh.envoy("ratings")?.admin_url(),
        ],
        b"",
    )?;
    assert_eq!(encoded.json()?["id"], Value::from(Node::vm_server()?.id));
    tool.signal("-INT")?;
    let done = tool.end()?;
    ensure!(done.status.success(), "{done:?}");

    let graph = topology(path, "mesh")?;
    let gateway = "gateway istio-ingressgateway.istio-system";
    let productpage = "pod productpage-v1.default";
    assert_eq!(
        edges(&graph)?,
        [
            format!("{gateway} -> {productpage}: 1/1"),
            format!("{productpage} -> vm ratings.default: 2/2"),
            format!("unknown unknown -> {gateway}: 0/1"),
            "unknown unknown -> vm ratings.default: 0/1".to_owned(),
        ]
    );
    assert_eq!(graph["edges"][1]["client"]["errors"], Value::from(1));
    assert_eq!(graph["edges"][3]["server"]["client_errors"], Value::from(1));
    assert!(graph["edges"][1]["client"]["latency_ms"]["p50"].is_number());
    assert_eq!(graph["notes"], Value::from(Vec::<Value>::new()));

    // SkyWalking draws no edge for a caller without metadata, except in front
    // of a gateway.
    let edges_of_skywalking = edges(&topology(path, "skywalking")?)?;
    assert_eq!(edges_of_skywalking.len(), 3, "{edges_of_skywalking:?}");
    assert!(
        edges_of_skywalking
            .iter()
            .any(|edge| edge.starts_with("unknown UNKNOWN -> "))
    );
    Ok(())
}

/// A whole mesh, whose Envoys are replaced in between: Prometheus answers exactly the calls that were made, of every edge and
/// both reporters, and the tool draws the same of it as of the access logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_whom_by_prometheus() -> Result<()> {
    let Some(program) = prometheus::program() else {
        println!("SKIPPED: {}", prometheus::missing());
        ensure!(std::env::var_os("NO_SKIPPING").is_none(), "skipped");
        return Ok(());
    };
    let envoy = Release::Newest.binary()?;
    let metered = boutique::run_metered(&envoy, &program, 9).await?;
    let prometheus = &metered.prometheus;

    let mut found = BTreeMap::new();
    for (labels, calls) in prometheus.totals("istio_requests_total").await? {
        let label = |name: &str| labels.get(name).map_or("", String::as_str);
        assert_eq!(label("response_code"), "200", "{labels:?}");
        let source = match label("source_canonical_service") {
            "istio-ingressgateway" => "gateway",
            name => name,
        };
        // The one outside has no names but its host.
        let destination = match label("destination_canonical_service") {
            "unknown" => label("destination_service"),
            name => name,
        };
        let edge = [label("reporter"), source, destination].map(str::to_owned);
        *found.entry(edge).or_insert(0) += calls;
    }
    let expected = metered
        .expected
        .iter()
        .map(|((reporter, from, to), calls)| {
            ([reporter, from, to].map(|name| (*name).to_owned()), *calls)
        });
    assert_eq!(found, expected.collect::<BTreeMap<_, _>>());
    // Of one edge, by its counter as it is now: the restart is in the samples.
    let now = prometheus
        .query("sum(istio_requests_total{reporter=\"source\", source_workload=\"checkout\", destination_workload=\"payment\"})")
        .await?;
    println!(
        "checkout -> payment since the restart: {}",
        now[0]["value"][1]
    );
    assert_eq!(now[0]["value"][1], "3");

    let done = run(
        &["topology", "--prometheus", &prometheus.url(), "--json"],
        b"",
    )?;
    ensure!(done.status.success(), "{done:?}");
    let nameless = |edges: Vec<String>| -> Vec<String> {
        // Metrics do not have kinds, and a gateway reports nothing of its own callers.
        let is_in_metrics = |edge: &String| !edge.starts_with("unknown unknown -> gateway ");
        let in_metrics = edges.into_iter().filter(is_in_metrics);
        in_metrics
            .map(|edge| {
                let words = edge.split(' ').filter(|word| !KINDS.contains(word));
                words.collect::<Vec<_>>().join(" ")
            })
            .collect()
    };
    let by_metrics = nameless(edges(&done.json()?)?);
    let by_logs = nameless(edges(&serde_json::to_value(&metered.logged)?)?);
    println!("{by_metrics:#?}");
    assert_eq!(by_metrics.len(), 16);
    assert_eq!(by_metrics, by_logs);
    Ok(())
}
