//! Two sidecars: the client's leads each link to the server's, which leads it to a server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use access_log::{Direction, Side};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::sidecar::{Route, sidecar};
use crate::collector::Entry;
use crate::envoy::Envoy;
use crate::mesh::Lab;
use crate::node::Node;
use crate::tls::{self, Authority, Callers, Identity};

/// A listener of the client's sidecar, and what it leads to.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its name, and that of its cluster.
    pub name: String,
    /// Whether the sidecars use mutual TLS between them.
    pub is_mutual_tls: bool,
    /// The server.
    pub to: SocketAddr,
}

/// What the sidecars run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether they have the plugin.
    pub with_filter: bool,
    /// Another module than the one under test.
    pub module: Option<PathBuf>,
    /// The workers of each.
    pub workers: u32,
    /// Whether connections are logged, and how many bytes of entries Envoy buffers.
    pub log_buffer_bytes: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            with_filter: true,
            module: None,
            workers: 1,
            log_buffer_bytes: Some(0),
        }
    }
}

/// How the client's sidecar knows that the cluster of a link takes part in the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marked {
    /// The plugin configuration has its name.
    Name,
    /// The plugin configuration has the beginning of its name.
    Prefix,
    /// The metadata of the cluster.
    Cluster,
    /// The metadata of its endpoint.
    Endpoint,
}

impl Marked {
    const ALL: [Self; 4] = [Self::Name, Self::Prefix, Self::Cluster, Self::Endpoint];

    /// Links take turns.
    fn of(number: usize) -> Self {
        Self::ALL[number % Self::ALL.len()]
    }
}

/// Two running sidecars.
#[derive(Debug)]
pub struct Pair {
    /// Of the client.
    pub client: Envoy,
    /// Of the server.
    pub server: Envoy,
    /// The client's node.
    pub client_node: Node,
    /// The server's node.
    pub server_node: Node,
    name: String,
    addresses: BTreeMap<String, SocketAddr>,
}

impl Pair {
    /// Starts both, under the name `name` in the logs.
    pub async fn start(lab: &Lab, name: &str, links: &[Link], options: &Options) -> Result<Self> {
        let (client_node, server_node) = (Node::pod_client()?, Node::pod_server()?);
        let authority = Authority::new()?;
        let client_identity = authority.certify(&[&spiffe("bookinfo-productpage")])?;
        let server_identity = authority.certify(&[&spiffe("bookinfo-ratings")])?;

        let environment = BTreeMap::new();
        let builder = Builder { lab, name, options };
        let server = builder.server(&server_node, links, &server_identity, &authority);
        let server = lab.start_envoy_of(options.workers, &environment, &server);
        let server = server
            .await
            .context("the server's sidecar does not start")?;
        let mut inbound = Vec::new();
        for link in links {
            inbound.push(server.listener(&link.name).await?);
        }
        let client = builder.client(
            (&client_node, &server_node),
            links,
            &inbound,
            (&client_identity, &authority),
        );
        let client = lab.start_envoy_of(options.workers, &environment, &client);
        let client = client
            .await
            .context("the client's sidecar does not start")?;
        let mut addresses = BTreeMap::new();
        for link in links {
            addresses.insert(link.name.clone(), client.listener(&link.name).await?);
        }
        Ok(Self {
            client,
            server,
            client_node,
            server_node,
            name: name.to_owned(),
            addresses,
        })
    }

    /// Where clients connect to reach the server of a link.
    pub fn address(&self, link: &str) -> Result<SocketAddr> {
        let address = self.addresses.get(link).copied();
        address.with_context(|| format!("there is no link {link}"))
    }

    /// The log of a link's connections at one of the sidecars.
    #[must_use]
    pub fn log(&self, direction: Direction, link: &str) -> String {
        log_name(&self.name, direction, link)
    }

    /// The connections that the client's sidecar has accepted on a link.
    pub async fn connections(&self, link: &str) -> Result<u64> {
        let stats = self.client.stats().await?;
        let name = format!("tcp.{link}.downstream_cx_total");
        Ok(stats.get(&name).copied().unwrap_or_default())
    }

