//! The configurations of Fluent Bit, Vector and the `CloudWatch` agent read the file that the JSON log writes, and fields
//! that it has. The programs themselves are not run.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use envoy_test::consumers::{Consumer, Example};
use envoy_test::repository;
use serde_json::Value;

fn text(name: &str) -> Result<String> {
    Ok(std::fs::read_to_string(repository(&format!(
        "examples/json-log/{name}"
    )))?)
}

/// The path of the log, and its fields.
fn log() -> Result<(String, BTreeSet<String>)> {
    let bootstrap = Example::read(Consumer::JsonLog.file())?.bootstrap()?;
    let listener = &bootstrap["static_resources"]["listeners"][0];
    let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
    let log = &manager["access_log"][0]["typed_config"];
    let fields = log["log_format"]["json_format"]
        .as_object()
        .context("no fields")?;
    let path = log["path"].as_str().context("no path")?;
    Ok((path.to_owned(), fields.keys().cloned().collect()))
}

#[test]
fn fluent_bit() -> Result<()> {
    let (path, fields) = log()?;
    let config: Value = serde_saphyr::from_str(&text("fluent-bit.yaml")?)?;
    let parser = &config["parsers"][0];
    let input = &config["pipeline"]["inputs"][0];
    assert_eq!(input["path"], path);
    assert_eq!(input["parser"], parser["name"]);
    assert!(fields.contains(parser["time_key"].as_str().context("no key")?));
    assert_eq!(config["pipeline"]["outputs"][0]["match"], input["tag"]);
    Ok(())
}

#[test]
fn vector() -> Result<()> {
    let (path, fields) = log()?;
    let config: Value = serde_saphyr::from_str(&text("vector.yaml")?)?;
    assert_eq!(config["sources"]["envoy"]["include"][0], path);
    let program = config["transforms"]["requests"]["source"].as_str();
    let program = program.context("no program")?;
    let (_, deleted) = program.split_once("del(.").context("no timestamp")?;
    let (field, _) = deleted.split_once(')').context("no timestamp")?;
    assert!(fields.contains(field), "{field}");
    Ok(())
}

#[test]
fn cloudwatch() -> Result<()> {
    let (path, fields) = log()?;
    let config: Value = serde_json::from_str(&text("cloudwatch-agent.json")?)?;
    let file = &config["logs"]["logs_collected"]["files"]["collect_list"][0];
    assert_eq!(file["file_path"], path);
    let query = text("cloudwatch-insights.txt")?;
    let stats = query.lines().find_map(|line| line.strip_prefix("| stats "));
    let (_, by) = stats
        .and_then(|stats| stats.split_once(" by "))
        .context("no fields")?;
    for field in by.split(", ") {
        assert!(fields.contains(field), "{field}");
    }
    Ok(())
}

/// No test may be thought to have run them.
#[test]
fn each_says_that_its_program_was_not_run() -> Result<()> {
    for name in ["fluent-bit.yaml", "vector.yaml", "cloudwatch-insights.txt"] {
        let top: String = text(name)?
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .collect();
        assert!(top.contains("run in this project's tests"), "{name}: {top}");
    }
    Ok(())
}
