//! What keeps the filter when a later module cannot be fetched, by `WasmPlugin`,
//! where Istio's agent puts its stand-in in the filter's place.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::cluster::Cluster;
use super::overlay::Overlay;
use super::pod::{BILLING, LEDGER, Pod};
use super::proxy::Loaded;
use super::registry::{MISSING, NEXT, RELEASED, Registry};
use super::story::{Expected, Outcome, Runner};
use super::upgrade::{
    apply_base, install, reconfigure, rejections, remove, until_rejected, until_running,
    until_stand_in,
};
use crate::repository;

const PODS: [Pod; 2] = [BILLING, LEDGER];
/// A file on each node, as a pod sees it.
const FILE: &str = "/var/lib/istio/metadata_exchange.wasm";
const PHASES: u32 = 13;

pub(super) async fn by_wasm_plugin(cluster: &Cluster, all: Duration) -> Result<Outcome> {
    let overlay = Overlay::render("wasmplugin")?.namespace(BILLING.namespace);
    let base = overlay.base();
    for pod in PODS {
        let root = cluster.dir.join("pods").join(pod.short);
        let file = root.join(FILE.trim_start_matches('/'));
        std::fs::copy(repository("dist/metadata_exchange.wasm"), file)?;
    }
    apply_base(cluster, &base, &PODS).await?;
    let name = "A module that cannot be fetched, WasmPlugin";
    let mut story = Runner::new(cluster, name, PODS, all / PHASES);
    let first = overlay
        .clone()
        .image(&cluster.registry.image_by_digest(RELEASED)?);
    let change = install(cluster, &first, &PODS);
    story
        .phase("an image by digest", Expected::Named, change)
        .await?;
    without_registry(&mut story, &overlay, &first).await?;
    second_plugin(&mut story, &overlay, &first).await?;
    file(&mut story, &overlay).await?;
    let missing = overlay.clone().image(&Registry::missing_digest());
    let missing = missing.with("imagePullPolicy", &json!("IfNotPresent"));
    let change = async {
        missing.filter().apply(cluster).await?;
        until_stand_in(cluster, &PODS).await
    };
    let what = "a digest that there is not, IfNotPresent";
    story.phase(what, Expected::Unnamed, change).await?;
    let change = remove(cluster, &overlay, &base, &PODS);
    story.phase("removal", Expected::Unnamed, change).await?;
    story.end().await
}

/// What the agent has fetched once it does not fetch again, unless it is to ask the
/// registry each time that the plugin changes.
async fn without_registry(
    story: &mut Runner<'_>,
    overlay: &Overlay,
    by_digest: &Overlay,
) -> Result<()> {
    let cluster = story.cluster;
    let configured = |policy: &str, max_labels: u32| {
        let configuration = json!({ "mode": "exchange", "max_labels": max_labels });
        let by_tag = overlay.clone().image(&Registry::image(RELEASED));
        let plugin = by_tag.with("imagePullPolicy", &json!(policy));
        (plugin.configured(&configuration), configuration)
    };
    let (always, configuration) = configured("Always", 100);
    let change = reconfigure(cluster, &always, &configuration, &PODS);
    let what = "an image by tag, imagePullPolicy: Always";
    story.phase(what, Expected::StaysNamed, change).await?;

    cluster.registry.set_away(true);
    let (if_not_present, configuration) = configured("IfNotPresent", 101);
    let change = reconfigure(cluster, &if_not_present, &configuration, &PODS);
    let what = "no registry, a new configuration, IfNotPresent";
    story.phase(what, Expected::StaysNamed, change).await?;
    let (always, _) = configured("Always", 102);
    let change = async {
        always.filter().apply(cluster).await?;
        until_stand_in(cluster, &PODS).await
    };
    let what = "no registry, a new configuration, Always";
    story.phase(what, Expected::Unnamed, change).await?;
    let change = install(cluster, by_digest, &PODS);
    let what = "no registry, back to the image by digest";
    story.phase(what, Expected::Named, change).await?;
    cluster.registry.set_away(false);
    Ok(())
}

/// The new module is tried beside the old one.
async fn second_plugin(story: &mut Runner<'_>, overlay: &Overlay, first: &Overlay) -> Result<()> {
    let cluster = story.cluster;
    let beside = |version: &str| {
        let plugin = overlay.filter().named("metadata-exchange-next");
        plugin
            .image(&Registry::image(version))
            .with("priority", &json!(999))
    };
    let second = beside(MISSING);
    let change = add_second(cluster, &second, false);
    let what = "a second plugin with a missing module beside it";
    story.phase(what, Expected::StaysNamed, change).await?;
    let second = beside(NEXT);
    let change = add_second(cluster, &second, true);
    let what = "the second plugin with a module";
    story.phase(what, Expected::StaysNamed, change).await?;
    let change = remove_first(cluster, first);
    let what = "the first plugin removed";
    story.phase(what, Expected::StaysNamed, change).await?;
    let change = remove_second(cluster, &second);
    story.phase("both removed", Expected::Unnamed, change).await
}

/// Envoy reads the file itself, and refuses one that is not there.
async fn file(story: &mut Runner<'_>, overlay: &Overlay) -> Result<()> {
    let cluster = story.cluster;
    let file = overlay.clone().image(&format!("file://{FILE}"));
    let change = install(cluster, &file, &PODS);
    story.phase("a file", Expected::Named, change).await?;
    let missing = overlay.clone().image("file:///var/lib/istio/missing.wasm");
    let change = refuse_file(cluster, &missing);
    let what = "a file that is not there";
    story.phase(what, Expected::StaysNamed, change).await
}

async fn add_second(cluster: &Cluster, second: &Overlay, has_module: bool) -> Result<()> {
    second.apply(cluster).await?;
    let is_there = |loaded: &[Loaded]| {
        let mut second = loaded.iter().filter(|one| one.name.contains("-next"));
        second.any(|one| one.module.is_some() == has_module)
    };
    cluster
        .until_loaded("the second plugin", &PODS, is_there)
        .await
}

async fn remove_first(cluster: &Cluster, first: &Overlay) -> Result<()> {
    first.filter().delete(cluster).await?;
    let is_gone = |loaded: &[Loaded]| loaded.iter().all(|one| one.name.contains("-next"));
    cluster
        .until_loaded("the second plugin alone", &PODS, is_gone)
        .await?;
    until_running(cluster, &PODS).await
}

async fn remove_second(cluster: &Cluster, second: &Overlay) -> Result<()> {
    second.delete(cluster).await?;
    super::upgrade::until_in_listeners(cluster, &PODS, false).await
}

async fn refuse_file(cluster: &Cluster, missing: &Overlay) -> Result<()> {
    let before = rejections(cluster, &PODS).await?;
    missing.filter().apply(cluster).await?;
    until_rejected(cluster, &PODS, &before).await
}
