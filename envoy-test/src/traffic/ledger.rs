//! Checks every reply and every entry against its request, with one bit of
//! memory per request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{Message, Plan};
use crate::collector::{Entry, Side};
use crate::node::Node;
use crate::peer::decode_header;

/// How many mismatches are kept as text; all are counted.
const EXAMPLES: usize = 10;

/// The ledger of a run: it hands out numbered requests, and checks replies and
/// entries.
#[derive(Debug)]
pub struct Ledger {
    plan: Plan,
    /// The node of the callee, whose proxy answers.
    node: Node,
    /// The callee's metadata on the wire, once seen and found correct.
    answer: OnceLock<Vec<u8>>,
    limit: u64,
    next: AtomicU64,
    stopped: AtomicBool,
    unanswered: AtomicU64,
    entries: AtomicU64,
    /// One bit per request: whether it is in the access log.
    logged: Vec<AtomicU64>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    statuses: BTreeMap<u16, u64>,
    mismatches: u64,
    examples: Vec<String>,
}

/// The state of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Requests sent.
    pub requests: u64,
    /// Replies by status, all of them checked.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests whose connection ended before the reply.
    pub unanswered: u64,
    /// Access-log entries, all of them checked.
    pub entries: u64,
    /// Requests without an entry.
    pub unlogged: u64,
    /// Replies and entries that differ from what is expected.
    pub mismatches: u64,
    /// Some of these.
    pub examples: Vec<String>,
}

/// The parts of a reply that concern the exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'r> {
    pub(super) status: u16,
    pub(super) metadata: Option<&'r [u8]>,
    pub(super) id: Option<&'r [u8]>,
}

impl Ledger {
    /// A ledger for at most `limit` requests of `plan` to the workload of
    /// `node`.
    #[must_use]
    pub fn new(plan: Plan, node: Node, limit: u64) -> Self {
        let words = limit.div_ceil(64);
        Self {
            plan,
            node,
            answer: OnceLock::new(),
            limit,
            next: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            unanswered: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            logged: (0..words).map(|_| AtomicU64::new(0)).collect(),
            kept: Mutex::default(),
        }
    }

