//! Why `SkyWalking` draws an edge as it does, or does not draw it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use access_log::{Entry, Protocol};
use anyhow::{Context as _, Error, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::graph::{End, Seen};
use super::skywalking::{self, Drawn, UNKNOWN, local};
use crate::escape::visible;
use crate::naming::Naming;
use crate::render::bytes;

/// The most distinct reasons that are kept.
const MAX_REASONS: usize = 100;

/// Caller and callee, by the names that `SkyWalking` gives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// The caller.
    pub caller: String,
    /// The callee.
    pub callee: String,
}

impl FromStr for Question {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (caller, callee) = text.split_once("->").context(
            "write the edge as CALLER->CALLEE, for example shop.boutique->stock.boutique",
        )?;
        let [caller, callee] = [caller, callee].map(|name| name.trim().to_owned());
        ensure!(
            !caller.is_empty() && !callee.is_empty(),
            "write the edge as CALLER->CALLEE: one of them is empty"
        );
        Ok(Self { caller, callee })
    }
}

/// Collects what entries say about an edge.
#[derive(Debug)]
pub struct Explanation {
    question: Question,
    naming: Naming,
    drawn: Sides,
    reasons: BTreeMap<(About, String), u64>,
    further: u64,
}

/// What a reason is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum About {
    /// Calls of the edge.
    Drawn,
    /// Entries that may have been such calls.
    #[serde(rename = "missing")]
    NotCounted,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sides {
    client: Count,
    server: Count,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Count {
    calls: u64,
    connections: u64,
    received_bytes: u64,
    sent_bytes: u64,
    /// Calls without a response, which count as success.
    code_0: u64,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The edge.
    pub edge: Question,
    /// Whether it is drawn.
    pub drawn: bool,
    /// The reasons, each with the number of entries.
    pub reasons: Vec<Reason>,
    /// Consequences for `SkyWalking`'s screens.
    pub notes: Vec<String>,
}

/// Why an entry counts for the edge, or does not.
#[derive(Clone, Debug, Serialize)]
pub struct Reason {
    about: About,
    /// How many entries.
    pub entries: u64,
    /// Why.
    pub why: String,
}

impl Explanation {
    /// An explanation without entries so far.
    #[must_use]
    pub fn new(question: Question, naming: Naming) -> Self {
        Self {
            question,
            naming: naming.cut_to(skywalking::NAME_LENGTH),
            drawn: Sides::default(),
            reasons: BTreeMap::new(),
            further: 0,
        }
    }

    /// Adds an entry.
    pub fn record(&mut self, entry: &Entry) {
        let outcome = skywalking::read(entry);
        let local_name = self.naming.service(&local(entry).metadata);
        let Question { caller, callee } = self.question.clone();
        for drawn in &outcome.edges {
            let other = self.name(&drawn.peer);
            let [from, to] = match drawn.seen {
                Seen::Client => [&local_name, &other],
                Seen::Server => [&other, &local_name],
            };
            let source = source(entry);
            if (from, to) == (&caller, &callee) {
                self.count(drawn.seen, entry);
                self.add(About::Drawn, self.why_drawn(entry, drawn));
            } else if drawn.seen == Seen::Client && *from == caller {
                let why = self.why_other(drawn, &callee);
                self.add(
                    About::NotCounted,
                    format!("{caller} calls {to}, {why} ({source})"),
                );
            } else if drawn.seen == Seen::Server && *to == callee {
                let why = self.why_other(drawn, &caller);
                self.add(
                    About::NotCounted,
                    format!("{callee} is called by {from}, {why} ({source})"),
                );
            } else if is_namesake(&local_name, &caller) || is_namesake(&local_name, &callee) {
                let named_by = self.naming.named_by(&local(entry).metadata);
                self.add(
                    About::NotCounted,
                    format!("a node is named {local_name}, by {named_by} ({source})"),
                );
            }
        }
        if outcome.edges.is_empty() && (local_name == caller || local_name == callee) {
            let why = outcome.notes.last().map_or("", |note| note.as_ref());
            let to = match entry.upstream_cluster.as_str() {
                "" => String::new(),
                cluster => format!(" to cluster {cluster}"),
            };
            let flags = entry.flags.join(",");
            let status = match entry.protocol {
                Protocol::Http => format!("{} {flags}", entry.status),
                Protocol::Tcp => format!("TCP {flags}"),
            };
            let why = format!(
                "{local_name} has logged{to}, {}: {why} ({})",
                status.trim(),
                source(entry)
            );
            self.add(About::NotCounted, why);
        }
    }

    fn name(&self, end: &End<'_>) -> String {
        match end {
            End::Node(node) => self.naming.service(&node.metadata),
            End::NamedBy(_, metadata) => self.naming.service(metadata),
            // Only of metrics, which are not explained.
            End::Workload(metadata) => self.naming.service(metadata),
            End::Unknown(name) | End::Unresolved(name) => (*name).to_owned(),
        }
    }

    fn count(&mut self, seen: Seen, entry: &Entry) {
        let count = match seen {
            Seen::Client => &mut self.drawn.client,
            Seen::Server => &mut self.drawn.server,
        };
        match entry.protocol {
            Protocol::Tcp => {
                count.connections += 1;
                count.received_bytes = count.received_bytes.saturating_add(entry.received_bytes);
                count.sent_bytes = count.sent_bytes.saturating_add(entry.sent_bytes);
            }
            Protocol::Http => {
                count.calls += 1;
                count.code_0 += u64::from(entry.status == 0);
            }
        }
    }

    fn why_drawn(&self, entry: &Entry, drawn: &Drawn<'_>) -> String {
        let local = local(entry);
        let instance = self.naming.instance(&local.metadata);
        let seen = match drawn.seen {
            Seen::Client => "client",
            Seen::Server => "server",
        };
        let local_by = self.naming.named_by(&local.metadata);
        let Some(key) = drawn.key else {
            return format!(
                "{seen}: a gateway's entry without a caller counts as {UNKNOWN} ({})",
                source(entry)
            );
        };
        let (peer_by, is_self) = match &drawn.peer {
            End::NamedBy(_, metadata) => (
                self.naming.named_by(metadata),
                self.naming.instance(metadata) == instance,
            ),
            _ => (String::new(), false),
        };
        let local_node = if is_self && self.question.caller == self.question.callee {
            "; the peer is the local node, as with record_local_node"
        } else {
            ""
        };
        let midst = match entry.protocol {
            _ if !entry.intermediate => "",
            Protocol::Http => "; an entry in mid-stream counts as another call",
            Protocol::Tcp => "; the bytes of an open connection are added again",
        };
        format!(
            "{seen}: {key}, its service named by {peer_by}; the local one by {local_by} ({} of \
             {instance}){local_node}{midst}",
            source(entry)
        )
    }

    /// Why an edge leads to a workload other than `wanted`.
    fn why_other(&self, drawn: &Drawn<'_>, wanted: &str) -> String {
        let End::NamedBy(_, metadata) = &drawn.peer else {
            return "because the entry names no caller, and a gateway's entry counts even so"
                .to_owned();
        };
        let name = self.name(&drawn.peer);
        let by = self.naming.named_by(metadata);
        let key = drawn.key.unwrap_or_default();
        if is_namesake(&name, wanted) {
            format!("because its {key} is named by {by}: no label there names a service")
        } else {
            format!("by its {key}")
        }
    }

    fn add(&mut self, about: About, why: String) {
        let key = (about, why);
        if let Some(count) = self.reasons.get_mut(&key) {
            *count += 1;
        } else if self.reasons.len() < MAX_REASONS {
            self.reasons.insert(key, 1);
        } else {
            self.further += 1;
        }
    }

    /// The explanation from the entries so far.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let reason = |((about, why), entries): (&(About, String), &u64)| Reason {
            about: *about,
            entries: *entries,
            why: why.clone(),
        };
        let mut reasons: Vec<_> = self.reasons.iter().map(reason).collect();
        reasons.sort_by_key(|reason| (reason.about, std::cmp::Reverse(reason.entries)));
        Answer {
            edge: self.question.clone(),
            drawn: self.is_drawn(),
            reasons,
            notes: self.notes(),
        }
    }

    fn is_drawn(&self) -> bool {
        let Sides { client, server } = self.drawn;
        [client, server]
            .iter()
            .any(|side| side.calls + side.connections > 0)
    }

    fn notes(&self) -> Vec<String> {
        let Question { caller, callee } = &self.question;
        let Sides { client, server } = self.drawn;
        let mut notes = Vec::new();
        let mut note = |applies: bool, text: String| notes.extend(applies.then_some(text));
        if self.is_drawn() {
            let seen = |side: Count| side.calls + side.connections > 0;
            note(
                !seen(server),
                format!(
                    "no proxy of {callee} has reported it: SkyWalking lists {callee}, and shows \
                     the edge in the topology of the layer MESH, only if other edges lead there"
                ),
            );
            note(
                !seen(client),
                format!("no proxy of {caller} has reported it, or none has named {callee}"),
            );
            for (whose, side) in [("client", client), ("server", server)] {
                note(
                    side.connections > 0,
                    format!(
                        "{whose}: {} of connections have {} received and {} sent, but no calls and \
                         no success rate",
                        entries(side.connections),
                        bytes(side.received_bytes),
                        bytes(side.sent_bytes)
                    ),
                );
            }
            let code_0 = client.code_0 + server.code_0;
            note(
                code_0 > 0,
                format!("{code_0} calls without a response (code 0, as with DC) count as success"),
            );
        } else {
            note(
                self.reasons.is_empty(),
                format!(
                    "no entry was logged by a proxy that SkyWalking names {caller} or {callee}"
                ),
            );
        }
        note(
            self.further > 0,
            format!("{} entries have further reasons", self.further),
        );
        notes
    }
}

