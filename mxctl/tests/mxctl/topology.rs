//! `mxctl topology`, of recorded entries

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::stream::{Stream, peer};
use crate::tool::{PATIENCE, Tool, run, run_unheard, silent_connections};

/// A recorded call to the service `callee`.
pub(crate) fn line(caller: &str, callee: &str, status: u32) -> String {
    let metadata = |name: &str| {
        json!({ "NAME": format!("{name}-1"), "NAMESPACE": "shop", "LABELS": { "app": name },
            "APP_CONTAINERS": "main" })
    };
    let entry = json!({
        "version": 1,
        "reporter": { "log": "x/outbound", "id": "sidecar~1~x~y", "metadata": metadata(caller) },
        "protocol": "http", "status": status, "duration_us": 4_000,
        "state": { "wasm.upstream_peer": { "kind": "flat", "metadata": metadata(callee) } },
    });
    format!("{entry}\n")
}

const SCRIPT: &str = "<script>document.title='hacked'</script>";
const SEQUENCE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}";

#[test]
fn a_recording_is_a_table() -> Result<()> {
    let lines = line("a", "b", 200).repeat(3) + &line("a", "b", 500) + &line("b", "c", 404);
    let done = run(&["topology", "-"], lines.as_bytes())?;
    ensure!(done.status.success(), "{done:?}");
    let words = |callee: &str| -> Vec<String> {
        let mut rows = done.stdout.lines().filter(|line| line.contains(callee));
        let row = rows.next().unwrap_or_default();
        row.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(
        words("b.shop")[..8].join(" "),
        "a.shop (pod) b.shop (pod) client 4 1 0"
    );
    assert_eq!(
        words("c.shop")[..8].join(" "),
        "b.shop (pod) c.shop (pod) client 1 0 1"
    );
    assert!(
        done.stdout.ends_with("3 workloads, 2 edges of 5 entries\n"),
        "{}",
        done.stdout
    );
    Ok(())
}

#[test]
fn hostile_names_are_contained_in_every_format() -> Result<()> {
    let lines = line("a", SCRIPT, 200) + &line("a", SEQUENCE, 200) + &line("a", "\"];x[\"", 200);
    for format in ["table", "json", "svg", "html", "dot", "mermaid"] {
        for reading in ["mesh", "skywalking"] {
            let arguments = ["topology", "-", "--format", format, "--as", reading];
            let done = run(&arguments, lines.as_bytes())?;
            ensure!(done.status.success(), "{format}: {done:?}");
            let out = &done.stdout;
            ensure!(
                !out.contains(['\u{1b}', '\u{7}', '\u{202e}']),
                "{format}: {out}"
            );
            ensure!(out.contains("hacked"), "{format} lacks the name: {out}");
            if ["svg", "html", "mermaid"].contains(&format) {
                ensure!(!out.contains("<script>document"), "{format}: {out}");
            }
            if format == "dot" || format == "mermaid" {
                ensure!(!out.contains("\"];x[\""), "{format}: {out}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_json_has_every_value_and_the_metadata() -> Result<()> {
    let done = run(&["topology", "-", "--json"], line("a", "b", 503).as_bytes())?;
    let graph = done.json()?;
    assert_eq!(graph["workloads"][1]["name"], json!("b.shop"));
    assert_eq!(
        graph["workloads"][1]["instances"][0]["metadata"]["APP_CONTAINERS"],
        json!("main")
    );
    let edge = &graph["edges"][0];
    assert_eq!((&edge["from"], &edge["to"]), (&json!(0), &json!(1)));
    assert_eq!(edge["client"]["errors"], json!(1));
    assert_eq!(edge["server"], Value::Null);
    Ok(())
}

#[test]
fn an_invalid_entry_is_reported_with_its_line() -> Result<()> {
    let lines = line("a", "b", 200) + "{\"version\":9}\n\n" + &line("a", "b", 200)[..40];
    let done = run(&["topology", "-"], lines.as_bytes())?;
    ensure!(done.status.success(), "{done:?}");
    assert!(done.stderr.contains("mxctl: -:2: no entry: "), "{done:?}");
    assert!(
        done.stderr.contains("mxctl: -: 2 lines are not entries"),
        "{done:?}"
    );
    assert!(done.stdout.contains("1 edge of 1 entry"), "{done:?}");
    let done = run(&["topology"], b"")?;
    ensure!(
        !done.status.success() && done.stderr.contains("--listen"),
        "{done:?}"
    );
    Ok(())
}

#[test]
fn services_are_named_by_a_custom_rule() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let rule = dir.path().join("mapping.yaml");
    std::fs::write(
        &rule,
        "serviceName: ${NAMESPACE}/${NAME}\nserviceInstanceName: ${NAME}\n",
    )?;
    let mapping = rule.to_str().unwrap_or_default();
    let done = run(
        &["topology", "-", "--mapping", mapping],
        line("a", "b", 200).as_bytes(),
    )?;
    assert!(done.stdout.contains("shop/b-1 (pod)"), "{done:?}");
    std::fs::write(&rule, "serviceName: ${\nserviceInstanceName: ${NAME}\n")?;
    let done = run(&["topology", "-", "--mapping", mapping], b"")?;
    ensure!(
        done.stderr.contains("mapping.yaml: serviceName: "),
        "{done:?}"
    );
    Ok(())
}

#[test]
fn bad_lines_are_counted_in_the_graph_silently() -> Result<()> {
    let lines = line("a", "b", 200) + "{\"version\":9}\nx\n";
    let done = run(&["topology", "-", "--json"], lines.as_bytes())?;
    let note = "a line of a file that is not an entry: skipped";
    assert_eq!(done.json()?["notes"], json!([{ "note": note, "count": 2 }]));
    let arguments = ["topology", "-", "--out", "/dev/null"];
    let unheard = run_unheard(&arguments, lines.as_bytes())?;
    ensure!(unheard.success(), "{unheard}");
    Ok(())
}

#[test]
fn a_file_without_any_entry_is_an_error() -> Result<()> {
    let newer = line("a", "b", 200).replace("\"version\":1", "\"version\":9");
    for (lines, expected) in [
        ("root:x:0:0\nbin:x:1:1\n", "expected value"),
        (&*newer, "an entry of version 9"),
    ] {
        let done = run(&["topology", "-"], lines.as_bytes())?;
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        ensure!(
            done.stderr.starts_with("mxctl: -: no line is an entry")
                && done.stderr.contains(expected),
            "{done:?}"
        );
        let done = run(&["topology", "-", "--json"], lines.as_bytes())?;
        let error: Value = serde_json::from_str(&done.stderr)?;
        ensure!(error["error"].is_string(), "{done:?}");
    }
    Ok(())
}

#[test]
fn empty_input_is_an_error() -> Result<()> {
    for lines in ["", "\n", " \n\n"] {
        let done = run(&["topology", "-"], lines.as_bytes())?;
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert_eq!(done.stdout, "");
        assert_eq!(
            done.stderr,
            "mxctl: -: the input is empty: there is nothing to read\n"
        );
    }
    Ok(())
}

/// Live entries may follow.
#[test]
fn an_empty_recording_with_live_entries_is_accepted() -> Result<()> {
    let arguments = [
        "topology",
        "/dev/null",
        "--listen",
        "127.0.0.1:0",
        "--for",
        "0",
    ];
    let done = run(&arguments, b"")?;
    ensure!(done.status.success(), "{done:?}");
    Ok(())
}

#[test]
fn an_endless_line_is_an_error() -> Result<()> {
    let done = run(&["topology", "/dev/zero"], b"")?;
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    ensure!(
        done.stderr.contains("/dev/zero: line 1 is longer than "),
        "{done:?}"
    );
    Ok(())
}

const LIVE: [&str; 3] = ["topology", "--listen", "127.0.0.1:0"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_do_not_delay_the_exit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("top.json");
    let out = path.to_str().unwrap_or_default();
    let mut tool = Tool::start(&[&LIVE[..], &["--json", "--out", out]].concat())?;
    let address = tool.collector()?;
    let _silent = silent_connections(address)?;
    let stream = Stream::open(address, "a/outbound", "a").await?;
    stream.request(&peer("b"), "/", 200).await?;
    // A stream that ended without an error has been read.
    ensure!(stream.end().await?.is_ok(), "a stream was broken off");
    tool.signal("-INT")?;
    let done = tool.end()?;
    ensure!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    let graph: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    assert_eq!(graph["edges"][0]["client"]["calls"], json!(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_input_is_noted() -> Result<()> {
    let limits = ["--max-streams", "1", "--max-message", "2000", "--json"];
    let mut tool = Tool::start(&[&LIVE[..], &limits].concat())?;
    let address = tool.collector()?;
    let first = Stream::open(address, "a/outbound", "a").await?;
    first.request(&peer("b"), "/", 200).await?;
    // Until the first stream is registered, the second may be accepted.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let second = Stream::open(address, "b/outbound", "b").await?;
        if second.end().await?.is_err() {
            break;
        }
        ensure!(Instant::now() < deadline, "nothing is refused");
    }
    first.request(&peer("b"), &"/".repeat(3000), 200).await?;
    ensure!(first.end().await?.is_err(), "the long message was taken");
    tool.signal("-INT")?;
    let graph = tool.end()?.json()?;
    let note = |note: &str| json!({ "note": note, "count": 1 });
    assert_eq!(
        graph["notes"],
        json!([
            note("a stream beyond --max-streams: refused, and its entries are missing"),
            note(
                "a message beyond --max-message, or with too many entries: skipped, and its stream closed"
            ),
        ])
    );
    Ok(())
}

#[test]
fn skywalkings_success_rate_is_shown_with_the_errors() -> Result<()> {
    let lines = line("a", "b", 200).repeat(2) + &line("a", "b", 404) + &line("a", "b", 0);
    let done = run(&["topology", "-", "--as", "skywalking"], lines.as_bytes())?;
    let row = done.stdout.lines().find(|line| line.contains("b.shop"));
    let words: Vec<_> = row.unwrap_or_default().split_whitespace().collect();
    // Code 0 counts as a success there, and as an error here.
    assert_eq!(
        words[..10].join(" "),
        "a.shop (pod) b.shop (pod) client 4 75.00 % 1 1"
    );
    let arguments = ["topology", "-", "--as", "skywalking", "--json"];
    let graph = run(&arguments, lines.as_bytes())?.json()?;
    assert_eq!(graph["edges"][0]["client"]["success_rate"], json!(75.0));
    Ok(())
}

#[test]
fn an_edge_is_explained() -> Result<()> {
    let failed = json!({
        "version": 1,
        "reporter": {
            "log": "a/outbound", "id": "sidecar~1~x~y",
            "metadata": { "NAME": "a-1", "NAMESPACE": "shop", "LABELS": { "app": "a" } },
        },
        "protocol": "http", "status": 504, "flags": ["UT"],
        "upstream_cluster": "outbound|80||c",
    });
    let mut nameless: Value = serde_json::from_str(&line("a", "d", 200))?;
    nameless["state"]["wasm.upstream_peer"]["metadata"]["LABELS"] = json!({ "team": "x" });
    let lines =
        line("a", "b", 200).repeat(2) + &line("a", "b", 0) + &format!("{failed}\n{nameless}\n");
    let explain = |edge: &str| -> Result<String> {
        let done = run(&["topology", "-", "--explain", edge], lines.as_bytes())?;
        ensure!(done.status.success(), "{done:?}");
        Ok(done.stdout)
    };
    let has = |text: &str, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    };

    has(
        &explain("a.shop->b.shop")?,
        &[
            "SkyWalking draws a.shop -> b.shop\n",
            "3 x client: wasm.upstream_peer, its service named by LABELS.app, NAMESPACE",
            "1 calls without a response (code 0, as with DC) count as success",
            "no proxy of b.shop has reported it",
        ],
    );
    has(
        &explain("a.shop -> c.shop")?,
        &[
            "SkyWalking does not draw a.shop -> c.shop\n",
            "1 x a.shop has logged to cluster outbound|80||c, 504 UT: dropped by mx-mesh",
        ],
    );
    has(
        &explain("a.shop->d.shop")?,
        &[
            "does not draw a.shop -> d.shop",
            "1 x a.shop calls -.shop, because its wasm.upstream_peer is named by nothing, NAMESPACE",
        ],
    );
    has(
        &explain("x.y->z.y")?,
        &[
            "does not draw",
            "no entry was logged by a proxy that SkyWalking names x.y or z.y",
        ],
    );
    let done = run(&["topology", "-", "--explain", "a.shop"], b"")?;
    ensure!(!done.status.success(), "{done:?}");
    has(&done.stderr, &["write the edge as CALLER->CALLEE"]);
    let arguments = ["topology", "-", "--explain", "a.shop->b.shop", "--json"];
    let answer = run(&arguments, lines.as_bytes())?.json()?;
    assert_eq!(answer["drawn"], json!(true));
    assert_eq!(answer["reasons"][0]["entries"], json!(3));
    Ok(())
}
