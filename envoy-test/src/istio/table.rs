//! The overlays, each applied and judged.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use serde::Serialize;
use serde_json::{Value, json};

use super::cluster::{Cluster, Pair, until};
use super::overlay::Overlay;
use super::pod::{EGRESS, INGRESS, Kind, PODS, PRODUCTPAGE, Pod, RATINGS, VM};
use super::proxy;
use super::traffic::Logged;
use super::upgrade::{until_base, until_found, until_in_listeners, until_running};
use crate::repository;

/// An overlay.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Its name.
    pub overlay: String,
    /// The HTTP filters of standard Envoys, and what `deploy/istio/README.md` says.
    pub orders: BTreeSet<String>,
    /// Those that istiod sends to Istio's own Envoy.
    pub orders_native: BTreeSet<String>,
    /// The calls of which both sides were named.
    pub named: Vec<String>,
    /// What the doctor finds.
    pub doctor: BTreeSet<String>,
    /// What `istioctl validate` and `istioctl analyze` say.
    pub istioctl: Vec<String>,
    /// What is wrong.
    pub faults: Vec<String>,
}

/// Overlays that are applied together.
struct Group {
    overlays: Vec<(&'static str, Overlay, Vec<Pod>)>,
    pairs: Vec<Pair>,
}

fn wasm_plugins() -> Result<Group> {
    let plugin = Overlay::render("wasmplugin")?;
    let next = plugin.clone().namespace(VM.namespace);
    Ok(Group {
        overlays: vec![
            ("wasmplugin", plugin, vec![PRODUCTPAGE, RATINGS]),
            ("wasmplugin", next, vec![VM]),
            (
                "wasmplugin-edge-gateway",
                Overlay::render("wasmplugin-edge-gateway")?,
                vec![INGRESS],
            ),
            (
                "wasmplugin-inner-gateway",
                Overlay::render("wasmplugin-inner-gateway")?,
                vec![EGRESS],
            ),
        ],
        pairs: Pair::all(),
    })
}

fn envoy_filters() -> Result<Group> {
    let filter = Overlay::render("envoyfilter")?;
    let of_vms = filter.clone().namespace(VM.namespace);
    let of_gateways = filter.clone().namespace(INGRESS.namespace);
    Ok(Group {
        overlays: vec![
            ("envoyfilter", filter, vec![PRODUCTPAGE, RATINGS]),
            ("envoyfilter", of_vms, vec![VM]),
            ("envoyfilter", of_gateways, vec![INGRESS]),
            (
                "envoyfilter-inner-gateway",
                Overlay::render("envoyfilter-inner-gateway")?,
                vec![EGRESS],
            ),
        ],
        pairs: Pair::all(),
    })
}

/// There is nothing to observe with standard Envoys.
fn observers() -> Result<Group> {
    let overlay = Overlay::render("observe")?;
    Ok(Group {
        overlays: vec![("observe", overlay, vec![PRODUCTPAGE, RATINGS])],
        pairs: Vec::new(),
    })
}

/// The table, and what access logs need, which stays.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<&'static str, Row>);

impl Table {
    fn row(&mut self, overlay: &'static str) -> &mut Row {
        self.0.entry(overlay).or_insert_with(|| Row {
            overlay: overlay.to_owned(),
            ..Row::default()
        })
    }

    pub(super) fn into_rows(self) -> Vec<Row> {
        self.0.into_values().collect()
    }

    /// Access logs, a group of VMs, and the headers of the whole mesh; the canary has
    /// a story of its own, and those for TCP are only validated.
    pub(super) async fn prepare(&mut self, cluster: &Cluster) -> Result<()> {
        for name in ["wasmplugin-canary", "tcp-wasmplugin", "tcp-envoyfilter"] {
            self.validate(cluster, [(name, &Overlay::render(name)?)])
                .await?;
        }
        for name in ["skywalking", "vm", "headers"] {
            let overlay = Overlay::render(name)?;
            overlay.apply(cluster).await?;
            self.validate(cluster, [(name, &overlay)]).await?;
            if name == "headers" {
                let sidecars = PODS.into_iter().filter(|pod| pod.kind != Kind::Gateway);
                let sidecars: Vec<_> = sidecars.collect();
                until_base(cluster, &sidecars, true).await?;
                overlay.delete(cluster).await?;
                until_base(cluster, &sidecars, false).await?;
            }
        }
        Ok(())
    }

