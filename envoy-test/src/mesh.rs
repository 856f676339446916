//! Running workloads: apps, their Envoys, and the routes between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::fs;

use crate::app::App;
use crate::bootstrap;
use crate::client::Call;
use crate::collector::{Collector, Entry};
use crate::envoy::{Envoy, validate, version_of_binary};
use crate::repository;
use crate::wait::until;
use crate::workload::{AppKind, Leads, Listener, Plugin, Proxy, Workload};

/// The environment of meshes: a collector, an Envoy binary, a module and a
/// temporary directory.
#[derive(Debug)]
pub struct Lab {
    collector: Collector,
    /// The destination of access logs.
    logs_to: SocketAddr,
    envoy: PathBuf,
    module: PathBuf,
    dir: TempDir,
}

impl Lab {
    /// A lab with the Envoy binary `envoy` and the module that `make wasm` built.
    pub async fn new(envoy: &Path) -> Result<Self> {
        let collector = Collector::start().await?;
        Ok(Self {
            logs_to: collector.address,
            collector,
            envoy: envoy.to_owned(),
            module: module_path()?,
            dir: TempDir::with_prefix("envoy-test-")?,
        })
    }

    /// Makes Envoys log to another collector instead of the lab's.
    #[must_use]
    pub fn logging_to(mut self, collector: SocketAddr) -> Self {
        self.logs_to = collector;
        self
    }

    /// The destination of access logs.
    #[must_use]
    pub fn logs_to(&self) -> SocketAddr {
        self.logs_to
    }

    /// The collector.
    #[must_use]
    pub fn collector(&self) -> &Collector {
        &self.collector
    }

    /// The module under test.
    #[must_use]
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// The Envoy binary.
    #[must_use]
    pub fn envoy(&self) -> &Path {
        &self.envoy
    }

    /// The version of the Envoy binary.
    pub async fn version(&self) -> Result<String> {
        version_of_binary(&self.envoy).await
    }

    /// The lab's directory, for files that a test writes.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts workloads, and returns once they can call each other.
    pub async fn start(&self, workloads: impl IntoIterator<Item = Workload>) -> Result<Mesh> {
        let workloads: Vec<Workload> = workloads.into_iter().collect();
        let services: Vec<&str> = workloads.iter().map(|one| one.name.as_str()).collect();
        let mut mesh = Mesh {
            dir: TempDir::with_prefix_in("mesh-", self.dir.path())?.keep(),
            module: self.module.clone(),
            running: BTreeMap::new(),
            workloads: Vec::new(),
        };
        // Two at a time, because most of a start is compiling the module.
        for some in workloads.chunks(2) {
            let first = self.start_one(&mesh, &some[0], &services);
            let second = async {
                match some.get(1) {
                    Some(workload) => Ok(Some(self.start_one(&mesh, workload, &services).await?)),
                    None => Ok(None),
                }
            };
            let (first, second) = tokio::try_join!(first, second)?;
            for (workload, running) in some.iter().zip([Some(first), second].into_iter().flatten())
            {
                mesh.running.insert(workload.name.clone(), running);
            }
        }
        mesh.workloads = workloads;
        mesh.connect().await?;
        Ok(mesh)
    }

    /// Replaces the Envoy of a workload by a new one configured as `workload`;
    /// the app must be elsewhere. When this returns, other workloads call the
    /// new Envoy. Returns the old one unless it was killed: it still answers
    /// requests in progress.
    pub async fn replace(&self, mesh: &mut Mesh, workload: Workload) -> Result<Option<Envoy>> {
        let name = workload.name.clone();
        let known = mesh.workloads.iter().position(|one| one.name == name);
        let known = known.with_context(|| format!("there is no workload {name}"))?;
        let services: Vec<&str> = mesh.workloads.iter().map(|one| one.name.as_str()).collect();
        let running = self.start_one(mesh, &workload, &services).await?;
        let before = mesh.running.insert(name.clone(), running);
        mesh.workloads[known] = workload;
        mesh.connect().await?;
        Ok(before.and_then(|before| before.envoy))
    }

