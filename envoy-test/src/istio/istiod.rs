//! istiod, outside of Kubernetes' pods.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::kubernetes::Kubernetes;
use super::network::CONTROL_PLANE;
use super::{START, path};
use crate::client::Call;
use crate::process::Process;
use crate::repository;
use crate::wait::until_within;

const INTERVAL: Duration = Duration::from_millis(200);

/// Whose proxies it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxies {
    /// Standard Envoys, for which something must be turned off.
    Standard,
    /// Istio's own, as Helm installs it.
    Own,
}

impl Proxies {
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Standard => &[
                ("PILOT_ENABLE_METADATA_EXCHANGE", "false"),
                ("PILOT_ENABLE_ALPN_FILTER", "false"),
            ],
            Self::Own => &[],
        }
    }
}

/// Its folder, its kubeconfig and its process.
#[derive(Debug)]
pub(super) struct Istiod {
    dir: PathBuf,
    kubeconfig: PathBuf,
    process: Option<Process>,
}

impl Istiod {
    pub(super) async fn start(
        dir: &Path,
        kubernetes: &Kubernetes,
        proxies: Proxies,
    ) -> Result<Self> {
        let home = dir.join("istiod");
        std::fs::create_dir(&home)?;
        std::fs::write(home.join("networks"), "networks: {}\n")?;
        let mut istiod = Self {
            dir: dir.to_owned(),
            kubeconfig: kubernetes.kubeconfig().to_owned(),
            process: None,
        };
        istiod.restart(proxies).await?;
        Ok(istiod)
    }

    /// Starts it anew with other settings.
    pub(super) async fn restart(&mut self, proxies: Proxies) -> Result<()> {
        drop(self.process.take());
        let home = self.dir.join("istiod");
        std::fs::write(home.join("mesh"), mesh_config(proxies)?.to_string())?;
        let mut command = Command::new(self.dir.join("pilot-discovery"));
        command
            .current_dir(&home)
            .env_clear()
            .env("PATH", path())
            .env("HOME", &home)
            .envs([
                ("POD_NAME", "istiod-1"),
                ("POD_NAMESPACE", "istio-system"),
                ("SERVICE_ACCOUNT", "istiod"),
                ("REVISION", "default"),
                ("CLUSTER_ID", "Kubernetes"),
                ("PILOT_CERT_PROVIDER", "istiod"),
                ("PILOT_ENABLE_ANALYSIS", "false"),
                ("ISTIOD_CUSTOM_HOST", "localhost"),
                // For /debug, over plain HTTP on loopback.
                ("UNSAFE_ENABLE_ADMIN_ENDPOINTS", "true"),
            ])
            .envs(proxies.settings().iter().copied())
            .arg("discovery")
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--meshConfig")
            .arg(home.join("mesh"))
            .arg("--networksConfig")
            .arg(home.join("networks"))
            .args(["--httpAddr", "127.0.0.1:8080"])
            .arg(format!("--grpcAddr={CONTROL_PLANE}:15010"))
            .arg(format!("--secureGRPCAddr={CONTROL_PLANE}:15012"))
            .args(["--httpsAddr", "127.0.0.1:15017"])
            .args(["--monitoringAddr", "127.0.0.1:15014"])
            .args(["--ctrlz_port", "0", "--domain", "cluster.local"])
            .args(["--keepaliveMaxServerConnectionAge", "30m"]);
        let log = self.dir.join("logs/istiod.log");
        let process = self.process.insert(Process::start(command, &log, "TERM")?);
        until_within(START, INTERVAL, "istiod to be ready", async || {
            if let Some(status) = process.ended()? {
                bail!("istiod ended at start: {status}");
            }
            let asked = Call::new(http(), "istiod").path("/ready").send().await;
            Ok(asked.ok().filter(|reply| reply.status == StatusCode::OK))
        })
        .await?;
        Ok(())
    }

    /// What it sends to a proxy: `/debug/config_dump`, in JSON of its own.
    pub(super) async fn sends(&self, proxy: &str) -> Result<Value> {
        let path = format!("/debug/config_dump?proxyID={proxy}&include_eds");
        let reply = Call::new(http(), "istiod").path(&path).send().await?;
        let text = String::from_utf8_lossy(&reply.body);
        ensure!(
            reply.status == StatusCode::OK,
            "{path}: {}: {text}",
            reply.status
        );
        serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
    }
}

fn http() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

/// That of `deploy/istio`, and what every installation has.
fn mesh_config(proxies: Proxies) -> Result<Value> {
    let mut config = ours()?;
    for (key, value) in [
        ("trustDomain", json!("cluster.local")),
        ("rootNamespace", json!("istio-system")),
    ] {
        config[key] = value;
    }
    config["defaultConfig"]["discoveryAddress"] = discovery().into();
    if proxies == Proxies::Own {
        config["defaultProviders"] = json!({ "metrics": ["prometheus"] });
    }
    Ok(config)
}

fn ours() -> Result<Value> {
    let values = repository("deploy/istio/overlays/skywalking/mesh-config.yaml");
    let mut values: Value = serde_saphyr::from_str(&std::fs::read_to_string(values)?)?;
    Ok(values["meshConfig"].take())
}

/// Where proxies ask it.
fn discovery() -> String {
    format!("{CONTROL_PLANE}:15012")
}

/// The mesh's configuration of proxies, as the injector sets it.
pub(super) fn proxy_config() -> Result<Value> {
    let mut config = ours()?["defaultConfig"].take();
    config["discoveryAddress"] = discovery().into();
    Ok(config)
}
