//! The harness as a command: shows the metadata exchange between real Envoys.

#![forbid(unsafe_code)]

use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use envoy_test::traffic::Plan;
use envoy_test::{Lab, Release, demo, soak};
use serde_json::json;

/// Metadata exchange between real Envoys.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pods and VMs call each other; shows what both sides' access logs say.
    Demo {
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
        /// The Envoy binary, instead of the newest that `make setup` installs.
        #[arg(long, value_name = "PATH")]
        envoy: Option<PathBuf>,
    },
    /// Hundreds of callers, honest and hostile, call one sidecar; every reply and
    /// every access-log entry is checked.
    Soak(Soak),
}

#[derive(Args)]
struct Soak {
    /// How many requests.
    #[arg(long, default_value_t = 5_000_000)]
    requests: u64,
    /// How many workers the sidecar has.
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// How many callers there are.
    #[arg(long, default_value = "300")]
    peers: NonZeroUsize,
    /// From which all that is random comes.
    #[arg(long, default_value_t = 4)]
    seed: u64,
    /// After how many minutes no further request is sent.
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
    let command = async {
        match Arguments::parse().command {
            Command::Demo { json, envoy } => demonstrate(json, envoy).await,
            Command::Soak(soak) => soak.run().await,
        }
    };
    tokio::select! {
        verdict = command => verdict,
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
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        let stdout = std::io::stdout();
        print!("{}", report.human(stdout.is_terminal()));
    }
    if report.faults().next().is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{}", lab.envoy_logs());
    Ok(ExitCode::FAILURE)
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
        let faults = report.faults();
        if self.json {
            let json = json!({ "report": report, "faults": faults });
            println!("{}", serde_json::to_string_pretty(&json)?);
        } else {
            print!("{report}");
        }
        if faults.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("{}", lab.envoy_logs());
        Ok(ExitCode::FAILURE)
    }
}

async fn lab(envoy: Option<PathBuf>) -> Result<Lab> {
    let envoy = match envoy {
        Some(path) => path,
        None => Release::Newest.binary()?,
    };
    Lab::new(&envoy).await
}
