//! `examples/metrics/`: its files, and the metrics beyond the bootstrap.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use envoy_test::consumers::metrics::description::{
    FILES, MAX_SETS, Reporter, Scope, logger, rewritten,
};
use envoy_test::consumers::metrics::{by_xds, flood, prometheus};
use envoy_test::consumers::{Consumer, Example};
use envoy_test::{Lab, repository};
use serde_json::Value;

envoy_test::stories!(@on newest_envoy, Newest, listeners_by_xds_count_the_same, made_up_workloads_are_bounded);

fn read(file: &str) -> Result<Value> {
    let text = std::fs::read_to_string(repository(file))?;
    serde_saphyr::from_str(&text).context(file.to_owned())
}

#[test]
fn every_logger_is_the_one_of_the_description() -> Result<()> {
    for file in FILES {
        let text = std::fs::read_to_string(repository(file))?;
        assert!(rewritten(&text)? == text, "{file}: run `make metrics`");
    }
    Ok(())
}

#[test]
fn the_listeners_for_xds_are_those_of_the_bootstrap() -> Result<()> {
    let mut resource = read("examples/metrics/listeners.yaml")?;
    let resources = resource["resources"].as_array_mut().context("none")?;
    for listener in resources.iter_mut() {
        let listener = listener.as_object_mut().context("no listener")?;
        assert_eq!(
            listener.remove("@type").context("no type")?,
            "type.googleapis.com/envoy.config.listener.v3.Listener"
        );
    }
    let bootstrap = Example::read(Consumer::Metrics.file())?.bootstrap()?;
    let listeners = &bootstrap["static_resources"]["listeners"];
    assert_eq!(resource["resources"], *listeners);
    Ok(())
}

/// In the form that istiod passes on, for each context.
#[test]
fn the_envoy_filter_has_the_loggers() -> Result<()> {
    let filter = read("examples/metrics/envoyfilter.yaml")?;
    let patches = filter["spec"]["configPatches"].as_array().context("none")?;
    let expected = [
        ("SIDECAR_INBOUND", Reporter::Destination),
        ("SIDECAR_OUTBOUND", Reporter::Source),
        ("GATEWAY", Reporter::Source),
    ];
    assert_eq!(patches.len(), expected.len());
    for (patch, (context, reporter)) in patches.iter().zip(expected) {
        assert_eq!(patch["match"]["context"], context);
        let logs = &patch["patch"]["value"]["typed_config"]["access_log"];
        assert_eq!(*logs, Value::from(vec![logger(reporter, Scope::Prefix)?]));
    }
    Ok(())
}

#[test]
fn promtool_finds_the_rules_and_the_configuration_right() -> Result<()> {
    let Some(prometheus) = prometheus::program() else {
        println!("SKIPPED: {}", prometheus::missing());
        ensure!(std::env::var_os("NO_SKIPPING").is_none(), "skipped");
        return Ok(());
    };
    prometheus::promtool(&prometheus, &["check", "config", "prometheus.yml"])?;
    prometheus::promtool(&prometheus, &["test", "rules", "rules-test.yml"])?;
    // It fails, too, where something is wrong.
    assert!(prometheus::promtool(&prometheus, &["check", "rules", "prometheus.yml"]).is_err());
    Ok(())
}

/// Each alert of the rules is tried by `promtool`.
#[test]
fn every_alert_has_a_test() -> Result<()> {
    let rules = read("examples/metrics/rules.yml")?;
    let tests = std::fs::read_to_string(repository("examples/metrics/rules-test.yml"))?;
    let groups = rules["groups"].as_array().into_iter().flatten();
    let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let alerts: Vec<_> = rules.filter_map(|rule| rule["alert"].as_str()).collect();
    assert!(alerts.len() >= 5, "{alerts:?}");
    for alert in alerts {
        // Once quiet, once not.
        let tried = tests.matches(&format!("alertname: {alert}\n")).count();
        assert!(tried >= 1, "{alert}");
    }
    Ok(())
}

/// The listeners as a resource of xDS count as those of the bootstrap do, and Kiali's option counts each call once.
async fn listeners_by_xds_count_the_same(lab: &Lab) -> Result<()> {
    let [expected, found, kiali] =
        by_xds(lab, &repository("examples/metrics/listeners.yaml")).await?;
    assert_eq!(found, expected);
    // The VM's, whose listeners have the option.
    let mut reported: Vec<_> = kiali
        .iter()
        .map(|(labels, count)| {
            let label = |name: &str| labels.get(name).map_or("", String::as_str);
            let ends = [
                label("source_name"),
                label("source_namespace"),
                label("dest_name"),
                label("status_code"),
            ];
            (ends.join(" "), *count)
        })
        .collect();
    reported.sort();
    let expected = [
        ("checkout shop ratings 200".to_owned(), 1),
        ("unknown unknown ratings 200".to_owned(), 1),
    ];
    assert_eq!(reported, expected);
    // What Kiali demands of a series.
    let demanded = [
        "extension",
        "source_cluster",
        "source_namespace",
        "source_name",
        "source_is_root",
        "dest_cluster",
        "dest_namespace",
        "dest_name",
        "protocol",
        "status_code",
    ];
    let has_all =
        |labels: &BTreeMap<String, String>| demanded.iter().all(|name| labels.contains_key(*name));
    assert!(kiali.keys().all(has_all), "{kiali:?}");
    Ok(())
}

/// A caller who makes up names reaches the bound, which Envoy tells of; memory does not grow further. `make flood` makes up
/// many more.
async fn made_up_workloads_are_bounded(lab: &Lab) -> Result<()> {
    const WORKLOADS: usize = 2 * MAX_SETS;
    let example = Example::read(Consumer::Metrics.file())?;
    let flood = flood::run(lab, &example, WORKLOADS, true).await?;
    println!("{flood}");
    assert_eq!(flood.series, MAX_SETS);
    assert_eq!(flood.counted, MAX_SETS as u64);
    // One request went ahead of the flood.
    assert_eq!(flood.beyond_the_bound, (WORKLOADS + 1 - MAX_SETS) as u64);
    let grown = flood.resident_after.saturating_sub(flood.resident_before);
    assert!(grown < 250 << 20, "{grown}");
    Ok(())
}
