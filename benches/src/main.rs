//! What the filter costs: `make bench`.
//!
//! Performance is reported as what can be counted (guest instructions, host calls, bytes), or as a ratio of what was
//! measured in the same run. Absolute times are in the tables, too, but hold for one machine and one hour.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_precision_loss,
    reason = "no figure is printed with 15 digits"
)]

mod bench;
mod codec;
mod counted;
mod envoys;
mod plot;
mod popularity;
mod report;
mod sample;
mod statistics;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use envoy_test::{Lab, Release};

use bench::{Bench, end_progress};
use envoys::{consumers, first_request, load, on_log, start, tcp, wire_bytes};
use report::{Environment, Report};

/// What the filter costs: counted, and measured in real Envoys against none and
/// against a module that does nothing.
#[derive(Parser)]
struct Arguments {
    /// Only these subjects.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SUBJECTS")]
    only: Vec<Subject>,
    /// A tenth of the rounds and requests: shows that all works, not what it costs.
    #[arg(long)]
    quick: bool,
    /// Rounds of each start, instead of the subject's own number: fewer take less time and are less precise.
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<usize>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Where bench.json and the charts go.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
    /// A further module to measure, such as the filter of another release.
    #[arg(long, value_name = "PATH")]
    module: Vec<PathBuf>,
    /// The Envoy binary, instead of the newest that `make setup` installs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Guest instructions and host calls by path and labels
    Counted,
    /// Envoy's CPU per request
    Load,
    /// The callback `proxy_on_log` against the filter without it
    OnLog,
    /// What reads the peer, against the filter alone
    Consumers,
    /// The first request of a peer against those that follow
    FirstRequest,
    /// Bytes between two sidecars
    WireBytes,
    /// Envoy's CPU per TCP connection and per megabyte
    Tcp,
    /// Memory and time to ready by number of workers
    Start,
    /// Hit ratio and memory by number of peers
    Popularity,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Load => "load",
            Self::OnLog => "on-log",
            Self::Consumers => "consumers",
            Self::FirstRequest => "first-request",
            Self::WireBytes => "wire-bytes",
            Self::Tcp => "tcp",
            Self::Start => "start",
            Self::Popularity => "popularity",
        }
    }

    async fn run(self, bench: &mut Bench) -> Result<()> {
        match self {
            Self::Counted => counted::run(bench),
            Self::Load => load::run(bench).await,
            Self::OnLog => on_log::run(bench).await,
            Self::Consumers => consumers::run(bench).await,
            Self::FirstRequest => first_request::run(bench).await,
            Self::WireBytes => wire_bytes::run(bench).await,
            Self::Tcp => tcp::run(bench).await,
            Self::Start => start::run(bench).await,
            Self::Popularity => popularity::run(bench),
        }
    }
}

#[tokio::main(worker_threads = 1)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tokio::select! {
        done = arguments.run() => done,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            bail!("interrupted")
        }
    }
}

impl Arguments {
    async fn run(self) -> Result<()> {
        let begin = Instant::now();
        let envoy = match self.envoy {
            Some(path) => path,
            None => Release::Newest.binary()?,
        };
        let modules = self.module.iter().map(|module| {
            let found = module.canonicalize();
            found.with_context(|| format!("there is no module {}", module.display()))
        });
        let modules = modules.collect::<Result<_>>()?;
        let lab = Lab::new(&envoy).await?;
        let mut bench = Bench::new(lab, modules, self.out, self.quick, self.rounds)?;
        let mut environment = environment(&bench, &envoy)?;
        let chosen = |subject: &&Subject| self.only.is_empty() || self.only.contains(subject);
        for subject in Subject::value_variants().iter().filter(chosen) {
            bench.subject = subject.name();
            subject
                .run(&mut bench)
                .await
                .with_context(|| format!("{} failed", bench.subject))
                .inspect_err(|_| eprintln!("{}", bench.lab.envoy_logs()))?;
        }
        end_progress();
        environment.seconds = begin.elapsed().as_secs_f64();
        let report = Report {
            environment,
            tables: bench.tables,
        };
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(bench.out.join("bench.json"), format!("{json}\n"))?;
        if self.json {
            println!("{json}");
        } else {
            print!("{report}");
        }
        eprintln!("wrote bench.json and charts to {}", bench.out.display());
        Ok(())
    }
}

/// The version in `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`.
fn version_of(output: &str) -> Option<&str> {
    let (_, build) = output.split_once("version: ")?;
    build.split('/').nth(1)
}

fn environment(bench: &Bench, envoy: &Path) -> Result<Environment> {
    let version = Command::new(envoy).arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load_average = fs::read_to_string("/proc/loadavg")?;
    Ok(Environment {
        envoy: version_of(&version).unwrap_or("unknown").to_owned(),
        processor: model.map_or("unknown", |(_, model)| model).to_owned(),
        processors: std::thread::available_parallelism()?.get(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        load_average: load_average
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned(),
        module_bytes: fs::metadata(bench.lab.module())?.len(),
        is_quick: bench.is_quick,
        seconds: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_well_formed() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn subjects_and_tables_have_the_same_names() {
        for subject in Subject::value_variants() {
            let value = subject.to_possible_value().unwrap();
            assert_eq!(value.get_name(), subject.name());
        }
    }

    #[test]
    fn the_version_is_read_from_envoys_output() {
        let output = "/usr/bin/envoy  version: 0a1b/1.40.0/Clean/RELEASE/BoringSSL\n";
        assert_eq!(version_of(output), Some("1.40.0"));
    }
}
