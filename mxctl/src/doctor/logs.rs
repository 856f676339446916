//! Checks which keys the access logs of a listener name.

use metadata_exchange::config::Config;
use metadata_exchange::direction::Direction;
use serde_json::Value;

use super::direction::effective;
use super::dump::{Manager, TcpChain};
use super::facts::Facts;
use super::filter::{Filter, Plugin};
use super::finding::{Code, Finding};
use super::json::{any_text, list, text, typed};
use access_log::Side;

const SIDES: [Side; 2] = [Side::Downstream, Side::Upstream];

/// A gRPC access log.
pub(super) struct GrpcLog<'a> {
    config: &'a Value,
}

impl<'a> GrpcLog<'a> {
    /// The cluster of its collector.
    pub(super) fn cluster(&self) -> Option<&'a str> {
        self.config["common_config"]["grpc_service"]["envoy_grpc"]["cluster_name"].as_str()
    }

    fn names(&self, key: &str) -> bool {
        let logged = &self.config["common_config"]["filter_state_objects_to_log"];
        list(logged).any(|one| one == key)
    }

    /// Whether it names a peer of either generation of keys.
    pub(super) fn names_peers(&self) -> bool {
        SIDES
            .iter()
            .any(|side| self.names(side.peer_key()) || self.names(side.struct_key()))
    }
}

/// The access logs of a connection manager or of a TCP filter chain, and whatever else reads peers there.
pub(super) struct Logs<'a> {
    listener: &'a str,
    /// The logs.
    all: Vec<&'a Value>,
    /// Whether the metadata exchange is there.
    pub(super) has_filter: bool,
    readers: Vec<&'a Value>,
    records_metrics: bool,
}

impl<'a> Logs<'a> {
    fn of_manager(manager: &Manager<'a>) -> Self {
        let mut ours = manager.filters.iter().filter_map(Filter::ours);
        let filters = manager.filters.iter().map(|filter| filter.config);
        let readers = filters.chain(manager.routes.iter().copied());
        Self {
            listener: manager.listener,
            all: manager.access_logs.iter().collect(),
            readers: readers.chain([manager.config]).collect(),
            has_filter: manager.filters.iter().any(|one| one.ours().is_some()),
            records_metrics: ours.any(Plugin::records_metrics),
        }
    }

    fn of_tcp(chain: &TcpChain<'a>) -> Self {
        let filters = chain.filters.iter().map(|filter| filter.config);
        Self {
            listener: chain.listener,
            readers: filters.chain(chain.access_logs.iter().copied()).collect(),
            all: chain.access_logs.clone(),
            has_filter: chain.ours().is_some(),
            records_metrics: false,
        }
    }

    /// Whether anything reads the peer on that side: a log, a policy, a header, the tags of a span, the
    /// filter's own metrics.
    fn read(&self, side: Side) -> bool {
        let mut readers = self.readers.iter();
        self.records_metrics
            || readers.any(|one| any_text(one, &mut |text| text.contains(side.peer_key())))
    }
}

impl<'a> Facts<'a> {
    /// The access logs of all connection managers and TCP filter chains.
    pub(super) fn all_logs(&self) -> impl Iterator<Item = Logs<'a>> {
        let managers = self.managers.iter().map(Logs::of_manager);
        managers.chain(self.tcp_chains.iter().map(Logs::of_tcp))
    }
}

