//! Edges by what the entries say.

use access_log::{Direction, Entry, Named, Side, State};

use super::graph::{End, Graph, Seen};
use super::kind::Role;
use crate::naming::Naming;

/// The host in the name of an Envoy cluster, as Istio forms it:
/// `outbound|443||api.example.com`.
pub(crate) fn host_of_cluster(cluster: &str) -> Option<&str> {
    let host = cluster.rsplit('|').next();
    host.filter(|host| !host.is_empty())
}

/// Adds the edges of an entry.
pub(super) fn record(graph: &mut Graph, entry: &Entry) {
    if entry.intermediate {
        return graph.note("an entry that is not its stream's last: not counted");
    }
    for (key, state) in &entry.state {
        if let State::Broken { reason, .. } = state {
            graph.note(&format!("{key} is no peer: {reason}"));
        }
    }
    let local = entry.local();
    let naming = graph.naming();
    let is_own = |peer: &Named<'_>| is_same(naming, peer, &local);
    let mut caller = entry.peer(Side::Downstream);
    let mut callee = entry.peer(Side::Upstream);
    let own = [&caller, &callee].map(|peer| peer.as_ref().is_some_and(is_own));
    let is_proxy = matches!(Role::of_id(local.id), Role::Gateway | Role::Waypoint);
    // Where `record_local_node` is set, the own node stands for the side
    // that the listener's direction is about.
    let direction = entry.direction().or(match own {
        [true, false] => Some(Direction::Outbound),
        [false, true] => Some(Direction::Inbound),
        _ => None,
    });
    if direction == Some(Direction::Inbound) && own[1] {
        callee = None;
    }
    if direction == Some(Direction::Outbound) && own[0] {
        caller = None;
    }
    let has_peer = caller.is_some() || callee.is_some();
    let called_by_nobody =
        caller.is_none() && (is_proxy || !has_peer && direction == Some(Direction::Inbound));
    let calls_nobody = callee.is_none()
        && (is_proxy && !entry.upstream_cluster.is_empty()
            || !has_peer && direction == Some(Direction::Outbound));
    if let Some(caller) = caller {
        graph.edge(
            &End::Node(caller),
            &End::Node(local.clone()),
            Seen::Server,
            entry,
        );
    } else if called_by_nobody {
        graph.edge(
            &End::Unknown("unknown"),
            &End::Node(local.clone()),
            Seen::Server,
            entry,
        );
    }
    let host = host_of_cluster(&entry.upstream_cluster);
    if let Some(callee) = callee {
        if let Some(host) = host {
            let service = graph.naming().service(&callee.metadata);
            graph.answers(host, &service);
        }
        graph.edge(&End::Node(local), &End::Node(callee), Seen::Client, entry);
    } else if calls_nobody {
        let callee = match host {
            Some(host) if entry.is_unanswered() => End::Unresolved(host),
            host => End::Unknown(host.unwrap_or("unknown")),
        };
        graph.edge(&End::Node(local), &callee, Seen::Client, entry);
    } else if !has_peer && !called_by_nobody {
        graph.note(
            "no peer, and neither cluster nor log tells whether it came in or went out: no edge",
        );
    }
}

fn is_same(naming: &Naming, peer: &Named<'_>, local: &Named<'_>) -> bool {
    if let (Some(peer), Some(local)) = (peer.id, local.id) {
        return peer == local;
    }
    let name = |node: &Named<'_>| {
        let metadata = &node.metadata;
        (naming.service(metadata), naming.instance(metadata))
    };
    name(peer) == name(local)
}
