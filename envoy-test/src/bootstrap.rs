//! Builds Envoy's configuration as JSON.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::CALL;
use crate::node::Node;
pub use crate::workload::FILTER;
use crate::workload::{Listener, Plugin};

const COLLECTOR: &str = "access-log-collector";

/// A module that imports nothing and does nothing, in base64; its source is in `deploy/envoy/v8-first.yaml`.
const EMPTY_MODULE: &str = concat!(
    "AGFzbQEAAAABCQJgAABgAX8BfwMDAgABBQMBAAEHPwMGbWVtb3J5AgAXcHJveHlfYWJpX3ZlcnNpb25f",
    "MF8yXzEAABhwcm94eV9vbl9tZW1vcnlfYWxsb2NhdGUAAQoJAgIACwQAQQAL",
);

/// The cluster of a proxy's own app.
pub(crate) const APP: &str = "app";

/// A whole bootstrap. The clusters of services are in the watched file `services`, because the ports of other workloads
/// are known only once all have started.
pub(crate) fn bootstrap(
    node: &Node,
    listeners: &[Value],
    clusters: &[Value],
    services: &Path,
) -> Value {
    json!({
        "node": node.to_json(),
        "admin": { "address": any_port() },
        "static_resources": { "listeners": listeners, "clusters": clusters },
        "dynamic_resources": {
            "cds_config": { "path_config_source": { "path": services } },
        },
    })
}

/// The bootstrap extension of `deploy/envoy/v8-first.yaml`: it starts V8 before the workers, which Envoy up to 1.37
/// needs if its first Wasm filter arrives late.
#[must_use]
pub fn v8_first() -> Value {
    json!([{
        "name": "envoy.bootstrap.wasm",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.wasm.v3.WasmService",
            "singleton": true,
            "config": {
                "name": "v8_first",
                "failure_policy": "FAIL_OPEN",
                "vm_config": {
                    "vm_id": "v8_first",
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": { "local": { "inline_bytes": EMPTY_MODULE } },
                },
            },
        },
    }])
}

/// Moves the listeners of `bootstrap` to the watched file `path`, so that they can change. Returns the content of the
/// file.
pub(crate) fn watch_listeners(bootstrap: &mut Value, path: &Path) -> Value {
    let mut listeners = bootstrap["static_resources"]["listeners"].take();
    for listener in listeners.as_array_mut().into_iter().flatten() {
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
    }
    bootstrap["bootstrap_extensions"] = v8_first();
    bootstrap["dynamic_resources"]["lds_config"] = json!({
        "path_config_source": { "path": path },
    });
    json!({ "resources": listeners })
}

/// A listener on a free port. `plugin` is its filter and `routes` its virtual hosts.
pub(crate) fn listener(
    listener: &Listener,
    log_name: &str,
    plugin: &Value,
    routes: &[Value],
) -> Value {
    let mut chain = json!({
        "filters": [connection_manager(listener, log_name, plugin, routes)],
    });
    if let Some(transport_socket) = &listener.transport_socket {
        chain["transport_socket"] = transport_socket.clone();
    }
    let mut json = json!({
        "name": listener.name,
        "address": any_port(),
        "filter_chains": [chain],
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
    let (buffer_bytes, keys) = (listener.log_buffer_bytes, &listener.logged_keys);
    let mut access_logs = vec![collector_log(log_name, buffer_bytes, keys)];
    access_logs.extend(listener.access_logs.iter().cloned());
    let config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": listener.name,
        "route_config": {
            "name": listener.name,
            "virtual_hosts": routes,
            // The clusters of services come from a file, after the routes.
            "validate_clusters": false,
        },
        "http_filters": filters,
        "access_log": access_logs,
    });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": with(config, &listener.connection_manager),
    })
}

/// `json` with the fields of `overrides` added or replaced.
pub(crate) fn with(mut json: Value, overrides: &Value) -> Value {
    for (key, value) in overrides.as_object().into_iter().flatten() {
        json[key] = value.clone();
    }
    json
}

/// The router, which is the last HTTP filter.
#[must_use]
pub fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        },
    })
}

