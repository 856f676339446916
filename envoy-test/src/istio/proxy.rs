//! A proxy: Istio's agent and the Envoy that it starts.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::istiod;
use super::kubernetes::Kubernetes;
use super::network::{CONTROL_PLANE, PROXY_USER};
use super::pod::{Kind, Pod};
use super::registry::Registry;
use super::{end_of, path, run};
use crate::client::{Call, Connection, Protocol};
use crate::process::Process;
use crate::repository;

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
/// What Istio's agent starts in place of a module that it cannot fetch.
const STAND_IN: &str = "wasm-default-allow";
/// Listeners as they are, without those that are drained.
const LISTENERS: &str = "?resource=dynamic_listeners&mask=active_state";

/// Modules that the agent has fetched are there, for Envoy by that path.
const IN_POD: &str = r#"mount --bind "$0/var/lib" /var/lib && exec "$@""#;

/// A running proxy. It ends with its value.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) pod: Pod,
    _agent: Process,
    log: PathBuf,
}

/// What the filter of a proxy is at a time, by its discovered configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// The resource.
    pub(super) name: String,
    /// The plugin's configuration.
    pub(super) configuration: Value,
    /// The file that the agent has fetched, or `None` for its stand-in.
    pub(super) module: Option<String>,
}

impl Proxy {
    /// Starts it. It is ready later.
    pub(super) async fn start(
        dir: &Path,
        kubernetes: &Kubernetes,
        pod: Pod,
        envoy: &Path,
    ) -> Result<Self> {
        let root = dir.join("pods").join(pod.short);
        let namespace = ["--namespace", pod.namespace];
        let arguments = [&namespace[..], &["token", pod.account]].concat();
        let arguments = [&arguments[..], &["--audience=istio-ca", "--duration=12h"]].concat();
        let token = kubernetes.output("create", &arguments).await?;
        let root_certificate = root_certificate(kubernetes).await?;
        for (file, content) in [
            ("var/run/secrets/tokens/istio-token", token.trim()),
            ("var/run/secrets/istio/root-cert.pem", &root_certificate),
            ("etc/istio/pod/labels", &labels(pod)),
            ("etc/istio/pod/annotations", ""),
            (
                "etc/istio/custom-bootstrap/custom_bootstrap.json",
                &v8_first()?,
            ),
        ] {
            let file = root.join(file);
            std::fs::create_dir_all(file.parent().context("no parent")?)?;
            std::fs::write(file, content)?;
        }
        for folder in [
            "etc/istio/proxy",
            "etc/istio/config",
            "var/lib/istio/envoy",
            "var/lib/istio/data",
            "var/run/secrets/workload-spiffe-uds",
        ] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::copy(
            dir.join("envoy_bootstrap.json"),
            root.join("var/lib/istio/envoy/envoy_bootstrap_tmpl.json"),
        )?;
        let owner = format!("{PROXY_USER}:{PROXY_USER}");
        run(Command::new("chown").args(["-R", &owner]).arg(&root))?;

        let mut command = pod.network().command("sh");
        command
            .args(["-c", IN_POD])
            .arg(&root)
            .args(["setpriv", "--reuid", PROXY_USER, "--regid", PROXY_USER])
            .arg("--clear-groups")
            .arg(dir.join("pilot-agent"))
            .args(["proxy", pod.role(), "--domain"])
            .arg(format!("{}.svc.cluster.local", pod.namespace))
            .args(["--proxyLogLevel=warning", "--log_output_level=default:info"])
            .current_dir(&root)
            .env_clear()
            .env("PATH", path())
            .env("HOME", &root)
            .envs(environment(pod, &root, envoy)?);
        let log = dir.join(format!("logs/{}.log", pod.short));
        let agent = Process::start(command, &log, "TERM")?;
        Ok(Self {
            pod,
            _agent: agent,
            log,
        })
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        end_of(&self.log)
    }

