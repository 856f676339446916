//! The demonstration's report, as text or JSON.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use serde_json::Value;

use crate::collector::Side;
use crate::node::Node;

/// All calls of a demonstration.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Envoy's version.
    pub envoy: String,
    /// The size of the module.
    pub module_bytes: u64,
    /// The calls.
    pub calls: Vec<Call>,
}

/// A call and what the access logs say of it.
#[derive(Debug, Serialize)]
pub struct Call {
    /// What the call shows.
    pub title: String,
    /// The calling workload.
    pub client: String,
    /// The called workload.
    pub server: String,
    /// The status of the response.
    pub status: u16,
    /// One for each access-log entry.
    pub views: Vec<View>,
    /// What the logs lack or have wrong; empty if all is well.
    pub faults: Vec<String>,
    /// How many statements of the logs were compared with a node.
    pub checked: usize,
}

/// One access-log entry.
#[derive(Debug, Serialize)]
pub struct View {
    /// The side that logged it, `client` or `server`.
    pub role: String,
    /// The log's name.
    pub log: String,
    /// The node that logged: the identifier of the log's stream.
    pub local: Party,
    /// The caller in the filter state.
    pub downstream: Option<Party>,
    /// The callee in the filter state.
    pub upstream: Option<Party>,
    /// All filter state of the entry.
    pub keys: Vec<Key>,
}

/// One side of a call.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    /// The node id.
    pub id: Option<String>,
    /// Those of its metadata that are exchanged.
    pub metadata: Value,
}

/// One key of filter state.
#[derive(Debug, Serialize)]
pub struct Key {
    /// The key.
    pub name: String,
    /// The length of its value.
    pub bytes: usize,
}

impl Call {
    /// A call without entries so far.
    #[must_use]
    pub fn new(title: &str, client: &str, server: &str, status: u16) -> Self {
        Self {
            title: title.to_owned(),
            client: client.to_owned(),
            server: server.to_owned(),
            status,
            views: Vec::new(),
            faults: Vec::new(),
            checked: 0,
        }
    }

    /// Notes a fault unless the entry number `view` names `node` on that side.
    pub fn expect(&mut self, view: usize, side: Side, node: &Node) {
        self.checked += 1;
        let expected = Party::of_node(node);
        let seen = self.views.get(view).and_then(|view| view.side(side));
        if seen != Some(&expected) {
            let key = side.peer_key();
            let seen = seen.map_or_else(|| "nobody".to_owned(), Party::headline);
            let expected = expected.headline();
            self.faults
                .push(format!("{key} names {seen} instead of {expected}"));
        }
    }
}

impl View {
    /// A key with the length of its value.
    fn key(&self, name: &str) -> String {
        let key = self.keys.iter().find(|key| key.name == name);
        key.map_or_else(String::new, |key| format!("[{name}, {} bytes]", key.bytes))
    }

    fn side(&self, side: Side) -> Option<&Party> {
        match side {
            Side::Downstream => self.downstream.as_ref(),
            Side::Upstream => self.upstream.as_ref(),
        }
    }
}

impl Party {
    /// What others must learn about `node`.
    #[must_use]
    pub fn of_node(node: &Node) -> Self {
        Self {
            id: Some(node.id.clone()),
            metadata: node.as_peer(),
        }
    }

    fn text(&self, key: &str) -> &str {
        self.metadata[key].as_str().unwrap_or("-")
    }

    fn headline(&self) -> String {
        let (name, namespace) = (self.text("NAME"), self.text("NAMESPACE"));
        let workload = self.text("WORKLOAD_NAME");
        format!("{name}.{namespace}, workload {workload}")
    }

    /// The labels in lines of a readable width.
    fn labels(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (key, value) in self.metadata["LABELS"].as_object().into_iter().flatten() {
            let label = format!("{key}={}", value.as_str().unwrap_or_default());
            match lines.last_mut() {
                Some(line) if line.len() + label.len() < LABELS_WIDTH => {
                    line.push_str("  ");
                    line.push_str(&label);
                }
                _ => lines.push(label),
            }
        }
        lines
    }
}

const LABELS_WIDTH: usize = 84;

impl Report {
    /// What the logs lack or have wrong; empty if all is well.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        self.calls
            .iter()
            .flat_map(|call| call.faults.iter().map(String::as_str))
    }

    /// The report as text, with colours or without.
    #[must_use]
    pub fn human(&self, colour: bool) -> impl Display + '_ {
        Human {
            report: self,
            paint: Paint(colour),
        }
    }
}

struct Human<'r> {
    report: &'r Report,
    paint: Paint,
}