    /// `istioctl validate` for each of them.
    async fn validate(
        &mut self,
        cluster: &Cluster,
        overlays: impl IntoIterator<Item = (&'static str, &Overlay)>,
    ) -> Result<()> {
        let judged = overlays.into_iter().map(async |(name, overlay)| {
            let printed = overlay.validate(cluster, name).await?;
            anyhow::Ok((name, printed))
        });
        for (name, printed) in try_join_all(judged).await? {
            let faults = &mut self.row(name).faults;
            if !printed.is_empty() {
                faults.push(format!("istioctl validate: {printed}"));
            }
        }
        Ok(())
    }

    /// All overlays of the filter, with standard Envoys.
    pub(super) async fn judge(&mut self, cluster: &Cluster) -> Result<()> {
        inner_gateway(cluster).await?;
        let plugins = wasm_plugins()?;
        self.judge_group(cluster, &plugins).await?;
        if let Err(error) = trust(cluster, &plugins).await {
            let faults = &mut self.row("wasmplugin").faults;
            faults.push(format!("trust: spiffe: {error:#}"));
        } else {
            let named = &mut self.row("wasmplugin").named;
            named.push("with trust: spiffe, within a namespace and between two".to_owned());
        }
        plugins.delete(cluster).await?;
        let filters = envoy_filters()?;
        self.judge_group(cluster, &filters).await?;
        // Last, for the doctor sees what has been counted.
        if let Err(error) = without_mutual_tls(cluster).await {
            let faults = &mut self.row("envoyfilter-inner-gateway").faults;
            faults.push(format!("without ISTIO_MUTUAL: {error:#}"));
        }
        filters.delete(cluster).await?;
        let observers = observers()?;
        self.judge_group(cluster, &observers).await?;
        observers.delete(cluster).await?;
        for pod in [PRODUCTPAGE, RATINGS, VM, INGRESS, EGRESS] {
            until_in_listeners(cluster, &[pod], false).await?;
        }
        Ok(())
    }

    async fn judge_group(&mut self, cluster: &Cluster, group: &Group) -> Result<()> {
        for (_, overlay, _) in &group.overlays {
            overlay.apply(cluster).await?;
        }
        // Once for each kind of overlay: those of other namespaces are the same.
        let kinds: BTreeMap<_, _> = group.overlays.iter().map(|one| (one.0, &one.1)).collect();
        self.validate(cluster, kinds).await?;
        for (name, _, pods) in &group.overlays {
            until_running(cluster, pods)
                .await
                .with_context(|| (*name).to_owned())?;
        }
        let first = group.overlays.first().context("no overlay")?.0;
        let pairs = &group.pairs;
        let named = join_all(pairs.iter().map(|pair| cluster.check_named(pair))).await;
        for (pair, named) in pairs.iter().zip(named) {
            match named {
                Ok(()) => self.row(first).named.push(pair.what.to_owned()),
                Err(error) => {
                    eprintln!("{first}: {error:#}");
                    self.row(first).faults.push(format!("{error:#}"));
                }
            }
        }
        let pods = group.overlays.iter();
        let pods = pods.flat_map(|(name, _, pods)| pods.iter().map(move |pod| (*name, *pod)));
        let pods: Vec<_> = pods.collect();
        let findings = try_join_all(pods.iter().map(|(_, pod)| cluster.doctor(*pod))).await?;
        for ((name, pod), findings) in pods.into_iter().zip(findings) {
            let orders = cluster.proxy(pod)?.orders().await?;
            let place = Place::of(pod);
            let row = self.row(name);
            row.orders.extend(orders.iter().map(|one| place.order(one)));
            row.doctor.extend(findings);
        }
        let said = analyze(cluster).await?;
        self.row(first).istioctl.extend(said);
        Ok(())
    }

    /// The orders that istiod makes for Istio's own Envoys.
    pub(super) async fn judge_native(&mut self, cluster: &Cluster) -> Result<()> {
        for group in [wasm_plugins()?, envoy_filters()?, observers()?] {
            for (name, overlay, pods) in &group.overlays {
                overlay.apply(cluster).await?;
                for pod in pods {
                    let id = pod.proxy_id();
                    let orders = until(&format!("{name} in what istiod sends"), async || {
                        // Proxies come back to it one after the other.
                        let Ok(dump) = cluster.istiod.sends(&id).await else {
                            return Ok(None);
                        };
                        let orders = proxy::orders(&dump);
                        let has = |one: &String| one.contains("metadata-exchange");
                        let are_there = !orders.is_empty() && orders.iter().all(has);
                        Ok(are_there.then_some(orders))
                    })
                    .await?;
                    let place = Place::of(*pod);
                    let row = self.row(name);
                    row.orders_native
                        .extend(orders.iter().map(|one| place.order(one)));
                }
            }
            group.delete(cluster).await?;
        }
        Ok(())
    }

    /// Compares with what is documented.
    pub(super) fn check_documented(&mut self) -> Result<()> {
        let documented = documented()?;
        for row in self.0.values_mut() {
            let of = |native: bool| -> BTreeSet<String> {
                let rows = documented.iter();
                let rows = rows.filter(|one| one.overlay == row.overlay);
                let cell = |one: &Documented| {
                    let order = if native { &one.native } else { &one.standard };
                    format!("{} {order}", one.place)
                };
                rows.map(cell).collect()
            };
            for (kind, found, said) in [
                ("standard", &row.orders, of(false)),
                ("Istio's own", &row.orders_native, of(true)),
            ] {
                if *found != said {
                    row.faults.push(format!(
                        "with {kind} Envoys the filters are {found:#?}, and deploy/istio/README.md says {said:#?}"
                    ));
                }
            }
            if row.overlay != "observe" {
                let wrong = row.doctor.iter().filter(|one| !one.starts_with("info"));
                row.faults
                    .extend(wrong.map(|one| format!("the doctor finds {one}")));
            }
            row.faults.extend(row.istioctl.iter().cloned());
        }
        Ok(())
    }
}

impl Group {
    async fn delete(&self, cluster: &Cluster) -> Result<()> {
        for (_, overlay, _) in &self.overlays {
            overlay.delete(cluster).await?;
        }
        Ok(())
    }
}

/// Where a chain of filters is.
enum Place {
    Sidecar,
    Gateway,
}

impl Place {
    fn of(pod: Pod) -> Self {
        match pod.role() {
            "router" => Self::Gateway,
            _ => Self::Sidecar,
        }
    }

