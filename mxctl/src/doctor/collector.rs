//! Whether the collector of access logs can be reached.

use serde_json::Value;

use super::facts::Facts;
use super::finding::{Code, Finding};
use super::json::{list, text};
use super::logs::grpc_logs;

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let mut names: Vec<&str> = Vec::new();
    let ours = facts.all_logs().filter(|logs| logs.has_filter);
    for log in ours.flat_map(|logs| grpc_logs(&logs)) {
        if let Some(name) = log.cluster()
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    for name in names {
        findings.extend(configuration(facts, name).or_else(|| connections(facts, name)));
    }
    let Some(stats) = &facts.stats else {
        return;
    };
    for (stat, count) in stats.counted() {
        let lost = stat.starts_with("access_logs.grpc_access_log.")
            && (stat.ends_with("logs_dropped") || stat.ends_with("grpc_entries_flush_failed"));
        if lost {
            findings.push(Finding::warning(
                Code::EntriesLost,
                stat,
                format!("{count} gRPC access-log entries were lost since Envoy's start"),
                "check that the collector is up and keeps up with Envoy; buffer_size_bytes and \
                 buffer_flush_interval set how much Envoy buffers",
            ));
        }
    }
}

/// Checks that the cluster exists and uses HTTP/2. Unknown without a list of clusters.
fn configuration(facts: &Facts<'_>, name: &str) -> Option<Finding> {
    let clusters = facts.resources.clusters.as_ref()?;
    let Some(cluster) = clusters.iter().find(|one| text(&one["name"]) == name) else {
        return Some(Finding::error(
            Code::CollectorUnreachable,
            name,
            "the gRPC access log goes to this cluster, which does not exist",
            "add the cluster, or name another one in `grpc_service` of the log; in Istio, the \
             `service` of the provider must be one that the mesh knows",
        ));
    };
    (!speaks_http2(cluster)).then(|| {
        Finding::error(
            Code::CollectorNotHttp2,
            name,
            "the gRPC access log goes to this cluster, to which Envoy speaks HTTP/1.1: gRPC needs \
             HTTP/2",
            "set explicit_http_config with http2_protocol_options in its \
             typed_extension_protocol_options; in Istio, name the Service's port grpc-... or \
             http2-..., or set appProtocol",
        )
    })
}

fn speaks_http2(cluster: &Value) -> bool {
    if cluster.get("http2_protocol_options").is_some() {
        return true;
    }
    let options = cluster["typed_extension_protocol_options"].as_object();
    options.into_iter().flatten().any(|(_, options)| {
        let is_http2 = |key: &str| options[key].get("http2_protocol_options").is_some();
        is_http2("explicit_http_config")
            || is_http2("use_downstream_protocol_config")
            || options.get("auto_config").is_some()
    })
}

/// The connections to its hosts since Envoy's start.
fn connections(facts: &Facts<'_>, name: &str) -> Option<Finding> {
    let status = list(facts.clusters?).find(|one| text(&one["name"]) == name)?;
    let mut hosts = list(&status["host_statuses"]).peekable();
    if hosts.peek().is_none() {
        return Some(Finding::error(
            Code::CollectorUnreachable,
            name,
            "the gRPC access log goes to this cluster, which has no endpoint",
            "check the collector's DNS name, or whether its Service has a ready pod",
        ));
    }
    let mut sums = [0; 4];
    for host in hosts {
        let names = ["cx_connect_fail", "cx_active", "rq_error", "rq_active"];
        for (sum, name) in sums.iter_mut().zip(names) {
            *sum += host_stat(host, name);
        }
    }
    let [failed, active, errors, streams] = sums;
    let protocol_errors = facts.stats.as_ref().map_or(0, |stats| {
        stats.get(&format!("cluster.{name}.upstream_cx_protocol_error"))
    });
    // A connection that ends in the middle of a stream counts as such an error too; the collector
    // is then gone, or back.
    if protocol_errors > 0 && failed == 0 && streams == 0 {
        return Some(Finding::error(
            Code::CollectorNotHttp2,
            name,
            format!(
                "the server at the collector's address did not speak HTTP/2, {protocol_errors} \
                 times"
            ),
            "check the port, and whether the collector requires TLS: gRPC needs HTTP/2 end to end",
        ));
    }
    if failed > 0 {
        let remedy = "check the address of the log's cluster, and whether the collector is up; \
                      requests are served meanwhile, but entries are lost";
        let message = format!("{failed} connections to the collector failed since Envoy's start");
        return Some(if active == 0 {
            let message = format!("{message}, and no connection is open now");
            Finding::error(Code::CollectorUnreachable, name, message, remedy)
        } else {
            let message = format!("{message}; one is open now");
            Finding::warning(Code::CollectorUnreachable, name, message, remedy)
        });
    }
    (errors > 0 && streams == 0).then(|| {
        Finding::warning(
            Code::CollectorUnreachable,
            name,
            format!("{errors} streams of access logs ended with an error, and none is open now"),
            "check that a gRPC access-log service (envoy.service.accesslog.v3) answers at that \
             address; SkyWalking's is at port 11800",
        )
    })
}

/// A statistic of a host. Envoy omits zeros and writes 64-bit numbers as strings.
fn host_stat(host: &Value, name: &str) -> u64 {
    let stat = list(&host["stats"]).find(|stat| stat["name"] == name);
    let value = stat.map(|stat| &stat["value"]);
    let text = value.and_then(Value::as_str);
    let number = value.and_then(Value::as_u64);
    number.or_else(|| text?.parse().ok()).unwrap_or_default()
}
