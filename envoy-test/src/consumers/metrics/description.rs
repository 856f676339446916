//! Istio's standard metrics for Envoy's stats access logger: the description from which the loggers in
//! `examples/metrics/` are written.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::repository;

/// The files with loggers. In each, a line `BEGIN` names the logger that is written between it and `END`.
pub const FILES: [&str; 4] = [
    "examples/metrics/sidecar.yaml",
    "examples/metrics/listeners.yaml",
    "examples/metrics/envoyfilter.yaml",
    "examples/metrics/kiali-extension.yaml",
];

const BEGIN: &str = "# Written by `make metrics`: ";
const END: &str = "# End of what `make metrics` writes.";

/// How many sets of labels a listener counts with `stats_scope`.
pub const MAX_SETS: usize = 1000;

/// The side that reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    /// The callee's proxy.
    Destination,
    /// The caller's proxy.
    Source,
}

/// Where the name of the statistics comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `stats_scope` of Envoy 1.39 and newer, with a bound.
    Bounded,
    /// `stat_prefix`, which 1.37 and 1.38 take, and istiod passes on.
    Prefix,
}

/// What the labels of a workload are called after `source_` or `destination_`, and how its node metadata name them.
pub const WORKLOAD: [(&str, &str); 7] = [
    ("workload", "WORKLOAD_NAME"),
    ("workload_namespace", "NAMESPACE"),
    ("cluster", "CLUSTER_ID"),
    ("app", "LABELS/app"),
    ("version", "LABELS/version"),
    (
        "canonical_service",
        "LABELS/service.istio.io/canonical-name",
    ),
    (
        "canonical_revision",
        "LABELS/service.istio.io/canonical-revision",
    ),
];

/// The filter state that holds this proxy itself.
const LOCAL_PEER: &str = "wasm.local_peer";

const IS_GRPC: &str = "'content-type' in request.headers && request.headers['content-type'].startsWith('application/grpc') ? 'grpc' : 'http'";

