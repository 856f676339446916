//! The parsed evidence, which the rules query.

use anyhow::{Result, bail};
use metadata_exchange::config::Protocol;
use serde_json::Value;

use super::dump::{Manager, TcpChain, managers, tcp_chains};
use super::evidence::Evidence;
use super::filter::{Filter, Plugin};
use super::input::Resources;
use super::json::text;
use super::statistics::Stats;

/// Parsed [`Evidence`].
pub(super) struct Facts<'a> {
    /// The name of the filter.
    pub(super) filter: &'a str,
    pub(super) resources: Resources<'a>,
    pub(super) managers: Vec<Manager<'a>>,
    pub(super) tcp_chains: Vec<TcpChain<'a>>,
    /// The node; `None` if no document has it.
    pub(super) node: Option<Node<'a>>,
    /// Major and minor version of Envoy.
    pub(super) version: Option<(u64, u64)>,
    pub(super) stats: Option<Stats<'a>>,
    pub(super) later: Option<Stats<'a>>,
    /// `cluster_statuses` of `/clusters`.
    pub(super) clusters: Option<&'a Value>,
}

/// The metadata exchange in a filter chain.
pub(super) struct Placed<'f, 'a> {
    /// The name of the listener.
    pub(super) listener: &'a str,
    /// What its filter chain is for.
    pub(super) protocol: Protocol,
    pub(super) filter: &'f Filter<'a>,
    pub(super) plugin: &'f Plugin<'a>,
}

/// The node of an Envoy.
pub(super) struct Node<'a> {
    pub(super) id: &'a str,
    pub(super) metadata: &'a Value,
    /// All of it.
    pub(super) json: &'a Value,
}

impl<'a> Facts<'a> {
    pub(super) fn read(evidence: &'a Evidence, filter: &'a str) -> Result<Self> {
        let resources = Resources::read(&evidence.documents);
        if resources.is_empty() {
            bail!(
                "not the config_dump or bootstrap of an Envoy: ask Envoy's admin interface for \
                 /config_dump, in Istio's proxies at 127.0.0.1:15000"
            );
        }
        let managers = managers(&resources, filter);
        let tcp_chains = tcp_chains(&resources, filter);
        let stats = |answer: &'a Option<Value>| answer.as_ref().map(Stats::read).transpose();
        let running = evidence.server_info.as_ref().map(|info| &info["node"]);
        let node = resources.node().map(|node| Node {
            // It may come from the command line, which the bootstrap does not
            // show.
            id: [running.map(|node| &node["id"]), node.get("id")]
                .into_iter()
                .flatten()
                .map(text)
                .find(|id| !id.is_empty())
                .unwrap_or_default(),
            metadata: &node["metadata"],
            json: node,
        });
        Ok(Self {
            filter,
            version: version(evidence.server_info.as_ref(), resources.node()),
            stats: stats(&evidence.stats)?,
            later: stats(&evidence.later)?,
            clusters: evidence
                .clusters
                .as_ref()
                .map(|all| &all["cluster_statuses"]),
            resources,
            managers,
            tcp_chains,
            node,
        })
    }

    /// The metadata exchange filters, of HTTP and of TCP.
    pub(super) fn ours(&self) -> impl Iterator<Item = Placed<'_, 'a>> {
        let managers = self.managers.iter();
        let managers = managers.map(|one| (one.listener, Protocol::Http, &one.filters));
        let chains = self.tcp_chains.iter();
        let chains = chains.map(|one| (one.listener, Protocol::Tcp, &one.filters));
        let all = managers.chain(chains);
        all.flat_map(|(listener, protocol, filters)| {
            filters.iter().filter_map(move |filter| {
                Some(Placed {
                    listener,
                    protocol,
                    filter,
                    plugin: filter.ours()?,
                })
            })
        })
    }

    pub(super) fn node_id(&self) -> &'a str {
        self.node.as_ref().map_or("", |node| node.id)
    }

    /// Whether the proxy is a waypoint, by its node id or its main listener.
    pub(super) fn is_waypoint(&self) -> bool {
        let mut listeners = self.resources.listeners.iter().flatten();
        let is_main = |listener: &Value| {
            listener["name"] == "main_internal" && listener.get("internal_listener").is_some()
        };
        self.node_id().starts_with("waypoint~") || listeners.any(|listener| is_main(listener))
    }
}

/// Envoy's version, from `/server_info` (`HASH/1.36.2/Clean/...`) or else from
/// the node.
fn version(server_info: Option<&Value>, node: Option<&Value>) -> Option<(u64, u64)> {
    let running = server_info.and_then(|info| info["version"].as_str());
    if let Some(version) = running.and_then(|version| version.split('/').nth(1)) {
        let mut numbers = version.split('.').map(str::parse);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            return Some((major, minor));
        }
    }
    let version = &node?["user_agent_build_version"]["version"];
    // Envoy omits zero.
    let minor = version["minor_number"].as_u64().unwrap_or_default();
    Some((version["major_number"].as_u64()?, minor))
}