    async fn start_one(
        &self,
        mesh: &Mesh,
        workload: &Workload,
        services: &[&str],
    ) -> Result<Running> {
        let app = match workload.app {
            AppKind::Ours => Some(App::start().await?),
            AppKind::Counting => Some(App::start_counting().await?),
            AppKind::Elsewhere(_) | AppKind::Nobody => None,
        };
        let address = match workload.app {
            AppKind::Elsewhere(address) => Some(address),
            _ => app.as_ref().map(|app| app.address),
        };
        let Some(proxy) = &workload.proxy else {
            let address = address.context("a workload without proxy is an app")?;
            return Ok(Running::bare(address, app));
        };
        let name = &workload.name;
        let dir = TempDir::with_prefix_in(format!("{name}-"), &mesh.dir)?.keep();
        let mut listeners = Vec::new();
        for listener in proxy.listeners() {
            let filter = mesh.filter(name, listener).await?;
            let log = format!("{name}/{}", listener.name);
            let routes = routes(listener, services);
            listeners.push(bootstrap::listener(listener, &log, &filter, &routes));
        }
        let services = mesh.clusters_file(name);
        if !fs::try_exists(&services).await? {
            replace(&services, &bootstrap::clusters_resource(&[])).await?;
        }
        let mut clusters = self.clusters(address);
        for (listener, cluster) in &proxy.others {
            listeners.push(listener.clone());
            clusters.push(cluster.clone());
        }
        let mut bootstrap = bootstrap::bootstrap(&proxy.node, &listeners, &clusters, &services);
        if proxy.listeners().any(|listener| listener.plugin.watched) {
            bootstrap["bootstrap_extensions"] = bootstrap::v8_first();
        }
        if proxy.watches_listeners {
            let path = mesh.listeners_file(name);
            let listeners = bootstrap::watch_listeners(&mut bootstrap, &path);
            replace(&path, &listeners).await?;
        }
        let envoy = Envoy::start(
            &self.envoy,
            &dir,
            proxy.concurrency,
            proxy.drain,
            &proxy.environment,
            &bootstrap,
        )
        .await
        .with_context(|| format!("the proxy of {name} does not start"))?;
        Running::behind(proxy, envoy, app).await
    }

    /// Starts an Envoy with a whole bootstrap.
    pub async fn start_envoy(&self, bootstrap: &Value) -> Result<Envoy> {
        self.start_envoy_in(&BTreeMap::new(), bootstrap).await
    }

    /// Starts an Envoy with a whole bootstrap, and these variables in its environment.
    pub async fn start_envoy_in(
        &self,
        environment: &BTreeMap<String, String>,
        bootstrap: &Value,
    ) -> Result<Envoy> {
        self.start_envoy_of(1, environment, bootstrap).await
    }

    /// Starts an Envoy of so many workers.
    pub(crate) async fn start_envoy_of(
        &self,
        workers: u32,
        environment: &BTreeMap<String, String>,
        bootstrap: &Value,
    ) -> Result<Envoy> {
        // Two levels deep, like the directories of all Envoys.
        let dir = TempDir::with_prefix_in("envoy-", self.dir.path())?.keep();
        let dir = dir.join("bootstrap");
        fs::create_dir(&dir).await?;
        Envoy::start(&self.envoy, &dir, workers, None, environment, bootstrap).await
    }

    /// Validates the bootstrap in the file `path` with Envoy.
    pub async fn validate(&self, path: &Path) -> Result<()> {
        validate(&self.envoy, path).await
    }

    fn clusters(&self, app: Option<SocketAddr>) -> Vec<Value> {
        let mut clusters = vec![bootstrap::collector_cluster(self.logs_to)];
        clusters.extend(app.map(bootstrap::app_cluster));
        clusters
    }

    /// Waits for the single entry of `call` in `log` (`workload/listener`).
    pub async fn entry(&self, log: &str, call: &str) -> Result<Arc<Entry>> {
        let mut entries = self.entries(log, call, 1).await?;
        ensure!(
            entries.len() == 1,
            "{log} has several entries of call {call}"
        );
        Ok(entries.remove(0))
    }

    /// Waits for at least `count` entries of `call` in `log`.
    pub async fn entries(&self, log: &str, call: &str, count: usize) -> Result<Vec<Arc<Entry>>> {
        let what = format!("call {call} in {log}");
        self.collector
            .wait_for(&what, count, |entry| {
                entry.call() == call && entry.reporter.log == log
            })
            .await
    }

    /// Waits for the first line of the file `path`, which an Envoy writes.
    pub async fn first_line(&self, path: &Path) -> Result<String> {
        Ok(self.lines(path, 1).await?.remove(0))
    }