impl Reporter {
    /// The value of `reporter`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Source => "source",
        }
    }

    /// The filter state that holds the peer.
    fn peer(self) -> &'static str {
        match self {
            Self::Destination => "wasm.downstream_peer",
            Self::Source => "wasm.upstream_peer",
        }
    }

    /// The value of a label of a workload. That of this proxy comes from `wasm.local_peer`, which also has what `node` in
    /// the plugin configuration says; without it, because `local_peer` is not set or the filter does not run, from the
    /// bootstrap.
    fn of_workload(self, is_peer: bool, key: &str) -> String {
        let state = if is_peer { self.peer() } else { LOCAL_PEER };
        let (is_known, value, node) = match key.strip_prefix("LABELS/") {
            None => {
                let field = match key {
                    "WORKLOAD_NAME" => "workload_name",
                    "NAMESPACE" => "namespace",
                    _ => "cluster_id",
                };
                let value = format!("filter_state['{state}'].{field}");
                (
                    format!("{value} != ''"),
                    value,
                    known(&format!("xds.node.metadata.{key}")),
                )
            }
            Some(label) => {
                const NODE: &str = "xds.node.metadata.LABELS";
                let labels = format!("filter_state['{state}'].labels");
                (
                    format!("'{label}' in {labels}"),
                    format!("{labels}['{label}'].value"),
                    format!("has({NODE}) && '{label}' in {NODE} ? {NODE}['{label}'] : 'unknown'"),
                )
            }
        };
        let or = if is_peer { "'unknown'" } else { &node };
        cel(&format!(
            "'{state}' in filter_state && {is_known} ? {value} : {or}"
        ))
    }

    /// The value of a label of the service that is called: from the cluster's metadata, as istiod gives them.
    fn of_service(self, key: &str) -> String {
        const ISTIO: &str = "xds.cluster_metadata.filter_metadata.istio";
        let or = match (self, key) {
            // The app behind this proxy chooses it. Inbound, that would be the caller.
            (Self::Source, "host" | "name") => "request.host",
            _ => "'unknown'",
        };
        cel(&format!(
            "has(xds.cluster_metadata) && has({ISTIO}) && has({ISTIO}.services) && size({ISTIO}.services) > 0 ? {ISTIO}.services[0].{key} : {or}"
        ))
    }

    /// The labels of Istio's standard metrics, and how Envoy finds their values.
    fn labels(self) -> Vec<(String, String)> {
        let is_inbound = self == Self::Destination;
        let [source, destination] = if is_inbound {
            ["connection.uri_san_peer", "connection.uri_san_local"]
        } else {
            ["upstream.uri_san_local", "upstream.uri_san_peer"]
        };
        let principal = |of: &str| cel(&known(&format!("{of}_certificate")));
        let mut labels = vec![("reporter".to_owned(), self.name().to_owned())];
        let ends = [
            ("source", is_inbound, source),
            ("destination", !is_inbound, destination),
        ];
        for (end, is_peer, certificate) in ends {
            let of_workload = WORKLOAD
                .iter()
                .map(|(label, key)| (format!("{end}_{label}"), self.of_workload(is_peer, key)));
            labels.extend(of_workload);
            labels.push((format!("{end}_principal"), principal(certificate)));
        }
        let others = [
            ("destination_service", self.of_service("host")),
            ("destination_service_name", self.of_service("name")),
            (
                "destination_service_namespace",
                self.of_service("namespace"),
            ),
            ("request_protocol", cel(IS_GRPC)),
            ("response_code", "%RESPONSE_CODE%".to_owned()),
            ("grpc_response_status", "%GRPC_STATUS_NUMBER%".to_owned()),
            ("response_flags", "%RESPONSE_FLAGS%".to_owned()),
            ("connection_security_policy", self.security()),
        ];
        labels.extend(others.map(|(name, value)| (name.to_owned(), value)));
        labels
    }

    fn security(self) -> String {
        match self {
            Self::Destination => cel("connection.mtls ? 'mutual_tls' : 'none'"),
            // As Istio has it.
            Self::Source => "unknown".to_owned(),
        }
    }
}

