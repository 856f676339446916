//! Kubernetes' API: etcd, the API server, and kubectl.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::network::{CONTROL_PLANE, feed};
use super::{START, end_of, path};
use crate::process::Process;
use crate::repository;
use crate::wait::until_within;

const ETCD: &str = "http://127.0.0.1:2379";
const PEERS: &str = "http://127.0.0.1:2380";
const TOKEN: &str = "of-this-run-alone";

/// An API without nodes, controllers and kubelets: what they would write, the mesh
/// writes.
#[derive(Debug)]
pub(super) struct Kubernetes {
    kubeconfig: PathBuf,
    home: PathBuf,
    logs: PathBuf,
    /// They end in this order.
    apiserver: Process,
    etcd: Process,
}

impl Kubernetes {
    /// Starts it, and waits until it answers.
    pub(super) async fn start(dir: &Path) -> Result<Self> {
        let home = dir.join("kubernetes");
        std::fs::create_dir(&home)?;
        let key = KeyPair::generate()?;
        let (private, public) = (home.join("accounts.key"), home.join("accounts.pub"));
        std::fs::write(&private, key.serialize_pem())?;
        std::fs::write(&public, key.public_key_pem())?;
        let tokens = home.join("tokens.csv");
        std::fs::write(&tokens, format!("{TOKEN},admin,admin,\"system:masters\"\n"))?;
        let kubeconfig = home.join("kubeconfig");
        std::fs::write(&kubeconfig, configuration().to_string())?;

        let mut etcd = Command::new("etcd");
        etcd.env("PATH", path())
            .arg("--data-dir")
            .arg(home.join("etcd"))
            .args([
                "--listen-client-urls",
                ETCD,
                "--advertise-client-urls",
                ETCD,
            ])
            .args(["--listen-peer-urls", PEERS])
            .args(["--initial-advertise-peer-urls", PEERS])
            .arg(format!("--initial-cluster=default={PEERS}"))
            // Nobody needs the data after the run.
            .arg("--unsafe-no-fsync");
        let etcd = Process::start(etcd, &dir.join("logs/etcd.log"), "TERM")?;

        let mut apiserver = Command::new(dir.join("kube-apiserver"));
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        apiserver
            .arg(format!("--etcd-servers={ETCD}"))
            .args(["--bind-address=127.0.0.1", "--secure-port=6443"])
            .arg(format!("--advertise-address={CONTROL_PLANE}"))
            .arg(file("cert-dir", &home.join("certificates")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(file("service-account-key-file", &public))
            .arg(file("service-account-signing-key-file", &private))
            .arg("--api-audiences=https://kubernetes.default.svc,istio-ca")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg(file("token-auth-file", &tokens))
            .arg("--authorization-mode=AlwaysAllow")
            .arg("--disable-admission-plugins=ServiceAccount");
        let apiserver = Process::start(apiserver, &dir.join("logs/kube-apiserver.log"), "TERM")?;
        let mut kubernetes = Self {
            kubeconfig,
            home,
            logs: dir.join("logs"),
            apiserver,
            etcd,
        };
        let interval = Duration::from_millis(300);
        until_within(START, interval, "Kubernetes' API to be ready", async || {
            kubernetes.check_alive()?;
            let asked = kubernetes.get(&["--raw", "/readyz"]).await;
            Ok(asked.ok())
        })
        .await?;
        Ok(kubernetes)
    }

    fn check_alive(&mut self) -> Result<()> {
        for (name, process) in [
            ("etcd", &mut self.etcd),
            ("kube-apiserver", &mut self.apiserver),
        ] {
            let ended = process.ended()?;
            let log = self.logs.join(format!("{name}.log"));
            ensure!(
                ended.is_none(),
                "{name} ended at start: {ended:?}\n{}",
                end_of(&log)
            );
        }
        Ok(())
    }

    /// For programs that ask the API.
    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn kubectl(&self) -> Command {
        let mut command = Command::new(kubectl());
        // It keeps what it knows of the API there.
        command.env("HOME", &self.home);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// What `kubectl get` prints.
    pub(super) async fn get(&self, arguments: &[&str]) -> Result<String> {
        self.output("get", arguments).await
    }

    /// What kubectl prints.
    pub(super) async fn output(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.kubectl();
        command.arg(verb).args(arguments).stdin(Stdio::null());
        let done = tokio::process::Command::from(command).output().await?;
        ensure!(
            done.status.success(),
            "kubectl {verb} {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(String::from_utf8(done.stdout)?)
    }

    /// Applies objects as users do.
    pub(super) async fn apply(&self, objects: &[Value]) -> Result<()> {
        self.with_objects(&["apply"], objects).await
    }

    /// Applies objects too large for the annotation that `apply` adds.
    pub(super) async fn apply_file(&self, file: &Path) -> Result<()> {
        let file = file.display().to_string();
        let arguments = ["--server-side", "--filename", &file];
        self.output("apply", &arguments).await?;
        Ok(())
    }

    /// Writes the status that a kubelet would write.
    pub(super) async fn set_status(&self, objects: &[Value]) -> Result<()> {
        let arguments = ["apply", "--server-side", "--subresource=status"];
        self.with_objects(&arguments, objects).await
    }

    /// Deletes objects, and does not mind if they are not there.
    pub(super) async fn delete(&self, objects: &[Value]) -> Result<()> {
        let arguments = ["delete", "--ignore-not-found", "--wait=false"];
        self.with_objects(&arguments, objects).await
    }

    async fn with_objects(&self, arguments: &[&str], objects: &[Value]) -> Result<()> {
        let mut command = self.kubectl();
        command.args(arguments).args(["--filename", "-"]);
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
        tokio::task::spawn_blocking(move || feed(&mut command, &list)).await?
    }
}

/// That of `make setup`.
pub(super) fn kubectl() -> PathBuf {
    repository(".tools/venv/bin/kubectl")
}

fn configuration() -> Value {
    let cluster = json!({ "server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": true });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "mesh", "cluster": cluster }],
        "users": [{ "name": "admin", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "mesh", "context": { "cluster": "mesh", "user": "admin" } }],
        "current-context": "mesh",
    })
}

/// What `kubectl kustomize` makes of a folder.
pub fn kustomize(dir: &Path) -> Result<Vec<Value>> {
    let rendered = Command::new(kubectl())
        .arg("kustomize")
        .arg(dir)
        .output()
        .context("there is no kubectl: run `make setup`")?;
    ensure!(
        rendered.status.success(),
        "{}: {}",
        dir.display(),
        String::from_utf8_lossy(&rendered.stderr)
    );
    Ok(serde_saphyr::from_multiple(std::str::from_utf8(
        &rendered.stdout,
    )?)?)
}