/// The gRPC access logs among them.
pub(super) fn grpc_logs<'a>(logs: &Logs<'a>) -> Vec<GrpcLog<'a>> {
    const HTTP: &str = ".HttpGrpcAccessLogConfig";
    const TCP: &str = ".TcpGrpcAccessLogConfig";
    let typed_logs = || {
        logs.all
            .iter()
            .map(|log| (log, typed(&log["typed_config"])))
    };
    let has_http = typed_logs().any(|(_, (kind, _))| kind.ends_with(HTTP));
    // Istio puts a provider for TCP on HTTP listeners, too, where a filter keeps requests out.
    let is_kept_out = |log: &Value| has_http && log["filter"].is_object();
    let grpc = typed_logs().filter(|(log, (kind, _))| {
        kind.ends_with(HTTP) || kind.ends_with(TCP) && !is_kept_out(log)
    });
    grpc.map(|(_, (_, config))| GrpcLog { config }).collect()
}

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let default = Config::default();
    for manager in &facts.managers {
        if let Some(plugin) = manager.filters.iter().find_map(|filter| filter.ours()) {
            let configuration = plugin.configuration.as_ref().unwrap_or(&default);
            let direction = effective(facts, manager.direction, configuration);
            let logs = Logs::of_manager(manager);
            examine_logs(facts, &logs, configuration, direction, findings);
            findings.extend(in_progress(&logs, manager.logs_in_progress, REQUESTS));
        }
    }
    for chain in &facts.tcp_chains {
        if let Some(plugin) = chain.ours() {
            let configuration = plugin.configuration.as_ref().unwrap_or(&default);
            let direction = effective(facts, chain.direction, configuration);
            let logs = Logs::of_tcp(chain);
            examine_logs(facts, &logs, configuration, direction, findings);
            findings.extend(in_progress(&logs, chain.logs_in_progress(), CONNECTIONS));
        }
    }
}

fn examine_logs(
    facts: &Facts<'_>,
    logs: &Logs<'_>,
    configuration: &Config,
    direction: Direction,
    findings: &mut Vec<Finding>,
) {
    let grpc = grpc_logs(logs);
    findings.extend(keys_not_logged(facts, logs, direction, &grpc));
    findings.extend(both_keys(logs.listener, &grpc));
    findings.extend(logged_twice(facts, logs.listener, &grpc));
    if configuration.record_local_node {
        findings.extend(local_node(logs.listener, &grpc));
    }
}

/// One gRPC log that names the keys is enough. If there is one, `SkyWalking` reads it, and no other
/// log can make up for what it lacks. If there is none, any other reader is enough.
fn keys_not_logged(
    facts: &Facts<'_>,
    logs: &Logs<'_>,
    direction: Direction,
    grpc: &[GrpcLog<'_>],
) -> Option<Finding> {
    const REMEDY: &str = "list all four wasm.* keys in filter_state_objects_to_log of the gRPC \
                          access log; with Istio in filterStateObjectsToLog of the provider";
    let place = logs.listener;
    // The filter stores no peer under the other side's keys.
    let sides: &[Side] = match direction {
        Direction::Inbound => &[Side::Downstream],
        Direction::Outbound => &[Side::Upstream],
        Direction::Gateway => &SIDES,
    };
    let missing = grpc.iter().map(|log| {
        let is_missing = |key: &&str| !log.names(key);
        let peers = sides.iter().map(|side| side.peer_key()).filter(is_missing);
        let ids = sides.iter().map(|side| side.id_key()).filter(is_missing);
        (peers.collect::<Vec<_>>(), ids.collect::<Vec<_>>())
    });
    let error = |message: String| Some(Finding::error(Code::KeysNotLogged, place, message, REMEDY));
    let Some((peers, ids)) = missing.min_by_key(|(peers, ids)| (peers.len(), ids.len())) else {
        if sides.iter().any(|side| logs.read(*side)) {
            return None;
        }
        let keys: Vec<&str> = sides.iter().map(|side| side.peer_key()).collect();
        let message = format!("no access log names {}", keys.join(" or "));
        // A proxy without gRPC log whose peers are read elsewhere has a policy, say, of callers alone.
        let mut others = facts.all_logs();
        let is_elsewhere = |other: Logs<'_>| {
            other.listener != place
                && grpc_logs(&other).is_empty()
                && SIDES.iter().any(|side| other.read(*side))
        };
        return if others.any(is_elsewhere) {
            Some(Finding::info(
                Code::KeysNotLogged,
                place,
                format!("{message}, and nothing else reads it"),
                REMEDY,
            ))
        } else {
            error(message)
        };
    };
    let lacks = |keys: &[&str]| {
        let keys = keys.join(", ");
        format!("the gRPC access log does not name {keys}")
    };
    if !peers.is_empty() {
        return error(lacks(&[peers, ids].concat()));
    }
    (!ids.is_empty()).then(|| {
        let message = format!(
            "{}: SkyWalking needs no ids, but mxctl distinguishes replicas and gateways by them",
            lacks(&ids)
        );
        Finding::warning(Code::KeysNotLogged, place, message, REMEDY)
    })
}

