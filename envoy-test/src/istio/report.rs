//! What a run has shown.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::cluster::Cluster;
use super::istiod::Proxies;
use super::story::Outcome;
use super::table::{Row, Table};
use super::{canary, remade, unfetchable, upgrade};

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
    pub stories: Vec<Outcome>,
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
    progress("upgrades under load, roll-outs, and modules that cannot be fetched");
    let stories = Box::pin(stories(cluster, each)).await?;
    seconds.note("the stories", began);

    let began = Instant::now();
    progress("what istiod sends to Istio's own Envoy");
    cluster.istiod.restart(Proxies::Own).await?;
    table.judge_native(cluster).await?;
    seconds.note("Istio's own Envoy", began);
    table.check_documented()?;
    Ok(Report {
        overlays: table.into_rows(),
        stories,
        seconds: seconds.clone(),
    })
}

/// The stories, those of different pods beside each other.
async fn stories(cluster: &Cluster, each: Duration) -> Result<Vec<Outcome>> {
    let half = each / 2;
    // The roll-out and the canary both need the VM.
    let vm = Semaphore::new(0);
    let of_default = async {
        let upgrade = upgrade::by_wasm_plugin(cluster, each).await?;
        vm.acquire().await?.forget();
        anyhow::Ok([upgrade, canary::canary(cluster, half).await?])
    };
    let of_shop = async {
        let rollout = canary::rollout(cluster, half).await?;
        vm.add_permits(1);
        let upgrade = upgrade::by_envoy_filter(cluster, each).await?;
        let remade = remade::by_both_ways(cluster, half).await?;
        anyhow::Ok([rollout, upgrade, remade])
    };
    let of_old = async {
        let upgrade = upgrade::on_old_envoy(cluster, each).await?;
        let unfetchable = unfetchable::by_wasm_plugin(cluster, half).await?;
        anyhow::Ok([upgrade, unfetchable])
    };
    let (default, shop, old) = tokio::try_join!(of_default, of_shop, of_old)?;
    Ok(default.into_iter().chain(shop).chain(old).collect())
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
            .chain(self.stories.iter().flat_map(Outcome::faults))
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
