//! A sidecar whose TCP listeners are configured one by one.

use std::net::SocketAddr;

use access_log::{Direction, Side};
use anyhow::Result;
use serde_json::{Value, json};

use crate::bootstrap::{
    any_port, bootstrap, collector_cluster, load_assignment, socket_address, tcp_collector_log,
    wasm_network_filter, with,
};
use crate::mesh::Lab;
use crate::node::Node;
use crate::workload::Plugin;

/// A listener, and the cluster that it leads to.
#[derive(Clone, Debug)]
pub struct Route {
    /// The name of the listener.
    pub name: String,
    /// The name of its log.
    pub log: String,
    /// How many bytes of entries Envoy buffers; `None` logs nothing.
    pub log_buffer_bytes: Option<u32>,
    /// The direction of the listener.
    pub direction: Direction,
    /// The plugin, if the listener has it.
    pub plugin: Option<Plugin>,
    /// TLS of the listener; `None` means plaintext.
    pub transport_socket: Option<Value>,
    /// The name of the cluster.
    pub cluster: String,
    /// Its endpoint.
    pub to: SocketAddr,
    /// The metadata of the endpoint, by namespace.
    pub endpoint_metadata: Value,
    /// Overrides for fields of the cluster.
    pub overrides: Value,
}

impl Route {
    /// A listener with the plugin for TCP, which leads to a cluster of the same name.
    #[must_use]
    pub fn new(name: &str, direction: Direction, to: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            log: name.to_owned(),
            log_buffer_bytes: Some(0),
            direction,
            plugin: Some(Plugin {
                root_id: name.to_owned(),
                configuration: json!({ "protocol": "tcp" }),
                ..Plugin::default()
            }),
            transport_socket: None,
            cluster: name.to_owned(),
            to,
            endpoint_metadata: json!({}),
            overrides: json!({}),
        }
    }

    /// Adds keys to the plugin's configuration.
    #[must_use]
    pub fn configured(mut self, keys: &Value) -> Self {
        if let Some(plugin) = &mut self.plugin {
            plugin.configuration = with(plugin.configuration.take(), keys);
        }
        self
    }

    /// Leaves out the plugin.
    #[must_use]
    pub fn without_filter(mut self) -> Self {
        self.plugin = None;
        self
    }

    pub(crate) fn listener(&self, lab: &Lab) -> Value {
        let plugin = self.plugin.as_ref();
        let mut filters: Vec<Value> = plugin
            .map(|plugin| wasm_network_filter(plugin, lab.module()))
            .into_iter()
            .collect();
        filters.push(self.tcp_proxy());
        let mut chain = json!({ "filters": filters });
        if let Some(socket) = &self.transport_socket {
            chain["transport_socket"] = socket.clone();
        }
        json!({
            "name": self.name,
            "address": any_port(),
            "traffic_direction": self.direction.name(),
            "filter_chains": [chain],
        })
    }

    fn tcp_proxy(&self) -> Value {
        let keys = [Side::Downstream, Side::Upstream].map(|side| [side.peer_key(), side.id_key()]);
        let logs = self
            .log_buffer_bytes
            .map(|buffer_bytes| tcp_collector_log(&self.log, buffer_bytes, keys.as_flattened()));
        let config = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": self.name,
            "cluster": self.cluster,
        });
        let logs = json!({ "access_log": logs.into_iter().collect::<Vec<_>>() });
        json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": with(config, &logs) })
    }

    pub(crate) fn cluster(&self) -> Value {
        let (name, to) = (&self.cluster, socket_address(self.to));
        let cluster = json!({
            "name": name,
            "load_assignment": load_assignment(name, &to, &self.endpoint_metadata),
        });
        with(cluster, &self.overrides)
    }
}

/// The bootstrap of a sidecar with these listeners.
#[must_use]
pub fn sidecar(lab: &Lab, node: &Node, routes: &[Route]) -> Value {
    let listeners: Vec<Value> = routes.iter().map(|route| route.listener(lab)).collect();
    let clusters: Vec<Value> = std::iter::once(collector_cluster(lab.logs_to()))
        .chain(routes.iter().map(Route::cluster))
        .collect();
    let services = lab.dir().join("no-clusters.json");
    let mut bootstrap = bootstrap(node, &listeners, &clusters, &services);
    // All clusters are known at the start.
    bootstrap["dynamic_resources"] = json!({});
    bootstrap
}

/// An error if the module under test takes no configuration for TCP: its filter would be idle.
pub async fn check_module(lab: &Lab) -> Result<()> {
    let nowhere = Route::new(
        "nowhere",
        Direction::Outbound,
        SocketAddr::from(([127, 0, 0, 1], 9)),
    );
    let bootstrap = sidecar(lab, &Node::pod_client()?, &[nowhere]);
    let path = lab.dir().join("nowhere.json");
    tokio::fs::write(&path, bootstrap.to_string()).await?;
    lab.validate(&path).await
}
