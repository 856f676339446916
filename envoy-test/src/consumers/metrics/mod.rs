//! Istio's standard metrics, as a real Prometheus answers them.

pub mod description;
pub mod flood;
pub mod prometheus;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};

use self::description::{Reporter, WORKLOAD};
use self::prometheus::Prometheus;
use super::example::{Example, list};
use super::report::Counts;
use super::sidecar::{PAYMENTS, PRODUCTPAGE, Plan, Sidecar, as_from, workload};
use crate::bootstrap::{any_port, v8_first};
use crate::client::Call;
use crate::envoy::Envoy;
use crate::mesh::Lab;
use crate::node::Node;
use crate::wait::until;

/// The labels of a series with their values. Prometheus has no empty ones.
pub type Labels = BTreeMap<String, String>;

/// How many calls each series is to count.
pub type Expected = BTreeMap<Labels, u64>;

/// A service of the bootstrap: host, name and namespace.
type Service<'a> = [&'a str; 3];

const RATINGS: Service<'_> = ["ratings.example.internal", "ratings", "vms"];

/// A VM, the bootstrap's own node, calls a pod; both run the bootstrap.
struct Pair {
    vm: Sidecar,
    pod: Sidecar,
    vm_node: Node,
    pod_node: Node,
}

/// Histograms appear sooner than after five seconds.
fn flush_soon(bootstrap: &mut Value) {
    bootstrap["stats_flush_interval"] = "0.1s".into();
}

