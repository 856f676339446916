//! From the first installation to the removal, under load.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::cluster::{Cluster, until};
use super::overlay::Overlay;
use super::pod::{BILLING, CART, FRONTEND, LEDGER, PRODUCTPAGE, Pod, RATINGS};
use super::proxy::Loaded;
use super::registry::{MISSING, NEXT, RELEASED, Registry};
use super::story::{Expected, Outcome, Runner};

/// How many phases there are.
const PHASES: u32 = 10;
/// The statistic that `proxyStatsMatcher` of `deploy/istio` keeps.
const REJECTED: &str = ".update_rejected";

/// By `WasmPlugin`.
pub(super) async fn by_wasm_plugin(cluster: &Cluster, all: Duration) -> Result<Outcome> {
    let overlay = Overlay::render("wasmplugin")?;
    let pods = [PRODUCTPAGE, RATINGS];
    let name = "WasmPlugin, Envoy 1.40";
    // The agent's stand-in takes the filter's place.
    let missing = Expected::Unnamed;
    run(cluster, name, overlay, pods, all, missing).await
}

/// By `EnvoyFilter`.
pub(super) async fn by_envoy_filter(cluster: &Cluster, all: Duration) -> Result<Outcome> {
    let overlay = Overlay::render("envoyfilter")?.namespace(FRONTEND.namespace);
    let pods = [FRONTEND, CART];
    let name = "EnvoyFilter, Envoy 1.40";
    // Its type_urls do not list the stand-in's type.
    let missing = Expected::StaysNamed;
    run(cluster, name, overlay, pods, all, missing).await
}

/// By `WasmPlugin`, with an Envoy that has no Wasm before but that of the bootstrap
/// extension.
pub(super) async fn on_old_envoy(cluster: &Cluster, all: Duration) -> Result<Outcome> {
    let overlay = Overlay::render("wasmplugin")?.namespace(BILLING.namespace);
    let pods = [BILLING, LEDGER];
    let before = uptimes(cluster, pods).await?;
    let name = "WasmPlugin, Envoy 1.36 with v8-first.yaml";
    let mut outcome = run(cluster, name, overlay, pods, all, Expected::Unnamed).await?;
    let after = uptimes(cluster, pods).await?;
    if before
        .iter()
        .zip(&after)
        .any(|(before, after)| after < before)
    {
        outcome.other_faults.push("an Envoy has ended".to_owned());
    }
    Ok(outcome)
}

/// For how many seconds their Envoys have run.
async fn uptimes(cluster: &Cluster, pods: [Pod; 2]) -> Result<Vec<u64>> {
    let mut uptimes = Vec::new();
    for pod in pods {
        let info = cluster.proxy(pod)?.admin("/server_info").await?;
        let info: Value = serde_json::from_str(&info)?;
        let uptime = info["uptime_current_epoch"].as_str();
        let seconds = uptime.and_then(|text| text.trim_end_matches('s').parse().ok());
        uptimes.push(seconds.with_context(|| info.to_string())?);
    }
    Ok(uptimes)
}

async fn run(
    cluster: &Cluster,
    name: &str,
    overlay: Overlay,
    pods: [Pod; 2],
    all: Duration,
    missing: Expected,
) -> Result<Outcome> {
    let mut story = Runner::new(cluster, name, pods, all / PHASES);
    let nothing = async { Ok(()) };
    story.phase("no filter", Expected::Unnamed, nothing).await?;
    let base = overlay.base();
    let change = apply_base(cluster, &base, &pods);
    story
        .phase("what keeps headers from apps", Expected::Unnamed, change)
        .await?;
    let change = install(cluster, &overlay, &pods);
    story
        .phase("first installation", Expected::Named, change)
        .await?;

    let configuration = json!({ "mode": "exchange", "max_labels": 100 });
    let overlay = overlay.configured(&configuration);
    let change = reconfigure(cluster, &overlay, &configuration, &pods);
    story
        .phase("new configuration", Expected::StaysNamed, change)
        .await?;

    let refused = overlay.clone().configured(&json!({ "max_lables": 100 }));
    let change = refuse(cluster, &refused, &pods);
    story
        .phase("refused configuration", Expected::StaysNamed, change)
        .await?;

    let configuration = json!({ "mode": "exchange", "max_labels": 101 });
    let overlay = overlay.configured(&configuration);
    let change = reconfigure(cluster, &overlay, &configuration, &pods);
    story
        .phase("mended configuration", Expected::StaysNamed, change)
        .await?;

    let next = overlay.clone().image(&Registry::image(NEXT));
    let change = replace_module(cluster, &next, &pods);
    story
        .phase("new module", Expected::StaysNamed, change)
        .await?;

    let unfetchable = overlay.clone().image(&Registry::image(MISSING));
    let change = miss_module(cluster, &unfetchable, &pods, missing);
    story
        .phase("a module that cannot be fetched", missing, change)
        .await?;

    let change = back(cluster, &overlay, &pods);
    let named = match missing {
        Expected::StaysNamed => Expected::StaysNamed,
        Expected::Named | Expected::Unnamed => Expected::Named,
    };
    story
        .phase("back to the first module", named, change)
        .await?;

    let change = remove(cluster, &overlay, &base, &pods);
    story
        .phase("removal, the filter first", Expected::Unnamed, change)
        .await?;
    story.end().await
}

/// The headers are kept from apps before any proxy sends them.
pub(super) async fn apply_base(cluster: &Cluster, base: &Overlay, pods: &[Pod]) -> Result<()> {
    base.apply(cluster).await?;
    until_base(cluster, pods, true).await
}

