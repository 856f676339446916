//! Envoy's configuration, as JSON, in small pieces.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::CALL;
use crate::collector::Side;
use crate::node::Node;
use crate::workload::{Listener, Plugin};

const COLLECTOR: &str = "access-log-collector";

/// The cluster of a proxy's own app.
pub(crate) const APP: &str = "app";

/// A whole bootstrap.
pub(crate) fn bootstrap(node: &Node, listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "node": node.to_json(),
        "admin": { "address": any_port() },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

/// A listener on a free port. `plugin` is its filter and `routes` its virtual hosts.
pub(crate) fn listener(
    listener: &Listener,
    log_name: &str,
    plugin: &Value,
    routes: &[Value],
) -> Value {
    let mut json = json!({
        "name": listener.name,
        "address": any_port(),
        "filter_chains": [{ "filters": [connection_manager(listener, log_name, plugin, routes)] }],
    });
    if let Some(direction) = listener.direction {
        json["traffic_direction"] = direction.name().into();
    }
    json
}

fn connection_manager(
    listener: &Listener,
    log_name: &str,
    plugin: &Value,
    routes: &[Value],
) -> Value {
    let mut filters = listener.before.clone();
    filters.push(plugin.clone());
    filters.extend(listener.behind.iter().cloned());
    filters.push(router());
    let mut access_logs = vec![collector_log(log_name)];
    access_logs.extend(listener.access_logs.iter().cloned());
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": listener.name,
            "route_config": { "name": listener.name, "virtual_hosts": routes },
            "http_filters": filters,
            "access_log": access_logs,
        },
    })
}

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        },
    })
}

/// Sends the requests of `domains` to `cluster`. `action` is what the route's
/// action has besides.
pub(crate) fn virtual_host(domains: &[&str], cluster: &str, action: &Value) -> Value {
    let mut action = action.clone();
    action["cluster"] = cluster.into();
    json!({
        "name": domains.first(),
        "domains": domains,
        "routes": [{ "match": { "prefix": "/" }, "route": action }],
    })
}

/// The plugin as an HTTP filter.
pub(crate) fn wasm_filter(plugin: &Plugin, module: &Path) -> Value {
    json!({ "name": FILTER, "typed_config": wasm_config(plugin, module) })
}

/// The plugin as an HTTP filter whose configuration is in the watched file `path`.
pub(crate) fn watched_filter(path: &Path) -> Value {
    json!({
        "name": FILTER,
        "config_discovery": {
            "config_source": { "path_config_source": { "path": path } },
            "type_urls": [format!("type.googleapis.com/{WASM}")],
        },
    })
}

/// What the file of [`watched_filter`] holds.
pub(crate) fn watched_filter_resource(plugin: &Plugin, module: &Path) -> Value {
    json!({
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": FILTER,
            "typed_config": wasm_config(plugin, module),
        }],
    })
}

const FILTER: &str = "metadata_exchange";
const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";

/// Fails closed, so that a dead VM is seen as failed requests.
fn wasm_config(plugin: &Plugin, module: &Path) -> Value {
    json!({
        "@type": format!("type.googleapis.com/{WASM}"),
        "config": {
            "name": FILTER,
            "root_id": plugin.root_id,
            "failure_policy": "FAIL_CLOSED",
            "vm_config": {
                "vm_id": plugin.vm_id,
                "runtime": "envoy.wasm.runtime.v8",
                "code": { "local": { "filename": module } },
            },
            "configuration": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": plugin.configuration.to_string(),
            },
        },
    })
}

/// A cluster of one known address.
pub(crate) fn app_cluster(app: SocketAddr) -> Value {
    let mut cluster = cluster(APP, follow_downstream());
    cluster["load_assignment"] = load_assignment(APP, Some(app));
    cluster
}

/// The cluster of the access-log collector.
pub(crate) fn collector_cluster(collector: SocketAddr) -> Value {
    let always_http2 = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
    let mut cluster = cluster(COLLECTOR, always_http2);
    cluster["load_assignment"] = load_assignment(COLLECTOR, Some(collector));
    cluster
}

/// A cluster whose endpoints are in the watched file `path`, for no port of
/// another workload is known before all of them have started.
pub(crate) fn service_cluster(name: &str, path: &Path) -> Value {
    let mut cluster = cluster(name, follow_downstream());
    cluster["type"] = "EDS".into();
    cluster["eds_cluster_config"] = json!({
        "eds_config": { "path_config_source": { "path": path } },
    });
    cluster
}

/// What the file of [`service_cluster`] holds.
pub(crate) fn endpoints_resource(name: &str, address: Option<SocketAddr>) -> Value {
    let mut assignment = load_assignment(name, address);
    assignment["@type"] =
        "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment".into();
    json!({ "resources": [assignment] })
}

fn cluster(name: &str, protocol: Value) -> Value {
    let mut options = protocol;
    options["@type"] =
        "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into();
    json!({
        "name": name,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options,
        },
    })
}

/// HTTP/1.1 stays HTTP/1.1 and HTTP/2 stays HTTP/2 from hop to hop.
fn follow_downstream() -> Value {
    json!({ "use_downstream_protocol_config": { "http2_protocol_options": {} } })
}

fn load_assignment(name: &str, address: Option<SocketAddr>) -> Value {
    let endpoints = address.map(|address| {
        let address = socket_address(address);
        json!({ "lb_endpoints": [{ "endpoint": { "address": address } }] })
    });
    let endpoints: Vec<Value> = endpoints.into_iter().collect();
    json!({ "cluster_name": name, "endpoints": endpoints })
}

fn any_port() -> Value {
    socket_address(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn socket_address(address: SocketAddr) -> Value {
    json!({
        "socket_address": { "address": address.ip().to_string(), "port_value": address.port() },
    })
}

/// The collector's access log: every entry at once, with the filter state.
fn collector_log(log_name: &str) -> Value {
    let keys = [Side::Downstream, Side::Upstream]
        .into_iter()
        .flat_map(|side| [side.peer_key(), side.id_key()])
        .collect::<Vec<_>>();
    json!({
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": log_name,
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": COLLECTOR } },
                "buffer_size_bytes": 0,
                "filter_state_objects_to_log": keys,
            },
            "additional_request_headers_to_log": [CALL],
        },
    })
}

/// An access log in `path`, one line of JSON per request with the fields of
/// `format`.
#[must_use]
pub fn file_log(path: &Path, format: &Value) -> Value {
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {
                "json_format": format,
                "formatters": [{
                    "name": "envoy.formatter.cel",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.formatter.cel.v3.Cel",
                    },
                }],
            },
        },
    })
}

/// A filter that answers every request with `status`, without the router.
#[must_use]
pub fn abort_filter(status: u16) -> Value {
    json!({
        "name": "envoy.filters.http.fault",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": { "http_status": status, "percentage": { "numerator": 100 } },
        },
    })
}
