//! The rules of `SkyWalking`'s mx-mesh analyser: its
//! `MetaExchangeALSHTTPAnalyzer` and `MetaExchangeTCPAccessLogAnalyzer`,
//! including Istio's newer keys, which 10.2 added. Compared with a real OAP
//! 10.4.0, see `testdata/skywalking`.

use std::borrow::Cow;

use access_log::{Entry, Named, Protocol, Side, State};
use serde_json::{Map, Value};

use super::graph::{End, Graph, Seen};
use super::kind::Role;

/// The name of the unknown caller of a gateway.
pub(super) const UNKNOWN: &str = "UNKNOWN";

/// How many characters of a service's or instance's name are kept.
pub(super) const NAME_LENGTH: usize = 70;

/// What an entry becomes.
#[derive(Debug, Default)]
pub(super) struct Outcome<'e> {
    pub(super) edges: Vec<Drawn<'e>>,
    /// Notes about entries without an edge, and other facts.
    pub(super) notes: Vec<Cow<'static, str>>,
}

/// An edge drawn for an entry, between the node that logged and a peer.
#[derive(Debug)]
pub(super) struct Drawn<'e> {
    pub(super) seen: Seen,
    /// The peer: the callee if the client logged, else the caller.
    pub(super) peer: End<'e>,
    /// The filter-state key of the peer; `None` for the unknown caller of a
    /// gateway.
    pub(super) key: Option<&'static str>,
}

/// Adds the edges that `SkyWalking` would draw for `entry`.
pub(super) fn record(graph: &mut Graph, entry: &Entry) {
    let outcome = read(entry);
    for note in &outcome.notes {
        graph.note(note);
    }
    let local = End::Node(local(entry));
    for drawn in &outcome.edges {
        if let End::NamedBy(_, metadata) = &drawn.peer {
            note_names(graph, entry, metadata);
        }
        match drawn.seen {
            Seen::Client => graph.edge(&local, &drawn.peer, Seen::Client, entry),
            Seen::Server => graph.edge(&drawn.peer, &local, Seen::Server, entry),
        }
    }
}

/// The node that logged: the one in the stream's first message, because later
/// ones are ignored.
pub(super) fn local(entry: &Entry) -> Named<'_> {
    let first = entry.reporter.first();
    Named {
        id: (!first.id.is_empty()).then_some(first.id.as_str()),
        metadata: Cow::Borrowed(&first.metadata),
    }
}

/// What `entry` becomes.
pub(super) fn read(entry: &Entry) -> Outcome<'_> {
    let mut outcome = Outcome::default();
    let role = Role::of_id(local(entry).id);
    outcome.note(match role {
        Role::Sidecar => "role SIDECAR",
        Role::Gateway => "role PROXY",
        Role::Waypoint => "role WAYPOINT",
        Role::None => "role NONE, drawn like a sidecar: only router~ makes a difference",
    });
    if entry.reporter.first.is_some() {
        outcome.note("a node other than that of the stream's first message: the first one counts");
    }
    if entry.bare {
        outcome.note("dropped: an entry without common_properties");
        return outcome;
    }
    if entry.startless {
        outcome.note("dropped: an entry without a start time");
        return outcome;
    }
    if entry.state.is_empty() {
        outcome.note(
            "dropped by mx-mesh: an entry without filter state (the next analyser may take it)",
        );
        return outcome;
    }
    for side in [Side::Upstream, Side::Downstream] {
        outcome.peers(entry, side);
    }
    let has = |seen| outcome.edges.iter().any(|drawn| drawn.seen == seen);
    // A connection needs a callee.
    let is_drawn = entry.protocol == Protocol::Http || has(Seen::Client);
    if role == Role::Gateway && !has(Seen::Server) && is_drawn {
        outcome.edges.push(Drawn {
            seen: Seen::Server,
            peer: End::Unknown(UNKNOWN),
            key: None,
        });
    }
    if outcome.edges.is_empty() {
        outcome.note("dropped: filter state without a peer, and not from a gateway");
    } else if entry.intermediate {
        outcome.note(match entry.protocol {
            Protocol::Http => "an entry that is not its stream's last: counted as another call",
            Protocol::Tcp => "an entry of an open connection: its bytes so far are added again",
        });
    }
    outcome
}

impl<'e> Outcome<'e> {
    fn note(&mut self, note: impl Into<Cow<'static, str>>) {
        self.notes.push(note.into());
    }

    /// Adds the peers that both parsers find on that side.
    fn peers(&mut self, entry: &'e Entry, side: Side) {
        let before = self.edges.len();
        for key in [side.peer_key(), side.struct_key()] {
            // The metadata that SkyWalking reads name the node. Its kind comes
            // from all known metadata, because SkyWalking has no kinds.
            let (known, read) = match entry.state.get(key) {
                Some(State::Flat { metadata, .. }) => (entry.peer_at(key, side), as_read(metadata)),
                Some(State::Struct { metadata }) => (entry.peer_at(key, side), metadata.clone()),
                Some(State::Broken {
                    unchecked: Some(metadata),
                    ..
                }) => {
                    let known = Named {
                        id: None,
                        metadata: Cow::Borrowed(metadata),
                    };
                    (Some(known), metadata.clone())
                }
                Some(State::Broken { reason, .. }) => {
                    self.note(format!(
                        "an error in its log, and no edge: {key} is {reason}"
                    ));
                    continue;
                }
                Some(State::Id { .. } | State::Other { .. }) | None => continue,
            };
            let Some(known) = known else { continue };
            self.edges.push(Drawn {
                seen: match side {
                    Side::Upstream => Seen::Client,
                    Side::Downstream => Seen::Server,
                },
                peer: End::NamedBy(known, read),
                key: Some(key),
            });
        }
        if self.edges.len() > before + 1 {
            self.note(format!(
                "counted twice from 10.2 on: {} and {} in one entry",
                side.peer_key(),
                side.struct_key()
            ));
        }
    }
}

/// The fields of a `FlatNode` that `SkyWalking` reads; absent ones count as
/// empty.
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
    let local = &entry.reporter.first().metadata;
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