    /// Waits until the file `path`, which Envoys write, has at least `count`
    /// lines; returns all of them.
    pub async fn lines(&self, path: &Path, count: usize) -> Result<Vec<String>> {
        until(
            &format!("{count} lines in {}", path.display()),
            async || {
                let text = fs::read_to_string(path).await.unwrap_or_default();
                let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
                let lines: Vec<String> = complete.lines().map(str::to_owned).collect();
                Ok((lines.len() >= count).then_some(lines))
            },
        )
        .await
    }

    /// The directories of all Envoys that the lab has started, including those
    /// that failed to start.
    #[must_use]
    pub fn envoy_dirs(&self) -> Vec<PathBuf> {
        let children = |dir: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let proxies = children(self.dir.path())
            .into_iter()
            .flat_map(|mesh| children(&mesh));
        proxies
            .filter(|proxy| proxy.join("envoy.log").is_file())
            .collect()
    }

    /// The logs of all Envoys that the lab has started.
    #[must_use]
    pub fn envoy_logs(&self) -> String {
        let log = |proxy: PathBuf| {
            let log = std::fs::read_to_string(proxy.join("envoy.log")).ok()?;
            Some(format!("--- {}\n{log}", proxy.file_name()?.display()))
        };
        self.envoy_dirs().into_iter().filter_map(log).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.envoy_logs());
        }
    }
}

/// The module that `make wasm` built.
pub(crate) fn module_path() -> Result<PathBuf> {
    let module = repository("dist/metadata_exchange.wasm");
    module
        .canonicalize()
        .context("there is no dist/metadata_exchange.wasm: run `make wasm`")
}

pub(crate) fn routes(listener: &Listener, services: &[&str]) -> Vec<Value> {
    let virtual_host = |domain: &str, cluster: &str| {
        let (action, overrides) = (&listener.route_action, &listener.virtual_host);
        bootstrap::virtual_host(&[domain], cluster, action, overrides)
    };
    match listener.leads {
        Leads::ToApp => vec![virtual_host("*", bootstrap::APP)],
        Leads::ToMesh => {
            let target = |authority: &str| {
                let via = listener.via.iter().find(|(from, _)| from == authority);
                via.map_or_else(|| authority.to_owned(), |(_, to)| to.clone())
            };
            let host = |service: &&str| virtual_host(service, &target(service));
            services.iter().map(host).collect()
        }
    }
}

/// A running workload.
#[derive(Debug)]
struct Running {
    /// The address at which others reach it.
    inbound: SocketAddr,
    /// The destination of its own calls, if it has a proxy.
    outbound: Option<SocketAddr>,
    app: Option<App>,
    envoy: Option<Envoy>,
}

impl Running {
    fn bare(address: SocketAddr, app: Option<App>) -> Self {
        Self {
            inbound: address,
            outbound: None,
            app,
            envoy: None,
        }
    }

    async fn behind(proxy: &Proxy, envoy: Envoy, app: Option<App>) -> Result<Self> {
        let inbound = envoy.listener(proxy.inbound.name).await?;
        let outbound = envoy.listener(proxy.outbound().name).await?;
        if let Some(app) = &app {
            app.calls_through(outbound);
        }
        Ok(Self {
            inbound,
            outbound: Some(outbound),
            app,
            envoy: Some(envoy),
        })
    }
}

/// Workloads that can call each other.
#[derive(Debug)]
pub struct Mesh {
    dir: PathBuf,
    module: PathBuf,
    running: BTreeMap<String, Running>,
    workloads: Vec<Workload>,
}

impl Mesh {
    /// A call from the workload `from` to the service `to`: through the proxy
    /// of `from`, or directly to `to` if `from` has none.
    pub fn call(&self, from: &str, to: &str) -> Result<Call> {
        let address = match self.running(from)?.outbound {
            Some(outbound) => outbound,
            None => self.running(to)?.inbound,
        };
        Ok(Call::new(address, to))
    }

    /// The address at which others reach a workload.
    pub fn address(&self, name: &str) -> Result<SocketAddr> {
        Ok(self.running(name)?.inbound)
    }

    /// The destination of a workload's calls: its proxy's outbound listener.
    pub fn outbound(&self, name: &str) -> Result<SocketAddr> {
        let outbound = self.running(name)?.outbound;
        outbound.with_context(|| format!("{name} has no proxy"))
    }

    /// The app of a workload.
    pub fn app(&self, name: &str) -> Result<&App> {
        let app = self.running(name)?.app.as_ref();
        app.with_context(|| format!("{name} has no app"))
    }

