//! What the first request of a peer costs, against those that follow.

use std::sync::Arc;

use anyhow::Result;
use envoy_test::Direction;

use super::lane::{Headers, Kind, always, header_map};
use super::sidecar::{Apps, Setup, Sidecar};
use super::turns::{Turn, take};
use crate::bench::Bench;
use crate::report::{Cell, Table};
use crate::sample::{USUAL_LABELS, headers, pod};
use crate::statistics::{Spread, differences};

const STARTS: usize = 6;
const ROUNDS_OF_A_START: usize = 10;
const REQUESTS: usize = 2_000;

pub(crate) async fn run(bench: &mut Bench) -> Result<()> {
    let known = always(&headers(&pod("productpage-v1", USUAL_LABELS)?))?;
    // Every request of a peer of its own.
    let strangers: Headers =
        Arc::new(|number| header_map(&headers(&pod(&format!("stranger-{number}"), USUAL_LABELS)?)));
    let cases = [
        ("none", Setup::none(), &known),
        ("filter, peer known", Setup::filter(bench), &known),
        ("filter, peer new", Setup::filter(bench), &strangers),
    ];
    let apps = Apps::start().await?;
    let mut all = vec![Vec::new(); cases.len()];
    let starts = bench.scaled(STARTS);
    for start in 1..=starts {
        bench.progress(format_args!("start {start} of {starts}"));
        let mut sidecars = Vec::new();
        for (_, setup, _) in &cases {
            sidecars.push(Sidecar::start(&bench.lab, setup, &apps, 1).await?);
        }
        let turn = |(sidecar, (_, _, headers)): (_, &(_, _, &Headers))| Turn {
            sidecar,
            direction: Direction::Inbound,
            kind: Kind::Small,
            headers: Headers::clone(headers),
        };
        let turns = sidecars.iter().zip(&cases).map(turn).collect();
        let times = take(
            turns,
            bench.rounds(ROUNDS_OF_A_START),
            bench.scaled(REQUESTS),
        )
        .await?;
        for (all, new) in all.iter_mut().zip(times) {
            all.extend(new);
        }
    }
    let added = |case: usize| differences(&all[case], &all[0]);
    let rows = cases.iter().enumerate().map(|(case, (name, _, _))| {
        let ratio = || Spread::of_ratio(&added(case), &added(1)).into();
        vec![
            (*name).into(),
            Spread::of(&all[case]).into(),
            if case == 0 {
                Cell::None
            } else {
                Spread::of(&added(case)).into()
            },
            if case > 1 { ratio() } else { Cell::None },
        ]
    });
    let rows = rows.collect();
    bench.add_table(Table {
        name: "first-request",
        about: "Envoy's processor time per inbound request when every request has a peer of its own, five labels each, \
                against requests of one peer: median and quartiles, ratio with its 95 % interval",
        columns: &[
            "case",
            "CPU per request, us",
            "added, us",
            "added / added when known",
        ],
        rows,
    });
    Ok(())
}
