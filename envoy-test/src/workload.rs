//! The workloads that a story starts, the listeners of their proxies and the plugin in each
//! listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use access_log::Direction;
use serde_json::{Value, json};

use crate::collector::Side;
use crate::node::Node;

/// A service of a mesh. Its name is the authority under which others call it.
#[derive(Clone, Debug)]
pub struct Workload {
    pub(crate) name: String,
    pub(crate) app: AppKind,
    pub(crate) proxy: Option<Proxy>,
    /// The metadata of the workload's endpoint, by namespace.
    pub(crate) endpoint_metadata: Value,
    /// The metadata of the locality of that endpoint, by namespace.
    pub(crate) locality_metadata: Option<Value>,
}

/// The app of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppKind {
    /// The harness's own app.
    Ours,
    /// The harness's own app, which only counts: for more requests than can be recorded.
    Counting,
    /// A server at this address.
    Elsewhere(SocketAddr),
    /// None: a gateway.
    Nobody,
}

/// The Envoy of a workload.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) node: Node,
    pub(crate) concurrency: u32,
    /// How long a replaced listener drains; Envoy's default is ten minutes.
    pub(crate) drain: Option<Duration>,
    /// Environment variables of the Envoy.
    pub(crate) environment: BTreeMap<String, String>,
    /// Receives what others send to this workload.
    pub(crate) inbound: Listener,
    /// Receives what this workload sends to others, if a separate listener does.
    pub(crate) outbound: Option<Listener>,
    /// Overrides for the clusters of services.
    pub(crate) clusters: BTreeMap<String, Value>,
    /// Whether the listeners come from a file that Envoy watches.
    pub(crate) watches_listeners: bool,
    /// Listeners of any kind, and the cluster of each.
    pub(crate) others: Vec<(Value, Value)>,
}

impl Workload {
    /// An app with a sidecar: the listener `inbound` leads to the app, the
    /// listener `outbound` to the other workloads.
    #[must_use]
    pub fn sidecar(name: &str, node: Node) -> Self {
        let inbound = Listener::new("inbound", Some(Direction::Inbound), Leads::ToApp);
        let outbound = Listener::new("outbound", Some(Direction::Outbound), Leads::ToMesh);
        let proxy = Proxy::new(node, inbound, Some(outbound));
        Self::new(name, AppKind::Ours, Some(proxy))
    }

    /// An app without a sidecar.
    #[must_use]
    pub fn bare(name: &str) -> Self {
        Self::new(name, AppKind::Ours, None)
    }

    /// A gateway inside the mesh (egress, east-west): its one listener
    /// `gateway` has no direction, is configured as a gateway and leads to the
    /// other workloads.
    #[must_use]
    pub fn gateway(name: &str, node: Node) -> Self {
        let gateway = Listener::new("gateway", None, Leads::ToMesh);
        Self::new(name, AppKind::Nobody, Some(Proxy::new(node, gateway, None)))
            .configured(&json!({ "direction": "gateway" }))
    }

    /// A gateway as Istio configures one at the edge: outbound.
    #[must_use]
    pub fn istio_gateway(name: &str, node: Node) -> Self {
        let gateway = Listener::new("gateway", Some(Direction::Outbound), Leads::ToMesh);
        Self::new(name, AppKind::Nobody, Some(Proxy::new(node, gateway, None)))
    }

    fn new(name: &str, app: AppKind, proxy: Option<Proxy>) -> Self {
        Self {
            name: name.to_owned(),
            app,
            proxy,
            endpoint_metadata: json!({}),
            locality_metadata: None,
        }
    }

    /// Sets the configuration of the plugin on every listener.
    #[must_use]
    pub fn configured(self, configuration: &Value) -> Self {
        self.each_listener(|listener| {
            listener.plugin.configuration = configuration.clone();
        })
    }