impl Display for Human<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report {
            envoy,
            module_bytes,
            calls,
        } = self.report;
        let title = self.paint.bold("Which workload called which?");
        let kib = module_bytes / 1024;
        writeln!(f, "\n{title}  Envoy {envoy}, module of {kib} KiB")?;
        writeln!(
            f,
            "The client's sidecar and the server's sidecar each log a call. Either log knows its own"
        )?;
        writeln!(
            f,
            "node; the filter adds the peer, which the sidecars sent each other in headers."
        )?;
        for (number, call) in calls.iter().enumerate() {
            self.call(f, number + 1, call)?;
        }
        self.verdict(f)
    }
}

impl Human<'_> {
    fn call(&self, f: &mut Formatter<'_>, number: usize, call: &Call) -> fmt::Result {
        let Call {
            title,
            client,
            server,
            status,
            ..
        } = call;
        let title = self.paint.bold(&format!("{number}  {title}"));
        writeln!(
            f,
            "\n{title}   {client} calls {server}, which answers {status}"
        )?;
        for view in &call.views {
            self.view(f, view)?;
        }
        for fault in &call.faults {
            writeln!(f, "   {}", self.paint.red(&format!("FAULT {fault}")))?;
        }
        Ok(())
    }

    fn view(&self, f: &mut Formatter<'_>, view: &View) -> fmt::Result {
        let View {
            role, log, local, ..
        } = view;
        writeln!(f, "\n   the {role}'s log, {log}")?;
        self.party(f, "local node", local, ["[identifier.node]", ""])?;
        for (what, side) in [("called by", Side::Downstream), ("called", Side::Upstream)] {
            if let Some(peer) = view.side(side) {
                let [key, id_key] = [side.peer_key(), side.id_key()].map(|key| view.key(key));
                self.party(f, what, peer, [&key, &id_key])?;
                self.labels(f, peer)?;
            }
        }
        Ok(())
    }

    /// `from` names the source of the metadata and the id.
    fn party(
        &self,
        f: &mut Formatter<'_>,
        what: &str,
        party: &Party,
        from: [&str; 2],
    ) -> fmt::Result {
        let headline = self.paint.green(&party.headline());
        let id = party.id.as_deref().unwrap_or("no id");
        self.line(f, what, &headline, from[0])?;
        self.line(f, "", id, from[1])
    }

    fn labels(&self, f: &mut Formatter<'_>, party: &Party) -> fmt::Result {
        for labels in party.labels() {
            self.line(f, "", &labels, "")?;
        }
        Ok(())
    }

    fn line(&self, f: &mut Formatter<'_>, what: &str, text: &str, note: &str) -> fmt::Result {
        let note = self.paint.dim(note);
        let line = format!("     {what:<10}  {text}  {note}");
        writeln!(f, "{}", line.trim_end())
    }

    fn verdict(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let calls = &self.report.calls;
        let checked: usize = calls.iter().map(|call| call.checked).sum();
        let faults = self.report.faults().count();
        let count = calls.len();
        let verdict = if faults == 0 {
            self.paint.bold(&format!(
                "Verified: in {count} calls, {checked} names of callers and callees, each with the id and all the\nmetadata that its own node states."
            ))
        } else {
            self.paint.red(&format!(
                "NOT verified: {faults} of {checked} names are missing or wrong."
            ))
        };
        writeln!(f, "\n{verdict}")
    }
}

/// Colours, if the output is for a terminal.
struct Paint(bool);

impl Paint {
    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn red(&self, text: &str) -> String {
        self.with("31", text)
    }

    fn green(&self, text: &str) -> String {
        self.with("32", text)
    }

    fn with(&self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_with(upstream: Option<Party>) -> Call {
        let local = Party::of_node(&Node::pod_client().unwrap());
        let mut call = Call::new("K8s -> VM", "productpage", "ratings", 200);
        call.views.push(View {
            role: "client".to_owned(),
            log: "productpage/outbound".to_owned(),
            local,
            downstream: None,
            upstream,
            keys: Vec::new(),
        });
        call
    }

    #[test]
    fn the_expected_peer_is_accepted() {
        let server = Node::vm_server().unwrap();
        let mut call = call_with(Some(Party::of_node(&server)));
        call.expect(0, Side::Upstream, &server);
        assert_eq!(call.faults, [""; 0]);
    }

    #[test]
    fn a_missing_peer_is_a_fault() {
        let mut call = call_with(None);
        call.expect(0, Side::Upstream, &Node::vm_server().unwrap());
        let fault =
            "wasm.upstream_peer names nobody instead of ratings-v1-vm.default, workload ratings-v1";
        assert_eq!(call.faults, [fault]);
    }

    #[test]
    fn a_peer_with_another_label_is_a_fault() {
        let server = Node::vm_server().unwrap();
        let other = server
            .clone()
            .with("LABELS", serde_json::json!({ "app": "other" }));
        let mut call = call_with(Some(Party::of_node(&other)));
        call.expect(0, Side::Upstream, &server);
        assert_eq!(call.faults.len(), 1);
    }
}
