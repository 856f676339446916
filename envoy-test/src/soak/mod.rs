//! A long run of one sidecar with many callers: no caller is mistaken for
//! another, no entry is lost without a reason, and memory does not grow.

mod report;

pub use report::{Report, Resident};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::{interval, timeout};

use crate::client::Protocol;
use crate::envoy::Envoy;
use crate::mesh::{Lab, Mesh};
use crate::node::Node;
use crate::traffic::{Ledger, Plan, Shape, send};
use crate::wait::until;
use crate::workload::Workload;
use report::miscounts;

/// The load on the sidecar.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of requests.
    pub requests: u64,
    /// The sidecar's workers.
    pub workers: u32,
    /// How the requests are sent.
    pub shape: Shape,
    /// The time after which no further request is sent.
    pub time_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            requests: 5_000_000,
            workers: 4,
            shape: Shape {
                protocol: Protocol::Http1,
                connections: 32,
                at_a_time: 16,
            },
            time_limit: Duration::from_mins(20),
        }
    }
}

type Stats = BTreeMap<String, u64>;

/// Runs `plan` against an app's sidecar, and reports.
pub async fn run(lab: &Lab, options: Options, plan: Plan) -> Result<Report> {
    let node = Node::vm_server()?;
    let ledger = Arc::new(Ledger::new(plan, node.clone(), options.requests));
    let drain = Arc::clone(&ledger);
    lab.collector()
        .drain(move |entry| drain.check_entry(entry))?;
    let mesh = lab.start([sidecar(node, options.workers)]).await?;
    let envoy = mesh.envoy(NAME)?;

    let before = envoy.stats().await?;
    let start = Instant::now();
    let mut resident = drive(&mesh, options, &ledger).await?;
    let seconds = start.elapsed().as_secs_f64();
    let expected_counts = ledger.counts();
    let stats = settled(envoy, &ledger, &expected_counts).await?;
    resident.end = envoy.resident_bytes().await?;
    resident.peak = resident.peak.max(resident.end);

    let (app, plan) = (mesh.app(NAME)?, ledger.plan());
    Ok(Report {
        envoy: envoy.version().await?,
        seed: plan.seed(),
        callers: plan.callers(),
        messages: plan.messages(),
        connections_of_workers: connections_of_workers(&stats, options.workers),
        seconds,
        summary: ledger.summary(),
        dropped_by_envoy: named(&stats, "access_logs.grpc_access_log.logs_dropped"),
        app_requests: app.requests(),
        app_leaks: app.leaks(),
        resident,
        expected_counts,
        counts: filter_counts(&stats),
        vm_changes: vm_changes(&before, &stats),
        logged_errors: logged_errors(envoy).await?,
    })
}

const NAME: &str = "ratings";

fn sidecar(node: Node, workers: u32) -> Workload {
    Workload::sidecar(NAME, node)
        .workers(workers)
        .counting()
        .listener("inbound", |listener| listener.log_buffer_bytes = 1 << 16)
}

/// Sends all requests, and samples the memory meanwhile.
async fn drive(mesh: &Mesh, options: Options, ledger: &Arc<Ledger>) -> Result<Resident> {
    let envoy = mesh.envoy(NAME)?;
    let mut resident = Resident {
        idle: envoy.resident_bytes().await?,
        ..Resident::default()
    };
    let mut ticks = interval(Duration::from_millis(200));
    let sending = send_in_time(mesh, options, ledger);
    tokio::pin!(sending);
    loop {
        tokio::select! {
            sent = &mut sending => return sent.map(|()| resident),
            _ = ticks.tick() => {
                let now = envoy.resident_bytes().await?;
                if ledger.requests() <= options.requests / 10 {
                    resident.early = now;
                }
                resident.peak = resident.peak.max(now);
            }
        }
    }
}

async fn send_in_time(mesh: &Mesh, options: Options, ledger: &Arc<Ledger>) -> Result<()> {
    let sending = send(mesh.address(NAME)?, options.shape, ledger);
    tokio::pin!(sending);
    if let Ok(sent) = timeout(options.time_limit, &mut sending).await {
        return sent;
    }
    ledger.stop();
    sending.await
}

/// Waits until all entries have arrived and the filter has published its
/// counters, with a deadline: the report lists what is missing.
async fn settled(envoy: &Envoy, ledger: &Ledger, expected: &BTreeMap<&str, u64>) -> Result<Stats> {
    let all = until("all entries and counts", async || {
        let stats = envoy.stats().await?;
        let is_all = ledger.entries() >= ledger.requests();
        let is_counted = miscounts(expected, &filter_counts(&stats)).next().is_none();
        Ok((is_all && is_counted).then_some(stats))
    })
    .await;
    match all {
        Ok(stats) => Ok(stats),
        Err(_) => envoy.stats().await,
    }
}

fn filter_counts(stats: &Stats) -> Stats {
    let ours = stats.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("wasmcustom.metadata_exchange.")?;
        Some((name.to_owned(), *value))
    });
    ours.collect()
}

fn named(stats: &Stats, name: &str) -> u64 {
    stats.get(name).copied().unwrap_or_default()
}

fn vm_changes(before: &Stats, after: &Stats) -> BTreeMap<String, [u64; 2]> {
    let of_vms = after.iter().filter(|(name, _)| name.starts_with("wasm."));
    of_vms
        .map(|(name, after)| (name.clone(), [named(before, name), *after]))
        .filter(|(_, [before, after])| before != after)
        .collect()
}

async fn logged_errors(envoy: &Envoy) -> Result<Vec<String>> {
    let log = envoy.log().await?;
    let is_error = |line: &&str| line.contains("[error]") || line.contains("[critical]");
    Ok(log.lines().filter(is_error).map(str::to_owned).collect())
}

fn connections_of_workers(stats: &Stats, workers: u32) -> Vec<u64> {
    let of_worker = |worker: u32| {
        let end = format!(".worker_{worker}.downstream_cx_total");
        stats
            .iter()
            .filter(|(name, _)| name.starts_with("listener.127.") && name.ends_with(&end))
            .map(|(_, count)| count)
            .sum()
    };
    (0..workers).map(of_worker).collect()
}