    /// `inbound filter > filter`, with our filter under one name.
    fn order(&self, order: &str) -> String {
        let (direction, names) = order.split_once(' ').unwrap_or((order, ""));
        let place = match self {
            Self::Sidecar => direction.to_lowercase(),
            Self::Gateway => "gateway".to_owned(),
        };
        let names = names.split(" > ").map(|name| match name {
            "istio.metadata_exchange" => name,
            ours if ours.contains("metadata-exchange") => "**filter**",
            other => other,
        });
        format!("{place} {}", names.collect::<Vec<_>>().join(" > "))
    }
}

/// A row of the table of orders in `deploy/istio/README.md`.
#[derive(Debug)]
struct Documented {
    overlay: String,
    place: String,
    standard: String,
    native: String,
}

fn documented() -> Result<Vec<Documented>> {
    let readme = std::fs::read_to_string(repository("deploy/istio/README.md"))?;
    let mut lines = readme.lines();
    let head = "| Overlay | Listener | Standard Envoy | Istio's own Envoy |";
    ensure!(
        lines.any(|line| line == head),
        "the table of orders is missing"
    );
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    let rows = rows.flat_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let overlays = cells.first().copied().unwrap_or_default().split(", ");
        let overlays = overlays.map(|name| name.trim_matches('`').to_owned());
        let cell = |number: usize| cells.get(number).copied().unwrap_or_default().to_owned();
        overlays
            .map(move |overlay| Documented {
                overlay,
                place: cell(1),
                standard: cell(2),
                native: cell(3),
            })
            .collect::<Vec<_>>()
    });
    Ok(rows.collect())
}

/// An inner gateway believes callers over mutual TLS only, so it gets what
/// `deploy/istio/README.md` shows for that.
async fn inner_gateway(cluster: &Cluster) -> Result<()> {
    cluster.kubernetes.apply(&inner_gateway_objects()?).await
}

