//! Rolling out: one workload, its namespace, then others; and in the wrong order.

use std::time::Duration;

use anyhow::Result;

use super::cluster::{Cluster, Pair};
use super::overlay::Overlay;
use super::pod::{FRONTEND, PRODUCTPAGE, Pod, RATINGS, VM};
use super::story::{Expected, Outcome, Runner};
use super::upgrade::{apply_base, install, remove, until_base, until_in_listeners, until_running};

/// One workload, its namespace, then another namespace.
pub(super) async fn canary(cluster: &Cluster, all: Duration) -> Result<Outcome> {
    const PODS: [Pod; 2] = [PRODUCTPAGE, RATINGS];
    // In the root namespace it would reach the pods of other stories.
    let headers = Overlay::render("headers")?;
    let headers = [PRODUCTPAGE, VM].map(|pod| headers.clone().namespace(pod.namespace));
    let one = Overlay::render("wasmplugin-canary")?;
    let namespace = Overlay::render("wasmplugin")?;
    let next = namespace.clone().namespace(VM.namespace);
    let mut story = Runner::new(cluster, "Canary, WasmPlugin", PODS, all / 6);
    let change = async {
        for overlay in &headers {
            overlay.apply(cluster).await?;
        }
        until_base(cluster, &[PRODUCTPAGE, RATINGS, VM], true).await
    };
    story
        .phase(
            "what keeps headers from apps, in both namespaces",
            Expected::Unnamed,
            change,
        )
        .await?;
    let change = async {
        one.apply(cluster).await?;
        until_running(cluster, &[RATINGS]).await
    };
    story
        .phase("one workload", Expected::Unnamed, change)
        .await?;
    let findings = cluster.doctor(RATINGS).await?;
    if findings.iter().any(|one| !one.starts_with("info")) {
        story.fault(format!("the doctor finds {findings:?} in the canary"));
    }
    if !cluster.proxy(PRODUCTPAGE)?.loaded().await?.is_empty() {
        story.fault("the other workload has the filter, too".to_owned());
    }
    let change = async {
        namespace.apply(cluster).await?;
        until_running(cluster, &PODS).await
    };
    story
        .phase("its namespace", Expected::Named, change)
        .await?;
    let change = async {
        next.apply(cluster).await?;
        cluster.check_named(&Pair::pod_and_vm()).await
    };
    story
        .phase("the next namespace", Expected::StaysNamed, change)
        .await?;
    let change = async {
        next.delete(cluster).await?;
        namespace.filter().delete(cluster).await?;
        until_in_listeners(cluster, &[PRODUCTPAGE, RATINGS, VM], false).await?;
        namespace.base().delete(cluster).await?;
        for overlay in &headers {
            overlay.delete(cluster).await?;
        }
        until_base(cluster, &[PRODUCTPAGE, RATINGS, VM], false).await
    };
    story
        .phase("removal, the filter first", Expected::Unnamed, change)
        .await?;
    story.end().await
}

/// A caller's namespace has the filter before the callee's keeps the headers from
/// its apps, and then the right order.
pub(super) async fn rollout(cluster: &Cluster, all: Duration) -> Result<Outcome> {
    const PODS: [Pod; 2] = [FRONTEND, VM];
    let ours = Overlay::render("wasmplugin")?.namespace(FRONTEND.namespace);
    let theirs = Overlay::render("wasmplugin")?.namespace(VM.namespace);
    let mut story = Runner::new(cluster, "Rollout by namespaces", PODS, all / 6);
    let change = async {
        ours.apply(cluster).await?;
        until_running(cluster, &[FRONTEND]).await
    };
    let what = "WRONG ORDER: the caller's namespace alone";
    story.leaking_phase(what, Expected::Unnamed, change).await?;
    let base = ours.base();
    let change = remove(cluster, &ours, &base, &[FRONTEND]);
    story
        .phase_after_leaks("removed again", Expected::Unnamed, change)
        .await?;
    let change = async {
        apply_base(cluster, &theirs.base(), &[VM]).await?;
        apply_base(cluster, &ours.base(), &[FRONTEND]).await
    };
    story
        .phase(
            "what keeps headers from apps, in both",
            Expected::Unnamed,
            change,
        )
        .await?;
    let change = install(cluster, &ours, &[FRONTEND]);
    story
        .phase("the caller's namespace", Expected::Unnamed, change)
        .await?;
    let change = install(cluster, &theirs, &[VM]);
    story
        .phase("the callee's namespace", Expected::Named, change)
        .await?;
    let change = async {
        remove(cluster, &ours, &ours.base(), &[FRONTEND]).await?;
        remove(cluster, &theirs, &theirs.base(), &[VM]).await
    };
    story.phase("removal", Expected::Unnamed, change).await?;
    story.end().await
}
