//! A whole mesh: the Online Boutique's services, each behind its own Envoy, an
//! ingress gateway and a service outside. The topology is rebuilt from the
//! access logs alone, and compared with the known call graph.

mod app;
mod cart;
pub mod graph;
mod recorder;
mod report;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mxctl::topology::Snapshot;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::app::{App, Destination, succeeds};
use self::cart::Redis;
use self::graph::{FRONTEND, GATEWAY, JOURNEY, OUTSIDE, SERVICES, Service};
use self::recorder::Recorder;
use self::report::{AFTERWARDS, KILLED, REPLACED, UNDISTURBED, View, has_all_calls};
pub use self::report::{Database, Edges, Phase, Report};
use crate::consumers::metrics::description::{Reporter, Scope, logger};
use crate::consumers::metrics::prometheus::Prometheus;
use crate::mesh::{Lab, Mesh};
use crate::node::Node;
use crate::wait::until;
use crate::workload::Workload;

/// The number of concurrent visitors.
const VISITORS: u64 = 2;
/// How long a visitor waits after a failed journey.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs the shop, also while Envoys are replaced and killed, and compares the
/// graphs.
pub async fn run(envoy: &Path, journeys: u64, mut progress: impl FnMut(&str)) -> Result<Report> {
    let recorder = Recorder::start().await?;
    progress("starting 12 Envoys");
    let begin = Instant::now();
    let mut shop = Shop::start(envoy, recorder.address).await?;
    let has_database = shop.redis.is_some();
    let started_after_s = begin.elapsed().as_secs_f64();

    progress("browsing, undisturbed");
    recorder.begin("1");
    let first = shop.visit("1", Visits::Count(journeys)).await?;
    all_logged(&recorder, "1", journeys, has_database).await?;
    recorder.begin("2");
    let replaced = shop
        .visit_while_renewed("2", How::Replaced, "v2", &mut progress)
        .await?;
    recorder.begin("3");
    let killed = shop
        .visit_while_renewed("3", How::Killed, "v3", &mut progress)
        .await?;
    recorder.begin("4");
    progress("browsing, afterwards");
    let last = shop.visit("4", Visits::Count(journeys)).await?;
    all_logged(&recorder, "4", journeys, has_database).await?;
    for disturbed in ["2", "3"] {
        all_logged(&recorder, disturbed, 0, false).await?;
    }
    let phase = |name, key, visits, vms| phase(name, &recorder, key, visits, vms, has_database);

    Ok(Report {
        envoy: shop.mesh.envoy(GATEWAY)?.version().await?,
        proxies: SERVICES.len() + 1 + usize::from(has_database),
        started_after_s,
        phases: vec![
            phase(UNDISTURBED, "1", &first, Some("v1")),
            phase(REPLACED, "2", &replaced, None),
            phase(KILLED, "3", &killed, None),
            phase(AFTERWARDS, "4", &last, Some("v3")),
        ],
        leaks: shop.mesh.app(OUTSIDE)?.leaks(),
        topology: recorder.read("1", recorder::Record::snapshot),
    })
}

/// What access logs and a Prometheus have of the same calls.
#[derive(Debug)]
pub struct Metered {
    /// The calls that were made, by caller, callee and reporter: names of the shop.
    pub expected: Reported,
    /// The topology by the access logs.
    pub logged: Snapshot,
    /// It has scraped all Envoys.
    pub prometheus: Prometheus,
    _shop: Shop,
}

