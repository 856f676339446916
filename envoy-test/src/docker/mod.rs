//! The demonstration in containers: the same calls and checks, with each app on
//! a network that only its own sidecar shares.

mod compose;
pub mod container;
mod files;
pub mod start;

use anyhow::{Context as _, Result, ensure};
use hyper::StatusCode;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{Call, Reply};
use crate::collector::Entry;
use crate::demo::{Member, both_logs};
use crate::node::Node;
use crate::report::Report;
use crate::wait::until;
use compose::{Project, Setup};

/// The ports on which the containers listen.
const INBOUND: u16 = 15006;
const OUTBOUND: u16 = 15001;
const APP: u16 = 8080;
const COLLECTOR: u16 = 9090;
const ENTRIES: u16 = 9091;

/// Runs the demonstration and always removes everything afterwards. On an
/// error, the containers' logs go to standard error.
pub async fn run(progress: impl Fn(&str)) -> Result<Report> {
    let members = [
        Member {
            name: "productpage",
            node: Node::pod_client()?,
        },
        Member {
            name: "ratings",
            node: Node::vm_server()?,
        },
    ];
    let interrupts = Interrupts::new()?;
    let project = Project::new(Setup::Demo).await?;
    let is_well = |report: &Report| report.faults().next().is_none();
    let report = run_in(&project, &members, &progress);
    removed_afterwards(interrupts, &project, &progress, report, is_well).await
}

/// Removes everything of the project after `run`, also if it fails or is interrupted.
async fn removed_afterwards<T>(
    mut interrupts: Interrupts,
    project: &Project,
    progress: &impl Fn(&str),
    run: impl Future<Output = Result<T>>,
    is_well: impl Fn(&T) -> bool,
) -> Result<T> {
    let outcome = tokio::select! {
        outcome = run => outcome,
        name = interrupts.next() => Err(anyhow::anyhow!("interrupted by {name}")),
    };
    if !outcome.as_ref().is_ok_and(is_well) {
        eprintln!("{}", project.logs().await);
    }
    progress("removing everything");
    let down = project.down().await;
    let outcome = outcome?;
    down?;
    Ok(outcome)
}

async fn run_in(
    project: &Project,
    members: &[Member; 2],
    progress: &impl Fn(&str),
) -> Result<Report> {
    progress("building the images");
    let module_bytes = project.prepare(members).await?;
    progress("starting a pod and a VM, each an app with an Envoy as sidecar");
    project.up().await?;
    let [pod, vm] = members;
    let story = Story { project };
    let ways = [("K8s -> VM", pod, vm), ("VM -> K8s", vm, pod)];
    for (_, client, server) in ways {
        story.ready(client, server).await?;
    }
    let mut calls = Vec::new();
    for (title, client, server) in ways {
        progress(&format!("{} calls {}", client.name, server.name));
        let reply = story.call(client, server).await?;
        let outbound = story.entry(client, "outbound", &reply.call).await?;
        let inbound = story.entry(server, "inbound", &reply.call).await?;
        let status = reply.status.as_u16();
        calls.push(both_logs(
            title, client, server, status, &outbound, &inbound,
        )?);
    }
    for (_, client, server) in ways {
        story.unreachable(client, server).await?;
        progress(&format!(
            "the app of {} cannot reach the app of {} past its sidecar",
            client.name, server.name
        ));
    }
    Ok(Report {
        envoy: project.envoy_version(pod.name).await?,
        module_bytes,
        calls,
    })
}

/// Calls through the published ports, and their entries in the collector.
struct Story<'p> {
    project: &'p Project,
}

impl Story<'_> {
    /// Makes the app of `client` call `server` through both sidecars.
    async fn call(&self, client: &Member, server: &Member) -> Result<Reply> {
        let path = format!("/call/{}", server.name);
        self.ask(client, &path).await
    }

    /// Sends a request to the app of `member` through its sidecar.
    async fn ask(&self, member: &Member, path: &str) -> Result<Reply> {
        let sidecar = self.project.port(member.name, INBOUND).await?;
        Call::new(sidecar, member.name).path(path).send().await
    }

    /// Waits until `client` can call `server`: all are running and resolve each
    /// other's names.
    async fn ready(&self, client: &Member, server: &Member) -> Result<()> {
        let what = format!("{} to be able to call {}", client.name, server.name);
        until(&what, async || {
            self.project.check_running().await?;
            let reply = self.call(client, server).await.ok();
            Ok(reply
                .filter(|reply| reply.status == StatusCode::OK)
                .map(|_| ()))
        })
        .await
    }

    /// Checks that the app of `server` can be reached from its own network, but
    /// not from the app of `client`.
    async fn unreachable(&self, client: &Member, server: &Member) -> Result<()> {
        let app = self.project.ip(&format!("{}-app", server.name)).await?;
        let probe = format!("/reach/{app}:{APP}");
        for (from, expected) in [
            (server, StatusCode::OK),
            (client, StatusCode::GATEWAY_TIMEOUT),
        ] {
            let status = self.ask(from, &probe).await?.status;
            ensure!(
                status == expected,
                "{probe} of the app of {}: {status} instead of {expected}",
                from.name
            );
        }
        Ok(())
    }

    /// Waits for the entry of `call` that a listener of `member` has logged.
    async fn entry(&self, member: &Member, listener: &str, call: &str) -> Result<Entry> {
        let log = format!("{}/{listener}", member.name);
        until(&format!("an entry of call {call} in {log}"), async || {
            let mut entries = self.entries().await?.into_iter();
            Ok(entries.find(|entry| entry.reporter.log == log && entry.call() == call))
        })
        .await
    }

    async fn entries(&self) -> Result<Vec<Entry>> {
        let collector = self.project.port("collector", ENTRIES).await?;
        let reply = Call::new(collector, "collector")
            .path(container::ENTRIES)
            .send()
            .await?;
        ensure!(
            reply.status == StatusCode::OK,
            "the collector answers {}",
            reply.status
        );
        let lines = str::from_utf8(&reply.body)?.lines();
        lines
            .map(|line| Ok(access_log::Entry::of_line(line)?.into()))
            .collect()
    }
}

/// The signals with which users and CI stop a command.
struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
