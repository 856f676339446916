//! Sidecars with one consumer each, for the benchmark of what consumers cost.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Consumer;
use super::example::{Example, list, manager};
use super::fluentd::Receiver;
use super::otlp::Collector;
use super::sidecar::{Plan, Sidecar};
use crate::envoy::Envoy;
use crate::mesh::Lab;

/// What runs in a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Not even the filter.
    Nothing,
    /// The filter alone.
    Filter,
    /// The filter, and its consumer.
    Consumer(Consumer),
    /// The filter, and the stats access logger with its counter alone.
    Counter,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Nothing,
        Self::Filter,
        Self::Consumer(Consumer::Policy),
        Self::Consumer(Consumer::RateLimit),
        Self::Consumer(Consumer::CallerHeader),
        Self::Consumer(Consumer::JsonLog),
        Self::Consumer(Consumer::OtlpLog),
        Self::Consumer(Consumer::FluentdLog),
        Self::Consumer(Consumer::TracesOpenTelemetry),
        Self::Counter,
        Self::Consumer(Consumer::Metrics),
        Self::Consumer(Consumer::FilterMetrics),
    ];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Nothing => "no filter".to_owned(),
            Self::Filter => "the filter alone".to_owned(),
            Self::Consumer(Consumer::Metrics) => "stats access logger, four metrics".to_owned(),
            Self::Consumer(consumer) => consumer.to_string(),
            Self::Counter => "stats access logger, the counter alone".to_owned(),
        }
    }

    fn example(self) -> Result<Example> {
        let consumer = match self {
            Self::Nothing | Self::Filter => Consumer::JsonLog,
            Self::Counter => Consumer::Metrics,
            Self::Consumer(consumer) => consumer,
        };
        Example::read(consumer.file())
    }

    fn change(self, bootstrap: &mut Value) -> Result<()> {
        // All over plain connections, and believing the same.
        for listener in list(&mut bootstrap["static_resources"]["listeners"]) {
            let chain = listener["filter_chains"][0].as_object_mut();
            chain.context("no chain")?.remove("transport_socket");
        }
        for cluster in list(&mut bootstrap["static_resources"]["clusters"]) {
            cluster
                .as_object_mut()
                .context("no cluster")?
                .remove("transport_socket");
        }
        for name in ["inbound", "outbound"] {
            let manager = manager(bootstrap, name)?;
            let filter = &mut manager["http_filters"][0]["typed_config"]["config"];
            let configuration = &mut filter["configuration"]["value"];
            // Those that decide demand a certificate; the filter alone needs nothing of its file.
            let keeps_its_own = matches!(self, Self::Consumer(_))
                && !configuration
                    .as_str()
                    .is_some_and(|text| text.contains("trust"));
            if !keeps_its_own {
                *configuration = "{}".into();
            }
            let own = manager.as_object_mut().context("no manager")?;
            match self {
                Self::Nothing | Self::Filter => {
                    own.remove("access_log");
                }
                Self::Counter => {
                    let logger = &mut own["access_log"][0]["typed_config"];
                    logger
                        .as_object_mut()
                        .context("no logger")?
                        .remove("histograms");
                }
                Self::Consumer(_) => {}
            }
            for filter in list(&mut manager["http_filters"]) {
                // It never refuses here.
                if filter["name"] == "envoy.filters.http.local_ratelimit" {
                    unlimited(&mut filter["typed_config"]);
                }
            }
            if self == Self::Nothing {
                let filters = manager["http_filters"].as_array_mut();
                filters.context("no filters")?.remove(0);
            }
        }
        Ok(())
    }

    /// Starts it in front of the app.
    pub async fn start(self, lab: &Lab, app: SocketAddr) -> Result<Measured> {
        let collector = Collector::start().await?;
        let receiver = Receiver::start().await?;
        let example = self.example()?;
        let change = |bootstrap: &mut Value| self.change(bootstrap);
        let clusters = [
            ("app", app),
            ("otlp", collector.address),
            // It refuses spans, which costs Envoy as much.
            ("jaeger", collector.address),
            ("fluentd", receiver.address),
        ];
        let plan = Plan {
            clusters: clusters.into(),
            change: &change,
            ..Plan::new(&example)
        };
        Ok(Measured {
            sidecar: plan.start(lab).await?,
            _collector: collector,
            _receiver: receiver,
        })
    }
}

fn unlimited(config: &mut Value) {
    let bucket = json!({ "max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "1s" });
    config["token_bucket"] = bucket.clone();
    for descriptor in list(&mut config["descriptors"]) {
        descriptor["token_bucket"] = bucket.clone();
    }
}

/// A sidecar that runs, with what receives its logs.
pub struct Measured {
    sidecar: Sidecar,
    _collector: Collector,
    _receiver: Receiver,
}

impl Measured {
    /// Its Envoy.
    #[must_use]
    pub fn envoy(&self) -> &Envoy {
        &self.sidecar.envoy
    }

    /// Where others call its app.
    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        self.sidecar.inbound
    }

    /// Where its app calls others.
    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        self.sidecar.outbound
    }
}
