//! The harness as a command, which shows the metadata exchange between real
//! Envoys.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use envoy_test::docker::{self, container};
use envoy_test::report::Report;
use envoy_test::traffic::Plan;
use envoy_test::{Lab, Release, boutique, consumers, demo, istio, skywalking, soak, tcp};
use mxctl::render::{html, svg};
use serde::Serialize;
use serde_json::json;

/// Metadata exchange between real Envoys.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pods and VMs call each other; prints what both sides' access logs say.
    Demo {
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
        /// The Envoy binary, instead of the newest that `make setup` installs.
        #[arg(long, value_name = "PATH")]
        envoy: Option<PathBuf>,
    },
    /// A pod and a VM call each other in containers; needs Docker and Compose.
    DockerDemo {
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// `deploy/compose` in containers: prints a line of each sidecar; needs Docker and Compose.
    Compose,
    /// The app of a workload, in a container of the Docker demonstration.
    #[command(hide = true)]
    App {
        #[arg(long)]
        listen: SocketAddr,
        /// The outbound listener of the app's sidecar: a name and a port.
        #[arg(long)]
        outbound: String,
    },
    /// The access-log collector, in a container of the Docker demonstration.
    #[command(hide = true)]
    Collector {
        #[arg(long)]
        listen: SocketAddr,
        /// The address where it serves received entries.
        #[arg(long)]
        serve: SocketAddr,
    },
    /// Hundreds of callers, honest and hostile, call one sidecar; checks every
    /// reply and every access-log entry.
    Soak(Soak),
    /// The Online Boutique in a mesh: compares the topology in the access logs
    /// with the known call graph, also while Envoys are replaced.
    Boutique(Boutique),
    /// Calls of every kind, and what a real `SkyWalking` draws of them.
    Skywalking(Skywalking),
    /// Runs every file of examples/ with calls, and counts what each consumer of
    /// peers reports them, on every Envoy.
    Examples(Examples),
    /// Workloads that are made up call the sidecar of examples/metrics/: the series and
    /// the memory of its Envoy.
    Flood(Flood),
    /// Real servers behind two sidecars: whether every query is answered, and who is
    /// named in the logs.
    Tcp(Tcp),
    /// Random bytes through two sidecars; compares every byte that arrives.
    TcpSoak(TcpSoak),
    /// Writes the loggers of examples/metrics/ from their description.
    WriteMetrics,
    /// `deploy/istio`, loaded by a real Istio; upgrades under load.
    Istio(Istio),
}

