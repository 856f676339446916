//! Gathers [`Evidence`]: from an Envoy that runs, or from a file.

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::time::sleep;

use super::evidence::{Evidence, LATER};
use super::stats::has_to_wait;
use crate::declared_names::with_declared_names;
use crate::{admin, envoy_yaml};

const DUMP: &str = "/config_dump";
const STATS: &str = "/stats?format=json";

/// What to ask for one by one if `/config_dump` is no JSON. Of listeners, the state
/// that holds a resource which Envoy cannot write is left out.
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

/// Asks the admin interface of an Envoy, which takes [`LATER`] if its filter has
/// served requests.
///
/// # Errors
///
/// If it cannot be asked.
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

/// Asks for the configuration alone.
///
/// # Errors
///
/// If it cannot be asked.
pub async fn configuration_of(url: &str) -> Result<Evidence> {
    let answer = match admin::get_bytes(url, DUMP).await {
        Err(error) if admin::is_refused(&error) => {
            return Err(error.context(
                "nobody listens there: if Envoy should, see \"Envoy does not start\" in \
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
                "its {DUMP} is no JSON, and so is not that of an Envoy: it begins {:?}",
                admin::beginning(&answer)
            );
        }
        evidence.unreadable = Some(admin::beginning(&answer));
    }
    // Restricted admin interfaces may lack it.
    evidence.server_info = admin::get(url, "/server_info").await.ok();
    Ok(evidence)
}

/// Those parts of the configuration that are JSON.
async fn in_parts(url: &str) -> Vec<Value> {
    let mut documents = Vec::new();
    for part in PARTS {
        // A part that Envoy does not have is no fault.
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
