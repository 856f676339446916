//! What is wrong with an Envoy, by its configuration and its statistics.

mod dump;
mod stats;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Result;
use metadata_exchange::config::Mode;
use metadata_exchange::direction::Direction;
use serde::Serialize;
use serde_json::Value;

use access_log::Side;
use dump::{Dump, HttpFilter, Manager, Sees};
pub use stats::has_to_wait;

/// What the filter is called, if it is given no other name.
pub const FILTER: &str = "metadata_exchange";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Peers are missing or wrong, or requests fail.
    Error,
    /// Some peers, or a part of them, may be missing.
    Warning,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No filter on a listener, or one that is disabled.
    FilterMissing,
    /// A listener without traffic direction.
    NoDirection,
    /// The filter stands where it does not see the headers.
    WrongOrder,
    /// The access log does not name the keys.
    KeysNotLogged,
    /// Istio's own exchange and this one.
    NativeExchange,
    /// Nothing to observe.
    NothingToObserve,
    /// The node does not say which workload it is.
    NoNodeMetadata,
    /// Peers were refused.
    PeersRefused,
    /// Envoy failed to answer the filter.
    HostErrors,
    /// A configuration was refused, or there is none.
    ConfigurationRefused,
    /// The module was not loaded, or its VM died.
    VmFailed,
}

impl Code {
    /// The name that scripts see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FilterMissing => "filter_missing",
            Self::NoDirection => "no_direction",
            Self::WrongOrder => "wrong_order",
            Self::KeysNotLogged => "keys_not_logged",
            Self::NativeExchange => "native_exchange",
            Self::NothingToObserve => "nothing_to_observe",
            Self::NoNodeMetadata => "no_node_metadata",
            Self::PeersRefused => "peers_refused",
            Self::HostErrors => "host_errors",
            Self::ConfigurationRefused => "configuration_refused",
            Self::VmFailed => "vm_failed",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, for scripts.
    pub code: Code,
    /// The listener, filter or statistic.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub cure: String,
}

impl Finding {
    fn new(severity: Severity, code: Code, place: &str, what: String, cure: &str) -> Self {
        Self {
            severity,
            code,
            place: place.to_owned(),
            what,
            cure: cure.to_owned(),
        }
    }

    fn error(code: Code, place: &str, what: String, cure: &str) -> Self {
        Self::new(Severity::Error, code, place, what, cure)
    }

    fn warning(code: Code, place: &str, what: String, cure: &str) -> Self {
        Self::new(Severity::Warning, code, place, what, cure)
    }
}

/// After what time statistics are looked at again: the filter ticks every second.
pub const LATER: Duration = Duration::from_secs(3);

/// What is wrong with the Envoy that has this `/config_dump` and these
/// `/stats?format=json`, now and [`LATER`]; `Null` if there was no need to wait.
/// The filter is known by `filter` or by its usual name.
///
/// # Errors
///
/// If they are not those of an Envoy, whatever else they say.
pub fn examine(
    config_dump: &Value,
    stats: &Value,
    later: &Value,
    filter: &str,
) -> Result<Vec<Finding>> {
    let dump = Dump::read(config_dump, filter)?;
    let mut findings = Vec::new();
    findings.extend(node(dump.node));
    for (listener, details) in &dump.refused_listeners {
        findings.push(Finding::error(
            Code::ConfigurationRefused,
            listener,
            format!("Envoy refused the last update of this listener: {details}"),
            "mend it; `make check-config` checks a configuration of the filter before",
        ));
    }
    if dump.managers.is_empty() {
        findings.push(Finding::error(
            Code::FilterMissing,
            "all listeners",
            "no listener speaks HTTP".to_owned(),
            "give the proxy its listeners, with the filter in each",
        ));
    }
    for manager in &dump.managers {
        examine_manager(manager, &mut findings);
    }
    findings.extend(stats::examine(stats, later, &dump)?);
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    // Several filter chains of a listener have the same fault.
    findings.dedup();
    Ok(findings)
}

