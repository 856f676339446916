//! All of it together: the control plane, the mesh and what happens there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use access_log::Server;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::home::Home;
use super::istiod::{Istiod, Proxies};
use super::kubernetes::Kubernetes;
use super::network;
use super::objects::{self, FOREIGN, FOREIGN_ADDRESS, FOREIGN_PORT, PUBLIC, SERVICE_PORT};
use super::pod::{
    APP_PORT, EGRESS, INGRESS, Kind, OUTSIDE, OUTSIDE_HOST, PODS, PRODUCTPAGE, Pod, RATINGS, VM,
    address,
};
use super::proxy::{Loaded, Proxy, root_certificate};
use super::registry::Registry;
use super::traffic::{App, Logged, Seen, Target, collect};
use crate::envoy::Release;
use crate::wait::until_within;

/// How long istiod, the agents and Envoy may take for a change.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(200);

/// Waits for a change.
pub(super) async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(PATIENCE, INTERVAL, what, ask).await
}

/// The mesh. All of it ends with its value.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) dir: PathBuf,
    pub(super) kubernetes: Kubernetes,
    pub(super) istiod: Istiod,
    pub(super) registry: Registry,
    pub(super) seen: Arc<Seen>,
    proxies: BTreeMap<&'static str, Proxy>,
    _apps: Vec<App>,
    _collector: Server,
}

/// Who is to name whom in an entry of which proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) by: Pod,
    pub(super) whom: Pod,
}

/// A call of which both sides are to be named.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) what: &'static str,
    target: Target,
    callers: Vec<Named>,
    callees: Vec<Named>,
}

impl Cluster {
    /// Brings it up: in the end every proxy serves, without our filter.
    pub(super) async fn start(home: &Home, dir: &Path) -> Result<Self> {
        for folder in ["logs", "pods"] {
            std::fs::create_dir(dir.join(folder))?;
        }
        home.unpack(dir).await?;
        network::set_up()?;
        let seen = Arc::<Seen>::default();
        let mut apps = Vec::new();
        OUTSIDE.create(address(OUTSIDE_HOST))?;
        apps.push(App::start(OUTSIDE, &seen)?);
        for pod in PODS {
            pod.network().create(pod.address())?;
            if pod.kind != Kind::Gateway {
                pod.network().redirect()?;
                apps.push(App::start(pod.network(), &seen)?);
            }
        }
        let collector = collect(Arc::clone(&seen)).await?;
        let registry = Registry::start().await?;
        let kubernetes = Kubernetes::start(dir).await?;
        kubernetes.apply(&objects::namespaces()).await?;
        for crds in ["crd-all.gen.yaml", "gateway-api-crd.yaml"] {
            kubernetes.apply_file(&dir.join(crds)).await?;
        }
        kubernetes
            .output("wait", &["--for=condition=established", "crd", "--all"])
            .await?;
        kubernetes.apply(&objects::mesh()).await?;
        kubernetes.set_status(&objects::statuses()).await?;
        let istiod = Istiod::start(dir, &kubernetes, Proxies::Standard).await?;
        let certificate = until("istiod's root certificate", async || {
            Ok(root_certificate(&kubernetes).await.ok())
        })
        .await?;
        kubernetes.apply(&[objects::webhook(&certificate)]).await?;
        let mut cluster = Self {
            dir: dir.to_owned(),
            kubernetes,
            istiod,
            registry,
            seen,
            proxies: BTreeMap::new(),
            _apps: apps,
            _collector: collector,
        };
        let started = cluster.start_proxies().await;
        started.inspect_err(|_| eprintln!("{}", cluster.logs()))?;
        Ok(cluster)
    }

