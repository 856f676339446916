//! `mxctl doctor`

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::print_json;
use crate::doctor::{Evidence, FILTER, Finding, Severity, examine, gather, unexamined};
use crate::escape::visible;

/// Find problems in Envoys' configuration and statistics, with their remedies.
///
/// Reads the configuration and the statistics of running Envoys (the statistics
/// twice, three seconds apart), or a config_dump or bootstrap from a file. It
/// changes nothing. The exit status is 0 if no error was found, 1 if one was,
/// and 2 if an Envoy or a file could not be read. Warnings alone exit with 0,
/// unless --fail-on says otherwise.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Admin interfaces, such as 127.0.0.1:15000 or unix:/run/envoy/admin.sock
    #[arg(value_name = "ADMIN", required_unless_present = "files")]
    admins: Vec<String>,
    /// A config_dump or bootstrap in JSON or YAML, whole or in part; - reads
    /// standard input
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The version of the Envoy that will run the files, as 1.36: reports what it lacks
    #[arg(long, value_name = "VERSION", requires = "files", value_parser = version)]
    envoy: Option<(u64, u64)>,
    /// The name of the filter, its plugin or its root id
    #[arg(long, value_name = "NAME", default_value = FILTER)]
    filter: String,
    /// The lowest severity that exits with 1
    #[arg(long, value_name = "SEVERITY", value_enum, default_value = "error")]
    fail_on: Severity,
}

/// The findings for one Envoy.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    source: Source,
    #[serde(flatten)]
    result: Outcome,
    /// What the source does not contain.
    not_examined: Vec<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Admin(String),
    File(String),
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Findings(Vec<Finding>),
    Error(String),
}

impl Report {
    fn new(source: Source, evidence: Result<Evidence>, filter: &str) -> Self {
        let not_examined = evidence.as_ref().map(unexamined).unwrap_or_default();
        let result = match evidence.and_then(|evidence| examine(&evidence, filter)) {
            Ok(findings) => Outcome::Findings(findings),
            Err(error) => Outcome::Error(format!("{error:#}")),
        };
        Self {
            source,
            result,
            not_examined,
        }
    }
}

impl Arguments {
    pub(super) async fn run(&self, json: bool) -> ExitCode {
        // In parallel, because each takes a few seconds.
        let ask = |admin: &String| {
            let admin = admin.clone();
            tokio::spawn(async move { gather::of_admin(&admin).await })
        };
        let asked: Vec<_> = self.admins.iter().map(ask).collect();
        let mut reports = Vec::new();
        for (admin, asked) in self.admins.iter().zip(asked) {
            let evidence = asked.await.map_err(anyhow::Error::from).flatten();
            let source = Source::Admin(admin.clone());
            reports.push(Report::new(source, evidence, &self.filter));
        }
        for path in &self.files {
            let source = Source::File(path.display().to_string());
            let evidence = read(path).map(|evidence| self.for_envoy(evidence));
            reports.push(Report::new(source, evidence, &self.filter));
        }
        let printed = if json {
            print_json(&json!(reports))
        } else {
            let text: String = reports.iter().map(text).collect();
            let written = io::stdout().write_all(text.as_bytes());
            written.map_err(anyhow::Error::from)
        };
        if let Err(error) = printed {
            super::report(&error, json);
            return ExitCode::from(COULD_NOT_LOOK);
        }
        let statuses = reports.iter().map(|report| report.status(self.fail_on));
        ExitCode::from(statuses.max().unwrap_or(0))
    }
}

impl Arguments {
    /// What is in a file, of an Envoy of the version that is named.
    fn for_envoy(&self, mut evidence: Evidence) -> Evidence {
        if let Some((major, minor)) = self.envoy {
            let info = json!({ "version": format!("/{major}.{minor}.0/") });
            evidence.server_info.get_or_insert(info);
        }
        evidence
    }
}

fn version(text: &str) -> Result<(u64, u64), String> {
    let mut numbers = text.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err("not a version, as 1.36 or 1.40.0".to_owned()),
    }
}

fn read(path: &Path) -> Result<Evidence> {
    let content = super::file(path)?;
    gather::of_file(&path.to_string_lossy(), &content)
}

const WRONG: u8 = 1;
const COULD_NOT_LOOK: u8 = 2;

impl Report {
    fn status(&self, fail_on: Severity) -> u8 {
        match &self.result {
            // The worst severity sorts first.
            Outcome::Findings(findings) => {
                let is_wrong = findings.iter().any(|one| one.severity <= fail_on);
                u8::from(is_wrong) * WRONG
            }
            Outcome::Error(_) => COULD_NOT_LOOK,
        }
    }
}

fn text(report: &Report) -> String {
    let (Source::Admin(source) | Source::File(source)) = &report.source;
    let source = visible(source);
    let findings = match &report.result {
        Outcome::Error(error) => return format!("{source}: {}\n", visible(error)),
        Outcome::Findings(findings) => findings,
    };
    let mut text = String::new();
    if findings.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{source}: nothing is wrong");
    }
    for finding in findings {
        let (severity, code) = (finding.severity.name(), finding.code.name());
        let place = visible(&finding.place);
        let (message, remedy) = (visible(&finding.message), visible(&finding.remedy));
        let _ = writeln!(
            text,
            "{source}: {severity} {code}: {place}\n  {message}\n  remedy: {remedy}"
        );
    }
    if !report.not_examined.is_empty() {
        let parts = report.not_examined.join(", ");
        let _ = writeln!(
            text,
            "{source}: not examined because it is not in the file: {parts}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Code;

    fn finding(severity: Severity, text: &str) -> Finding {
        Finding {
            severity,
            code: Code::FilterMissing,
            place: text.to_owned(),
            message: text.to_owned(),
            remedy: text.to_owned(),
        }
    }

    /// Names of listeners, filters and clusters are untrusted text.
    #[test]
    fn names_are_escaped_for_the_terminal() {
        let hostile = "in\u{1b}[2Jbound\nan-envoy: nothing is wrong";
        for result in [
            Outcome::Findings(vec![finding(Severity::Error, hostile)]),
            Outcome::Error(hostile.to_owned()),
        ] {
            let lines = match result {
                Outcome::Findings(_) => 3,
                Outcome::Error(_) => 1,
            };
            let source = Source::Admin(hostile.to_owned());
            let not_examined = Vec::new();
            let text = text(&Report {
                source,
                result,
                not_examined,
            });
            assert!(!text.contains('\u{1b}'), "{text:?}");
            assert_eq!(text.lines().count(), lines, "{text:?}");
        }
    }

    #[test]
    fn the_exit_status_follows_the_worst_finding() {
        use Severity::{Error, Info, Warning};
        for (found, fail_on, expected) in [
            (vec![], Error, 0),
            (vec![Info, Warning], Error, 0),
            (vec![Warning, Error], Error, 1),
            (vec![Info, Warning], Warning, 1),
            (vec![Info], Warning, 0),
            (vec![Info], Info, 1),
        ] {
            let findings = found.iter().map(|severity| finding(*severity, "any"));
            let report = Report {
                source: Source::Admin("any".to_owned()),
                result: Outcome::Findings(findings.collect()),
                not_examined: Vec::new(),
            };
            assert_eq!(report.status(fail_on), expected, "{found:?} {fail_on:?}");
        }
    }
}