/// Routes requests for `domains` to `cluster`. `action` overrides fields of the route's action, and `overrides` fields
/// of the virtual host.
pub(crate) fn virtual_host(
    domains: &[&str],
    cluster: &str,
    action: &Value,
    overrides: &Value,
) -> Value {
    let action = with(json!({ "cluster": cluster }), action);
    let host = json!({
        "name": domains.first(),
        "domains": domains,
        "routes": [{ "match": { "prefix": "/" }, "route": action }],
    });
    with(host, overrides)
}

/// The plugin as an HTTP filter.
#[must_use]
pub fn wasm_filter(plugin: &Plugin, module: &Path) -> Value {
    json!({ "name": plugin.filter, "typed_config": wasm_config(plugin, module) })
}

/// The plugin as an HTTP filter whose configuration is in the watched file `path`.
pub(crate) fn watched_filter(plugin: &Plugin, path: &Path) -> Value {
    discovered_filter(plugin, &json!({ "path_config_source": { "path": path } }))
}

/// The plugin as an HTTP filter whose configuration comes from `source`, with the types that Istio uses.
#[must_use]
pub fn discovered_filter(plugin: &Plugin, source: &Value) -> Value {
    let types = [WASM, RBAC].map(|name| format!("type.googleapis.com/{name}"));
    let mut discovery = json!({ "config_source": source, "type_urls": types });
    if let Some(default) = &plugin.default_config {
        discovery["default_config"] = default.clone();
    }
    json!({ "name": plugin.filter, "config_discovery": discovery })
}

/// The content of the source of a [`discovered_filter`].
#[must_use]
pub fn filter_resource(plugin: &Plugin, module: &Path) -> Value {
    json!({
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": plugin.filter,
            "typed_config": wasm_config(plugin, module),
        }],
    })
}

/// The configuration of a filter that lets every request pass, which Istio substitutes for a plugin that it cannot
/// fetch and that fails open.
#[must_use]
pub fn pass_through() -> Value {
    json!({ "@type": format!("type.googleapis.com/{RBAC}") })
}

const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";
const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";

fn wasm_config(plugin: &Plugin, module: &Path) -> Value {
    json!({
        "@type": format!("type.googleapis.com/{WASM}"),
        "config": plugin_config(plugin, module),
    })
}

/// The plugin as a network filter.
#[must_use]
pub fn wasm_network_filter(plugin: &Plugin, module: &Path) -> Value {
    json!({
        "name": plugin.filter,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm",
            "config": plugin_config(plugin, module),
        },
    })
}

fn plugin_config(plugin: &Plugin, module: &Path) -> Value {
    let module = plugin.module.as_deref().unwrap_or(module);
    json!({
        "name": plugin.name,
        "root_id": plugin.root_id,
        "failure_policy": plugin.failure_policy.name(),
        "vm_config": {
            "vm_id": plugin.vm_id,
            "runtime": "envoy.wasm.runtime.v8",
            "code": { "local": { "filename": module } },
            "environment_variables": plugin.environment,
        },
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": plugin.configuration.to_string(),
        },
    })
}

/// `listener` at `address` instead of a free port.
pub(crate) fn listening_at(listener: Value, address: SocketAddr) -> Value {
    with(listener, &json!({ "address": socket_address(address) }))
}

/// The address of a cluster's single endpoint.
pub(crate) enum Endpoint {
    /// A known address.
    Known(SocketAddr),
    /// A DNS name and a port.
    Named(String, u16),
}