/// What `SkyWalking` does with entries in progress.
const REQUESTS: &str = "counts each entry of a request in progress as another call";
const CONNECTIONS: &str = "adds the bytes of a connection again with each entry";

/// `SkyWalking` ignores the type of an entry.
fn in_progress(logs: &Logs<'_>, setting: Option<&str>, does: &str) -> Option<Finding> {
    let setting = setting?;
    let is_read = grpc_logs(logs).iter().any(GrpcLog::names_peers);
    is_read.then(|| {
        Finding::warning(
            Code::LoggedInProgress,
            logs.listener,
            format!("{setting} is set, and the gRPC access log names peers: SkyWalking {does}"),
            "remove it from access_log_options where SkyWalking reads the log",
        )
    })
}

fn both_keys(place: &str, grpc: &[GrpcLog<'_>]) -> Option<Finding> {
    let both = |log: &GrpcLog<'_>| {
        let is_both = |side: &&Side| log.names(side.peer_key()) && log.names(side.struct_key());
        SIDES.iter().find(is_both).copied()
    };
    let side = grpc.iter().find_map(both)?;
    Some(Finding::warning(
        Code::BothKeysLogged,
        place,
        format!(
            "the gRPC access log names {} and {}: SkyWalking 10.2 and later counts an entry with \
             both twice, which happens beside Istio's own exchange",
            side.peer_key(),
            side.struct_key()
        ),
        "name only the wasm.* keys in filter_state_objects_to_log",
    ))
}

/// `SkyWalking` counts only entries that name peers.
fn logged_twice(facts: &Facts<'_>, place: &str, grpc: &[GrpcLog<'_>]) -> Option<Finding> {
    let mut seen = Vec::new();
    for log in grpc.iter().filter(|log| log.names_peers()) {
        let Some(cluster) = log.cluster() else {
            continue;
        };
        let endpoints = facts.endpoints(cluster);
        let is_same = |(other, others): &(&str, Vec<&Value>)| {
            *other == cluster || endpoints.iter().any(|endpoint| others.contains(endpoint))
        };
        if seen.iter().any(is_same) {
            return Some(Finding::warning(
                Code::LoggedTwice,
                place,
                format!(
                    "two gRPC access logs name peers and go to the same collector, {cluster}: it \
                     counts every request or connection twice"
                ),
                "keep one gRPC access log for each connection manager or tcp_proxy; in Istio, look for a second \
                 provider under accessLogging, or an EnvoyFilter that adds a log",
            ));
        }
        seen.push((cluster, endpoints));
    }
    None
}

impl Facts<'_> {
    /// The addresses of a cluster's endpoints, if its configuration has them.
    fn endpoints(&self, name: &str) -> Vec<&Value> {
        let clusters = self.resources.clusters.iter().flatten();
        let cluster = clusters.filter(|cluster| text(&cluster["name"]) == name);
        cluster
            .flat_map(|cluster| list(&cluster["load_assignment"]["endpoints"]))
            .flat_map(|group| list(&group["lb_endpoints"]))
            .map(|one| &one["endpoint"]["address"])
            .collect()
    }
}

fn local_node(place: &str, grpc: &[GrpcLog<'_>]) -> Option<Finding> {
    let names_both = |log: &GrpcLog<'_>| SIDES.iter().all(|side| log.names(side.peer_key()));
    grpc.iter().any(names_both).then(|| {
        Finding::warning(
            Code::LocalNodeLogged,
            place,
            "record_local_node is set, and the gRPC access log names both sides: SkyWalking draws \
             an edge from the service to itself",
            "set record_local_node to false where SkyWalking reads the log",
        )
    })
}