    /// Changes the listener `name`, if the workload has it.
    #[must_use]
    pub fn listener(self, name: &str, change: impl Fn(&mut Listener)) -> Self {
        self.each_listener(|listener| {
            if listener.name == name {
                change(listener);
            }
        })
    }

    /// Overrides fields of the proxy's cluster of `service`, such as the transport socket or
    /// metadata.
    #[must_use]
    pub fn cluster(mut self, service: &str, overrides: Value) -> Self {
        if let Some(proxy) = &mut self.proxy {
            proxy.clusters.insert(service.to_owned(), overrides);
        }
        self
    }

    /// Adds a listener of any kind, and the cluster that it leads to.
    #[must_use]
    pub fn with_listener(mut self, listener: Value, cluster: Value) -> Self {
        if let Some(proxy) = &mut self.proxy {
            proxy.others.push((listener, cluster));
        }
        self
    }

    /// Sets the `metadata` of the workload's endpoint, by namespace.
    #[must_use]
    pub fn endpoint_metadata(mut self, metadata: Value) -> Self {
        self.endpoint_metadata = metadata;
        self
    }

    /// Sets the `metadata` of the locality of the workload's endpoint, by namespace.
    #[must_use]
    pub fn locality_metadata(mut self, metadata: Value) -> Self {
        self.locality_metadata = Some(metadata);
        self
    }

    /// Makes the proxy watch a file for its listeners, so that [`crate::Mesh::change_listeners`]
    /// can change them.
    #[must_use]
    pub fn watching_listeners(mut self) -> Self {
        if let Some(proxy) = &mut self.proxy {
            proxy.watches_listeners = true;
        }
        self
    }

    /// Adds an entry to the metadata of the proxy's node, if there is a proxy.
    #[must_use]
    pub fn node_with(mut self, key: &str, value: &Value) -> Self {
        if let Some(proxy) = &mut self.proxy {
            proxy.node.metadata[key] = value.clone();
        }
        self
    }

    /// Makes the app only count its requests.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.app = AppKind::Counting;
        self
    }

    /// Uses the server at `address` instead of the harness's app.
    #[must_use]
    pub fn served_at(mut self, address: SocketAddr) -> Self {
        self.app = AppKind::Elsewhere(address);
        self
    }

    /// Sets the number of the proxy's workers.
    #[must_use]
    pub fn workers(mut self, concurrency: u32) -> Self {
        if let Some(proxy) = &mut self.proxy {
            proxy.concurrency = concurrency;
        }
        self
    }

    /// Sets an environment variable of the proxy.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        if let Some(proxy) = &mut self.proxy {
            let environment = &mut proxy.environment;
            environment.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// Sets how long a replaced listener drains, in whole seconds.
    #[must_use]
    pub fn draining_for(mut self, drain: Duration) -> Self {
        if let Some(proxy) = &mut self.proxy {
            proxy.drain = Some(drain);
        }
        self
    }

    fn each_listener(mut self, change: impl Fn(&mut Listener)) -> Self {
        if let Some(proxy) = &mut self.proxy {
            change(&mut proxy.inbound);
            proxy.outbound.iter_mut().for_each(change);
        }
        self
    }
}

impl Proxy {
    fn new(node: Node, inbound: Listener, outbound: Option<Listener>) -> Self {
        Self {
            node,
            concurrency: 1,
            drain: None,
            environment: BTreeMap::new(),
            inbound,
            outbound,
            clusters: BTreeMap::new(),
            watches_listeners: false,
            others: Vec::new(),
        }
    }

    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        std::iter::once(&self.inbound).chain(&self.outbound)
    }

    pub(crate) fn outbound(&self) -> &Listener {
        self.outbound.as_ref().unwrap_or(&self.inbound)
    }
}

/// The destination of a listener's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// To the app of the workload.
    ToApp,
    /// To the other workloads, by authority.
    ToMesh,
}

