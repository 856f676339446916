//! A plugin whose first configuration is invalid, deleted and created again while
//! the listeners that had it still drain.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::cluster::Cluster;
use super::overlay::Overlay;
use super::pod::{CART, FRONTEND, Pod};
use super::story::{Expected, Outcome, Runner};
use super::upgrade::{apply_base, install, remove, until_found};

const PODS: [Pod; 2] = [FRONTEND, CART];
const PHASES: u32 = 8;

pub(super) async fn by_both_ways(cluster: &Cluster, all: Duration) -> Result<Outcome> {
    let name = "An invalid first configuration, created again";
    let mut story = Runner::new(cluster, name, PODS, all / PHASES);
    for kind in ["wasmplugin", "envoyfilter"] {
        let overlay = Overlay::render(kind)?.namespace(FRONTEND.namespace);
        let base = overlay.base();
        let change = apply_base(cluster, &base, &PODS);
        story
            .phase(&format!("{kind}: base"), Expected::Unnamed, change)
            .await?;
        let invalid = overlay.clone().configured(&json!({ "max_lables": 100 }));
        let change = async {
            invalid.filter().apply(cluster).await?;
            until_found(cluster, &PODS, "error filter_idle").await
        };
        let what = format!("{kind}: an invalid first configuration");
        story.phase(&what, Expected::Unnamed, change).await?;
        let change = async {
            invalid.filter().delete(cluster).await?;
            install(cluster, &overlay, &PODS).await
        };
        let what = format!("{kind}: deleted and created again");
        story.phase(&what, Expected::Named, change).await?;
        let change = remove(cluster, &overlay, &base, &PODS);
        let what = format!("{kind}: removal");
        story.phase(&what, Expected::Unnamed, change).await?;
    }
    story.end().await
}
