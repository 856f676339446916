//! `deploy/compose` as users start it: what both sidecars print of the calls of its apps.

use anyhow::Result;
use serde_json::{Value, json};

use super::compose::{Project, Setup};
use super::{Interrupts, removed_afterwards};
use crate::wait::until;

/// Starts it, waits until each sidecar has printed a line that names both sides, and removes everything. Returns the lines.
pub async fn run(progress: impl Fn(&str)) -> Result<Vec<Value>> {
    let interrupts = Interrupts::new()?;
    let project = Project::new(Setup::Start).await?;
    let lines = run_in(&project, &progress);
    removed_afterwards(interrupts, &project, &progress, lines, |_| true).await
}

async fn run_in(project: &Project, progress: &impl Fn(&str)) -> Result<Vec<Value>> {
    progress("building the images");
    project.prepare_start().await?;
    progress("starting two apps, each with an Envoy that its environment names");
    project.up().await?;
    let mut lines = Vec::new();
    for (service, reporter) in [("web", "source"), ("ratings", "destination")] {
        let what = format!("a line of {service} that names both sides");
        let line = until(&what, async || {
            project.check_running().await?;
            let printed = project.printed(service).await?;
            let lines = printed.lines();
            let mut lines = lines.filter_map(|line| serde_json::from_str(line).ok());
            Ok(lines.find(|line| names_both(line, reporter)))
        });
        lines.push(line.await?);
    }
    Ok(lines)
}

/// Whether the line has what `deploy/compose/README.md` shows.
fn names_both(line: &Value, reporter: &str) -> bool {
    let expected = json!({
        "reporter": reporter, "path": "/", "status": 200,
        "source": "web", "source_namespace": "shop", "source_version": "v1",
        "destination": "ratings", "destination_namespace": "shop", "destination_version": "v2",
    });
    *line == expected
}