impl Pair {
    async fn start(lab: &Lab, example: &Example) -> Result<Self> {
        let pod_node = workload("productpage", "default");
        // What the top of the file says of services.
        let change = |bootstrap: &mut Value| {
            flush_soon(bootstrap);
            let mut clusters = list(&mut bootstrap["static_resources"]["clusters"]);
            let app = clusters.find(|cluster| cluster["name"] == "app");
            let services = &mut app.context("no app")?["metadata"]["filter_metadata"]["istio"];
            services["services"][0] = json!({
                "host": PRODUCTPAGE, "name": "productpage", "namespace": "default",
            });
            Ok(())
        };
        let pod = Plan {
            node: Some(pod_node.clone()),
            change: &change,
            ..Plan::new(example)
        };
        let pod = pod.start(lab).await?;
        let bootstrap = example.bootstrap()?;
        let vm_node = Node {
            id: bootstrap["node"]["id"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            metadata: bootstrap["node"]["metadata"].clone(),
        };
        Ok(Self {
            vm: start_vm(lab, example, pod.inbound).await?,
            pod,
            vm_node,
            pod_node,
        })
    }

    fn targets(&self) -> [(&'static str, SocketAddr); 2] {
        [
            ("vm", self.vm.envoy.admin()),
            ("pod", self.pod.envoy.admin()),
        ]
    }

    /// The series of a counter on the pages of both.
    async fn on_page(&self, counter: &str) -> Result<Expected> {
        let mut all = page(&self.vm.envoy, counter).await?;
        for (labels, value) in page(&self.pod.envoy, counter).await? {
            *all.entry(labels).or_default() += value;
        }
        Ok(all)
    }

    /// Makes `times` calls of every kind, and adds what is to be counted of them.
    async fn make_calls(&self, times: u64, expected: &mut Expected) -> Result<()> {
        let (vm, pod) = (Some(&self.vm_node), Some(&self.pod_node));
        let checkout = workload("checkout", "shop");
        let productpage = [PRODUCTPAGE, "productpage", "default"];
        let (inbound, outbound) = (Reporter::Destination, Reporter::Source);
        for _ in 0..times {
            let mut reported = |reporter, ends, service, code, flags| {
                *expected
                    .entry(series(reporter, ends, service, code, flags))
                    .or_default() += 1;
            };
            for (path, code) in [("/details", "200"), ("/status/503", "503")] {
                expect(Call::new(self.vm.outbound, PRODUCTPAGE).path(path), code).await?;
                reported(outbound, [vm, pod], productpage, code, "-");
                reported(inbound, [vm, pod], productpage, code, "-");
            }
            let call = Call::new(self.vm.inbound, "any").path("/ratings");
            expect(as_from(call, &checkout)?, "200").await?;
            reported(inbound, [Some(&checkout), vm], RATINGS, "200", "-");
            // Neither with metadata nor with its own name for the service.
            expect(Call::new(self.vm.inbound, "any"), "200").await?;
            reported(inbound, [None, vm], RATINGS, "200", "-");
            // Outside the mesh, where only the host of the request names the service.
            expect(Call::new(self.vm.outbound, PAYMENTS), "200").await?;
            let payments = [PAYMENTS, PAYMENTS, "unknown"];
            reported(outbound, [vm, None], payments, "200", "-");
            // No route, and so no cluster.
            expect(Call::new(self.vm.outbound, "nowhere"), "404").await?;
            reported(
                outbound,
                [vm, None],
                ["nowhere", "nowhere", "unknown"],
                "404",
                "NR",
            );
        }
        Ok(())
    }
}

/// The series of a counter on the page that Prometheus scrapes, without empty labels.
async fn page(envoy: &Envoy, counter: &str) -> Result<Expected> {
    let call = Call::new(envoy.admin(), "admin").path("/stats/prometheus");
    let text = String::from_utf8(call.send().await?.body.to_vec())?;
    let mut all = Expected::new();
    for line in text.lines() {
        let labels = line
            .strip_prefix(counter)
            .and_then(|rest| rest.strip_prefix('{'));
        let Some((labels, value)) = labels.and_then(|rest| rest.rsplit_once("} ")) else {
            continue;
        };
        let label = |label: &str| {
            let (name, value) = label.split_once("=\"").context(line.to_owned())?;
            anyhow::Ok((name.to_owned(), value.to_owned()))
        };
        // No value of the tests has a quote or a comma in it.
        let labels = labels.trim_end_matches('"').split("\",").map(label);
        let mut labels = labels.collect::<Result<Labels>>()?;
        labels.retain(|_, value| !value.is_empty());
        *all.entry(labels).or_default() += value.parse::<u64>()?;
    }
    Ok(all)
}

async fn start_vm(lab: &Lab, example: &Example, pod: SocketAddr) -> Result<Sidecar> {
    let change = |bootstrap: &mut Value| {
        flush_soon(bootstrap);
        Ok(())
    };
    let plan = Plan {
        clusters: vec![("productpage", pod)],
        change: &change,
        ..Plan::new(example)
    };
    plan.start(lab).await
}

async fn expect(call: Call, code: &str) -> Result<()> {
    let reply = call.send().await?;
    ensure!(
        reply.status == StatusCode::from_bytes(code.as_bytes())?,
        "{reply:?}"
    );
    Ok(())
}

/// Every label of the series that counts such a call.
fn series(
    reporter: Reporter,
    ends: [Option<&Node>; 2],
    service: Service<'_>,
    code: &str,
    flags: &str,
) -> Labels {
    let mut labels = Labels::new();
    let mut add = |name: &str, value: &str| {
        labels.insert(name.to_owned(), value.to_owned());
    };
    for (end, node) in ["source", "destination"].into_iter().zip(ends) {
        for (label, key) in WORKLOAD {
            let value = match (node, key.strip_prefix("LABELS/")) {
                (None, _) => None,
                (Some(node), Some(label)) => node.metadata["LABELS"][label].as_str(),
                (Some(node), None) => node.metadata[key].as_str(),
            };
            add(&format!("{end}_{label}"), value.unwrap_or("unknown"));
        }
        add(&format!("{end}_principal"), "unknown");
    }
    let [host, name, namespace] = service;
    add("destination_service", host);
    add("destination_service_name", name);
    add("destination_service_namespace", namespace);
    add("reporter", reporter.name());
    add("request_protocol", "http");
    add("response_code", code);
    add("response_flags", flags);
    let security = match reporter {
        Reporter::Destination => "none",
        Reporter::Source => "unknown",
    };
    add("connection_security_policy", security);
    labels
}

/// Calls of every kind, before and after the VM's Envoy starts anew, and what Prometheus answers of them: each series, with
/// every label, of each of the metrics.
pub async fn run(lab: &Lab, example: &Example, program: &Path) -> Result<Counts> {
    let mut pair = Pair::start(lab, example).await?;
    let prometheus = Prometheus::start(program, &pair.targets()).await?;
    let mut expected = Expected::new();
    pair.make_calls(3, &mut expected).await?;
    settled(&prometheus, &expected).await?;

    drop(pair.vm);
    pair.vm = start_vm(lab, example, pair.pod.inbound).await?;
    prometheus.scrape(&pair.targets())?;
    // Fewer than before, so that the samples show that the counters have begun anew.
    pair.make_calls(2, &mut expected).await?;
    settled(&prometheus, &expected).await?;

    let mut counts = Counts::default();
    for metric in description::metrics() {
        let found = prometheus.totals(&counter_of(metric)).await?;
        let what = |labels: &Labels| {
            let label = |name: &str| labels.get(name).map_or("?", String::as_str);
            format!(
                "{metric}: {} -> {} ({}) {}, {}",
                label("source_workload"),
                label("destination_workload"),
                label("destination_service"),
                label("response_code"),
                label("reporter"),
            )
        };
        for (labels, made) in &expected {
            (0..*made).for_each(|_| counts.made(&what(labels)));
        }
        for (labels, total) in &found {
            let what = if expected.contains_key(labels) {
                what(labels)
            } else {
                // With all that is wrong in it.
                format!("{}: {labels:?}", what(labels))
            };
            (0..*total).for_each(|_| counts.found(&what));
        }
    }
    for fault in prometheus.failed_rules().await? {
        counts.found(&format!("a rule that fails: {fault}"));
    }
    for query in dashboard_queries()? {
        // A rate needs two samples.
        let what = format!("an answer to {query}");
        let answered = until(&what, async || {
            let answer = prometheus.query(&query).await?;
            Ok((!answer.is_empty()).then_some(()))
        });
        let is_answered = answered.await.inspect_err(|error| eprintln!("{error:#}"));
        counts.judged(
            &format!("the dashboard's query {query}"),
            is_answered.is_ok(),
        );
    }
    Ok(counts)
}

/// The same calls through listeners that Envoy watches, with Kiali's option, as Envoy's own page has them: the series of
/// `istio_requests_total`, and those of the option.
pub async fn by_xds(lab: &Lab, listeners: &Path) -> Result<[Expected; 3]> {
    let example = Example::read(super::Consumer::Metrics.file())?;
    let text = std::fs::read_to_string(listeners)?;
    let module = lab.module().to_str().context("no UTF-8 path")?;
    let text = text.replace(super::example::MODULE, module);
    let mut resource: Value = serde_saphyr::from_str(&text)?;
    let option =
        std::fs::read_to_string(crate::repository("examples/metrics/kiali-extension.yaml"))?;
    let option: Vec<Value> = serde_saphyr::from_str(&option)?;
    for listener in list(&mut resource["resources"]) {
        listener["address"] = any_port();
        if listener["name"] == "inbound" {
            let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
            let counters = &mut manager["access_log"][0]["typed_config"]["counters"];
            let counters = counters.as_array_mut().context("no counters")?;
            counters.extend(option.iter().cloned());
        }
    }
    let watched = lab.dir().join("listeners.json");
    std::fs::write(&watched, resource.to_string())?;
    let change = |bootstrap: &mut Value| {
        flush_soon(bootstrap);
        let resources = bootstrap["static_resources"].as_object_mut();
        resources.context("no resources")?.remove("listeners");
        bootstrap["dynamic_resources"]["lds_config"] =
            json!({ "path_config_source": { "path": watched } });
        bootstrap["bootstrap_extensions"] = v8_first();
        Ok(())
    };
    let pair = Pair::start(lab, &example).await?;
    let plan = Plan {
        clusters: vec![("productpage", pair.pod.inbound)],
        change: &change,
        ..Plan::new(&example)
    };
    let pair = Pair {
        vm: plan.start(lab).await?,
        ..pair
    };
    let mut expected = Expected::new();
    pair.make_calls(1, &mut expected).await?;
    let made: u64 = expected.values().sum();
    until("all calls to be counted", async || {
        let found = pair.on_page("istio_requests_total").await?;
        Ok((found.values().sum::<u64>() >= made).then_some(()))
    })
    .await?;
    let found = pair.on_page("istio_requests_total").await?;
    let kiali = pair.on_page("kiali_ext_requests_total").await?;
    Ok([expected, found, kiali])
}

/// The counter that counts the calls of a metric.
fn counter_of(metric: &str) -> String {
    if metric.ends_with("_total") {
        metric.to_owned()
    } else {
        format!("{metric}_count")
    }
}

/// Waits until every metric counts that many calls. The counts say what is missing.
async fn settled(prometheus: &Prometheus, expected: &Expected) -> Result<()> {
    let all: u64 = expected.values().sum();
    let settled = until("all calls to be scraped", async || {
        for metric in description::metrics() {
            let found = prometheus.totals(&counter_of(metric)).await?;
            if found.values().sum::<u64>() < all {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    if let Err(error) = settled.await {
        eprintln!("{error:#}");
    }
    Ok(())
}

/// The queries of the panels of `examples/metrics/dashboard.json`, with values for Grafana's variables.
fn dashboard_queries() -> Result<Vec<String>> {
    let file = crate::repository("examples/metrics/dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut queries = Vec::new();
    for target in targets {
        let query = target["expr"].as_str().context("no query")?;
        let query = query
            .replace("$__rate_interval", "1m")
            .replace("$reporter", "destination")
            .replace("$namespace", ".*");
        ensure!(!query.contains('$'), "an unknown variable: {query}");
        queries.push(query);
    }
    ensure!(!queries.is_empty(), "no queries");
    Ok(queries)
}
