//! What each consumer of peers costs a request, beside the filter.

use anyhow::Result;
use envoy_test::Direction;
use envoy_test::consumers::cost::Subject;
use envoy_test::consumers::workload;

use super::lane::{Kind, always};
use super::sidecar::{Apps, Sidecar};
use super::turns::{Turn, take};
use crate::bench::Bench;
use crate::report::Table;
use crate::sample::headers;
use crate::statistics::{Spread, differences};

const STARTS: usize = 6;
const ROUNDS_OF_A_START: usize = 40;
const REQUESTS: usize = 400;

const NOTHING: usize = 0;
const FILTER: usize = 1;

pub(crate) async fn run(bench: &mut Bench) -> Result<()> {
    let apps = Apps::start().await?;
    let mut times = vec![Vec::new(); Subject::ALL.len()];
    let starts = bench.scaled(STARTS);
    for start in 1..=starts {
        let mut sidecars = Vec::new();
        for subject in Subject::ALL {
            sidecars.push(Sidecar::with_consumer(&bench.lab, subject, &apps).await?);
        }
        bench.progress(format_args!("start {start} of {starts}"));
        // One that the policy lets in.
        let headers = always(&headers(&workload("checkout", "shop")))?;
        let turn = |sidecar| Turn {
            sidecar,
            direction: Direction::Inbound,
            kind: Kind::Small,
            headers: headers.clone(),
        };
        let turns = sidecars.iter().map(turn).collect();
        let rounds = bench.rounds(ROUNDS_OF_A_START);
        let new = take(turns, rounds, bench.scaled(REQUESTS)).await?;
        for (all, new) in times.iter_mut().zip(new) {
            all.extend(new);
        }
    }
    let filter = differences(&times[FILTER], &times[NOTHING]);
    let rows = Subject::ALL.into_iter().enumerate().skip(FILTER);
    let rows = rows.map(|(number, subject)| {
        let before = if number == FILTER { NOTHING } else { FILTER };
        let added = differences(&times[number], &times[before]);
        vec![
            subject.name().as_str().into(),
            Spread::of(&times[number]).into(),
            Spread::of(&added).into(),
            Spread::of_ratio(&added, &filter).into(),
        ]
    });
    let rows = rows.collect();
    bench.add_table(Table {
        name: "consumers",
        about: "Envoy's processor time per inbound request over HTTP/1.1 without TLS with each consumer of examples/: in all, \
                what the consumer adds to the filter alone (the filter, to none), and how many times what the filter adds \
                that is, with its 95 % interval",
        columns: &["consumer", "in all, us", "added, us", "added / filter"],
        rows,
    });
    Ok(())
}
