//! What `SkyWalking`'s mx-mesh analyser makes of entries, as its
//! `MetaExchangeALSHTTPAnalyzer` and `MetaExchangeTCPAccessLogAnalyzer` do it,
//! those of 10.2 with Istio's newer keys besides.

use access_log::{Entry, Side, State};
use serde_json::{Map, Value};

use super::graph::{End, Graph, Seen};
use super::kind::Role;

/// The name of the unknown caller of a gateway.
const UNKNOWN: &str = "UNKNOWN";

/// Adds the edges that `SkyWalking` would draw for `entry`.
pub(super) fn record(graph: &mut Graph, entry: &Entry) {
    let role = Role::of_id(Some(&entry.reporter.id));
    graph.note(match role {
        Role::Sidecar => "role SIDECAR",
        Role::Gateway => "role PROXY",
        Role::Waypoint => "role WAYPOINT",
        Role::None => {
            "role NONE: the node id begins with neither sidecar~ nor router~ nor waypoint~"
        }
    });
    if entry.bare {
        return graph.note("dropped: an entry without common_properties");
    }
    if entry.state.is_empty() {
        return graph.note(
            "dropped by mx-mesh: an entry without filter state (the next analyser may take it)",
        );
    }
    let local = || End::Node(entry.local());
    let mut edges = 0;
    let mut is_called = false;
    for side in [Side::Upstream, Side::Downstream] {
        let peers = peers(graph, entry, side);
        if peers.len() > 1 {
            graph.note(&format!(
                "counted twice from 10.2 on: {} and {} in one entry",
                side.peer_key(),
                side.struct_key()
            ));
        }
        for (key, read) in peers {
            edges += 1;
            note_names(graph, entry, &read);
            // Its kind is ours to tell; SkyWalking knows none.
            let Some(peer) = entry.peer_at(key, side) else {
                continue;
            };
            let peer = End::NamedBy(peer, read);
            match side {
                Side::Upstream => graph.edge(&local(), &peer, Seen::Client, entry),
                Side::Downstream => {
                    is_called = true;
                    graph.edge(&peer, &local(), Seen::Server, entry);
                }
            }
        }
    }
    if role == Role::Gateway && !is_called {
        edges += 1;
        graph.edge(&End::Unknown(UNKNOWN), &local(), Seen::Server, entry);
    }
    if edges == 0 {
        graph.note("dropped: filter state, but no peer in it, and no gateway");
    }
}

/// The peers that both parsers find on that side: their keys, and what is read
/// of them.
fn peers(graph: &mut Graph, entry: &Entry, side: Side) -> Vec<(&'static str, Value)> {
    let mut peers = Vec::new();
    for key in [side.peer_key(), side.struct_key()] {
        match entry.state.get(key) {
            Some(State::Flat { metadata, .. }) => peers.push((key, as_read(metadata))),
            Some(State::Struct { metadata }) => peers.push((key, metadata.clone())),
            Some(State::Broken { reason, .. }) => {
                graph.note(&format!(
                    "an error in its log, and no edge: {key} is {reason}"
                ));
            }
            Some(State::Id { .. } | State::Other { .. }) | None => {}
        }
    }
    peers
}

/// Of a `FlatNode` it reads these only, and what is absent as empty.
fn as_read(metadata: &Value) -> Value {
    let field = |key: &str| metadata.get(key).cloned();
    let texts = ["NAME", "NAMESPACE", "CLUSTER_ID"].map(|key| {
        let text = field(key).unwrap_or_else(|| Value::from(""));
        (key.to_owned(), text)
    });
    let labels = field("LABELS").unwrap_or_else(|| Value::Object(Map::new()));
    let fields = texts.into_iter().chain([("LABELS".to_owned(), labels)]);
    Value::Object(fields.collect())
}

fn note_names(graph: &mut Graph, entry: &Entry, peer: &Value) {
    let naming = graph.naming();
    let local = &entry.reporter.metadata;
    let [peer_name, local_name] = [peer, local].map(|metadata| naming.service(metadata));
    let nameless = naming.nameless();
    let is_self = peer_name == local_name && naming.instance(peer) == naming.instance(local);
    for name in [&peer_name, &local_name] {
        if *name == nameless {
            graph.note(&format!("a nameless node, drawn as {nameless}"));
        }
    }
    if is_self {
        graph.note("an edge from an instance to itself");
    }
}
