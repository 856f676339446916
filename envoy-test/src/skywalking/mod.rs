//! Runs a real OAP, Apache `SkyWalking`'s backend, and compares its topology with the calls that
//! the stories made.

mod drawn;
mod expected;
mod graphql;
mod oap;
mod recording;
mod report;
mod stories;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

pub use drawn::{Calls, Drawn, Edge, Questions, Sides};
pub use oap::{HOME, Named, Oap, QUERIES, RUNNING};
pub use recording::Recording;
pub use report::{Report, Row};
pub use stories::Restart;
use stories::Stage;

use crate::mesh::Lab;
use crate::wait::until_within;

/// The deadline until everything that was logged is drawn.
const PATIENCE: Duration = Duration::from_mins(2);
const INTERVAL: Duration = Duration::from_millis(500);

/// Starts or finds the OAP, runs all stories and compares.
pub async fn run(
    named: &Named,
    envoy: &Path,
    journeys: u64,
    mut progress: impl FnMut(&str),
) -> Result<(Oap, Report)> {
    match named {
        Named::Home(home) => progress(&format!(
            "starting PostgreSQL and the OAP of {}",
            home.display()
        )),
        Named::Running(oap, _) => progress(&format!("asking the OAP at {oap}")),
    }
    let mut oap = Oap::new(named).await?;
    let judged = Box::pin(judge(&mut oap, envoy, journeys, &mut progress)).await;
    let mut report = judged.inspect_err(|_| eprintln!("--- the OAP's log\n{}", oap.log()))?;
    report.look = look(&oap);
    if !report.faults().is_empty() {
        eprintln!("--- the OAP's log\n{}", oap.log());
    }
    Ok((oap, report))
}

async fn judge(
    oap: &mut Oap,
    envoy: &Path,
    journeys: u64,
    progress: &mut impl FnMut(&str),
) -> Result<Report> {
    let run = run_id()?;
    let questions = Questions::from_now(oap.queries).await?;
    let lab = Lab::new(envoy).await?.logging_to(oap.grpc);
    let mut stage = Stage::new(&lab, &run);
    run_stories(&mut stage, oap, envoy, journeys, progress)
        .await
        .inspect_err(|_| eprintln!("{}", lab.envoy_logs()))?;

    progress("waiting until all of it is drawn");
    // An OAP that was started here has received nothing else.
    let is_ours = |name: &str| oap.is_ours() || name.contains(&run);
    let settled = until_within(PATIENCE, INTERVAL, "all to be drawn", async || {
        let report = Report::of(&questions, &stage.expected, &run, is_ours).await?;
        Ok(report.faults().is_empty().then_some(()))
    });
    if settled.await.is_ok() {
        // Duplicates would appear later.
        tokio::time::sleep(2 * oap::PERSISTENCE).await;
    }
    let mut report = Report::of(&questions, &stage.expected, &run, is_ours).await?;
    report.own_counters = oap.own_counters("envoy_als_").await?;
    if oap.is_ours() {
        progress("the OAP restarts under load");
        let restart = stories::restart(&mut stage, oap, &questions).await;
        report.restart = Some(restart.inspect_err(|_| eprintln!("{}", lab.envoy_logs()))?);
    }
    Ok(report)
}

/// Runs all stories except the one that stops the OAP.
async fn run_stories(
    stage: &mut Stage<'_>,
    oap: &Oap,
    envoy: &Path,
    journeys: u64,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    progress(&format!("the boutique, {journeys} journeys"));
    stage.shop(envoy, journeys).await?;
    stage.tell_all(progress).await?;
    if oap.is_ours() {
        progress("handmade entries");
        stage.handmade().await?;
    }
    Ok(())
}

/// Explains how to look at the topology.
fn look(oap: &Oap) -> String {
    let queries = oap.queries;
    let ends = if oap.is_ours() {
        "The OAP ends with this run; with --stay it runs until interrupted. "
    } else {
        ""
    };
    format!(
        "{ends}To look at it, start SkyWalking's UI and open http://127.0.0.1:8080, Service \
         Mesh:\n  docker run --rm --network host -e SW_OAP_ADDRESS=http://{queries} \
         apache/skywalking-ui:10.4.0\nor query it by GraphQL:\n  curl -H 'content-type: \
         application/json' http://{queries}/graphql -d '{{\"query\":\"{{ listServices(layer: \
         \\\"MESH\\\") {{ name }} }}\"}}'"
    )
}

/// Distinguishes this run from others.
fn run_id() -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    Ok(format!("{now:x}{:x}", std::process::id()))
}