/// A listener with its filter chain: `before`, the plugin, `behind`, the router.
#[derive(Clone, Debug)]
pub struct Listener {
    pub(crate) name: &'static str,
    /// Its direction, if it has one.
    pub direction: Option<Direction>,
    pub(crate) leads: Leads,
    /// The plugin under test.
    pub plugin: Plugin,
    /// HTTP filters before the plugin.
    pub before: Vec<Value>,
    /// HTTP filters between the plugin and the router.
    pub behind: Vec<Value>,
    /// Overrides for every route's action: retries, redirects.
    pub route_action: Value,
    /// Authorities that lead to a workload of another name: `(authority, workload)`.
    pub via: Vec<(String, String)>,
    /// Additional access logs.
    pub access_logs: Vec<Value>,
    /// The filter-state keys that the collector's log names.
    pub logged_keys: Vec<&'static str>,
    /// How many bytes of entries Envoy buffers before it sends them to the collector; by default it
    /// sends every entry immediately.
    pub log_buffer_bytes: u32,
    /// TLS; `None` means plaintext.
    pub transport_socket: Option<Value>,
    /// Overrides for every virtual host: headers to remove, filters to disable.
    pub virtual_host: Value,
    /// Overrides for the connection manager: upgrades.
    pub connection_manager: Value,
}

impl Listener {
    fn new(name: &'static str, direction: Option<Direction>, leads: Leads) -> Self {
        Self {
            name,
            direction,
            leads,
            // The name distinguishes listeners whose configurations may differ.
            plugin: Plugin {
                root_id: name.to_owned(),
                ..Plugin::default()
            },
            before: Vec::new(),
            behind: Vec::new(),
            route_action: json!({}),
            via: Vec::new(),
            access_logs: Vec::new(),
            logged_keys: [Side::Downstream, Side::Upstream]
                .into_iter()
                .flat_map(|side| [side.peer_key(), side.id_key()])
                .collect(),
            log_buffer_bytes: 0,
            transport_socket: None,
            virtual_host: json!({}),
            connection_manager: json!({}),
        }
    }
}

/// The default name of the plugin among the HTTP filters.
pub const FILTER: &str = "metadata_exchange";

/// The plugin as an operator configures it.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The name of the HTTP filter, and of the resource that configures it.
    pub filter: String,
    /// The plugin's own name.
    pub name: String,
    /// The root id, an arbitrary text.
    pub root_id: String,
    /// The VM id: plugins with the same id, code and VM configuration share a VM.
    pub vm_id: String,
    /// `environment_variables` of its VM.
    pub environment: Value,
    /// The plugin configuration.
    pub configuration: Value,
    /// Whether the plugin comes from a file that Envoy watches, as an extension configuration, so
    /// that [`crate::Mesh::reconfigure`] can change it. All watched plugins of a workload share the
    /// file.
    pub watched: bool,
    /// The filter to use until a configuration of a watched plugin has been accepted.
    pub default_config: Option<Value>,
    /// Another module than the one under test.
    pub module: Option<PathBuf>,
    /// What happens to requests once the VM has died.
    pub failure_policy: FailurePolicy,
}

/// What Envoy does with requests once the plugin's VM has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// Refuses them.
    Closed,
    /// Lets them pass without the plugin.
    Open,
    /// Restarts the VM.
    Reload,
}

impl FailurePolicy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "FAIL_CLOSED",
            Self::Open => "FAIL_OPEN",
            Self::Reload => "FAIL_RELOAD",
        }
    }
}

impl Default for Plugin {
    fn default() -> Self {
        Self {
            filter: FILTER.to_owned(),
            name: FILTER.to_owned(),
            root_id: "any_root".to_owned(),
            vm_id: "any_vm".to_owned(),
            environment: json!({}),
            configuration: json!({}),
            watched: false,
            default_config: None,
            module: None,
            // A dead VM must show as failed requests.
            failure_policy: FailurePolicy::Closed,
        }
    }
}
