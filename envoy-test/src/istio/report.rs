//! What a run has shown.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::cluster::Cluster;
use super::istiod::Proxies;
use super::story::Told;
use super::table::{Row, Table};
use super::{canary, unfetchable, upgrade};

/// How long the parts of a run took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seconds(BTreeMap<String, u64>);

impl Seconds {
    pub(super) fn note(&mut self, what: &str, since: Instant) {
        self.0.insert(what.to_owned(), since.elapsed().as_secs());
    }
}

/// What a run has shown.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The overlays.
    pub overlays: Vec<Row>,
    /// The stories under load.
    pub stories: Vec<Told>,
    /// How long it took.
    pub seconds: Seconds,
}

/// Judges everything.
pub(super) async fn all(
    cluster: &mut Cluster,
    each: Duration,
    seconds: &mut Seconds,
    progress: &mut impl FnMut(&str),
) -> Result<Report> {
    let mut table = Table::default();
    let began = Instant::now();
    progress("the overlays");
    table.prepare(cluster).await?;
    table.judge(cluster).await?;
    seconds.note("the overlays", began);

    let began = Instant::now();
    progress("upgrades under load");
    let (plugin, filter, old) = tokio::try_join!(
        upgrade::by_wasm_plugin(cluster, each),
        upgrade::by_envoy_filter(cluster, each),
        upgrade::on_old_envoy(cluster, each),
    )?;
    seconds.note("upgrades", began);

    let began = Instant::now();
    progress("rollouts, and modules that cannot be fetched");
    let half = each / 2;
    let (canary, unfetchable) = tokio::try_join!(
        canary::canary(cluster, half),
        unfetchable::by_wasm_plugin(cluster, half),
    )?;
    let rollout = canary::rollout(cluster, half).await?;
    seconds.note("rollouts", began);

    let began = Instant::now();
    progress("what istiod sends to Istio's own Envoy");
    cluster.istiod.restart(Proxies::Own).await?;
    table.judge_native(cluster).await?;
    seconds.note("Istio's own Envoy", began);
    table.check_documented()?;
    Ok(Report {
        overlays: table.into_rows(),
        stories: vec![plugin, filter, old, canary, rollout, unfetchable],
        seconds: seconds.clone(),
    })
}

impl Report {
    /// All that is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let overlays = self.overlays.iter().flat_map(|row| {
            let faults = row.faults.iter();
            faults.map(|fault| format!("{}: {fault}", row.overlay))
        });
        overlays
            .chain(self.stories.iter().flat_map(Told::faults))
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.overlays {
            writeln!(f, "{}", row.overlay)?;
            for order in &row.orders {
                writeln!(f, "  standard Envoys  {order}")?;
            }
            for order in &row.orders_native {
                writeln!(f, "  Istio's own      {order}")?;
            }
            for named in &row.named {
                writeln!(f, "  both sides named {named}")?;
            }
            for finding in &row.doctor {
                writeln!(f, "  doctor           {finding}")?;
            }
            for said in &row.istioctl {
                writeln!(f, "  istioctl         {said}")?;
            }
        }
        for story in &self.stories {
            writeln!(f, "\n{story}")?;
        }
        for (what, seconds) in &self.seconds.0 {
            writeln!(f, "{seconds:>4} s {what}")?;
        }
        for fault in self.faults() {
            writeln!(f, "WRONG  {fault}")?;
        }
        Ok(())
    }
}