    /// Asks Envoy's admin interface.
    pub(super) async fn admin(&self, path: &str) -> Result<String> {
        let (status, text) = self.ask(path).await?;
        ensure!(status == StatusCode::OK, "{path}: {status}: {text}");
        Ok(text)
    }

    async fn ask(&self, path: &str) -> Result<(StatusCode, String)> {
        let stream = self.pod.network().connect(ADMIN).await?;
        let mut connection = Connection::over(stream, Protocol::Http1).await?;
        let reply = connection
            .send(Call::new(ADMIN, "admin").path(path))
            .await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        Ok((reply.status, text))
    }

    /// A part of its configuration; `null` if it has none of that.
    pub(super) async fn dump(&self, query: &str) -> Result<Value> {
        let path = format!("/config_dump{query}");
        let (status, text) = self.ask(&path).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(Value::Null);
        }
        ensure!(status == StatusCode::OK, "{path}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("{}: {path}", self.pod.short))
    }

    /// Whether it has its listeners.
    pub(super) async fn is_ready(&self) -> bool {
        let ready = self.admin("/ready").await;
        ready.is_ok_and(|state| state.trim() == "LIVE")
    }

    /// The filter's configurations that are in force.
    pub(super) async fn loaded(&self) -> Result<Vec<Loaded>> {
        let dump = self.dump("?resource=ecds_filters").await?;
        let filters = dump["configs"].as_array().into_iter().flatten();
        let ours = filters.map(|one| &one["ecds_filter"]).filter(|filter| {
            let name = filter["name"].as_str().unwrap_or_default();
            name.contains("metadata-exchange")
        });
        let loaded = ours.map(|filter| {
            let config = &filter["typed_config"]["config"];
            let is_stand_in = filter["typed_config"]["rules_stat_prefix"] == STAND_IN;
            let configuration = config["configuration"]["value"].as_str().unwrap_or("{}");
            let module = config["vm_config"]["code"]["local"]["filename"].as_str();
            Ok(Loaded {
                name: filter["name"].as_str().unwrap_or_default().to_owned(),
                configuration: serde_json::from_str(configuration)?,
                module: module.filter(|_| !is_stand_in).map(str::to_owned),
            })
        });
        loaded.collect()
    }

    /// The HTTP filters of each direction, as [`orders`] has them.
    pub(super) async fn orders(&self) -> Result<BTreeSet<String>> {
        Ok(orders(&self.listeners().await?))
    }

    /// The listeners that are active.
    pub(super) async fn listeners(&self) -> Result<Value> {
        self.dump(LISTENERS).await
    }

    /// The sum of the statistics whose names end so.
    pub(super) async fn statistic(&self, end: &str) -> Result<u64> {
        let stats = self.admin("/stats?usedonly").await?;
        let lines = stats.lines().filter_map(|line| line.split_once(": "));
        let counted = lines.filter(|(name, _)| name.ends_with(end));
        Ok(counted
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum())
    }
}

/// Each direction of a configuration with its chains of HTTP filters, as
/// `INBOUND metadata-exchange > router`. Istio's and Envoy's forms are both read.
/// Left out are the listeners that are the agent's own, for metrics and health.
pub(super) fn orders(dump: &Value) -> BTreeSet<String> {
    let mut orders = BTreeSet::new();
    each(dump, &mut |object| {
        let listener = either(object, "active_state", "activeState");
        let listener = &listener["listener"];
        let Some(direction) = either(listener, "traffic_direction", "trafficDirection").as_str()
        else {
            return;
        };
        each(listener, &mut |object| {
            let filters = either(object, "http_filters", "httpFilters");
            let Some(filters) = filters.as_array() else {
                return;
            };
            let names = filters.iter().map(|filter| short_name(&filter["name"]));
            let names = names.collect::<Vec<_>>().join(" > ");
            orders.insert(format!("{direction} {names}"));
        });
    });
    orders
}

fn short_name(name: &Value) -> &str {
    let name = name.as_str().unwrap_or_default();
    for prefix in ["envoy.filters.http.", "extensions.istio.io/"] {
        if let Some(rest) = name.strip_prefix(prefix) {
            return rest;
        }
    }
    name
}