impl Endpoint {
    /// The endpoint with the DNS name `name`.
    pub(crate) fn named(name: &str, port: u16) -> Self {
        Self::Named(name.to_owned(), port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Known(address)
    }
}

/// The cluster of a proxy's own app.
pub(crate) fn app_cluster(app: impl Into<Endpoint>) -> Value {
    let cluster = cluster(APP, follow_downstream());
    at(cluster, APP, &app.into(), &json!({}))
}

/// The cluster of the access-log collector.
pub(crate) fn collector_cluster(collector: impl Into<Endpoint>) -> Value {
    let always_http2 = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
    let cluster = cluster(COLLECTOR, always_http2);
    at(cluster, COLLECTOR, &collector.into(), &json!({}))
}

/// The content of a file of clusters, each made by [`service_cluster`].
pub(crate) fn clusters_resource(clusters: &[Value]) -> Value {
    json!({ "resources": clusters })
}

/// The cluster of a service at `endpoint`, which has this `metadata`. `overrides` are further fields of the cluster.
pub(crate) fn service_cluster(
    name: &str,
    endpoint: impl Into<Endpoint>,
    metadata: &Value,
    overrides: &Value,
) -> Value {
    let mut cluster = with(cluster(name, follow_downstream()), overrides);
    cluster["@type"] = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
    at(cluster, name, &endpoint.into(), metadata)
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

/// Keeps the protocol, HTTP/1.1 or HTTP/2, from hop to hop.
fn follow_downstream() -> Value {
    json!({ "use_downstream_protocol_config": { "http2_protocol_options": {} } })
}

/// `cluster` with its single endpoint, which has this `metadata`.
fn at(mut cluster: Value, name: &str, endpoint: &Endpoint, metadata: &Value) -> Value {
    let address = match endpoint {
        Endpoint::Known(address) => socket_address(*address),
        Endpoint::Named(host, port) => {
            cluster["type"] = "STRICT_DNS".into();
            json!({ "socket_address": { "address": host, "port_value": port } })
        }
    };
    cluster["load_assignment"] = load_assignment(name, &address, metadata);
    cluster
}

pub(crate) fn load_assignment(name: &str, address: &Value, metadata: &Value) -> Value {
    json!({
        "cluster_name": name,
        "endpoints": [{
            "lb_endpoints": [{
                "endpoint": { "address": address },
                "metadata": { "filter_metadata": metadata },
            }],
        }],
    })
}

/// An address with a free port.
pub(crate) fn any_port() -> Value {
    socket_address(SocketAddr::from(([127, 0, 0, 1], 0)))
}

pub(crate) fn socket_address(address: SocketAddr) -> Value {
    json!({
        "socket_address": { "address": address.ip().to_string(), "port_value": address.port() },
    })
}

/// The collector's access log, with the filter state of `keys`.
#[must_use]
pub fn collector_log(log_name: &str, buffer_bytes: u32, keys: &[&str]) -> Value {
    json!({
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": common_log_config(log_name, buffer_bytes, keys),
            "additional_request_headers_to_log": [CALL],
        },
    })
}

/// The collector's access log of connections, with the filter state of `keys`.
pub(crate) fn tcp_collector_log(log_name: &str, buffer_bytes: u32, keys: &[&str]) -> Value {
    json!({
        "name": "envoy.access_loggers.tcp_grpc",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
            "common_config": common_log_config(log_name, buffer_bytes, keys),
        },
    })
}

fn common_log_config(log_name: &str, buffer_bytes: u32, keys: &[&str]) -> Value {
    json!({
        "log_name": log_name,
        "transport_api_version": "V3",
        "grpc_service": { "envoy_grpc": { "cluster_name": COLLECTOR } },
        "buffer_size_bytes": buffer_bytes,
        "filter_state_objects_to_log": keys,
    })
}

/// An access log in `path`, one line of JSON per request with the fields of
/// `format`.
#[must_use]
pub fn file_log(path: &Path, format: &Value) -> Value {
    file_log_of(path, &json!({ "json_format": format }))
}

/// An access log in `path`, one line of text per request.
#[must_use]
pub fn text_log(path: &Path, format: &str) -> Value {
    let line = format!("{format}\n");
    file_log_of(
        path,
        &json!({ "text_format_source": { "inline_string": line } }),
    )
}

fn file_log_of(path: &Path, format: &Value) -> Value {
    let formatters = json!({
        "formatters": [{
            "name": "envoy.formatter.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.formatter.cel.v3.Cel",
            },
        }],
    });
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": with(formatters, format),
        },
    })
}

/// A filter that removes the headers `names` from all trailers.
#[must_use]
pub fn trailer_filter(names: &[&str]) -> Value {
    let removals: Vec<Value> = names.iter().map(|name| json!({ "remove": name })).collect();
    json!({
        "name": "envoy.filters.http.header_mutation",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            "mutations": {
                "request_trailers_mutations": removals,
                "response_trailers_mutations": removals,
            },
        },
    })
}

/// A filter that runs `script` on every request.
#[must_use]
pub fn lua_filter(script: &str) -> Value {
    json!({
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": { "inline_string": script },
        },
    })
}

/// A filter that does nothing without a policy on the route, but makes Envoy select the route again if another filter
/// has cleared it.
#[must_use]
pub fn route_finding_filter() -> Value {
    json!({
        "name": "envoy.filters.http.cors",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors",
        },
    })
}

/// A filter that answers every request with `status` instead of the router.
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