/// Whether `name` is a nameless service in the namespace of `wanted`.
fn is_namesake(name: &str, wanted: &str) -> bool {
    let namespace = |name: &str| {
        name.split_once('.')
            .map(|(_, namespace)| namespace.to_owned())
    };
    name != wanted && name.starts_with("-.") && namespace(name) == namespace(wanted)
}

fn entries(count: u64) -> String {
    let word = if count == 1 { "entry" } else { "entries" };
    format!("{count} {word}")
}

/// The log of an entry.
fn source(entry: &Entry) -> String {
    let first = entry.reporter.first();
    if first.log.is_empty() {
        let name = |metadata: &Value| metadata["NAME"].as_str().map(str::to_owned);
        return format!("log of {}", name(&first.metadata).unwrap_or_default());
    }
    format!("log {}", first.log)
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Question { caller, callee } = &self.edge;
        let draws = if self.drawn { "draws" } else { "does not draw" };
        writeln!(
            f,
            "SkyWalking {draws} {} -> {}",
            visible(caller),
            visible(callee)
        )?;
        for about in [About::Drawn, About::NotCounted] {
            let reasons = self.reasons.iter().filter(|reason| reason.about == about);
            let mut reasons = reasons.peekable();
            if reasons.peek().is_some() {
                let head = match about {
                    About::Drawn => "counted:",
                    About::NotCounted => "not counted, though possibly the same call:",
                };
                writeln!(f, "{head}")?;
            }
            for Reason { entries, why, .. } in reasons {
                writeln!(f, "  {entries} x {}", visible(why))?;
            }
        }
        for note in &self.notes {
            writeln!(f, "{}", visible(note))?;
        }
        Ok(())
    }
}