fn node(node: &Value) -> Option<Finding> {
    let metadata = &node["metadata"];
    let mut missing: Vec<&str> = ["NAME", "NAMESPACE"]
        .into_iter()
        .filter(|key| metadata[*key].as_str().is_none_or(str::is_empty))
        .collect();
    let labels = metadata["LABELS"].as_object();
    if labels.is_none_or(serde_json::Map::is_empty) {
        missing.push("LABELS");
    }
    (!missing.is_empty()).then(|| {
        Finding::error(
            Code::NoNodeMetadata,
            "node",
            format!("node.metadata has no {}", missing.join(", ")),
            "state them in node.metadata of the bootstrap; with Istio the agent does, on a VM \
             from ISTIO_METAJSON_LABELS",
        )
    })
}

fn examine_manager(manager: &Manager<'_>, findings: &mut Vec<Finding>) {
    let place = manager.listener;
    let Some(position) = manager.filters.iter().position(|one| one.is_ours) else {
        let (what, cure) = if manager.is_disabled {
            (
                "the filter is disabled among the HTTP filters, and no route enables it",
                "take `disabled` away from it, or have the routes enable it in \
                 typed_per_filter_config, with an empty `config` in a \
                 envoy.config.route.v3.FilterConfig",
            )
        } else {
            (
                "the filter is not among the HTTP filters",
                "put it there: first on inbound listeners, directly before the router on others; \
                 if it has another name, say so with --filter",
            )
        };
        let what = what.to_owned();
        findings.push(Finding::error(Code::FilterMissing, place, what, cure));
        return;
    };
    let (ahead, rest) = manager.filters.split_at(position);
    let Some((ours, behind)) = rest.split_first() else {
        return;
    };
    if ours.sees == Sees::Some {
        findings.push(Finding::warning(
            Code::FilterMissing,
            place,
            "the filter is disabled among the HTTP filters, and only some routes enable it"
                .to_owned(),
            "take `disabled` away from it, if the requests of other routes matter",
        ));
    }
    let configured = ours.configuration.as_ref().ok();
    let direction = configured
        .and_then(|configuration| configuration.direction)
        .or(manager.direction)
        .unwrap_or(Direction::Gateway);
    findings.extend(access_logs(place, direction, manager.access_logs));
    let configuration = match &ours.configuration {
        Ok(configuration) => configuration,
        Err(problem) => {
            findings.push(Finding::error(
                Code::ConfigurationRefused,
                ours.name,
                format!("the filter refuses its configuration: {problem}"),
                "mend it; `make check-config` checks a configuration before. One that was accepted \
                 before stays in force; without one every request gets 500, but for a default_config",
            ));
            return;
        }
    };
    if manager.direction.is_none() && configuration.direction.is_none() {
        findings.push(Finding::error(
            Code::NoDirection,
            place,
            "it has no traffic_direction, and so the filter takes it for a gateway".to_owned(),
            "set traffic_direction to INBOUND or OUTBOUND; of a gateway, configure the filter \
             with \"direction\": \"gateway\"",
        ));
    }
    findings.extend(match configuration.mode {
        Mode::Exchange => exchange_order(place, direction, ahead, behind),
        Mode::Observe => observe_order(place, direction, ahead, behind),
    });
}

