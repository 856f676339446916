//! TCP through the network filter of two sidecars, with real servers and with random bytes.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use envoy_test::tcp::soak::{self, Options};
use envoy_test::tcp::{Route, Server, matrix, sidecar};
use envoy_test::{Entry, Envoy, Lab, Node};

mod ends;
mod failures;
mod held;
mod misplaced;
mod names;
mod rollout;
mod split;

/// A listener and its cluster, where one is enough.
const LINK: &str = "link";

/// The labs themselves.
mod without_filter {
    use super::{Lab, Result};

    envoy_test::stories!(every_query_is_answered, every_byte_arrives);

    async fn every_query_is_answered(lab: &Lab) -> Result<()> {
        super::queries(lab, false).await
    }

    async fn every_byte_arrives(lab: &Lab) -> Result<()> {
        super::random_bytes(lab, 100_000_000, false).await
    }
}

mod with_filter {
    use super::{Lab, Result};

    envoy_test::stories!(
        every_query_is_answered_and_both_sides_are_named,
        every_byte_arrives_and_both_sides_are_named,
    );

    async fn every_query_is_answered_and_both_sides_are_named(lab: &Lab) -> Result<()> {
        super::queries(lab, true).await
    }

    async fn every_byte_arrives_and_both_sides_are_named(lab: &Lab) -> Result<()> {
        super::random_bytes(lab, 500_000_000, true).await
    }
}

async fn queries(lab: &Lab, with_filter: bool) -> Result<()> {
    let report = matrix::run(lab, &Server::ALL, &[with_filter], |_| {}).await?;
    println!("{report}");
    ensure!(
        report.skipped.is_empty() || std::env::var_os("NO_SKIPPING").is_none(),
        "skipped: {:?}",
        report.skipped
    );
    let run = Server::ALL.len() - report.skipped.len();
    assert_eq!(report.rows.len(), 2 * run);
    assert_eq!(report.faults(), [""; 0]);
    Ok(())
}

async fn random_bytes(lab: &Lab, bytes: u64, with_filter: bool) -> Result<()> {
    let options = Options {
        bytes,
        with_filter,
        ..Options::default()
    };
    let report = soak::run(lab, options, |_| {}).await?;
    println!("{report}");
    assert_eq!(report.faults(), [""; 0]);
    Ok(())
}

/// A sidecar with one listener.
async fn start_sidecar(lab: &Lab, node: &Node, route: Route) -> Result<Envoy> {
    lab.start_envoy(&sidecar(lab, node, &[route])).await
}

/// The entry of the connection `number` of a listener.
async fn entry(lab: &Lab, listener: &str, number: usize) -> Result<Arc<Entry>> {
    let of_listener = |entry: &Entry| entry.reporter.log == listener;
    let entries = lab
        .collector()
        .wait_for(listener, number + 1, of_listener)
        .await?;
    entries.get(number).cloned().context("waited for")
}
