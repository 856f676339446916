//! Everything that reads a peer: each file of `examples/` is run as a user runs it, calls are made, and what the
//! consumer reports of them is counted.
//!
//! To add a consumer, add a file to `examples/`, a variant to [`Consumer`], and what runs it.

mod certified;
pub mod cost;
mod example;
mod fluentd;
mod headers;
mod jaeger;
mod limits;
mod logs;
pub mod metrics;
mod otlp;
mod policy;
mod report;
mod sidecar;
mod traces;
pub mod unit;

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

pub use example::Example;
pub use headers::without_removal as headers_without_removal;
pub use logs::log_by_otlp;
pub use policy::without_service_account as policy_without_service_account;
pub use report::{Count, Counts, Report, Row};
pub use sidecar::workload;

use crate::envoy::Release;
use crate::mesh::Lab;
use jaeger::Jaeger;
use traces::Protocol;

/// A program, or a part of Envoy, that reads the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consumer {
    /// RBAC by namespace and by workload.
    Policy,
    /// A local rate limit for each calling workload.
    RateLimit,
    /// Headers that name the caller to the app.
    CallerHeader,
    /// A file of JSON lines.
    JsonLog,
    /// OpenTelemetry log records.
    OtlpLog,
    /// Records in the Fluent Forward protocol.
    FluentdLog,
    /// Istio's standard metrics, by the filter.
    FilterMetrics,
    /// Istio's standard metrics, by the stats access logger.
    Metrics,
    /// Spans by OTLP.
    TracesOpenTelemetry,
    /// Spans in Zipkin's format.
    TracesZipkin,
}

impl Consumer {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Policy,
        Self::RateLimit,
        Self::CallerHeader,
        Self::JsonLog,
        Self::OtlpLog,
        Self::FluentdLog,
        Self::FilterMetrics,
        Self::Metrics,
        Self::TracesOpenTelemetry,
        Self::TracesZipkin,
    ];

    /// Its bootstrap.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Policy => "examples/policy/sidecar.yaml",
            Self::RateLimit => "examples/rate-limit/sidecar.yaml",
            Self::CallerHeader => "examples/caller-header/sidecar.yaml",
            Self::JsonLog => "examples/json-log/sidecar.yaml",
            Self::OtlpLog => "examples/otlp-log/sidecar.yaml",
            Self::FluentdLog => "examples/fluentd-log/sidecar.yaml",
            Self::FilterMetrics => "examples/metrics/filter.yaml",
            Self::Metrics => "examples/metrics/sidecar.yaml",
            Self::TracesOpenTelemetry => "examples/traces/opentelemetry.yaml",
            Self::TracesZipkin => "examples/traces/zipkin.yaml",
        }
    }

    /// Runs it with the Envoy of the lab.
    pub async fn run(self, lab: &Lab) -> Result<Row> {
        self.run_example(lab, &Example::read(self.file())?).await
    }

    /// Runs it with its bootstrap, which may differ from the file.
    pub async fn run_example(self, lab: &Lab, example: &Example) -> Result<Row> {
        let envoy = lab.version().await?;
        let row = |outcome| Row {
            consumer: self,
            file: self.file(),
            envoy: envoy.clone(),
            outcome,
        };
        if !example.runs_on(&envoy)? {
            return Ok(row(Outcome::NotClaimed {
                envoy_needed: example.envoy()?,
            }));
        }
        let counts = match self {
            Self::Policy => policy::run(lab, example).await?,
            Self::RateLimit => limits::run(lab, example).await?,
            Self::CallerHeader => headers::run(lab, example).await?,
            Self::JsonLog => logs::json(lab, example).await?,
            Self::OtlpLog => logs::otlp(lab, example).await?,
            Self::FluentdLog => logs::fluentd(lab, example).await?,
            Self::FilterMetrics | Self::Metrics => {
                let Some(program) = metrics::prometheus::program() else {
                    return Ok(row(Outcome::Skipped {
                        reason: metrics::prometheus::missing(),
                    }));
                };
                metrics::run(lab, example, &program).await?
            }
            Self::TracesOpenTelemetry | Self::TracesZipkin => {
                let Some(jaeger) = Jaeger::by_environment().await? else {
                    return Ok(row(Outcome::Skipped {
                        reason: jaeger::missing(),
                    }));
                };
                let protocol = match self {
                    Self::TracesZipkin => Protocol::Zipkin,
                    _ => Protocol::OpenTelemetry,
                };
                traces::run(lab, example, &jaeger, protocol).await?
            }
        };
        Ok(row(Outcome::Ran { counts }))
    }
}

/// What became of a consumer.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It ran.
    Ran {
        /// The calls that were made, and those that the consumer reports.
        counts: Counts,
    },
    /// The file does not claim to run on this Envoy.
    NotClaimed {
        /// On which it does.
        envoy_needed: String,
    },
    /// It could not be run.
    Skipped {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Policy => "policy by caller",
            Self::RateLimit => "rate limit by caller",
            Self::CallerHeader => "header for the app",
            Self::JsonLog => "JSON log",
            Self::OtlpLog => "OTLP log",
            Self::FluentdLog => "Fluent Forward log",
            Self::FilterMetrics => "metrics by the filter",
            Self::Metrics => "metrics by the logger",
            Self::TracesOpenTelemetry => "traces, OTLP",
            Self::TracesZipkin => "traces, Zipkin",
        };
        f.pad(name)
    }
}

/// Runs every consumer on the Envoy `named`, or on each release: two at a time.
pub async fn run(named: Option<&Path>, progress: impl Fn(&str)) -> Result<Report> {
    let mut envoys: Vec<PathBuf> = Vec::new();
    if let Some(path) = named {
        envoys.push(path.to_owned());
    } else {
        for release in Release::all().filter(|release| !release.is_left_out()) {
            envoys.push(release.binary()?);
        }
    }
    let waiting = envoys.iter().flat_map(|envoy| {
        let of_envoy = |consumer| (envoy.as_path(), consumer);
        Consumer::ALL.map(of_envoy)
    });
    let waiting = RefCell::new(waiting);
    let lane = async || {
        let mut rows = Vec::new();
        loop {
            let next = waiting.borrow_mut().next();
            let Some((envoy, consumer)) = next else {
                return anyhow::Ok(rows);
            };
            let lab = Lab::new(envoy).await?;
            let row = consumer.run(&lab).await.inspect_err(|_| {
                eprintln!("{}", lab.envoy_logs());
            });
            let row = row.with_context(|| format!("{consumer} with {}", envoy.display()))?;
            progress(&format!("{consumer}, Envoy {}", row.envoy));
            rows.push(row);
        }
    };
    let (mut rows, others) = tokio::try_join!(lane(), lane())?;
    rows.extend(others);
    rows.sort_by(|a, b| (a.consumer, &a.envoy).cmp(&(b.consumer, &b.envoy)));
    Ok(Report { rows })
}