pub(super) async fn until_base(cluster: &Cluster, pods: &[Pod], is_there: bool) -> Result<()> {
    for pod in pods {
        let proxy = cluster.proxy(*pod)?;
        let what = format!("request_headers_to_remove of {}", pod.short);
        until(&what, async || {
            let listeners = proxy.listeners().await?.to_string();
            let removes = listeners.contains("request_headers_to_remove");
            Ok((removes == is_there).then_some(()))
        })
        .await?;
    }
    Ok(())
}

pub(super) async fn install(cluster: &Cluster, overlay: &Overlay, pods: &[Pod]) -> Result<()> {
    overlay.filter().apply(cluster).await?;
    until_running(cluster, pods).await
}

/// Waits until a module runs, and is in the listeners.
pub(super) async fn until_running(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let has_module =
        |loaded: &[Loaded]| !loaded.is_empty() && loaded.iter().all(|one| one.module.is_some());
    cluster.until_loaded("a module", pods, has_module).await?;
    until_in_listeners(cluster, pods, true).await
}

pub(super) async fn until_in_listeners(
    cluster: &Cluster,
    pods: &[Pod],
    is_there: bool,
) -> Result<()> {
    for pod in pods {
        let proxy = cluster.proxy(*pod)?;
        let what = format!("the listeners of {}", pod.short);
        until(&what, async || {
            let orders = proxy.orders().await?;
            let has_filter = |order: &String| order.contains("metadata-exchange");
            let is_done = if is_there {
                !orders.is_empty() && orders.iter().all(has_filter)
            } else {
                !orders.iter().any(has_filter)
            };
            Ok(is_done.then_some(()))
        })
        .await?;
    }
    Ok(())
}

pub(super) async fn reconfigure(
    cluster: &Cluster,
    overlay: &Overlay,
    configuration: &Value,
    pods: &[Pod],
) -> Result<()> {
    overlay.filter().apply(cluster).await?;
    let has = |loaded: &[Loaded]| {
        !loaded.is_empty() && loaded.iter().all(|one| one.configuration == *configuration)
    };
    cluster.until_loaded("the configuration", pods, has).await
}

/// The filter counts and logs it; the configuration before stays in force.
async fn refuse(cluster: &Cluster, overlay: &Overlay, pods: &[Pod]) -> Result<()> {
    overlay.filter().apply(cluster).await?;
    until_found(cluster, pods, "error configuration_refused").await
}

/// Waits until the doctor finds it in each of them: `severity code`.
pub(super) async fn until_found(cluster: &Cluster, pods: &[Pod], finding: &str) -> Result<()> {
    let found = pods.iter().map(async |pod| {
        let what = format!("the doctor to find {finding} in {}", pod.short);
        until(&what, async || {
            let findings = cluster.doctor(*pod).await?;
            let is_it = |one: &String| one.starts_with(finding);
            Ok(findings.iter().any(is_it).then_some(()))
        })
        .await
    });
    try_join_all(found).await?;
    Ok(())
}

async fn replace_module(cluster: &Cluster, overlay: &Overlay, pods: &[Pod]) -> Result<()> {
    let mut before = Vec::new();
    for pod in pods {
        before.extend(cluster.proxy(*pod)?.loaded().await?);
    }
    overlay.filter().apply(cluster).await?;
    let is_other = |loaded: &[Loaded]| {
        loaded
            .iter()
            .all(|one| one.module.is_some() && before.iter().all(|old| old.module != one.module))
    };
    cluster.until_loaded("another module", pods, is_other).await
}

async fn miss_module(
    cluster: &Cluster,
    overlay: &Overlay,
    pods: &[Pod],
    expected: Expected,
) -> Result<()> {
    let before = rejections(cluster, pods).await?;
    overlay.filter().apply(cluster).await?;
    if expected == Expected::Unnamed {
        return until_stand_in(cluster, pods).await;
    }
    until_rejected(cluster, pods, &before).await
}

/// Waits until the agent's stand-in has taken the filter's place.
pub(super) async fn until_stand_in(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let is_stand_in = |loaded: &[Loaded]| loaded.iter().all(|one| one.module.is_none());
    cluster
        .until_loaded("the stand-in", pods, is_stand_in)
        .await
}

/// How many configurations each of them has refused.
pub(super) async fn rejections(cluster: &Cluster, pods: &[Pod]) -> Result<Vec<u64>> {
    let mut rejections = Vec::new();
    for pod in pods {
        rejections.push(cluster.proxy(*pod)?.statistic(REJECTED).await?);
    }
    Ok(rejections)
}

/// Waits until each of them has refused one more.
pub(super) async fn until_rejected(cluster: &Cluster, pods: &[Pod], before: &[u64]) -> Result<()> {
    for (pod, before) in pods.iter().zip(before) {
        let proxy = cluster.proxy(*pod)?;
        until(&format!("{} to refuse it", pod.short), async || {
            let now = proxy.statistic(REJECTED).await?;
            Ok((now > *before).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn back(cluster: &Cluster, overlay: &Overlay, pods: &[Pod]) -> Result<()> {
    overlay
        .clone()
        .image(&Registry::image(RELEASED))
        .filter()
        .apply(cluster)
        .await?;
    until_running(cluster, pods).await
}

pub(super) async fn remove(
    cluster: &Cluster,
    overlay: &Overlay,
    base: &Overlay,
    pods: &[Pod],
) -> Result<()> {
    overlay.filter().delete(cluster).await?;
    until_in_listeners(cluster, pods, false).await?;
    base.delete(cluster).await?;
    until_base(cluster, pods, false).await
}
