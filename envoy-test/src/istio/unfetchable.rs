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
use super::story::{Expected, Teller, Told};
use super::upgrade::{apply_base, install, rejections, remove, until_rejected, until_running};
use crate::repository;

const PODS: [Pod; 2] = [BILLING, LEDGER];
/// A file on each node, as a pod sees it.
const FILE: &str = "/var/lib/istio/metadata_exchange.wasm";
const PHASES: u32 = 8;

pub(super) async fn by_wasm_plugin(cluster: &Cluster, all: Duration) -> Result<Told> {
    let overlay = Overlay::render("wasmplugin")?.namespace(BILLING.namespace);
    let base = overlay.base();
    for pod in PODS {
        let root = cluster.dir.join("pods").join(pod.short);
        let file = root.join(FILE.trim_start_matches('/'));
        std::fs::copy(repository("dist/metadata_exchange.wasm"), file)?;
    }
    apply_base(cluster, &base, &PODS).await?;
    let story = "A module that cannot be fetched, WasmPlugin";
    let mut teller = Teller::new(cluster, story, PODS, all / PHASES);

    // By a digest the agent finds what it has fetched once; by a tag, too, but for
    // imagePullPolicy Always.
    let first = overlay
        .clone()
        .image(&cluster.registry.image_by_digest(RELEASED)?);
    let change = install(cluster, &first, &PODS);
    teller
        .phase("an image by digest", Expected::Named, change)
        .await?;

    // The new one is tried beside the old one.
    let beside = |version: &str| {
        let plugin = overlay.filter().named("metadata-exchange-next");
        plugin
            .image(&Registry::image(version))
            .with("priority", &json!(999))
    };
    let second = beside(MISSING);
    let change = add_second(cluster, &second, false);
    teller
        .phase(
            "a second plugin with a missing module beside it",
            Expected::StaysNamed,
            change,
        )
        .await?;
    let second = beside(NEXT);
    let change = add_second(cluster, &second, true);
    teller
        .phase(
            "the second plugin with a module",
            Expected::StaysNamed,
            change,
        )
        .await?;
    let change = remove_first(cluster, &first);
    teller
        .phase("the first plugin removed", Expected::StaysNamed, change)
        .await?;
    let change = remove_second(cluster, &second);
    teller
        .phase("both removed", Expected::Unnamed, change)
        .await?;

    // Envoy reads the file itself, and refuses one that is not there.
    let file = overlay.clone().image(&format!("file://{FILE}"));
    let change = install(cluster, &file, &PODS);
    teller.phase("a file", Expected::Named, change).await?;
    let missing = overlay.clone().image("file:///var/lib/istio/missing.wasm");
    let change = refuse_file(cluster, &missing);
    teller
        .phase("a file that is not there", Expected::StaysNamed, change)
        .await?;
    let change = remove(cluster, &overlay, &base, &PODS);
    teller.phase("removal", Expected::Unnamed, change).await?;
    teller.end().await
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