/// The same objects without mutual TLS: the gateway serves, refuses to believe its
/// callers, and counts it as `deploy/istio/README.md` says.
async fn without_mutual_tls(cluster: &Cluster) -> Result<()> {
    let mut objects = inner_gateway_objects()?;
    for object in &mut objects {
        let is_gateway = object["kind"] == "Gateway";
        let spec = &mut object["spec"];
        if is_gateway {
            let server = &mut spec["servers"][0];
            server["port"]["protocol"] = "HTTP".into();
            server["tls"] = Value::Null;
        } else {
            spec["trafficPolicy"] = json!({ "tls": { "mode": "DISABLE" } });
        }
    }
    cluster.kubernetes.apply(&objects).await?;
    let refused = async || {
        let proxy = cluster.proxy(EGRESS)?;
        proxy.statistic("refused_trust_mtls").await
    };
    until("the gateway to count refused_trust_mtls", async || {
        // While it changes there may be no listener to answer.
        let _ = cluster.call(&Pair::egress()).await;
        Ok((refused().await? > 0).then_some(()))
    })
    .await?;
    let pair = Pair::egress();
    let entries = cluster.call(&pair).await?;
    let by_gateway = |one: &&Logged| one.reporter.contains(&EGRESS.proxy_id());
    let entry = entries.iter().find(by_gateway).context("no entry")?;
    ensure!(
        entry.downstream.is_none(),
        "the gateway names {:?}",
        entry.downstream
    );
    until_found(cluster, &[EGRESS], "warning peers_refused").await?;
    inner_gateway(cluster).await?;
    cluster.check_named(&pair).await
}

fn inner_gateway_objects() -> Result<Vec<Value>> {
    let readme = std::fs::read_to_string(repository("deploy/istio/README.md"))?;
    let blocks = readme.split("```yaml\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split_once("```"));
    let block = blocks
        .map(|(block, _)| block)
        .find(|block| block.contains("ISTIO_MUTUAL"));
    let block = block.context("deploy/istio/README.md shows no ISTIO_MUTUAL")?;
    Ok(serde_saphyr::from_multiple(block)?)
}

/// Both sides believe certificates of the peer's namespace only.
async fn trust(cluster: &Cluster, plugins: &Group) -> Result<()> {
    let configuration = json!({ "trust": "spiffe", "upstream_trust": "spiffe" });
    for (_, overlay, pods) in plugins.overlays.iter().take(2) {
        let strict = overlay.clone().configured(&configuration);
        super::upgrade::reconfigure(cluster, &strict, &configuration, pods).await?;
    }
    for pair in [Pair::pods(), Pair::pod_and_vm()] {
        cluster.check_named(&pair).await?;
    }
    for pod in [PRODUCTPAGE, RATINGS, VM] {
        let proxy = cluster.proxy(pod)?;
        for refused in ["refused_trust_spiffe", "refused_trust_mtls"] {
            let count = proxy.statistic(refused).await?;
            if count > 0 {
                bail!("{}: {refused}: {count}", pod.short);
            }
        }
    }
    Ok(())
}

/// What `istioctl analyze` says of our objects.
async fn analyze(cluster: &Cluster) -> Result<Vec<String>> {
    let arguments = ["analyze", "--all-namespaces", "--output=json"];
    let done = cluster.istioctl(&arguments).await?;
    let text = String::from_utf8_lossy(&done.stdout);
    let context = || {
        format!(
            "istioctl analyze: {text}{}",
            String::from_utf8_lossy(&done.stderr)
        )
    };
    // It prints nothing where it finds nothing.
    if text.trim().is_empty() {
        ensure!(done.status.success(), context());
        return Ok(Vec::new());
    }
    let messages: Value = serde_json::from_str(&text).with_context(context)?;
    let messages = messages.as_array().with_context(context)?;
    let ours = messages.iter().filter(|one| {
        let origin = one["origin"].as_str().unwrap_or_default();
        let is_ours = origin.contains("metadata-exchange") || origin.contains("ratings-vm");
        // It is said of every EnvoyFilter: that they depend on Envoy's own interfaces.
        is_ours && one["code"] != "IST0133"
    });
    let line = |one: &Value| {
        format!(
            "istioctl analyze: {} {}: {}",
            one["code"], one["origin"], one["message"]
        )
    };
    Ok(ours.map(line).collect())
}