    /// What an entry says of the peer: that of the callee for outbound entries, that of the caller for inbound ones.
    pub fn naming(&self, direction: Direction, entry: &Entry) -> Result<Naming> {
        let (side, node) = match direction {
            Direction::Inbound => (Side::Downstream, &self.client_node),
            Direction::Outbound => (Side::Upstream, &self.server_node),
        };
        let Some(peer) = entry.peer(side)? else {
            return Ok(Naming::None);
        };
        if *peer == node.as_peer() && entry.id(side)? == Some(&node.id) {
            return Ok(Naming::Exchanged);
        }
        let named = ["WORKLOAD_NAME", "NAMESPACE"]
            .iter()
            .all(|key| peer[key] == node.metadata[key]);
        Ok(if named && direction == Direction::Outbound {
            Naming::ByEndpoint
        } else {
            Naming::Wrong
        })
    }
}

/// How an entry names a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// Not at all.
    None,
    /// With all that it has sent.
    Exchanged,
    /// As the metadata of its endpoint does.
    ByEndpoint,
    /// As somebody else.
    Wrong,
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

fn log_name(pair: &str, direction: Direction, link: &str) -> String {
    let direction = match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    };
    format!("{pair}/{direction}/{link}")
}

struct Builder<'b> {
    lab: &'b Lab,
    name: &'b str,
    options: &'b Options,
}

impl Builder<'_> {
    fn server(
        &self,
        node: &Node,
        links: &[Link],
        identity: &Identity,
        authority: &Authority,
    ) -> Value {
        let routes: Vec<Route> = links
            .iter()
            .map(|link| Route {
                transport_socket: link.is_mutual_tls.then(|| {
                    tls::listener(identity, Callers::Certified, Some(&authority.validation()))
                }),
                ..self.route(Direction::Inbound, link, link.to)
            })
            .collect();
        sidecar(self.lab, node, &routes)
    }

    fn client(
        &self,
        (node, server): (&Node, &Node),
        links: &[Link],
        inbound: &[SocketAddr],
        (identity, authority): (&Identity, &Authority),
    ) -> Value {
        let named = json!({ "tcp_clusters": named(links) });
        let routes = links.iter().zip(inbound).enumerate();
        let routes = routes.map(|(number, (link, address))| {
            let mut route = self.route(Direction::Outbound, link, *address);
            let mark = json!({ "tcp": true });
            route.endpoint_metadata = json!({ "istio": { "workload": istio_workload(server) } });
            match Marked::of(number) {
                Marked::Endpoint => route.endpoint_metadata["metadata_exchange"] = mark,
                Marked::Cluster => {
                    let mark = json!({ "metadata_exchange": mark });
                    route.overrides["metadata"] = json!({ "filter_metadata": mark });
                }
                Marked::Name | Marked::Prefix => {}
            }
            if link.is_mutual_tls {
                let validation = authority.validation();
                route.overrides["transport_socket"] =
                    tls::cluster(Some(identity), Some(&validation));
            }
            route.configured(&named)
        });
        sidecar(self.lab, node, &routes.collect::<Vec<_>>())
    }

    /// The listener of a link, and the cluster of the same name.
    fn route(&self, direction: Direction, link: &Link, to: SocketAddr) -> Route {
        let mut route = Route {
            log: log_name(self.name, direction, &link.name),
            log_buffer_bytes: self.options.log_buffer_bytes,
            ..Route::new(&link.name, direction, to)
        };
        if let Some(plugin) = &mut route.plugin {
            plugin.root_id = direction.name().to_lowercase();
            "tcp".clone_into(&mut plugin.vm_id);
            plugin.module.clone_from(&self.options.module);
        }
        if self.options.with_filter {
            route
        } else {
            route.without_filter()
        }
    }
}

/// The clusters that the plugin configuration names, the others being marked by metadata.
fn named(links: &[Link]) -> Vec<String> {
    let of = |(number, link): (usize, &Link)| match Marked::of(number) {
        Marked::Name => Some(link.name.clone()),
        Marked::Prefix => {
            let (last, _) = link.name.char_indices().next_back()?;
            Some(format!("{}*", link.name.get(..last)?))
        }
        Marked::Cluster | Marked::Endpoint => None,
    };
    links.iter().enumerate().filter_map(of).collect()
}

/// The endpoint metadata `istio.workload` of a node, as istiod sets it.
fn istio_workload(node: &Node) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let label = |key: &str| text(&node.metadata["LABELS"][key]);
    [
        text(&node.metadata["WORKLOAD_NAME"]),
        text(&node.metadata["NAMESPACE"]),
        label("service.istio.io/canonical-name"),
        label("service.istio.io/canonical-revision"),
        "Kubernetes".to_owned(),
    ]
    .join(";")
}