/// Calls by reporter, caller and callee.
pub type Reported = BTreeMap<(&'static str, &'static str, &'static str), u64>;

/// What proxies report of this number of journeys. The service outside has no proxy.
fn reported_calls(journeys: u64) -> Reported {
    let mut all = Reported::new();
    for ((from, to), calls) in graph::calls_of_journey() {
        all.insert(("source", from, to), calls * journeys);
        if to != OUTSIDE {
            all.insert(("destination", from, to), calls * journeys);
        }
    }
    all
}

/// Runs the shop with Istio's standard metrics and a Prometheus; between two halves of the journeys one Envoy after the
/// other is replaced, so that its counters begin anew.
pub async fn run_metered(envoy: &Path, program: &Path, journeys: u64) -> Result<Metered> {
    let recorder = Recorder::start().await?;
    let [inbound, outbound] = [
        logger(Reporter::Destination, Scope::Bounded)?,
        logger(Reporter::Source, Scope::Bounded)?,
    ];
    let metered = |workload: Workload| {
        let logs = [
            ("inbound", &inbound),
            ("outbound", &outbound),
            (GATEWAY, &outbound),
        ];
        logs.into_iter().fold(workload, |workload, (name, log)| {
            workload.listener(name, |listener| listener.access_logs.push(log.clone()))
        })
    };
    let mut shop = Shop::start_in(envoy, recorder.address, metered).await?;
    let prometheus = Prometheus::start(program, &shop.targets()?).await?;
    // Fewer later, so that the samples show that the counters have begun anew.
    let halves = [journeys - journeys / 3, journeys / 3];
    let mut made = 0;
    for half in halves {
        if made > 0 {
            for workload in shop.proxied("v1")? {
                let name = workload.name.clone();
                shop.lab.replace(&mut shop.mesh, metered(workload)).await?;
                shop.call_through(&name).await?;
            }
            prometheus.scrape(&shop.targets()?)?;
        }
        let visited = shop.visit("1", Visits::Count(half)).await?;
        ensure!(visited.failed == 0, "{} journeys failed", visited.failed);
        made += half;
        all_logged(&recorder, "1", made, false).await?;
        let reported: u64 = reported_calls(made).values().sum();
        until("all calls to be scraped", async || {
            let scraped = prometheus.totals("istio_requests_total").await?;
            Ok((scraped.values().sum::<u64>() >= reported).then_some(()))
        })
        .await?;
    }
    Ok(Metered {
        expected: reported_calls(journeys),
        logged: recorder.read("1", recorder::Record::snapshot),
        prometheus,
        _shop: shop,
    })
}

/// Runs the shop with visitors until interrupted, for a reader of access logs
/// at `logs_to`.
pub async fn serve(envoy: &Path, logs_to: SocketAddr, progress: impl Fn(&str)) -> Result<()> {
    progress("starting 12 Envoys");
    let shop = Shop::start(envoy, logs_to).await?;
    progress("browsing until interrupted");
    shop.visit("", Visits::Count(u64::MAX)).await?;
    Ok(())
}

/// A running shop. Dropping it stops everything.
#[derive(Debug)]
pub struct Open {
    _shop: Shop,
}

/// Starts the shop in another namespace, for a reader of access logs at
/// `logs_to`, and sends visitors through it, who must all succeed.
pub async fn browse(
    envoy: &Path,
    logs_to: SocketAddr,
    namespace: &str,
    journeys: u64,
) -> Result<Open> {
    let moved = |workload: Workload| workload.node_with("NAMESPACE", &namespace.into());
    let shop = Box::pin(Shop::start_in(envoy, logs_to, moved)).await?;
    let visited = shop.visit("", Visits::Count(journeys)).await?;
    ensure!(visited.failed == 0, "{} journeys failed", visited.failed);
    Ok(Open { _shop: shop })
}

/// Waits for the entries of all calls. The report lists what is missing in the
/// end.
async fn all_logged(
    recorder: &Recorder,
    phase: &str,
    journeys: u64,
    has_database: bool,
) -> Result<()> {
    let complete = until("all calls to be logged", async || {
        let snapshot = recorder.read(phase, recorder::Record::snapshot);
        let is_complete = has_all_calls(&snapshot, journeys)
            && (!has_database || Database::of(&snapshot, journeys).is_complete());
        Ok(is_complete.then_some(()))
    });
    // A missing entry is reported as a problem of the topology and does not
    // abort the run.
    let _late = complete.await;
    Ok(())
}

/// Compares a phase. `vms` is the version of the VMs, if it does not change;
/// then counts are compared as well, and no journey may fail.
fn phase(
    name: &'static str,
    recorder: &Recorder,
    key: &str,
    visits: &Visited,
    vms: Option<&str>,
    has_database: bool,
) -> Phase {
    let Visited { journeys, failed } = *visits;
    recorder.read(key, |record| {
        let snapshot = record.snapshot();
        let edges = |view| Edges::compared(view, &snapshot, journeys, vms.is_some());
        let notes = snapshot.notes.iter();
        let mut faults: Vec<String> = notes
            .map(|note| format!("{} x {}", note.count, note.note))
            .collect();
        if let Some(version) = vms {
            if failed > 0 {
                faults.push(format!("{failed} journeys failed"));
            }
            for vm in vms_of_shop() {
                let service = graph::shown(vm.name);
                let seen = record.versions.get(&service);
                let seen: Vec<_> = seen.into_iter().flatten().collect();
                if seen != [version] {
                    faults.push(format!("{service} is {version}, but peers saw {seen:?}"));
                }
            }
        }
        let database = has_database.then(|| Database::of(&snapshot, journeys));
        let fault = database.as_ref().map(|one| one.fault(name));
        faults.extend(fault.flatten());
        Phase {
            name,
            journeys,
            failed,
            client: edges(View::Client),
            server: edges(View::Server),
            database,
            faults,
        }
    })
}

fn vms_of_shop() -> impl Iterator<Item = &'static Service> {
    let is_vm = |service: &&Service| service.host == graph::Host::Vm;
    SERVICES.iter().filter(is_vm)
}

