//! `mxctl doctor`

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::print_json;
use crate::admin;
use crate::doctor::{FILTER, Finding, LATER, Severity, examine, has_to_wait};
use crate::escape::visible;

/// Tell what is wrong with Envoys that run, and the cure.
///
/// It reads their configuration and statistics, these twice within three seconds,
/// and changes nothing. The exit status is 0 if nothing is wrong, 1 if something is, and 2 if an Envoy could
/// not be asked.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The admin interfaces, as 127.0.0.1:15000
    #[arg(required = true, value_name = "ADMIN")]
    admins: Vec<String>,
    /// The name of the filter, of its plugin or its root id
    #[arg(long, value_name = "NAME", default_value = FILTER)]
    filter: String,
}

/// What is wrong with one Envoy.
#[derive(Serialize)]
struct Report<'a> {
    admin: &'a str,
    #[serde(flatten)]
    result: Outcome,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Findings(Vec<Finding>),
    Error(String),
}

impl Arguments {
    pub(super) async fn run(&self, json: bool) -> ExitCode {
        // All at once, for each takes a while.
        let ask = |admin: &String| tokio::spawn(ask(admin.clone(), self.filter.clone()));
        let asked: Vec<_> = self.admins.iter().map(ask).collect();
        let mut reports = Vec::new();
        for (admin, asked) in self.admins.iter().zip(asked) {
            let result = match asked.await.map_err(anyhow::Error::from).flatten() {
                Ok(findings) => Outcome::Findings(findings),
                Err(error) => Outcome::Error(format!("{error:#}")),
            };
            reports.push(Report { admin, result });
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
        ExitCode::from(reports.iter().map(Report::status).max().unwrap_or(0))
    }
}

async fn ask(admin: String, filter: String) -> Result<Vec<Finding>> {
    const STATS: &str = "/stats?format=json";
    let dump = admin::get(&admin, "/config_dump").await?;
    let stats = admin::get(&admin, STATS).await?;
    let mut later = Value::Null;
    if has_to_wait(&stats) {
        sleep(LATER).await;
        later = admin::get(&admin, STATS).await?;
    }
    examine(&dump, &stats, &later, &filter)
}

const WRONG: u8 = 1;
const COULD_NOT_LOOK: u8 = 2;

impl Report<'_> {
    fn status(&self) -> u8 {
        match &self.result {
            Outcome::Findings(findings) if findings.is_empty() => 0,
            Outcome::Findings(_) => WRONG,
            Outcome::Error(_) => COULD_NOT_LOOK,
        }
    }
}

fn text(report: &Report<'_>) -> String {
    let admin = visible(report.admin);
    let findings = match &report.result {
        Outcome::Error(error) => return format!("{admin}: {}\n", visible(error)),
        Outcome::Findings(findings) if findings.is_empty() => {
            return format!("{admin}: nothing is wrong\n");
        }
        Outcome::Findings(findings) => findings,
    };
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let (code, place) = (finding.code.name(), visible(&finding.place));
        let (what, cure) = (visible(&finding.what), visible(&finding.cure));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{admin}: {severity} {code}: {place}\n  {what}\n  cure: {cure}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Code;

    /// Listeners, filters and clusters are named by whoever configures an Envoy.
    #[test]
    fn names_do_not_reach_the_terminal_as_they_are() {
        let hostile = "in\u{1b}[2Jbound\nan-envoy: nothing is wrong";
        let finding = Finding {
            severity: Severity::Error,
            code: Code::FilterMissing,
            place: hostile.to_owned(),
            what: hostile.to_owned(),
            cure: hostile.to_owned(),
        };
        for result in [
            Outcome::Findings(vec![finding]),
            Outcome::Error(hostile.to_owned()),
        ] {
            let lines = match result {
                Outcome::Findings(_) => 3,
                Outcome::Error(_) => 1,
            };
            let text = text(&Report {
                admin: hostile,
                result,
            });
            assert!(!text.contains('\u{1b}'), "{text:?}");
            assert_eq!(text.lines().count(), lines, "{text:?}");
        }
    }
}
