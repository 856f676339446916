//! `mxctl topology`, of recorded entries

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::tool::run;

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
fn hostile_names_stay_in_their_place_in_every_format() -> Result<()> {
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
fn the_json_has_every_figure_and_the_metadata() -> Result<()> {
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
fn what_is_no_entry_is_told_with_its_line() -> Result<()> {
    let lines = line("a", "b", 200) + "{\"version\":9}\n\n" + &line("a", "b", 200)[..40];
    let done = run(&["topology", "-"], lines.as_bytes())?;
    ensure!(done.status.success(), "{done:?}");
    assert!(done.stderr.contains("mxctl: -:2: no entry: "), "{done:?}");
    assert!(
        done.stderr.contains("mxctl: -: 2 lines are no entries"),
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
fn services_are_named_by_a_rule_of_ones_own() -> Result<()> {
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
