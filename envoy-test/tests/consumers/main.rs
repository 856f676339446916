//! `examples/`: each file is run as a user runs it, on every Envoy that it claims.

// Caller and callee are the terms of the field.
#![allow(clippy::similar_names)]

mod conditions;
mod files;
mod log_shippers;
mod metrics;

use anyhow::{Result, bail, ensure};
use envoy_test::Lab;
use envoy_test::consumers::metrics::flood;
use envoy_test::consumers::unit::{self, Started};
use envoy_test::consumers::{
    Consumer, Example, Outcome, headers_without_removal, policy_without_service_account,
};
use hyper::StatusCode;
use serde_json::json;

envoy_test::stories!(
    policy,
    rate_limit,
    caller_header,
    json_log,
    otlp_log,
    fluentd_log,
    metrics_by_the_filter,
    metrics,
    made_up_workloads_are_bounded_by_the_filter,
    traces_open_telemetry,
    traces_zipkin,
    the_service_account_keeps_a_spoofed_workload_out,
    the_removal_keeps_a_forged_header_out,
    the_unit_logs_to_a_file,
    the_environment_alone_names_this_side,
);

/// Its consumer reports all calls that were made, and no others; or the file does not claim this Envoy, and Envoy
/// refuses it.
async fn reconciled(lab: &Lab, consumer: Consumer) -> Result<()> {
    let row = consumer.run(lab).await?;
    match &row.outcome {
        Outcome::Ran { counts } => {
            for (what, count) in counts.iter() {
                println!("{} made, {} found: {what}", count.made, count.found);
            }
        }
        Outcome::NotClaimed { envoy_needed } => {
            println!("{}: for Envoy {envoy_needed}", row.file);
            is_refused(lab, row.file).await?;
        }
        Outcome::Skipped { reason } => {
            println!("SKIPPED {}: {reason}", row.file);
            ensure!(
                std::env::var_os("NO_SKIPPING").is_none(),
                "skipped: {reason}"
            );
        }
    }
    assert_eq!(row.faults(), Vec::<String>::new());
    Ok(())
}

/// Envoy itself refuses the file: the claim at its top is not too small.
async fn is_refused(lab: &Lab, file: &'static str) -> Result<()> {
    let path = lab.dir().join("refused.json");
    let bootstrap = Example::read(file)?.bootstrap()?;
    let module = lab.module().to_string_lossy();
    let text = bootstrap.to_string().replace(files::MODULE, &module);
    std::fs::write(&path, text)?;
    match lab.validate(&path).await {
        Ok(()) => bail!(
            "Envoy {} takes {file}, which does not claim it",
            lab.version().await?
        ),
        Err(error) => {
            // Protobuf varies its spaces.
            let error = format!("{error:#}");
            let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
            let lacks = if file.contains("metrics") {
                "envoy.access_loggers.stats"
            } else {
                "no such field: 'value'"
            };
            ensure!(error.contains(lacks), "{error}");
            Ok(())
        }
    }
}

/// The bootstrap names nobody, so that logs, metrics and traces have the local side from `node` of the plugin.
async fn the_environment_alone_names_this_side(lab: &Lab) -> Result<()> {
    for consumer in Consumer::ALL {
        if matches!(
            consumer,
            Consumer::Policy | Consumer::RateLimit | Consumer::CallerHeader
        ) {
            continue;
        }
        let example = Example::read(consumer.file())?.named_by_environment();
        let row = consumer.run_example(lab, &example).await?;
        assert_eq!(row.faults(), Vec::<String>::new(), "{consumer}");
        if let Outcome::Skipped { reason } = row.outcome {
            println!("SKIPPED {}: {reason}", row.file);
            ensure!(std::env::var_os("NO_SKIPPING").is_none(), "skipped");
        }
    }
    Ok(())
}

async fn policy(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::Policy).await
}

async fn rate_limit(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::RateLimit).await
}

async fn caller_header(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::CallerHeader).await
}

async fn json_log(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::JsonLog).await
}

async fn otlp_log(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::OtlpLog).await
}

async fn fluentd_log(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::FluentdLog).await
}

async fn metrics_by_the_filter(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::FilterMetrics).await
}

async fn metrics(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::Metrics).await
}

/// Beyond the bound every call is still counted, as from an unknown caller, and the filter says so.
async fn made_up_workloads_are_bounded_by_the_filter(lab: &Lab) -> Result<()> {
    /// The default of `max_metric_series`, for the only worker, and the series of unknown callers.
    const SERIES: usize = 1000 + 1;
    const WORKLOADS: usize = 2000;
    let example = Example::read(Consumer::FilterMetrics.file())?;
    let flood = flood::run(lab, &example, WORKLOADS, true).await?;
    println!("{flood}");
    assert_eq!(flood.series, SERIES);
    // One request went ahead of the flood.
    assert_eq!(flood.counted, WORKLOADS as u64 + 1);
    assert_eq!(flood.beyond_the_bound, (WORKLOADS + 1 - 1000) as u64);
    Ok(())
}

async fn traces_open_telemetry(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::TracesOpenTelemetry).await
}

async fn traces_zipkin(lab: &Lab) -> Result<()> {
    reconciled(lab, Consumer::TracesZipkin).await
}

/// Without it in the policy, whoever has a certificate of the namespace takes the workload's name.
async fn the_service_account_keeps_a_spoofed_workload_out(lab: &Lab) -> Result<()> {
    let statuses = policy_without_service_account(lab).await?;
    assert!(!statuses.is_empty());
    assert!(
        statuses.iter().all(|status| *status == StatusCode::OK),
        "{statuses:?}"
    );
    Ok(())
}

/// Without it, what the client forges reaches the app wherever the caller is not known.
async fn the_removal_keeps_a_forged_header_out(lab: &Lab) -> Result<()> {
    assert_eq!(headers_without_removal(lab).await?, "admin");
    Ok(())
}

/// With standard output on a socket, `/dev/stdout` cannot be opened; the file of the example can, and is opened anew when
/// the unit is reloaded.
async fn the_unit_logs_to_a_file(lab: &Lab) -> Result<()> {
    match unit::start_with_json_log(lab, Some("/dev/stdout")).await? {
        Started::Logs(lines) => bail!("Envoy runs: {lines:?}"),
        Started::Ended(said) => {
            assert!(said.contains("unable to open file '/dev/stdout'"), "{said}");
        }
    }
    let Started::Logs(lines) = unit::start_with_json_log(lab, None).await? else {
        bail!("Envoy does not start");
    };
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in lines {
        assert_eq!(
            unit::field(&line, "source_workload")?,
            json!("checkout"),
            "{line}"
        );
    }
    Ok(())
}
