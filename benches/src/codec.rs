//! From a header's value to filter state, natively: the filter's codec, and what one would write first from the same
//! parts.

use std::hint::black_box;

use anyhow::{Result, ensure};
use metadata_exchange::cache::KnownPeer;
use metadata_exchange::peer::header::{self, Limits};
use rustix::time::{ClockId, clock_gettime};

use crate::bench::Bench;
use crate::report::Table;
use crate::sample::{LABELS, headers, pod};
use crate::statistics::Spread;

mod straightforward;

/// What the filter makes of a header's value that it does not know.
pub(crate) fn decode(value: &[u8]) -> Result<KnownPeer> {
    let message = header::message(value, Limits::DEFAULT)?;
    let peer = header::peer(&message, Limits::DEFAULT)?;
    Ok(KnownPeer::of(&peer))
}

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let mut rows = Vec::new();
    for labels in LABELS {
        bench.progress(format_args!("{labels} labels"));
        let [(_, value), _] = headers(&pod("productpage-v1", labels)?);
        let value = value.as_bytes();
        let [filter, straightforward] = race(
            bench.scaled(301),
            || decode(value).is_ok(),
            || straightforward::decode(value).is_ok(),
        )?;
        rows.push(vec![
            labels.into(),
            value.len().into(),
            Spread::of(&filter).into(),
            Spread::of(&straightforward).into(),
            Spread::of_ratio(&filter, &straightforward).into(),
        ]);
    }
    bench.add_table(Table {
        name: "codec",
        about: "a header's value to a FlatNode, natively, as processor time in interleaved rounds: the filter, and prost-types, base64 and \
                flatbuffers put together in the straightforward way, which checks less; median and quartiles, ratio \
                with its 95 % interval",
        columns: &[
            "labels",
            "header bytes",
            "filter, CPU us",
            "straightforward, CPU us",
            "filter / straightforward",
        ],
        rows,
    });
    Ok(())
}

/// Microseconds of processor time of each, in each of `rounds` rounds.
fn race(rounds: usize, one: impl Fn() -> bool, other: impl Fn() -> bool) -> Result<[Vec<f64>; 2]> {
    ensure!(one() && other(), "the sample cannot be decoded");
    let repetitions = [repetitions(&one), repetitions(&other)];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        times[0].push(time(repetitions[0], &one));
        times[1].push(time(repetitions[1], &other));
    }
    Ok(times)
}

/// As many as take a millisecond.
fn repetitions(work: &impl Fn() -> bool) -> u32 {
    let mut repetitions = 1;
    while f64::from(repetitions) * time(repetitions, work) < 1_000.0 {
        repetitions *= 2;
    }
    repetitions
}

/// Microseconds of processor time that one of `repetitions` takes.
fn time(repetitions: u32, work: &impl Fn() -> bool) -> f64 {
    let begin = processor_time();
    for _ in 0..repetitions {
        black_box(work());
    }
    (processor_time() - begin) / f64::from(repetitions)
}

/// Of this thread, in microseconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use metadata_exchange::peer::flat;

    #[test]
    fn both_make_the_same_of_every_sample() {
        for labels in LABELS {
            let [(_, value), _] = headers(&pod("any", labels).unwrap());
            let filter = decode(value.as_bytes()).unwrap().flat;
            let straightforward = straightforward::decode(value.as_bytes()).unwrap();
            assert_eq!(
                flat::read(&filter).unwrap(),
                flat::read(&straightforward).unwrap(),
                "{labels} labels"
            );
        }
    }
}
