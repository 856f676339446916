//! A real Jaeger, which keeps traces in memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::fs;

use crate::client::Call;
use crate::ports;
use crate::process::{Process, bound_to_us};
use crate::wait::until_within;

/// The environment variable that names the folder of a release of Jaeger 2, unpacked.
const HOME: &str = "JAEGER_HOME";

/// How long it may take to start, of which it needs a second or two alone on two processors.
const START: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(50);

/// Why there is none.
pub(super) fn missing() -> String {
    format!("there is no Jaeger, for {HOME} does not name the folder of a release of Jaeger 2")
}

/// It ends with its value.
pub(super) struct Jaeger {
    pub(super) otlp: SocketAddr,
    pub(super) zipkin: SocketAddr,
    queries: SocketAddr,
    process: Process,
    dir: TempDir,
}

impl Jaeger {
    /// Starts the one that the environment names, if it names one.
    pub(super) async fn by_environment() -> Result<Option<Self>> {
        let home = std::env::var_os(HOME).filter(|home| !home.is_empty());
        match home {
            Some(home) => Ok(Some(Self::start(&PathBuf::from(home)).await?)),
            None => Ok(None),
        }
    }

    async fn start(home: &Path) -> Result<Self> {
        let program = home.join("jaeger");
        ensure!(
            program.is_file(),
            "{HOME}={}: no release of Jaeger, for it has no file `jaeger`",
            home.display()
        );
        let local = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?)));
        let (otlp, zipkin, queries) = (local()?, local()?, local()?);
        let dir = TempDir::with_prefix("envoy-test-jaeger-")?;
        let config = dir.path().join("config.json");
        // JSON is YAML, too.
        fs::write(
            &config,
            configuration(otlp, zipkin, queries, local()?).to_string(),
        )
        .await?;
        let mut command = bound_to_us(&program.canonicalize()?, "KILL", None);
        command.arg("--config").arg(&config);
        let process = Process::start(command, &dir.path().join("jaeger.log"), "KILL")?;
        let mut jaeger = Self {
            otlp,
            zipkin,
            queries,
            process,
            dir,
        };
        until_within(START, INTERVAL, "Jaeger to answer", async || {
            if let Some(status) = jaeger.process.ended()? {
                let log = fs::read_to_string(jaeger.dir.path().join("jaeger.log")).await;
                bail!(
                    "Jaeger ended at start: {status}\n{}",
                    log.unwrap_or_default()
                );
            }
            let asked = Call::new(queries, "jaeger")
                .path("/api/services")
                .send()
                .await;
            Ok(asked.ok().filter(|reply| reply.status == StatusCode::OK))
        })
        .await?;
        Ok(jaeger)
    }

    /// The traces that have a span of the service.
    pub(super) async fn traces(&self, service: &str) -> Result<Vec<Trace>> {
        let path = format!("/api/traces?service={service}&limit=1000");
        let reply = Call::new(self.queries, "jaeger").path(&path).send().await?;
        // It knows no service yet.
        if reply.status == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        ensure!(reply.status == StatusCode::OK, "{path}: {reply:?}");
        let reply: Value = serde_json::from_slice(&reply.body)?;
        let traces = reply["data"].as_array().context("no traces")?;
        Ok(traces.iter().map(Trace::of).collect())
    }
}

/// A trace.
pub(super) struct Trace {
    pub(super) spans: Vec<Span>,
}

/// A span.
pub(super) struct Span {
    pub(super) service: String,
    tags: Value,
}

impl Trace {
    fn of(trace: &Value) -> Self {
        let spans = trace["spans"].as_array().into_iter().flatten();
        let span = |span: &Value| {
            let process = span["processID"].as_str().unwrap_or_default();
            let service = trace["processes"][process]["serviceName"].as_str();
            Span {
                service: service.unwrap_or_default().to_owned(),
                tags: span["tags"].clone(),
            }
        };
        Self {
            spans: spans.map(span).collect(),
        }
    }
}

impl Span {
    /// A tag, if it is a text.
    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        let mut tags = self.tags.as_array().into_iter().flatten();
        tags.find(|tag| tag["key"] == key)?["value"].as_str()
    }
}

fn configuration(
    otlp: SocketAddr,
    zipkin: SocketAddr,
    queries: SocketAddr,
    grpc: SocketAddr,
) -> Value {
    json!({
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": { "traces": {
                "receivers": ["otlp", "zipkin"],
                "exporters": ["jaeger_storage_exporter"],
            } },
            "telemetry": { "metrics": { "level": "none" }, "logs": { "level": "warn" } },
        },
        "extensions": {
            "jaeger_storage": { "backends": { "memory": { "memory": { "max_traces": 10_000 } } } },
            "jaeger_query": {
                "storage": { "traces": "memory" },
                "http": { "endpoint": queries },
                "grpc": { "endpoint": grpc },
            },
        },
        "receivers": {
            "otlp": { "protocols": { "grpc": { "endpoint": otlp } } },
            "zipkin": { "endpoint": zipkin },
        },
        "exporters": { "jaeger_storage_exporter": { "trace_storage": "memory" } },
    })
}
