//! A real Istio: Kubernetes' API server, istiod, and Istio's agent with standard
//! Envoys, on one machine. What `deploy/istio` holds is applied to it, and judged by
//! what it then does.
//!
//! Pods are objects of the API and network namespaces; there is no kubelet and no
//! injector, whose part the harness plays.

mod canary;
mod cluster;
mod home;
mod istiod;
mod kubernetes;
mod network;
mod objects;
mod overlay;
mod pod;
mod proxy;
mod registry;
mod remade;
mod report;
mod sandbox;
mod story;
mod table;
mod traffic;
mod unfetchable;
mod upgrade;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

pub use home::{HOME, Home};
pub use kubernetes::kustomize;
pub use report::{Report, Seconds};
pub use story::{Outcome, Phase};
pub use table::Row;
pub use traffic::Count;

use cluster::Cluster;

use crate::process;
use crate::wait::until;

/// How long a program of the control plane may take to start on a busy machine.
const START: Duration = Duration::from_mins(3);

/// Where programs of the system are; those of administrators are not on every path.
fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

/// The end of a log.
fn end_of(log: &Path) -> String {
    const LINES: usize = 40;
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let end = lines.get(lines.len().saturating_sub(LINES)..);
    end.unwrap_or_default().join("\n")
}

/// Runs a command of the system to its end.
fn run(command: &mut Command) -> Result<()> {
    process::run(command.env("PATH", path()))
}

/// A run in namespaces of its own. Dropping it ends all that runs there.
#[derive(Debug)]
pub struct Run {
    process: tokio::process::Child,
    dir: TempDir,
}

impl Run {
    /// Starts the program of the harness as `program istio ARGUMENTS` there.
    pub fn start(program: &Path, arguments: &[String]) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = TempDir::with_prefix("envoy-test-istio-")?;
        // The proxies are of another user.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let inside = [
            "istio".to_owned(),
            format!("--inside={}", dir.path().display()),
        ];
        let command = sandbox::command(program, inside.iter().chain(arguments));
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let process = command.spawn().context("cannot run `setpriv`")?;
        Ok(Self { process, dir })
    }

    /// Waits for its end, and says whether all was right.
    pub async fn wait(&mut self) -> Result<bool> {
        Ok(self.process.wait().await?.success())
    }

    /// How to look into it while it runs.
    pub async fn look(&self) -> Result<String> {
        let unshare = self.process.id().context("it has ended")?;
        let first = until("the first process", async || {
            Ok(sandbox::first_process(unshare).ok())
        });
        let first = first.await?;
        let dir = self.dir.path().display();
        let kubectl = kubernetes::kubectl();
        let kubectl = kubectl.canonicalize().unwrap_or(kubectl);
        Ok(format!(
            "It runs until interrupted. To look into it:\n  \
             enter='nsenter --target {first} --net --mount --pid'\n  \
             $enter {} --kubeconfig {dir}/kubernetes/kubeconfig get wasmplugins,envoyfilters -A\n  \
             $enter {dir}/istioctl --kubeconfig {dir}/kubernetes/kubeconfig analyze -A\n  \
             $enter ip netns exec ratings curl -s localhost:15000/config_dump\n\
             Logs are in {dir}/logs, and the other network namespaces are those of `$enter ip netns`.",
            kubectl.display()
        ))
    }
}

/// What a run is given.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of the run.
    pub dir: PathBuf,
    /// How long each story of an upgrade takes.
    pub each: Duration,
}

/// A mesh that runs, and what it has shown. It ends with its value.
#[derive(Debug)]
pub struct Shown {
    /// An error says which part could not be completed.
    pub report: Result<Report>,
    _cluster: Cluster,
}

/// Brings it up, runs all stories and judges them. Only for a process that
/// [`Run::start`] has started.
pub async fn run_inside(options: &Options, mut progress: impl FnMut(&str)) -> Result<Shown> {
    sandbox::check_inside()?;
    let home = Home::by_environment()?;
    let began = Instant::now();
    let mut seconds = Seconds::default();
    progress("starting Kubernetes' API, istiod and nine proxies");
    let mut cluster = Cluster::start(&home, &options.dir).await?;
    seconds.note("to start", began);
    let all = report::all(&mut cluster, options.each, &mut seconds, &mut progress);
    let report = Box::pin(all).await;
    let is_sound = report
        .as_ref()
        .is_ok_and(|report| report.faults().is_empty());
    if !is_sound {
        eprintln!("{}", cluster.logs());
    }
    Ok(Shown {
        report,
        _cluster: cluster,
    })
}