    async fn start_proxies(&mut self) -> Result<()> {
        let newest = self.envoy(Release::Newest)?;
        let oldest = self.envoy(Release::Oldest)?;
        for pod in PODS {
            let envoy = if pod.is_old { &oldest } else { &newest };
            let proxy = Proxy::start(&self.dir, &self.kubernetes, pod, envoy).await?;
            self.proxies.insert(pod.short, proxy);
        }
        for proxy in self.proxies.values() {
            let what = format!("the proxy of {} to be ready", proxy.pod.short);
            until(&what, async || Ok(proxy.is_ready().await.then_some(()))).await?;
        }
        Ok(())
    }

    /// An Envoy that the proxies' user may run.
    fn envoy(&self, release: Release) -> Result<PathBuf> {
        let from = release.binary()?;
        let to = self.dir.join(format!("envoy-{}", release.version()));
        if !to.exists() && std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to)?;
        }
        Ok(to)
    }

    pub(super) fn proxy(&self, pod: Pod) -> Result<&Proxy> {
        self.proxies.get(pod.short).context(pod.short)
    }

    /// The ends of all logs.
    pub(super) fn logs(&self) -> String {
        let logs = self.proxies.values();
        let logs = logs.map(|proxy| format!("--- {}\n{}\n", proxy.pod.short, proxy.log()));
        logs.collect()
    }

    /// What `mxctl doctor` finds in a proxy, each as `severity code place`.
    pub(super) async fn doctor(&self, pod: Pod) -> Result<Vec<String>> {
        let mxctl = std::env::current_exe()?.with_file_name("mxctl-under-test");
        ensure!(
            mxctl.is_file(),
            "{}: build it by `cargo build --package envoy-test`",
            mxctl.display()
        );
        let mut command = pod.network().command(mxctl);
        command.args(["--json", "doctor", "127.0.0.1:15000"]);
        let asked = tokio::process::Command::from(command).output().await?;
        let text = String::from_utf8_lossy(&asked.stdout);
        let context = || format!("{text}{}", String::from_utf8_lossy(&asked.stderr));
        let report: Value = serde_json::from_str(&text).with_context(context)?;
        let findings = report.pointer("/0/findings").unwrap_or(&Value::Null);
        let findings = findings.as_array().with_context(context)?;
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or("?").to_owned();
        let lines = findings.iter().map(|finding| {
            ["severity", "code", "place"]
                .map(|key| text(finding, key))
                .join(" ")
        });
        Ok(lines.collect())
    }

    /// The output of `istioctl`.
    pub(super) async fn istioctl(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = tokio::process::Command::new(self.dir.join("istioctl"));
        command
            .env("HOME", &self.dir)
            .arg("--kubeconfig")
            .arg(self.kubernetes.kubeconfig())
            .args(arguments);
        Ok(command.output().await?)
    }

    /// Waits until the filter of each pod is so.
    pub(super) async fn until_loaded(
        &self,
        what: &str,
        pods: &[Pod],
        is: impl Fn(&[Loaded]) -> bool,
    ) -> Result<()> {
        for pod in pods {
            let proxy = self.proxy(*pod)?;
            let mut last = Vec::new();
            let what = format!("{} to have {what}", pod.short);
            let changed = until(&what, async || {
                last = proxy.loaded().await?;
                Ok(is(&last).then_some(()))
            })
            .await;
            changed.with_context(|| format!("it has {last:?}"))?;
        }
        Ok(())
    }

    /// Waits until both sides are named, and then calls ten times more.
    pub(super) async fn check_named(&self, pair: &Pair) -> Result<()> {
        let mut last = Vec::new();
        let named = until(pair.what, async || {
            last = self.call(pair).await?;
            Ok(pair.misses(&last).is_empty().then_some(()))
        });
        named
            .await
            .with_context(|| format!("{:?}: {last:?}", pair.misses(&last)))?;
        let proxies = pair.callers.iter().chain(&pair.callees);
        let proxies: Vec<_> = proxies.map(|named| named.by).collect();
        self.until_drained(&proxies).await?;
        for _ in 0..10 {
            let entries = self.call(pair).await?;
            let misses = pair.misses(&entries);
            ensure!(
                misses.is_empty(),
                "{}: once named, then {misses:?}",
                pair.what
            );
        }
        Ok(())
    }

    /// Waits until no connection is served by a listener of before.
    pub(super) async fn until_drained(&self, pods: &[Pod]) -> Result<()> {
        for pod in pods {
            let proxy = self.proxy(*pod)?;
            until("listeners to be drained", async || {
                let draining = proxy.statistic("_draining").await?;
                Ok((draining == 0).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// A call that must succeed, and what is logged of it.
    pub(super) async fn call(&self, pair: &Pair) -> Result<Vec<Logged>> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let path = format!("/call/{}", CALLS.fetch_add(1, Ordering::Relaxed));
        if let Err(failure) = pair.target.call(&self.seen, &path).await {
            bail!("{}: {failure}", pair.what);
        }
        let by: Vec<_> = pair.callers.iter().chain(&pair.callees).collect();
        until("the entries of a call", async || {
            let entries = self.seen.entries(&path);
            let has_logged = |named: &&Named| {
                let id = named.by.proxy_id();
                entries.iter().any(|one| one.reporter.contains(&id))
            };
            Ok(by.iter().all(has_logged).then_some(entries))
        })
        .await
    }
}

/// A call from one pod to another one's service.
pub(super) fn target(from: Pod, to: Pod) -> Target {
    Target {
        from: from.network(),
        to: SocketAddr::from((to.service_address(), SERVICE_PORT)),
        host: format!("{}:{SERVICE_PORT}", to.service()),
    }
}

impl Pair {
    /// Every way of a call through the mesh.
    pub(super) fn all() -> Vec<Self> {
        vec![
            Self::pods(),
            Self::pod_and_vm(),
            Self::ingress(),
            Self::egress(),
        ]
    }

    /// A pod that calls another.
    pub(super) fn of(what: &'static str, client: Pod, server: Pod) -> Self {
        Self {
            what,
            target: target(client, server),
            callers: vec![Named {
                by: server,
                whom: client,
            }],
            callees: vec![Named {
                by: client,
                whom: server,
            }],
        }
    }

    pub(super) fn pods() -> Self {
        Self::of("pod -> pod", PRODUCTPAGE, RATINGS)
    }

    pub(super) fn pod_and_vm() -> Self {
        Self::of("pod -> VM", PRODUCTPAGE, VM)
    }

    /// Somebody outside calls through the gateway, who is not named.
    pub(super) fn ingress() -> Self {
        Self {
            target: Target {
                from: OUTSIDE,
                to: SocketAddr::from((INGRESS.address(), APP_PORT)),
                host: PUBLIC.to_owned(),
            },
            ..Self::of("ingress -> pod", INGRESS, RATINGS)
        }
    }

    /// A pod calls somebody outside through the gateway, who is not named.
    pub(super) fn egress() -> Self {
        Self {
            target: Target {
                from: PRODUCTPAGE.network(),
                to: SocketAddr::from((FOREIGN_ADDRESS, FOREIGN_PORT)),
                host: FOREIGN.to_owned(),
            },
            ..Self::of("pod -> egress", PRODUCTPAGE, EGRESS)
        }
    }

    /// Who is not named.
    fn misses(&self, entries: &[Logged]) -> Vec<String> {
        let mut misses = Vec::new();
        let mut check = |named: &[Named], side: &str, whom: fn(&Logged) -> &Option<String>| {
            for Named { by, whom: expected } in named {
                let of = |one: &&Logged| one.reporter.contains(&by.proxy_id());
                let entry = entries.iter().find(of);
                let found = entry.and_then(|entry| whom(entry).as_deref());
                if found != Some(expected.workload) {
                    misses.push(format!(
                        "{} names {found:?} as its {side}, not {}",
                        by.short, expected.workload
                    ));
                }
            }
        };
        check(&self.callers, "caller", |one| &one.downstream);
        check(&self.callees, "callee", |one| &one.upstream);
        misses
    }
}
