//! The harness as a command: shows the metadata exchange between real Envoys.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use envoy_test::{Lab, Release, demo};

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
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Command::Demo { json, envoy } = Arguments::parse().command;
    tokio::select! {
        verdict = demonstrate(json, envoy) => verdict,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            bail!("interrupted")
        }
    }
}

async fn demonstrate(json: bool, envoy: Option<PathBuf>) -> Result<ExitCode> {
    let envoy = match envoy {
        Some(path) => path,
        None => Release::Newest.binary()?,
    };
    let lab = Lab::new(&envoy).await?;
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