    /// The plan of requests.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Hands out no further requests.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The state so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let requests = self.requests();
        let words = self.logged.iter();
        let logged: u64 = words
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum();
        let kept = self.kept();
        Summary {
            requests,
            statuses: kept.statuses.clone(),
            unanswered: self.unanswered.load(Ordering::Relaxed),
            entries: self.entries(),
            unlogged: requests - logged,
            mismatches: kept.mismatches,
            examples: kept.examples.clone(),
        }
    }

    /// Requests sent so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.next.load(Ordering::Relaxed).min(self.limit)
    }

    /// Entries seen so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// What the filter must have counted.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.plan.counts(self.requests())
    }

    /// Checks an entry.
    pub fn check_entry(&self, entry: &Entry) {
        if let Err(error) = self.entry(entry) {
            self.mismatch(&format!("entry of request {}: {error:#}", entry.call()));
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    /// The next request, if there is one.
    pub(super) fn take(&self) -> Option<(u64, &Message)> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.limit).then(|| (number, self.plan.message(number)))
    }

    pub(super) fn unanswered(&self, requests: u64) {
        self.unanswered.fetch_add(requests, Ordering::Relaxed);
    }

    pub(super) fn check_reply(&self, number: u64, reply: Reply<'_>) {
        *self.kept().statuses.entry(reply.status).or_default() += 1;
        let message = self.plan.message(number);
        if let Err(error) = self.reply(message, reply) {
            self.mismatch(&format!(
                "reply to request {number}, {}: {error:#}",
                message.kind
            ));
        }
    }

    fn reply(&self, message: &Message, reply: Reply<'_>) -> Result<()> {
        let Message { expected, .. } = message;
        ensure!(
            reply.metadata.is_some() == expected.peer.is_some(),
            "metadata {:?} were answered",
            reply.metadata
        );
        let id = expected.id.as_ref().map(|_| self.node.id.as_bytes());
        ensure!(reply.id == id, "id {:?} was answered", reply.id);
        let Some(metadata) = reply.metadata else {
            return Ok(());
        };
        if self.answer.get().is_none() {
            self.check_answer(metadata)?;
            // Another reply may have been first, with the same or other bytes.
            let _is_first = self.answer.set(metadata.to_vec());
        }
        ensure!(
            self.answer.get().is_some_and(|answer| answer == metadata),
            "other metadata were answered"
        );
        Ok(())
    }

    fn check_answer(&self, metadata: &[u8]) -> Result<()> {
        let peer = decode_header(metadata)?;
        ensure!(peer == self.node.as_peer(), "{peer} was answered");
        Ok(())
    }

    fn entry(&self, entry: &Entry) -> Result<()> {
        let number: u64 = entry.call().parse().context("no number")?;
        ensure!(number < self.requests(), "never sent");
        let message = self.plan.message(number);
        self.note_logged(number)?;
        check_peer(entry, message).context(message.kind)
    }

    fn note_logged(&self, number: u64) -> Result<()> {
        let bit = 1 << (number % 64);
        let word = usize::try_from(number / 64)?;
        let before = self.logged[word].fetch_or(bit, Ordering::Relaxed);
        ensure!(before & bit == 0, "a second entry");
        Ok(())
    }

    fn mismatch(&self, fault: &str) {
        let mut kept = self.kept();
        kept.mismatches += 1;
        if kept.examples.len() < EXAMPLES {
            kept.examples.push(fault.to_owned());
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks that the entry names the caller that sent `message`, and no other.
fn check_peer(entry: &Entry, message: &Message) -> Result<()> {
    let Message { expected, .. } = message;
    let peer = entry.peer(Side::Downstream)?;
    let sent = expected.peer.as_ref();
    ensure!(peer == sent, "names {peer:?}");
    let id = entry.id(Side::Downstream)?.map(str::as_bytes);
    let sent = expected.id.as_deref().filter(|_| sent.is_some());
    ensure!(id == sent, "names the id {id:?}");
    ensure!(
        entry.peer(Side::Upstream)?.is_none(),
        "names an upstream peer"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use access_log::State;
    use serde_json::json;

    use super::*;
    use crate::client::CALL;
    use crate::peer;
    use crate::traffic::callers;

    /// A ledger of one caller with an id, whose only request was sent.
    fn ledger() -> Ledger {
        let caller = callers::peer(5, 0);
        let message = Message::of("steady", &caller, Some(&callers::id(5)));
        let plan = Plan {
            seed: 0,
            callers: vec![vec![message]],
        };
        let ledger = Ledger::new(plan, Node::vm_server().unwrap(), 10);
        assert!(ledger.take().is_some());
        ledger
    }

    fn entry(call: &str, peer: usize, id: usize) -> Entry {
        let state = [named(Side::Downstream, peer), with_id(id)];
        logged(call, state)
    }

    fn named(side: Side, peer: usize) -> (String, State) {
        let metadata = callers::peer(peer, 0);
        let state = State::Flat { metadata, bytes: 1 };
        (side.peer_key().to_owned(), state)
    }

    fn with_id(id: usize) -> (String, State) {
        let id = callers::id(id);
        (Side::Downstream.id_key().to_owned(), State::Id { id })
    }

    fn logged<const N: usize>(call: &str, state: [(String, State); N]) -> Entry {
        let line = json!({
            "version": 1, "reporter": {}, "protocol": "http", "status": 200,
            "request_headers": { CALL: call },
            "state": BTreeMap::from(state),
        });
        access_log::Entry::of_line(&line.to_string())
            .unwrap()
            .into()
    }

    #[test]
    fn the_callers_entry_is_right() {
        let ledger = ledger();
        assert_eq!(ledger.summary().unlogged, 1);
        ledger.check_entry(&entry("0", 5, 5));
        let summary = ledger.summary();
        assert_eq!(
            (summary.entries, summary.unlogged, summary.mismatches),
            (1, 0, 0)
        );
    }

    #[test]
    fn any_other_entry_is_wrong() {
        for entry in [
            entry("0", 6, 5),
            entry("0", 5, 6),
            entry("1", 5, 5),
            entry("", 5, 5),
            logged("0", []),
            logged("0", [with_id(5)]),
            logged("0", [named(Side::Upstream, 5), with_id(5)]),
        ] {
            let ledger = ledger();
            ledger.check_entry(&entry);
            assert_eq!(ledger.summary().mismatches, 1, "{entry:?}");
        }
    }

    #[test]
    fn a_second_entry_is_wrong() {
        let ledger = ledger();
        ledger.check_entry(&entry("0", 5, 5));
        ledger.check_entry(&entry("0", 5, 5));
        assert_eq!(ledger.summary().mismatches, 1);
    }

    #[test]
    fn replies_match_what_was_received() {
        let other = peer::header(&callers::peer(6, 0));
        let id = Node::vm_server().unwrap().id;
        for (metadata, id) in [
            (None, Some(id.as_str())),
            (None, None),
            (Some(other.as_str()), Some(id.as_str())),
        ] {
            let ledger = ledger();
            let reply = Reply {
                status: 200,
                metadata: metadata.map(str::as_bytes),
                id: id.map(str::as_bytes),
            };
            ledger.check_reply(0, reply);
            assert_eq!(ledger.summary().mismatches, 1, "{reply:?}");
        }
    }
}
