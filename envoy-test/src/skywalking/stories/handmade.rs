//! Handmade entries, which `mxctl topology --as skywalking` is compared on: both generations of
//! keys, broken peers, connections, and streams that name another node later.

use anyhow::{Context as _, Result};
use mxctl::topology::TallyView;

use super::Stage;
use crate::repository;
use crate::skywalking::drawn::{Calls, Sides};
use crate::skywalking::recording::Recording;

/// The stream of the case whose name contains a NUL: `PostgreSQL` rejects such a text, and
/// everything in the same batch.
const NUL: u64 = 94;

pub(super) async fn send(stage: &mut Stage<'_>) -> Result<()> {
    let cases = repository("testdata/skywalking/cases.jsonl");
    let cases = Recording::read(&cases)?.without(NUL).now()?;
    let read = cases.as_read().await?;
    cases.send(stage.lab.logs_to()).await?;
    let name = |number: usize| {
        let workload = read.workloads.get(number);
        Ok::<_, anyhow::Error>(workload.context("an edge to no workload")?.name.as_str())
    };
    for edge in &read.edges {
        let sides = Sides {
            client: calls(edge.client.as_ref()),
            server: calls(edge.server.as_ref()),
        };
        let (from, to) = (name(edge.from)?, name(edge.to)?);
        stage.expected.edge("handmade", from, to, sides);
    }
    Ok(())
}

fn calls(tally: Option<&TallyView>) -> Calls {
    let Some(tally) = tally else {
        return Calls::default();
    };
    let rate = tally.success_rate.unwrap_or_default();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss
    )] // The calls are few.
    let succeeded = (tally.calls as f64 * rate / 100.0).round() as u64;
    Calls {
        calls: tally.calls,
        succeeded,
    }
}