#[derive(Args)]
struct Examples {
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The Envoy binary, instead of all that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[derive(Args)]
struct Tcp {
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The Envoy binary, instead of the newest that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[derive(Args)]
struct TcpSoak {
    /// The bytes of both directions together, such as 500MB or 10GB.
    #[arg(long, default_value = "10GB", value_parser = bytes)]
    bytes: u64,
    /// The seed of everything random.
    #[arg(long, default_value_t = 4)]
    seed: u64,
    /// Connections at a time.
    #[arg(long, default_value_t = 16)]
    lanes: usize,
    /// Run the sidecars without the filter.
    #[arg(long)]
    without_filter: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The Envoy binary, instead of the newest that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[derive(Args)]
struct Flood {
    /// How many workloads are made up.
    #[arg(long, default_value_t = 100_000)]
    workloads: usize,
    /// Metrics by Envoy's logger, instead of by the filter.
    #[arg(long)]
    logger: bool,
    /// Take the logger's bound away, as for Envoy 1.37 and 1.38: a thousand workloads take about 70 MiB.
    #[arg(long, requires = "logger")]
    unbounded: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The Envoy binary, instead of the newest that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[derive(Args)]
struct Istio {
    /// How long each upgrade takes, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    seconds: u64,
    /// Leave it running at the end, until interrupted.
    #[arg(long)]
    keep: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The folder of the run, in namespaces of its own.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

#[derive(Args)]
struct Skywalking {
    /// The number of journeys through the boutique.
    #[arg(long, default_value_t = 20)]
    journeys: u64,
    /// Leave the OAP running at the end, until interrupted.
    #[arg(long)]
    stay: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The Envoy binary, instead of the newest that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[derive(Args)]
struct Boutique {
    /// The number of journeys through the shop before and after Envoys are
    /// replaced.
    #[arg(long, default_value_t = 20)]
    journeys: u64,
    /// Send the access logs to this address, and run until interrupted: for
    /// `mxctl topology --listen ADDRESS`.
    #[arg(long, value_name = "ADDRESS")]
    logs_to: Option<SocketAddr>,
    /// Also write the topology as a picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Also write it as a page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The Envoy binary, instead of the newest that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[derive(Args)]
struct Soak {
    /// The number of requests.
    #[arg(long, default_value_t = 5_000_000)]
    requests: u64,
    /// The sidecar's workers.
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// The number of callers.
    #[arg(long, default_value = "300")]
    peers: NonZeroUsize,
    /// The seed of everything random.
    #[arg(long, default_value_t = 4)]
    seed: u64,
    /// The minutes after which no further request is sent.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// The Envoy binary, instead of the newest that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Demo { json, envoy } => {
            unless_interrupted(Box::pin(demonstrate(json, envoy))).await
        }
        Command::DockerDemo { json } => {
            // It handles signals itself, because it has containers to remove.
            let report = docker::run(|step| eprintln!("- {step}")).await?;
            print(&report, json)
        }
        Command::Compose => {
            for line in docker::start::run(|step| eprintln!("- {step}")).await? {
                println!("{line}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::App { listen, outbound } => {
            unless_interrupted(container::app(listen, &outbound)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Collector { listen, serve } => {
            unless_interrupted(container::collector(listen, serve)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Soak(soak) => unless_interrupted(Box::pin(soak.run())).await,
        Command::Boutique(boutique) => unless_interrupted(Box::pin(boutique.run())).await,
        Command::Skywalking(stories) => unless_interrupted(Box::pin(stories.run())).await,
        Command::Examples(examples) => unless_interrupted(Box::pin(examples.run())).await,
        Command::Flood(flood) => unless_interrupted(Box::pin(flood.run())).await,
        Command::Tcp(matrix) => unless_interrupted(Box::pin(matrix.run())).await,
        Command::TcpSoak(soak) => unless_interrupted(Box::pin(soak.run())).await,
        Command::WriteMetrics => {
            consumers::metrics::description::write()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Istio(istio) => unless_interrupted(Box::pin(istio.run())).await,
    }
}

async fn unless_interrupted<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        outcome = command => outcome,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            bail!("interrupted")
        }
    }
}

async fn demonstrate(json: bool, envoy: Option<PathBuf>) -> Result<ExitCode> {
    let lab = lab(envoy).await?;
    let report = demo::run(&lab, |step| eprintln!("- {step}"))
        .await
        .inspect_err(|_| eprintln!("{}", lab.envoy_logs()))?;
    let verdict = print(&report, json)?;
    if verdict != ExitCode::SUCCESS {
        eprintln!("{}", lab.envoy_logs());
    }
    Ok(verdict)
}

/// Prints the report; any fault in it is a failure.
fn print(report: &Report, json: bool) -> Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        let stdout = std::io::stdout();
        print!("{}", report.human(stdout.is_terminal()));
    }
    Ok(match report.faults().next() {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}

impl Flood {
    async fn run(self) -> Result<ExitCode> {
        let lab = lab(self.envoy).await?;
        let consumer = if self.logger {
            consumers::Consumer::Metrics
        } else {
            consumers::Consumer::FilterMetrics
        };
        let example = consumers::Example::read(consumer.file())?;
        let flood =
            consumers::metrics::flood::run(&lab, &example, self.workloads, !self.unbounded).await?;
        print_with_faults(&flood, &[], self.json)
    }
}

impl Soak {
    async fn run(self) -> Result<ExitCode> {
        let options = soak::Options {
            requests: self.requests,
            workers: self.workers,
            time_limit: Duration::from_mins(self.minutes),
            ..soak::Options::default()
        };
        let lab = lab(self.envoy).await?;
        let plan = Plan::of_peers(self.seed, self.peers);
        let report = soak::run(&lab, options, plan)
            .await
            .inspect_err(|_| eprintln!("{}", lab.envoy_logs()))?;
        let verdict = print_with_faults(&report, &report.faults(), self.json)?;
        if verdict != ExitCode::SUCCESS {
            eprintln!("{}", lab.envoy_logs());
        }
        Ok(verdict)
    }
}

/// Prints a report, whose text includes its faults; any fault is a failure.
fn print_with_faults<R: Serialize + fmt::Display>(
    report: &R,
    faults: &[String],
    json: bool,
) -> Result<ExitCode> {
    if json {
        let json = json!({ "report": report, "faults": faults });
        println!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        print!("{report}");
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Boutique {
    async fn run(self) -> Result<ExitCode> {
        let envoy = binary(self.envoy)?;
        let progress = |step: &str| eprintln!("- {step}");
        if let Some(logs_to) = self.logs_to {
            boutique::serve(&envoy, logs_to, progress).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let report = boutique::run(&envoy, self.journeys, progress).await?;
        if let Some(path) = self.svg {
            std::fs::write(path, svg::draw(&report.topology))?;
        }
        if let Some(path) = self.html {
            std::fs::write(path, html::page(&report.topology)?)?;
        }
        print_with_faults(&report, &report.faults(), self.json)
    }
}

impl Skywalking {
    async fn run(self) -> Result<ExitCode> {
        let Some(named) = skywalking::Named::by_environment()? else {
            bail!(
                "skipped: there is no OAP. Set {} to an unpacked release of Apache SkyWalking, or \
                 {}=HOST:PORT to a running one",
                skywalking::HOME,
                skywalking::RUNNING
            );
        };
        let envoy = binary(self.envoy)?;
        let progress = |step: &str| eprintln!("- {step}");
        let (oap, report) = skywalking::run(&named, &envoy, self.journeys, progress).await?;
        let verdict = print_with_faults(&report, &report.faults(), self.json)?;
        if self.stay {
            progress(&format!(
                "the OAP at {} runs until interrupted",
                oap.queries
            ));
            std::future::pending::<()>().await;
        }
        Ok(verdict)
    }
}

impl Examples {
    async fn run(self) -> Result<ExitCode> {
        let progress = |done: &str| eprintln!("- {done}");
        let report = consumers::run(self.envoy.as_deref(), progress).await?;
        print_with_faults(&report, &report.faults(), self.json)
    }
}

impl Tcp {
    async fn run(self) -> Result<ExitCode> {
        let lab = lab(self.envoy).await?;
        let progress = |step: &str| eprintln!("- {step}");
        let report = tcp::matrix::run(&lab, &tcp::Server::ALL, &[false, true], progress)
            .await
            .inspect_err(|_| eprintln!("{}", lab.envoy_logs()))?;
        print_with_faults(&report, &report.faults(), self.json)
    }
}

impl TcpSoak {
    async fn run(self) -> Result<ExitCode> {
        let lab = lab(self.envoy).await?;
        let options = tcp::soak::Options {
            bytes: self.bytes,
            seed: self.seed,
            lanes: self.lanes,
            with_filter: !self.without_filter,
            ..tcp::soak::Options::default()
        };
        let report = tcp::soak::run(&lab, options, |step| eprintln!("- {step}"))
            .await
            .inspect_err(|_| eprintln!("{}", lab.envoy_logs()))?;
        print_with_faults(&report, &report.faults(), self.json)
    }
}

/// A number of bytes, with or without a decimal unit.
fn bytes(text: &str) -> Result<u64> {
    let units = [("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let unit = units.into_iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?;
        Some((number.trim(), factor))
    });
    let (number, factor) = unit.unwrap_or((text, 1));
    let number: u64 = number
        .parse()
        .context("a number, or one with kB, MB or GB")?;
    number.checked_mul(factor).context("too many bytes")
}

impl Istio {
    async fn run(self) -> Result<ExitCode> {
        if let Some(dir) = self.inside.clone() {
            return self.run_inside(dir).await;
        }
        if let Err(lacking) = istio::Home::by_environment() {
            bail!("SKIPPED: no Istio is run: {lacking:#}");
        }
        let arguments: Vec<_> = std::env::args().skip(2).collect();
        let mut run = istio::Run::start(&std::env::current_exe()?, &arguments)?;
        if self.keep {
            eprintln!("{}", run.look().await?);
        }
        Ok(if run.wait().await? {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn run_inside(self, dir: PathBuf) -> Result<ExitCode> {
        let options = istio::Options {
            dir,
            each: Duration::from_secs(self.seconds),
        };
        let progress = |step: &str| eprintln!("- {step}");
        let shown = istio::run_inside(&options, progress).await?;
        let verdict = match &shown.report {
            Ok(report) => print_with_faults(report, &report.faults(), self.json)?,
            Err(error) => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        };
        if self.keep {
            eprintln!("- it runs until interrupted");
            std::future::pending::<()>().await;
        }
        Ok(verdict)
    }
}

async fn lab(envoy: Option<PathBuf>) -> Result<Lab> {
    Lab::new(&binary(envoy)?).await
}

fn binary(named: Option<PathBuf>) -> Result<PathBuf> {
    named.map_or_else(|| Release::Newest.binary(), Ok)
}