/// The labels of Kiali's metric for meshes that are not Istio, by the callee's proxy.
fn kiali_labels() -> Vec<(String, String)> {
    let reporter = Reporter::Destination;
    let of = |is_peer, key| reporter.of_workload(is_peer, key);
    [
        ("extension", "metadata-exchange".to_owned()),
        ("source_cluster", of(true, "CLUSTER_ID")),
        ("source_namespace", of(true, "NAMESPACE")),
        ("source_name", of(true, WORKLOAD[5].1)),
        ("source_is_root", "false".to_owned()),
        ("dest_cluster", of(false, "CLUSTER_ID")),
        ("dest_namespace", of(false, "NAMESPACE")),
        ("dest_name", of(false, WORKLOAD[5].1)),
        ("protocol", cel(IS_GRPC)),
        ("status_code", "%RESPONSE_CODE%".to_owned()),
        ("flags", "%RESPONSE_FLAGS%".to_owned()),
        ("secure", cel("connection.mtls ? 'true' : 'false'")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn cel(expression: &str) -> String {
    format!("%CEL({expression})%")
}

fn known(field: &str) -> String {
    format!("has({field}) ? {field} : 'unknown'")
}

/// The histograms: name, unit and value.
const HISTOGRAMS: [(&str, &str, &str); 3] = [
    (
        "istio_request_duration_milliseconds",
        "Milliseconds",
        "%DURATION%",
    ),
    (
        "istio_request_bytes",
        "Bytes",
        "%DOWNSTREAM_WIRE_BYTES_RECEIVED%",
    ),
    (
        "istio_response_bytes",
        "Bytes",
        "%DOWNSTREAM_WIRE_BYTES_SENT%",
    ),
];

/// The names of all metrics.
#[must_use]
pub fn metrics() -> [&'static str; 4] {
    let [duration, request, response] = HISTOGRAMS.map(|(name, ..)| name);
    ["istio_requests_total", duration, request, response]
}

/// The access log of a listener, as YAML.
fn logger_yaml(reporter: Reporter, scope: Scope) -> Result<String> {
    let mut yaml = "\
- name: envoy.access_loggers.stats
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config
"
    .to_owned();
    let histograms = MAX_SETS * HISTOGRAMS.len();
    match scope {
        Scope::Bounded => writeln!(
            yaml,
            "    stats_scope: {{ prefix: wasmcustom, max_counters: {MAX_SETS}, max_histograms: {histograms} }}"
        )?,
        Scope::Prefix => writeln!(yaml, "    stat_prefix: wasmcustom")?,
    }
    let name = reporter.name();
    writeln!(
        yaml,
        "    counters:\n    - value_fixed: 1\n      stat:\n        name: istio_requests_total\n        tags: &{name}"
    )?;
    tags(&mut yaml, "        ", reporter.labels())?;
    writeln!(yaml, "    histograms:")?;
    for (stat, unit, value) in HISTOGRAMS {
        writeln!(
            yaml,
            "    - {{ unit: {unit}, value_format: \"{value}\", stat: {{ name: {stat}, tags: *{name} }} }}"
        )?;
    }
    Ok(yaml)
}

fn tags(yaml: &mut String, indent: &str, labels: Vec<(String, String)>) -> Result<()> {
    for (label, value) in labels {
        writeln!(
            yaml,
            "{indent}- {{ name: {label}, value_format: \"{value}\" }}"
        )?;
    }
    Ok(())
}

fn kiali_yaml() -> Result<String> {
    let mut yaml =
        "- value_fixed: 1\n  stat:\n    name: kiali_ext_requests_total\n    tags:\n".to_owned();
    tags(&mut yaml, "    ", kiali_labels())?;
    Ok(yaml)
}

/// The access log of a listener, in Envoy's JSON form.
pub fn logger(reporter: Reporter, scope: Scope) -> Result<Value> {
    let logs: Value = serde_saphyr::from_str(&logger_yaml(reporter, scope)?)?;
    Ok(logs[0].clone())
}

/// What is written after [`BEGIN`], by what follows that.
fn written(what: &str) -> Result<String> {
    Ok(match what {
        "inbound, bounded" => logger_yaml(Reporter::Destination, Scope::Bounded)?,
        "outbound, bounded" => logger_yaml(Reporter::Source, Scope::Bounded)?,
        "inbound" => logger_yaml(Reporter::Destination, Scope::Prefix)?,
        "outbound" => logger_yaml(Reporter::Source, Scope::Prefix)?,
        "kiali_ext_requests_total" => kiali_yaml()?,
        other => bail!("{BEGIN}{other}: no such logger"),
    })
}

/// The text of a file with its loggers as they are to be.
pub fn rewritten(text: &str) -> Result<String> {
    let mut new = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        writeln!(new, "{line}")?;
        let indent = line.len() - line.trim_start().len();
        let indent = line.get(..indent).unwrap_or_default();
        let Some(what) = line.trim_start().strip_prefix(BEGIN) else {
            continue;
        };
        for written in written(what)?.lines() {
            writeln!(new, "{indent}{written}")?;
        }
        let end = lines.find(|line| line.trim_start() == END);
        writeln!(new, "{}", end.with_context(|| format!("no end of {what}"))?)?;
    }
    Ok(new)
}

/// Writes the loggers of all files.
pub fn write() -> Result<()> {
    for file in FILES {
        let path = repository(file);
        let text = std::fs::read_to_string(&path).context(file)?;
        std::fs::write(&path, rewritten(&text).context(file)?)?;
    }
    Ok(())
}