/// A field by its name in protobuf or in JSON.
fn either<'v>(object: &'v Value, name: &str, camel: &str) -> &'v Value {
    let value = &object[name];
    if value.is_null() {
        &object[camel]
    } else {
        value
    }
}

/// Every object in it.
fn each(value: &Value, visit: &mut impl FnMut(&Value)) {
    match value {
        Value::Object(fields) => {
            visit(value);
            for field in fields.values() {
                each(field, visit);
            }
        }
        Value::Array(items) => {
            for item in items {
                each(item, visit);
            }
        }
        _ => {}
    }
}

/// The bootstrap extension of `deploy/envoy`, for Envoys that need it.
fn v8_first() -> Result<String> {
    let file = repository("deploy/envoy/v8-first.yaml");
    let overlay: Value = serde_saphyr::from_str(&std::fs::read_to_string(file)?)?;
    Ok(overlay.to_string())
}

/// The mesh's root certificate, as istiod publishes it.
pub(super) async fn root_certificate(kubernetes: &Kubernetes) -> Result<String> {
    let what = [
        "configmap",
        "istio-ca-root-cert",
        "--namespace=istio-system",
    ];
    let path = r"--output=jsonpath={.data.root-cert\.pem}";
    kubernetes.get(&[&what[..], &[path]].concat()).await
}

fn labels(pod: Pod) -> String {
    let labels = pod.labels();
    let labels = labels.as_object().into_iter().flatten();
    let lines = labels.map(|(key, value)| format!("{key}={value}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn environment(pod: Pod, root: &Path, envoy: &Path) -> Result<Vec<(&'static str, String)>> {
    let certificate = root.join("var/run/secrets/istio/root-cert.pem");
    let certificate = certificate.display().to_string();
    let istiod = format!("{CONTROL_PLANE}:15012");
    let mut config = istiod::proxy_config()?;
    config["binaryPath"] = envoy.display().to_string().into();
    config["concurrency"] = json!(1);
    config["terminationDrainDuration"] = json!("1s");
    // A story waits until what was before a change is gone.
    config["drainDuration"] = json!("5s");
    let mut environment = vec![
        ("PILOT_CERT_PROVIDER", "istiod".to_owned()),
        ("CA_ADDR", istiod),
        ("POD_NAME", pod.name.to_owned()),
        ("POD_NAMESPACE", pod.namespace.to_owned()),
        ("INSTANCE_IP", pod.address().to_string()),
        ("SERVICE_ACCOUNT", pod.account.to_owned()),
        ("HOST_IP", CONTROL_PLANE.to_string()),
        ("PROXY_CONFIG", config.to_string()),
        ("ISTIOD_SAN", "istiod.istio-system.svc".to_owned()),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned()),
        ("ISTIO_META_NODE_NAME", "node-1".to_owned()),
        ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT".to_owned()),
        ("ISTIO_META_WORKLOAD_NAME", pod.workload.to_owned()),
        ("ISTIO_META_MESH_ID", "cluster.local".to_owned()),
        ("TRUST_DOMAIN", "cluster.local".to_owned()),
        ("XDS_ROOT_CA", certificate.clone()),
        ("CA_ROOT_CA", certificate),
        ("WASM_INSECURE_REGISTRIES", Registry::address()),
    ];
    if pod.kind != Kind::Vm {
        let owner = format!(
            "kubernetes://apis/apps/v1/namespaces/{}/deployments/{}",
            pod.namespace, pod.workload
        );
        environment.push(("ISTIO_META_OWNER", owner));
        environment.push(("ISTIO_META_APP_CONTAINERS", "app".to_owned()));
    }
    if pod.is_old {
        let overlay = root.join("etc/istio/custom-bootstrap/custom_bootstrap.json");
        environment.push(("ISTIO_BOOTSTRAP_OVERRIDE", overlay.display().to_string()));
    }
    Ok(environment)
}
