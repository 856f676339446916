//! An OAP that restarts under load: which entries are lost, and where this is
//! counted.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::time::sleep;

use super::{Stage, pod, vm};
use crate::mesh::Mesh;
use crate::skywalking::drawn::{Questions, Sides};
use crate::skywalking::expected::Made;
use crate::skywalking::oap::Oap;
use crate::wait::until_within;
use crate::workload::Workload;

/// The pause between calls.
const PAUSE: Duration = Duration::from_millis(50);

/// Envoy's statistics of its log and of the connection to the collector.
const STATISTICS: [&str; 5] = [
    "access_logs.grpc_access_log.logs_written",
    "access_logs.grpc_access_log.logs_dropped",
    "access_logs.grpc_access_log.grpc_entries_flushed",
    CONNECT_FAIL,
    "cluster.access-log-collector.upstream_rq_503",
];
const CONNECT_FAIL: &str = "cluster.access-log-collector.upstream_cx_connect_fail";

/// The calls around a restart.
#[derive(Debug, Serialize)]
pub struct Restart {
    /// Calls before the restart, all drawn by then.
    pub before: u64,
    /// Calls until the OAP was healthy again.
    pub away: u64,
    /// Calls afterwards.
    pub after: u64,
    /// What is drawn in the end.
    pub drawn: Sides,
    /// The statistics of the caller's Envoy and of the callee's.
    pub counted: [BTreeMap<&'static str, u64>; 2],
}

impl Restart {
    /// Entries of the caller's Envoy and of the callee's that are not drawn.
    #[must_use]
    pub fn lost(&self) -> [u64; 2] {
        let made = self.before + self.away + self.after;
        let Sides { client, server } = self.drawn;
        [client, server].map(|drawn| made.saturating_sub(drawn.calls))
    }

    /// All problems.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let made = self.before + self.away + self.after;
        for ((who, counted), lost) in ["caller", "callee"]
            .iter()
            .zip(&self.counted)
            .zip(self.lost())
        {
            let count = |name: &str| counted.get(name).copied().unwrap_or_default();
            let mut check = |is_right: bool, what: String| {
                if !is_right {
                    faults.push(format!("restart, the {who}'s Envoy: {what}: {self:?}"));
                }
            };
            check(
                lost <= self.away,
                format!("{lost} entries are lost of {} calls", self.away),
            );
            // For each failed connection, an entry was waiting.
            let failed = count(CONNECT_FAIL);
            check(
                failed > 0 && failed <= lost,
                format!("{failed} connections failed, {lost} entries are lost"),
            );
            // Envoy counts lost entries as written.
            let written = count(STATISTICS[0]);
            check(written == made, format!("{written} entries are written"));
        }
        faults
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            before,
            away,
            after,
            ..
        } = self;
        writeln!(
            f,
            "\nThe OAP restarts: {before} calls before, {away} while it was away, {after} afterwards"
        )?;
        for ((who, counted), lost) in ["caller", "callee"]
            .iter()
            .zip(&self.counted)
            .zip(self.lost())
        {
            writeln!(
                f,
                "  {lost} entries of the {who}'s Envoy are lost; it has counted"
            )?;
            for (name, value) in counted {
                writeln!(f, "    {value:>6} {name}")?;
            }
        }
        Ok(())
    }
}

pub(in crate::skywalking) async fn restart(
    stage: &mut Stage<'_>,
    oap: &mut Oap,
    questions: &Questions,
) -> Result<Restart> {
    let namespace = stage.namespace("restart");
    let mesh = stage
        .lab
        .start([
            Workload::sidecar("shop", pod("shop", &namespace)),
            Workload::sidecar("stock", vm("stock", &namespace)),
        ])
        .await?;
    let edge = ["shop", "stock"].map(|name| format!("{name}.{namespace}"));
    let edge = (edge[0].clone(), edge[1].clone());
    let drawn = async || -> Result<Sides> {
        let drawn = questions.drawn(|name| name.ends_with(&namespace)).await?;
        Ok(drawn.edges.get(&edge).copied().unwrap_or_default())
    };
    let patience = crate::skywalking::PATIENCE;
    let interval = crate::skywalking::INTERVAL;

    let before = Made::calls(&mesh, "shop", "stock", &["/"; 10]).await?;
    until_within(patience, interval, "the calls before", async || {
        Ok((drawn().await? == before.sides()).then_some(()))
    })
    .await?;

    oap.stop()?;
    let mut away = 0;
    let mut load = async || -> Result<()> {
        loop {
            Made::calls(&mesh, "shop", "stock", &["/"]).await?;
            away += 1;
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        back = oap.start() => back?,
        failed = load() => failed?,
    }
    let after = Made::calls(&mesh, "shop", "stock", &["/"; 10]).await?;
    let least = before.client().calls + after.client().calls;
    let in_time = until_within(patience, interval, "the calls afterwards", async || {
        let Sides { client, server } = drawn().await?;
        Ok((client.calls >= least && server.calls >= least).then_some(()))
    })
    .await;
    sleep(2 * crate::skywalking::oap::PERSISTENCE).await;
    let counted = [
        counters(&mesh, "shop").await?,
        counters(&mesh, "stock").await?,
    ];
    let drawn = drawn().await?;
    in_time.with_context(|| format!("drawn: {drawn:?}, counted: {counted:?}"))?;
    stage.keep(mesh);
    Ok(Restart {
        before: before.client().calls,
        away,
        after: after.client().calls,
        drawn,
        counted,
    })
}

async fn counters(mesh: &Mesh, workload: &str) -> Result<BTreeMap<&'static str, u64>> {
    let stats = mesh.envoy(workload)?.stats().await?;
    let counted = STATISTICS
        .into_iter()
        .filter_map(|name| Some((name, *stats.get(name)?)));
    Ok(counted.collect())
}