/// How long visitors keep coming.
enum Visits {
    /// For this number of journeys.
    Count(u64),
    /// As long as the sender exists, which receives the number of failed
    /// journeys.
    While(watch::Sender<u64>),
}

/// The outcome of visits.
struct Visited {
    journeys: u64,
    failed: u64,
}

/// How an Envoy is replaced by its successor.
#[derive(Clone, Copy)]
enum How {
    /// It finishes its requests while its successor is already running.
    Replaced,
    /// It is killed, and its successor starts once visitors have noticed.
    Killed,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Killed => "killed and started again",
        }
    }
}

/// A running shop. Dropping it stops everything.
#[derive(Debug)]
struct Shop {
    lab: Lab,
    mesh: Mesh,
    apps: BTreeMap<&'static str, App>,
    /// The gateway's address for visitors.
    gateway: Destination,
    /// The cart's database.
    redis: Option<Redis>,
}

impl Shop {
    /// Starts it, with the cart's state in a Redis.
    async fn start(envoy: &Path, logs_to: SocketAddr) -> Result<Self> {
        let lab = Lab::new(envoy).await?.logging_to(logs_to);
        let redis = Redis::start(&lab).await?;
        Self::start_with(lab, redis, |workload| workload).await
    }

    /// Starts it without a database, with a change of each workload.
    async fn start_in(
        envoy: &Path,
        logs_to: SocketAddr,
        change: impl Fn(Workload) -> Workload,
    ) -> Result<Self> {
        let lab = Lab::new(envoy).await?.logging_to(logs_to);
        Self::start_with(lab, None, change).await
    }

    async fn start_with(
        lab: Lab,
        redis: Option<Redis>,
        change: impl Fn(Workload) -> Workload,
    ) -> Result<Self> {
        let mut apps = BTreeMap::new();
        for service in &SERVICES {
            apps.insert(service.name, App::start(service.name).await?);
        }
        let mut workloads = vec![gateway()?, Workload::bare(OUTSIDE).counting()];
        for service in &SERVICES {
            let workload = sidecar(service, apps[service.name].address, "v1");
            workloads.push(with_database(&lab, redis.as_ref(), workload));
        }
        let mesh = lab
            .start(workloads.into_iter().map(change))
            .await
            .inspect_err(|_| eprintln!("{}", lab.envoy_logs()))?;
        let shop = Self {
            lab,
            mesh,
            apps,
            gateway: watch::channel(None).0,
            redis,
        };
        shop.call_through(GATEWAY).await?;
        for service in &SERVICES {
            shop.call_through(service.name).await?;
        }
        Ok(shop)
    }

    /// The workloads that have an Envoy, VMs with the version `vms`.
    fn proxied(&self, vms: &str) -> Result<Vec<Workload>> {
        let mut workloads = vec![gateway()?];
        for service in &SERVICES {
            let version = match service.host {
                graph::Host::Pod => "v1",
                graph::Host::Vm => vms,
            };
            let workload = sidecar(service, self.apps[service.name].address, version);
            workloads.push(with_database(&self.lab, self.redis.as_ref(), workload));
        }
        Ok(workloads)
    }

    /// Where to scrape each of the Envoys.
    fn targets(&self) -> Result<Vec<(&'static str, SocketAddr)>> {
        let names = SERVICES.iter().map(|service| service.name);
        let target = |name| Ok((name, self.mesh.envoy(name)?.admin()));
        names.chain([GATEWAY]).map(target).collect()
    }

