//! Edges as the entries state them.

use access_log::{Entry, Named, Protocol, State};

use super::graph::{End, Graph, Seen};
use super::names;
use super::sides::{Sides, host_of_cluster};
use crate::naming::Naming;

/// The name of a node of which nothing is known.
pub(super) const UNKNOWN: &str = "unknown";
/// The name of a proxy whose stream has no identifier, or an empty one.
pub(crate) const UNKNOWN_REPORTER: &str = "unknown reporter";

/// Adds the edges of an entry.
pub(super) fn record(graph: &mut Graph, entry: &Entry) {
    let has_id = entry.protocol == Protocol::Tcp && !entry.stream_id.is_empty();
    if entry.intermediate && !has_id {
        return graph.note("an entry that is not its stream's last: not counted");
    }
    if has_id && !entry.intermediate {
        graph.ended(&entry.stream_id);
    }
    let add = if entry.intermediate {
        Graph::open
    } else {
        Graph::edge
    };
    for (key, state) in &entry.state {
        if let State::Broken { reason, .. } = state {
            graph.note(&format!("{key} is not a peer: {reason}"));
        }
    }
    let sides = Sides::of(entry, graph.naming());
    let (is_client, is_server) = (sides.is_client(), sides.is_server());
    // If a gateway's entry has no peer, its cluster still shows that there was a callee.
    let is_client = is_client || sides.is_proxy && !entry.upstream_cluster.is_empty();
    let local = end(graph.naming(), sides.local, UNKNOWN_REPORTER);
    if is_server {
        let caller = match sides.caller {
            Some(caller) => end(graph.naming(), caller, UNKNOWN),
            None => End::Unknown(UNKNOWN),
        };
        add(graph, &caller, &local, Seen::Server, entry);
    }
    if is_client {
        let host = host_of_cluster(&entry.upstream_cluster);
        let callee = match (sides.callee, host) {
            (Some(callee), host) => {
                let service = names::of_node(graph.naming(), &callee);
                if let (Some(host), Ok((service, _))) = (host, service) {
                    graph.answers(host, &service);
                }
                end(graph.naming(), callee, UNKNOWN)
            }
            (None, Some(host)) if entry.is_unanswered() => End::Unresolved(host),
            (None, host) => End::Unknown(host.unwrap_or(UNKNOWN)),
        };
        add(graph, &local, &callee, Seen::Client, entry);
    }
    if !is_client && !is_server {
        graph.note(
            "no peer, and neither the cluster nor the log shows the direction: no edge (include \
             \"inbound\" or \"outbound\" in the log's name)",
        );
    }
}

/// The node under its best known name, or under `nameless`.
fn end<'e>(naming: &Naming, node: Named<'e>, nameless: &'static str) -> End<'e> {
    match names::of_node(naming, &node) {
        Ok(_) => {
            let metadata = names::filled(&node).into_owned();
            End::NamedBy(node, metadata)
        }
        Err(names::Nameless) => End::Unknown(nameless),
    }
}