/// An exchange of its own beside it takes the headers away, or sends others.
fn exchange_order(
    place: &str,
    direction: Direction,
    ahead: &[HttpFilter<'_>],
    behind: &[HttpFilter<'_>],
) -> Option<Finding> {
    let is_inbound = direction == Direction::Inbound;
    if let Some(native) = ahead.iter().chain(behind).find(|one| one.is_native) {
        return Some(Finding::error(
            Code::NativeExchange,
            place,
            format!("Istio's own exchange, {}, is on as well", native.name),
            "remove it, or configure this filter with \"mode\": \"observe\"",
        ));
    }
    if is_inbound {
        let first = ahead.iter().find(|one| !one.is_passive)?;
        return Some(Finding::warning(
            Code::WrongOrder,
            place,
            format!(
                "{} stands ahead of the filter: what it answers or changes, the filter does not see",
                first.name
            ),
            "put the filter first",
        ));
    }
    let between = behind
        .iter()
        .find(|one| !one.is_passive && !one.is_router)?;
    Some(Finding::warning(
        Code::WrongOrder,
        place,
        format!(
            "{} stands between the filter and the router: if it changes the route, the wrong \
             cluster is told",
            between.name
        ),
        "put the filter directly before the router",
    ))
}

/// It must see the headers before the other exchange takes them away.
fn observe_order(
    place: &str,
    direction: Direction,
    ahead: &[HttpFilter<'_>],
    behind: &[HttpFilter<'_>],
) -> Option<Finding> {
    let is_native = |filters: &[HttpFilter<'_>]| filters.iter().any(|one| one.is_native);
    let (right, wrong, cure) = if direction == Direction::Inbound {
        (behind, ahead, "put the filter first")
    } else {
        (ahead, behind, "put the filter directly before the router")
    };
    if is_native(wrong) {
        return Some(Finding::error(
            Code::WrongOrder,
            place,
            "Istio's own exchange takes the headers before this filter sees them".to_owned(),
            cure,
        ));
    }
    (!is_native(right)).then(|| {
        Finding::error(
            Code::NothingToObserve,
            place,
            "the filter only observes, and Istio's own exchange is not there".to_owned(),
            "configure the filter with \"mode\": \"exchange\", or keep Istio's exchange",
        )
    })
}

/// One gRPC log that names the keys is enough. Where there is one, `SkyWalking`
/// reads it, and what it lacks no other log makes up for.
fn access_logs(place: &str, direction: Direction, logs: &[Value]) -> Option<Finding> {
    const CURE: &str = "list all four wasm.* keys in filter_state_objects_to_log of the gRPC access \
                        log; with Istio in filterStateObjectsToLog of the provider";
    // Of the other side the filter stores nobody that a reader would look for.
    let sides: &[Side] = match direction {
        Direction::Inbound => &[Side::Downstream],
        Direction::Outbound => &[Side::Upstream],
        Direction::Gateway => &[Side::Downstream, Side::Upstream],
    };
    let logs = logs.iter().map(|log| dump::typed(&log["typed_config"]));
    let (grpc, others): (Vec<_>, Vec<_>) =
        logs.partition(|(kind, _)| kind.ends_with(".HttpGrpcAccessLogConfig"));
    let missing = grpc.iter().map(|(_, config)| {
        let logged = &config["common_config"]["filter_state_objects_to_log"];
        let is_missing = |key: &&str| dump::list(logged).all(|one| one != key);
        let peers = sides.iter().map(|side| side.peer_key()).filter(is_missing);
        let ids = sides.iter().map(|side| side.id_key()).filter(is_missing);
        (peers.collect::<Vec<_>>(), ids.collect::<Vec<_>>())
    });
    let error = |what| Some(Finding::error(Code::KeysNotLogged, place, what, CURE));
    let Some((peers, ids)) = missing.min_by_key(|(peers, ids)| (peers.len(), ids.len())) else {
        let is_named = others.iter().any(|(_, config)| {
            let config = config.to_string();
            sides.iter().any(|side| config.contains(side.peer_key()))
        });
        if is_named {
            return None;
        }
        let keys: Vec<&str> = sides.iter().map(|side| side.peer_key()).collect();
        return error(format!("no access log names {}", keys.join(" or ")));
    };
    let lacks = |keys: &[&str]| {
        let keys = keys.join(", ");
        format!("the gRPC access log does not name {keys}")
    };
    if !peers.is_empty() {
        return error(lacks(&[peers, ids].concat()));
    }
    (!ids.is_empty()).then(|| {
        let what = format!(
            "{}: SkyWalking needs no ids, but by them mxctl tells replicas and gateways",
            lacks(&ids)
        );
        Finding::warning(Code::KeysNotLogged, place, what, CURE)
    })
}
