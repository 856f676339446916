//! A real Prometheus with the configuration of `examples/metrics/`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hyper::StatusCode;
use mxctl::prometheus::{Series, totals};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Call;
use crate::ports;
use crate::process::{Process, bound_to_us};
use crate::repository;
use crate::wait::until_within;

/// The environment variable that names the program, if it is not on the path.
const PROGRAM: &str = "PROMETHEUS";

/// How long it may take to start, of which it needs a second.
const START: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(50);

/// Sooner than the quarter of a minute of the file.
const SCRAPE_INTERVAL: &str = "250ms";

/// Why there is none.
#[must_use]
pub fn missing() -> String {
    format!(
        "there is no Prometheus: neither is {PROGRAM} set, nor is `prometheus` on the path (on Debian: apt-get install prometheus)"
    )
}

/// The program, if there is one.
#[must_use]
pub fn program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os(PROGRAM).filter(|program| !program.is_empty()) {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("prometheus"))
        .find(|program| program.is_file())
}

/// Runs `promtool`, which is beside Prometheus, in `examples/metrics/`.
pub fn promtool(prometheus: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(prometheus.with_file_name("promtool"));
    command
        .args(arguments)
        .current_dir(repository("examples/metrics"));
    crate::process::run(&mut command)
}

/// It ends with its value.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    process: Process,
    dir: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these Envoys: names of instances, and addresses of admin interfaces.
    pub async fn start(program: &Path, targets: &[(&str, SocketAddr)]) -> Result<Self> {
        let program = program.canonicalize();
        let program = program.with_context(|| format!("{PROGRAM} is no program"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let dir = TempDir::with_prefix("envoy-test-prometheus-")?;
        let config = dir.path().join("prometheus.yml");
        // JSON is YAML, too.
        std::fs::write(&config, configuration(dir.path())?.to_string())?;
        write_targets(dir.path(), targets)?;
        let mut command = bound_to_us(&program, "KILL", None);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        let process = Process::start(command, &dir.path().join("log"), "KILL")?;
        let mut prometheus = Self {
            address,
            process,
            dir,
        };
        until_within(START, INTERVAL, "Prometheus to be ready", async || {
            if let Some(status) = prometheus.process.ended()? {
                let log = std::fs::read_to_string(prometheus.dir.path().join("log"));
                bail!(
                    "Prometheus ended at start: {status}\n{}",
                    log.unwrap_or_default()
                );
            }
            let ready = Call::new(address, "prometheus").path("/-/ready").send();
            Ok(ready
                .await
                .ok()
                .filter(|reply| reply.status == StatusCode::OK))
        })
        .await?;
        Ok(prometheus)
    }

    /// Scrapes these from now on. An instance keeps its series when its address changes.
    pub fn scrape(&self, targets: &[(&str, SocketAddr)]) -> Result<()> {
        write_targets(self.dir.path(), targets)
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it answers to an expression.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        mxctl::prometheus::query(&self.url(), expression).await
    }

    /// How far each series of a counter has risen in the last hour, over restarts, without the labels of the target.
    pub async fn totals(&self, counter: &str) -> Result<BTreeMap<BTreeMap<String, String>, u64>> {
        let mut sums = BTreeMap::new();
        for Series { mut labels, total } in totals(&self.url(), counter, "1h").await? {
            labels.retain(|label, _| !["__name__", "job", "instance"].contains(&label.as_str()));
            *sums.entry(labels).or_default() += total;
        }
        Ok(sums)
    }

    /// Waits until every rule of `rules.yml` has been evaluated, and returns those that failed.
    pub async fn failed_rules(&self) -> Result<Vec<String>> {
        until_within(START, INTERVAL, "all rules to be evaluated", async || {
            let call = Call::new(self.address, "prometheus").path("/api/v1/rules");
            let reply: Value = serde_json::from_slice(&call.send().await?.body)?;
            let groups = reply["data"]["groups"].as_array().into_iter().flatten();
            let rules: Vec<&Value> = groups
                .flat_map(|group| group["rules"].as_array().into_iter().flatten())
                .collect();
            ensure!(!rules.is_empty(), "no rules: {reply}");
            if rules.iter().any(|rule| rule["health"] == "unknown") {
                return Ok(None);
            }
            let failed = rules.iter().filter(|rule| rule["health"] != "ok");
            Ok(Some(failed.map(ToString::to_string).collect()))
        })
        .await
    }
}

/// That of `examples/metrics/`, with the targets of a file.
fn configuration(dir: &Path) -> Result<Value> {
    let file = repository("examples/metrics/prometheus.yml");
    let mut config: Value = serde_saphyr::from_str(&std::fs::read_to_string(file)?)?;
    for interval in ["scrape_interval", "evaluation_interval"] {
        config["global"][interval] = SCRAPE_INTERVAL.into();
    }
    for rules in config["rule_files"].as_array_mut().into_iter().flatten() {
        let name = rules.as_str().context("no file of rules")?;
        let path = repository("examples/metrics").canonicalize()?.join(name);
        *rules = path.to_str().context("no UTF-8 path")?.into();
    }
    let job = config["scrape_configs"][0].as_object_mut();
    let job = job.context("no job")?;
    job.remove("static_configs");
    let targets = json!([{ "files": [dir.join("targets.json")], "refresh_interval": "1s" }]);
    job.insert("file_sd_configs".to_owned(), targets);
    Ok(config)
}

fn write_targets(dir: &Path, targets: &[(&str, SocketAddr)]) -> Result<()> {
    let target = |(instance, address): &(&str, SocketAddr)| json!({ "targets": [address], "labels": { "instance": instance } });
    let all: Vec<Value> = targets.iter().map(target).collect();
    let draft = dir.join("targets.draft");
    std::fs::write(&draft, Value::from(all).to_string())?;
    Ok(std::fs::rename(draft, dir.join("targets.json"))?)
}
