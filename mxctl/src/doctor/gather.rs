//! Gathers [`Evidence`] from a running Envoy or from a file.

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::time::sleep;

use super::evidence::{Evidence, LATER};
use super::stats::has_to_wait;
use crate::declared_names::with_declared_names;
use crate::{admin, envoy_yaml};

const DUMP: &str = "/config_dump";
const STATS: &str = "/stats?format=json";

/// What to request piece by piece if `/config_dump` is not JSON. For listeners,
/// the state that holds a resource which Envoy cannot write is left out.
const PARTS: [&str; 8] = [
    "/config_dump?mask=bootstrap",
    "/config_dump?resource=static_listeners",
    "/config_dump?resource=dynamic_listeners&mask=name,active_state,error_state.details",
    "/config_dump?resource=ecds_filters",
    "/config_dump?resource=static_route_configs",
    "/config_dump?resource=dynamic_route_configs",
    "/config_dump?resource=static_clusters",
    "/config_dump?resource=dynamic_active_clusters",
];

/// Queries an Envoy's admin interface, which takes [`LATER`] if the filter has
/// served requests.
///
/// # Errors
///
/// If the admin interface does not answer.
pub async fn of_admin(url: &str) -> Result<Evidence> {
    let mut evidence = configuration_of(url).await?;
    let stats = admin::get(url, STATS).await?;
    if has_to_wait(&stats) {
        sleep(LATER).await;
        evidence.later = Some(admin::get(url, STATS).await?);
    }
    evidence.stats = Some(stats);
    evidence.clusters = admin::get(url, "/clusters?format=json").await.ok();
    Ok(evidence)
}

/// Queries the configuration only.
///
/// # Errors
///
/// If the admin interface does not answer.
pub async fn configuration_of(url: &str) -> Result<Evidence> {
    let answer = match admin::get_bytes(url, DUMP).await {
        Err(error) if admin::is_refused(&error) => {
            return Err(error.context(
                "nothing listens at that address: if Envoy should, see \"Envoy does not start\" in \
                 docs/troubleshooting.md",
            ));
        }
        answer => answer?,
    };
    let mut evidence = Evidence::default();
    if let Ok(dump) = serde_json::from_slice(&answer) {
        evidence.documents = vec![dump];
    } else {
        evidence.documents = in_parts(url).await;
        if evidence.documents.is_empty() {
            bail!(
                "its {DUMP} is not JSON, and so not an Envoy's: it begins {:?}",
                admin::beginning(&answer)
            );
        }
        evidence.unreadable = Some(admin::beginning(&answer));
    }
    // Restricted admin interfaces may lack it.
    evidence.server_info = admin::get(url, "/server_info").await.ok();
    Ok(evidence)
}

/// The parts of the configuration that are JSON.
async fn in_parts(url: &str) -> Vec<Value> {
    let mut documents = Vec::new();
    for part in PARTS {
        // Envoy may lack a part.
        documents.extend(admin::get(url, part).await);
    }
    documents
}

/// Reads a `/config_dump` or a bootstrap, whole or in parts, in JSON or YAML.
///
/// # Errors
///
/// If it is neither.
pub fn of_file(name: &str, content: &str) -> Result<Evidence> {
    if content.trim().is_empty() {
        bail!("it is empty");
    }
    let document = envoy_yaml::parse_file(name, content)?;
    if document["stats"].is_array() {
        bail!("these are statistics: the doctor reads a config_dump or a bootstrap from files");
    }
    if document.get("command_line_options").is_some() {
        bail!("this is /server_info: the doctor reads a config_dump or a bootstrap from files");
    }
    if document["kind"].is_string() && document["apiVersion"].is_string() {
        bail!(
            "this is a resource of Kubernetes: ask the Envoy that gets it, or take its \
             /config_dump; `mxctl check-config` checks a WasmPlugin's pluginConfig"
        );
    }
    Ok(Evidence {
        documents: vec![with_declared_names(document)],
        ..Evidence::default()
    })
}
