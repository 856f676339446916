//! Callers who make up names: each set of labels is a series, which Envoy keeps until it ends.

use std::fmt;

use anyhow::{Result, ensure};
use hyper::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::super::example::{Example, list, manager};
use super::super::sidecar::{Plan, Sidecar, as_from, workload};
use super::flush_soon;
use crate::app::App;
use crate::client::{Call, Connection, Protocol};
use crate::mesh::Lab;
use crate::wait::until;

/// How many connections they use.
const CONNECTIONS: usize = 4;

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Flood {
    /// Envoy's version.
    pub envoy: String,
    /// Whether the number of series is bounded.
    pub is_bounded: bool,
    /// How many workloads were made up, each for one request.
    pub workloads: usize,
    /// The series of `istio_requests_total`.
    pub series: usize,
    /// The requests that these count.
    pub counted: u64,
    /// What Envoy or the filter counts of those beyond the bound.
    pub beyond_the_bound: u64,
    /// Envoy's resident memory before, in bytes.
    pub resident_before: u64,
    /// And afterwards.
    pub resident_after: u64,
    /// The length of the page that Prometheus scrapes, in bytes.
    pub page_bytes: usize,
    /// Its lines.
    pub page_lines: usize,
}

/// Sends a request of each of so many made-up workloads. The example believes them.
pub async fn run(
    lab: &Lab,
    example: &Example,
    workloads: usize,
    is_bounded: bool,
) -> Result<Flood> {
    let app = App::start_counting().await?;
    let change = |bootstrap: &mut Value| {
        flush_soon(bootstrap);
        if is_bounded {
            return Ok(());
        }
        for name in ["inbound", "outbound"] {
            // What the top of the file says of older Envoys.
            for log in list(&mut manager(bootstrap, name)?["access_log"]) {
                if let Some(config) = log["typed_config"].as_object_mut() {
                    config.remove("stats_scope");
                    config.insert("stat_prefix".to_owned(), "wasmcustom".into());
                }
            }
        }
        Ok(())
    };
    let plan = Plan {
        clusters: vec![("app", app.address)],
        change: &change,
        ..Plan::new(example)
    };
    let sidecar = plan.start(lab).await?;
    // With its first series.
    send(&sidecar, 0, 1).await?;
    let resident_before = sidecar.envoy.resident_bytes().await?;
    let of_each = workloads.div_ceil(CONNECTIONS);
    let lanes = (0..CONNECTIONS).map(|lane| {
        let first = 1 + lane * of_each;
        send(&sidecar, first, (first + of_each).min(workloads + 1))
    });
    let lanes: Vec<_> = lanes.collect();
    let [a, b, c, d] = <[_; CONNECTIONS]>::try_from(lanes)
        .map_err(|_| anyhow::anyhow!("as many lanes as connections"))?;
    tokio::try_join!(a, b, c, d)?;
    ensure!(app.requests() == workloads as u64 + 1);

    // The last requests are logged after their answers.
    let what = "all requests to be counted or refused";
    let counters = until(what, async || {
        let counters = Counters::read(&sidecar).await?;
        let all = counters.counted + counters.refused;
        // The filter publishes its own counters once a second.
        let is_published = counters.unnamed == counters.of_unknown;
        Ok((all > workloads as u64 && is_published).then_some(counters))
    })
    .await?;
    let call = Call::new(sidecar.envoy.admin(), "admin").path("/stats/prometheus");
    let page = call.send().await?.body;
    Ok(Flood {
        envoy: lab.version().await?,
        is_bounded,
        workloads,
        series: counters.series,
        counted: counters.counted,
        beyond_the_bound: counters.refused + counters.unnamed,
        resident_before,
        resident_after: sidecar.envoy.resident_bytes().await?,
        page_bytes: page.len(),
        page_lines: page.split(|byte| *byte == b'\n').count(),
    })
}

/// What Envoy has counted.
struct Counters {
    series: usize,
    counted: u64,
    /// Not counted, because of `max_counters`.
    refused: u64,
    /// Counted with an unknown caller.
    of_unknown: u64,
    /// What the filter says of those.
    unnamed: u64,
}

impl Counters {
    /// Of the page for Prometheus: only there are those of the bound.
    async fn read(sidecar: &Sidecar) -> Result<Self> {
        let path =
            "/stats/prometheus?filter=istio_requests_total|stats_overflow.counter|over_limit";
        let call = Call::new(sidecar.envoy.admin(), "admin").path(path);
        let page = String::from_utf8(call.send().await?.body.to_vec())?;
        let values = |name: &str| -> Vec<u64> {
            let lines = page
                .lines()
                .filter(|line| line.starts_with(&format!("{name}{{")));
            let value = |line: &str| line.rsplit_once(' ')?.1.parse().ok();
            lines.filter_map(value).collect()
        };
        let requests = values("istio_requests_total");
        let unknown = page
            .lines()
            .filter(|line| line.contains(r#"source_workload="unknown""#));
        let of_unknown = unknown.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        Ok(Self {
            series: requests.len(),
            counted: requests.iter().sum(),
            refused: values("envoy_server_stats_overflow_counter").iter().sum(),
            of_unknown: of_unknown.sum(),
            unnamed: values("metadata_exchange_metric_series_over_limit")
                .iter()
                .sum(),
        })
    }
}

/// One request of each workload by its number.
async fn send(sidecar: &Sidecar, from: usize, to: usize) -> Result<()> {
    let mut connection = Connection::open(sidecar.inbound, Protocol::Http1).await?;
    for number in from..to {
        let node = workload(&format!("made-up-{number}"), "shop");
        let call = as_from(Call::new(sidecar.inbound, "ratings"), &node)?;
        let reply = connection.send(call).await?;
        ensure!(reply.status == StatusCode::OK, "{reply:?}");
    }
    Ok(())
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        let bound = if self.is_bounded {
            "bounded"
        } else {
            "no bound"
        };
        writeln!(
            f,
            "Envoy {}, {bound}: {} made-up workloads, {} series of istio_requests_total, {} requests counted, {} beyond the bound, resident {} MiB before and {} MiB afterwards, page of {} lines and {} MiB",
            self.envoy,
            self.workloads,
            self.series,
            self.counted,
            self.beyond_the_bound,
            self.resident_before / MIB,
            self.resident_after / MIB,
            self.page_lines,
            self.page_bytes as u64 / MIB,
        )
    }
}