    /// The Envoy of a workload.
    pub fn envoy(&self, name: &str) -> Result<&Envoy> {
        let envoy = self.running(name)?.envoy.as_ref();
        envoy.with_context(|| format!("{name} has no proxy"))
    }

    /// Kills the Envoy of a workload, like a crash. Others still call its
    /// address until it is replaced.
    pub async fn kill(&mut self, name: &str) -> Result<()> {
        let running = self.running.get_mut(name);
        let running = running.with_context(|| format!("there is no workload {name}"))?;
        let envoy = running.envoy.take();
        let envoy = envoy.with_context(|| format!("{name} has no proxy"))?;
        running.outbound = None;
        envoy.kill().await
    }

    /// Changes the configuration of a watched plugin, while requests run.
    pub async fn reconfigure(&self, name: &str, plugin: &Plugin) -> Result<()> {
        let resource = bootstrap::filter_resource(plugin, &self.module);
        replace(&self.plugin_file(name), &resource).await
    }

    /// Changes each watched listener of `name`, in Envoy's form, while requests
    /// run.
    pub async fn change_listeners(&self, name: &str, change: impl Fn(&mut Value)) -> Result<()> {
        let path = self.listeners_file(name);
        let mut file: Value = serde_json::from_slice(&fs::read(&path).await?)?;
        let listeners = file["resources"].as_array_mut().into_iter().flatten();
        listeners.for_each(change);
        replace(&path, &file).await
    }

    /// Replaces the cluster of `service` in the proxy of `name` by one with
    /// `overrides`, while requests run.
    pub async fn replace_cluster(
        &self,
        name: &str,
        service: &str,
        overrides: &Value,
    ) -> Result<()> {
        let path = self.clusters_file(name);
        let mut file: Value = serde_json::from_slice(&fs::read(&path).await?)?;
        let clusters = file["resources"].as_array_mut().into_iter().flatten();
        for cluster in clusters.filter(|cluster| cluster["name"] == service) {
            *cluster = bootstrap::with(cluster.take(), overrides);
        }
        replace(&path, &file).await
    }

    async fn filter(&self, name: &str, listener: &Listener) -> Result<Value> {
        let plugin = &listener.plugin;
        if !plugin.watched {
            return Ok(bootstrap::wasm_filter(plugin, &self.module));
        }
        self.reconfigure(name, plugin).await?;
        Ok(bootstrap::watched_filter(plugin, &self.plugin_file(name)))
    }

    /// Writes the addresses of all workloads to every proxy, and waits until
    /// they apply.
    async fn connect(&self) -> Result<()> {
        for caller in &self.workloads {
            let Some(proxy) = &caller.proxy else {
                continue;
            };
            let clusters = self
                .workloads
                .iter()
                .map(|callee| self.cluster(proxy, callee))
                .collect::<Result<Vec<Value>>>()?;
            let path = self.clusters_file(&caller.name);
            replace(&path, &bootstrap::clusters_resource(&clusters)).await?;
            let envoy = self.envoy(&caller.name)?;
            for callee in &self.workloads {
                let address = self.address(&callee.name)?;
                envoy.has_host(&callee.name, address).await?;
            }
        }
        Ok(())
    }

    fn cluster(&self, proxy: &Proxy, callee: &Workload) -> Result<Value> {
        let (name, metadata) = (&callee.name, &callee.endpoint_metadata);
        let overrides = proxy.clusters.get(name).unwrap_or(&Value::Null);
        let address = self.address(name)?;
        let mut cluster = bootstrap::service_cluster(name, address, metadata, overrides);
        if let Some(metadata) = &callee.locality_metadata {
            let locality = &mut cluster["load_assignment"]["endpoints"][0];
            locality["metadata"]["filter_metadata"] = metadata.clone();
        }
        Ok(cluster)
    }

    fn clusters_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-clusters.json"))
    }

    fn listeners_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-listeners.json"))
    }

    fn plugin_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-plugin.json"))
    }

    fn running(&self, name: &str) -> Result<&Running> {
        let running = self.running.get(name);
        running.with_context(|| format!("there is no workload {name}"))
    }
}

/// Replaces a file atomically, as its watchers need.
async fn replace(path: &Path, content: &Value) -> Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, serde_json::to_vec(content)?).await?;
    fs::rename(&draft, path).await?;
    Ok(())
}
