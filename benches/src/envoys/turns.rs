//! Takes turns: every round asks each sidecar once, so that what disturbs the machine disturbs all of them.

use anyhow::Result;
use envoy_test::Direction;

use super::lane::{Headers, Kind, Lanes};
use super::sidecar::Sidecar;

/// How many connections send at a time, one request each.
const CONNECTIONS: usize = 4;

/// What is sent to a sidecar.
pub(crate) struct Turn<'s> {
    pub(crate) sidecar: &'s Sidecar,
    pub(crate) direction: Direction,
    pub(crate) kind: Kind,
    pub(crate) headers: Headers,
}

/// Envoy's processor time per request, in microseconds: for each turn, that of each round.
pub(crate) async fn take(
    turns: Vec<Turn<'_>>,
    rounds: usize,
    requests: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut lanes = Vec::new();
    for turn in &turns {
        let to = turn.sidecar.address(turn.direction)?;
        let headers = Headers::clone(&turn.headers);
        let mut lane = Lanes::open(to, CONNECTIONS, turn.kind, headers).await?;
        // One round goes before, while caches fill.
        lane.send(requests).await?;
        lanes.push(lane);
    }
    let times = in_turns(turns.len(), rounds, async |number| {
        let envoy = turns[number].sidecar.envoy()?;
        let before = envoy.cpu_time().await?;
        lanes[number].send(requests).await?;
        let spent = envoy.cpu_time().await?.saturating_sub(before);
        Ok(spent.as_secs_f64() * 1e6 / requests as f64)
    })
    .await?;
    let sent = ((1 + rounds) * requests) as u64;
    for turn in &turns {
        turn.sidecar.has_stored(turn.direction, sent).await?;
    }
    Ok(times)
}

/// Measures each of `count` once a round, and returns what was measured of each.
pub(crate) async fn in_turns<T>(
    count: usize,
    rounds: usize,
    mut measure: impl AsyncFnMut(usize) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut measured: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for step in 0..count {
            // Who is first changes, too.
            let number = (round + step) % count;
            measured[number].push(measure(number).await?);
        }
    }
    Ok(measured)
}
