//! The calls that a run has made, and the topology expected from them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use hyper::StatusCode;

use super::drawn::{Bytes, Calls, Edge, Sides};
use crate::mesh::Mesh;

/// A row of the table: an edge that must be drawn, or must not.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    pub(super) story: &'static str,
    pub(super) made: Sides,
    /// `None` if it must not be drawn.
    pub(super) drawn: Option<Sides>,
    /// Why it is drawn differently from the calls that were made.
    pub(super) why: &'static str,
}

/// The whole expected topology.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) edges: BTreeMap<Edge, Expectation>,
    /// The bytes that each side's proxy has seen of connections.
    pub(super) bytes: BTreeMap<Edge, [Bytes; 2]>,
    pub(super) instances: BTreeMap<String, BTreeSet<String>>,
    pub(super) endpoints: BTreeMap<String, BTreeSet<String>>,
}

impl Expected {
    /// Adds calls that are drawn as they were made.
    pub(super) fn edge(&mut self, story: &'static str, from: &str, to: &str, made: Sides) {
        self.insert(story, from, to, made, Some(made), "");
    }

    /// Adds a TCP connection: an edge without calls, with the bytes that the caller's proxy and the callee's have seen.
    pub(super) fn connection(
        &mut self,
        story: &'static str,
        from: &str,
        to: &str,
        bytes: [Bytes; 2],
    ) {
        self.edge(story, from, to, Sides::default());
        self.bytes.insert((from.to_owned(), to.to_owned()), bytes);
    }

    /// Adds calls that are drawn differently, and why.
    pub(super) fn differs(
        &mut self,
        story: &'static str,
        from: &str,
        to: &str,
        (made, drawn): (Sides, Option<Sides>),
        why: &'static str,
    ) {
        self.insert(story, from, to, made, drawn, why);
    }

    fn insert(
        &mut self,
        story: &'static str,
        from: &str,
        to: &str,
        made: Sides,
        drawn: Option<Sides>,
        why: &'static str,
    ) {
        let edge = (from.to_owned(), to.to_owned());
        let expectation = Expectation {
            story,
            made,
            drawn,
            why,
        };
        self.edges.insert(edge, expectation);
    }

    /// Expects these instances of the service.
    pub(super) fn instances<const N: usize>(&mut self, service: &str, instances: [&str; N]) {
        let instances = instances.map(str::to_owned);
        self.instances.insert(service.to_owned(), instances.into());
    }

    /// Expects these endpoints of the service.
    pub(super) fn endpoints<const N: usize>(&mut self, service: &str, endpoints: [&str; N]) {
        let endpoints = endpoints.map(str::to_owned);
        self.endpoints.insert(service.to_owned(), endpoints.into());
    }
}

/// Counts calls from one workload to another as they are made.
#[derive(Clone, Debug, Default)]
pub(super) struct Made {
    statuses: Vec<StatusCode>,
}

impl Made {
    /// Makes one call for each path.
    pub(super) async fn calls(mesh: &Mesh, from: &str, to: &str, paths: &[&str]) -> Result<Self> {
        let mut made = Self::default();
        for path in paths {
            let reply = mesh.call(from, to)?.path(path).send().await?;
            made.statuses.push(reply.status);
        }
        Ok(made)
    }

    /// Adds a call with this status.
    pub(super) fn add(&mut self, status: StatusCode) {
        self.statuses.push(status);
    }

    /// The caller's side: a status of 400 and above is a failure.
    pub(super) fn client(&self) -> Calls {
        self.failing_at(400)
    }

    /// The callee's side: a status of 500 and above is a failure.
    pub(super) fn server(&self) -> Calls {
        self.failing_at(500)
    }

    /// Both sides.
    pub(super) fn sides(&self) -> Sides {
        Sides {
            client: self.client(),
            server: self.server(),
        }
    }

    fn failing_at(&self, failure: u16) -> Calls {
        let statuses = self.statuses.iter();
        let succeeded = statuses.filter(|status| status.as_u16() < failure).count();
        Calls {
            calls: self.statuses.len() as u64,
            succeeded: succeeded as u64,
        }
    }
}
