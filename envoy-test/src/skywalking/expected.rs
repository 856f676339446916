//! What a run has made, and what is to be drawn of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use hyper::StatusCode;

use super::drawn::{Calls, Edge, Sides};
use crate::mesh::Mesh;

/// A story's part of the table: an edge that is to be drawn, or must not be.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    pub(super) story: &'static str,
    pub(super) made: Sides,
    /// Nothing if it must not be drawn at all.
    pub(super) drawn: Option<Sides>,
    /// Why it is drawn otherwise than it was made.
    pub(super) why: &'static str,
}

/// All that is to be drawn.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) edges: BTreeMap<Edge, Expectation>,
    pub(super) instances: BTreeMap<String, BTreeSet<String>>,
    pub(super) endpoints: BTreeMap<String, BTreeSet<String>>,
}

impl Expected {
    /// Calls that are drawn as they were made.
    pub(super) fn edge(&mut self, story: &'static str, from: &str, to: &str, made: Sides) {
        self.insert(story, from, to, made, Some(made), "");
    }

    /// Calls that are drawn otherwise, and why.
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

    /// The service has these instances.
    pub(super) fn instances<const N: usize>(&mut self, service: &str, instances: [&str; N]) {
        let instances = instances.map(str::to_owned);
        self.instances.insert(service.to_owned(), instances.into());
    }

    /// The service has these endpoints.
    pub(super) fn endpoints<const N: usize>(&mut self, service: &str, endpoints: [&str; N]) {
        let endpoints = endpoints.map(str::to_owned);
        self.endpoints.insert(service.to_owned(), endpoints.into());
    }
}

/// The calls of one workload to another, as they are made.
#[derive(Clone, Debug, Default)]
pub(super) struct Made {
    statuses: Vec<StatusCode>,
}

impl Made {
    /// One call for each path.
    pub(super) async fn calls(mesh: &Mesh, from: &str, to: &str, paths: &[&str]) -> Result<Self> {
        let mut made = Self::default();
        for path in paths {
            let reply = mesh.call(from, to)?.path(path).send().await?;
            made.statuses.push(reply.status);
        }
        Ok(made)
    }

    /// A call that was answered so.
    pub(super) fn add(&mut self, status: StatusCode) {
        self.statuses.push(status);
    }

    /// As the caller's side counts: an answer of 400 and more is a failure.
    pub(super) fn client(&self) -> Calls {
        self.failing_at(400)
    }

    /// As the callee's side counts: an answer of 500 and more is a failure.
    pub(super) fn server(&self) -> Calls {
        self.failing_at(500)
    }

    /// As both sides count.
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