    /// Makes the app behind the proxy of `name`, or the visitors in front of
    /// it, call through it.
    async fn call_through(&self, name: &str) -> Result<()> {
        let outbound = match self.apps.get(name) {
            Some(app) => &app.outbound,
            None => &self.gateway,
        };
        outbound.send_replace(Some(self.mesh.outbound(name)?));
        if let Some(app) = self.apps.get(name)
            && self.redis.is_some()
            && name == graph::CART
        {
            let listener = self.mesh.envoy(name)?.listener(cart::OUTBOUND).await?;
            app.database.send_replace(Some(listener));
        }
        Ok(())
    }

    async fn visit(&self, phase: &str, visits: Visits) -> Result<Visited> {
        visit(self.gateway.subscribe(), phase.to_owned(), visits).await
    }

    /// Renews one Envoy after the other, those of VMs with the version `vms`,
    /// while visitors come.
    async fn visit_while_renewed(
        &mut self,
        phase: &str,
        how: How,
        vms: &str,
        progress: &mut impl FnMut(&str),
    ) -> Result<Visited> {
        progress(&format!("browsing, while each Envoy is {}", how.name()));
        let (failures, mut failed) = watch::channel(0);
        let address = self.gateway.subscribe();
        let visiting = tokio::spawn(visit(address, phase.to_owned(), Visits::While(failures)));
        for workload in self.proxied(vms)? {
            let name = workload.name.clone();
            progress(&format!("{name}'s Envoy is {}", how.name()));
            if let How::Killed = how {
                self.mesh.kill(&name).await?;
                let until_now = *failed.borrow_and_update();
                failed.wait_for(|failed| *failed > until_now).await?;
            }
            let before = self.lab.replace(&mut self.mesh, workload).await?;
            self.call_through(&name).await?;
            if let Some(before) = before {
                let retired = before.retire().await;
                retired.with_context(|| format!("the proxy of {name} before"))?;
            }
        }
        drop(failed);
        visiting.await?
    }
}

/// The workload with its database, if the shop has one and the service keeps its state there.
fn with_database(lab: &Lab, redis: Option<&Redis>, workload: Workload) -> Workload {
    match redis {
        Some(redis) if workload.name == graph::CART => redis.called_by(lab, workload),
        _ => workload,
    }
}

fn gateway() -> Result<Workload> {
    Ok(Workload::istio_gateway(GATEWAY, Node::gateway()?))
}

fn sidecar(service: &Service, app: SocketAddr, version: &str) -> Workload {
    let outside = json!({ "metadata": { "filter_metadata": { "istio": { "external": true } } } });
    Workload::sidecar(service.name, service.node(version))
        .served_at(app)
        .endpoint_metadata(service.endpoint(version))
        .cluster(OUTSIDE, outside)
}

/// Sends visitors through the shop, each one journey after the other.
async fn visit(
    gateway: watch::Receiver<Option<SocketAddr>>,
    phase: String,
    visits: Visits,
) -> Result<Visited> {
    let begun = Arc::new(AtomicU64::new(0));
    let visits = Arc::new(visits);
    let mut visitors = JoinSet::new();
    for _ in 0..VISITORS {
        let (begun, visits) = (Arc::clone(&begun), Arc::clone(&visits));
        let (gateway, phase) = (gateway.clone(), phase.clone());
        visitors.spawn(async move {
            let mut failed = 0;
            while visits.go_on(begun.fetch_add(1, Ordering::Relaxed)) {
                if !journey(&gateway, &phase).await {
                    failed += 1;
                    visits.disappoint().await;
                }
            }
            failed
        });
    }
    let mut failed = 0;
    while let Some(visitor) = visitors.join_next().await {
        failed += visitor?;
    }
    // Each visitor has begun one journey too many.
    let journeys = begun.load(Ordering::Relaxed) - VISITORS;
    Ok(Visited { journeys, failed })
}

impl Visits {
    fn go_on(&self, begun: u64) -> bool {
        match self {
            Self::Count(count) => begun < *count,
            Self::While(failures) => !failures.is_closed(),
        }
    }

    /// Handles a failed journey.
    async fn disappoint(&self) {
        if let Self::While(failures) = self {
            failures.send_modify(|failed| *failed += 1);
        }
        sleep(PAUSE).await;
    }
}

/// Browses, fills the cart and checks out; returns whether all of it succeeded.
async fn journey(gateway: &watch::Receiver<Option<SocketAddr>>, phase: &str) -> bool {
    for path in JOURNEY {
        if !succeeds(gateway, FRONTEND, &format!("{path}?{phase}")).await {
            return false;
        }
    }
    true
}
