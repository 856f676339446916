//! The harness itself: the demonstration, which leaves nothing behind.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use envoy_test::{Lab, demo, until};
use tempfile::TempDir;

envoy_test::stories!(the_demonstration_is_verified);

async fn the_demonstration_is_verified(lab: &Lab) -> Result<()> {
    let report = demo::run(lab, |_| ()).await?;

    assert_eq!(report.faults().collect::<Vec<_>>(), [""; 0]);
    assert_eq!(
        report.calls.iter().map(|call| call.checked).sum::<usize>(),
        8
    );
    Ok(())
}

#[tokio::test]
async fn an_interrupted_run_leaves_nothing_behind() -> Result<()> {
    let files = TempDir::new()?;
    let mut demonstration = demonstrate(files.path())?;
    let envoys = until_envoys_run(&demonstration).await?;

    signal("INT", demonstration.id())?;

    assert!(!demonstration.wait()?.success());
    until_gone(&envoys).await?;
    assert_eq!(std::fs::read_dir(files.path())?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn a_killed_run_leaves_no_envoy_behind() -> Result<()> {
    let files = TempDir::new()?;
    let mut demonstration = demonstrate(files.path())?;
    let envoys = until_envoys_run(&demonstration).await?;

    signal("KILL", demonstration.id())?;

    demonstration.wait()?;
    until_gone(&envoys).await
}

fn demonstrate(files: &Path) -> Result<Child> {
    let child = Command::new(env!("CARGO_BIN_EXE_envoy-test"))
        .arg("demo")
        .env("TMPDIR", files)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child)
}

fn signal(name: &str, process: u32) -> Result<()> {
    let status = Command::new("kill")
        .args(["-s", name, &process.to_string()])
        .status()?;
    ensure!(status.success(), "no process {process} to signal");
    Ok(())
}

/// Waits for the process's children, which are its Envoys.
async fn until_envoys_run(process: &Child) -> Result<Vec<u32>> {
    let tasks = format!("/proc/{}/task", process.id());
    until("Envoys to run", async || {
        let mut children = Vec::new();
        for task in std::fs::read_dir(&tasks).context("the demonstration ended early")? {
            let list = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            children.extend(
                list.split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
        Ok((!children.is_empty()).then_some(children))
    })
    .await
}

/// Waits until the processes have ended, reaped by their new parent or not.
async fn until_gone(processes: &[u32]) -> Result<()> {
    until("Envoys to be gone", async || {
        let lives = |id: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default();
            !state.is_empty() && !state.starts_with('Z')
        };
        Ok((!processes.iter().any(lives)).then_some(()))
    })
    .await
}
