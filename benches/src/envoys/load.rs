//! What a request costs Envoy without filter, with a module that does nothing, with ones that make the host calls of
//! the filter and of the C++ plugin and nothing else, and with the filter.

use anyhow::Result;
use envoy_test::Direction;

use super::calls::Plugin;
use super::lane::{Kind, always};
use super::sidecar::{Apps, Setup, Sidecar};
use super::turns::{Turn, take};
use crate::bench::Bench;
use crate::plot::Chart;
use crate::report::{Cell, Table};
use crate::sample::{USUAL_LABELS, headers, pod};
use crate::statistics::{Spread, differences};

/// Every start is another layout of memory, which moves all that is measured in it.
const STARTS: usize = 6;
/// Many and short, so that what disturbs the machine for longer disturbs all of a round alike.
const ROUNDS_OF_A_START: usize = 40;

const NONE: usize = 0;
const NOOP: usize = 1;

/// A kind of traffic in a direction, and the times of each setup.
struct Case {
    direction: Direction,
    kind: Kind,
    times: Vec<Vec<f64>>,
}

pub(crate) async fn run(bench: &mut Bench) -> Result<()> {
    let mut setups = Setup::all(bench);
    let calls = [("calls", Plugin::Filter), ("C++ calls", Plugin::Cpp)];
    for (name, plugin) in calls.into_iter().rev() {
        setups.insert(NOOP + 1, Setup::calls(name, plugin, bench)?);
    }
    let directions = [Direction::Inbound, Direction::Outbound];
    let mut cases: Vec<Case> = Kind::ALL
        .into_iter()
        .flat_map(|kind| directions.map(|direction| (kind, direction)))
        .map(|(kind, direction)| Case {
            direction,
            kind,
            times: vec![Vec::new(); setups.len()],
        })
        .collect();
    let apps = Apps::start().await?;
    let starts = bench.scaled(STARTS);
    for start in 1..=starts {
        let mut sidecars = Vec::new();
        for setup in &setups {
            sidecars.push(Sidecar::start(&bench.lab, setup, &apps, 1).await?);
        }
        for case in &mut cases {
            bench.progress(format_args!(
                "start {start} of {starts}, {} {}",
                case.kind.name(),
                name_of(case.direction)
            ));
            case.ask(bench, &sidecars).await?;
        }
    }
    add_chart(bench, &setups, &cases)?;
    for other in bench.others() {
        if let Some(table) = comparison(&setups, &cases, &other) {
            bench.add_table(table);
        }
    }
    bench.add_table(Table {
        name: "load",
        about: "Envoy's processor time per request, peer cached, one worker, no access log: median and quartiles of all \
                rounds; what is added to an Envoy without filter; how many times that is what a module adds that does \
                nothing, with its 95 % interval; \"calls\" makes the filter's host calls and nothing else, \"C++ calls\" \
                those of the C++ plugin",
        columns: &[
            "traffic",
            "direction",
            "module",
            "CPU per request, us",
            "added, us",
            "added / added by noop",
        ],
        rows: cases
            .iter()
            .flat_map(|case| case.rows(&setups))
            .collect(),
    });
    Ok(())
}

impl Case {
    async fn ask(&mut self, bench: &Bench, sidecars: &[Sidecar]) -> Result<()> {
        let requests = bench.scaled(match self.kind {
            Kind::Small => 800,
            Kind::Http2 | Kind::Grpc => 400,
            Kind::Large => 10,
        });
        let peer = headers(&pod("productpage-v1", USUAL_LABELS)?);
        let headers = always(match self.direction {
            Direction::Inbound => &peer,
            Direction::Outbound => &[],
        })?;
        let turn = |sidecar| Turn {
            sidecar,
            direction: self.direction,
            kind: self.kind,
            headers: headers.clone(),
        };
        let turns = sidecars.iter().map(turn).collect();
        let times = take(turns, bench.rounds(ROUNDS_OF_A_START), requests).await?;
        for (all, new) in self.times.iter_mut().zip(times) {
            all.extend(new);
        }
        Ok(())
    }

    /// What a setup adds, round by round.
    fn added(&self, setup: usize) -> Vec<f64> {
        differences(&self.times[setup], &self.times[NONE])
    }

    fn rows(&self, setups: &[Setup]) -> Vec<Vec<Cell>> {
        let row = |(number, setup): (usize, &Setup)| {
            let added = self.added(number);
            let ratio = || Spread::of_ratio(&added, &self.added(NOOP)).into();
            vec![
                self.kind.name().into(),
                name_of(self.direction).into(),
                setup.name.as_str().into(),
                Spread::of(&self.times[number]).into(),
                if number == NONE {
                    Cell::None
                } else {
                    Spread::of(&added).into()
                },
                if number > NOOP { ratio() } else { Cell::None },
            ]
        };
        setups.iter().enumerate().map(row).collect()
    }
}

/// What the filter adds, as a multiple of what the module `other` adds: by kind of traffic, and of the sums.
fn comparison(setups: &[Setup], cases: &[Case], other: &str) -> Option<Table> {
    let index_of = |name: &str| setups.iter().position(|setup| setup.name == name);
    let (filter, other) = (index_of("filter")?, index_of(other)?);
    let ratio_of = |new: &[f64], old: &[f64]| -> [Cell; 3] {
        [
            Spread::of(new).into(),
            Spread::of(old).into(),
            Spread::of_ratio(new, old).into(),
        ]
    };
    let row = |kind: &str, direction: &str, figures: [Cell; 3]| {
        let names = [Cell::from(kind), Cell::from(direction)];
        names.into_iter().chain(figures).collect()
    };
    let mut rows: Vec<Vec<Cell>> = cases
        .iter()
        .map(|case| {
            let figures = ratio_of(&case.added(filter), &case.added(other));
            row(case.kind.name(), name_of(case.direction), figures)
        })
        .collect();
    let sum = |setup| {
        let added = cases.iter().map(|case| case.added(setup));
        added.reduce(|sums, added| sums.iter().zip(added).map(|(sum, one)| sum + one).collect())
    };
    rows.push(row("all", "both", ratio_of(&sum(filter)?, &sum(other)?)));
    Some(Table {
        name: "comparison",
        about: "the filter beside the other module, in the same rounds: what each adds to Envoy's processor time per \
                request, median and quartiles, and the ratio with its 95 % interval",
        columns: &[
            "traffic",
            "direction",
            "filter adds, us",
            "other adds, us",
            "filter / other",
        ],
        rows,
    })
}

/// Without the large bodies, beside which the others are too small to be seen.
fn add_chart(bench: &Bench, setups: &[Setup], cases: &[Case]) -> Result<()> {
    let group = |case: &Case| {
        let name = format!("{} {}", case.kind.name(), name_of(case.direction));
        let bars = (NOOP..setups.len()).map(|setup| Spread::of(&case.added(setup)));
        (name, bars.collect())
    };
    let cases = cases.iter().filter(|case| case.kind != Kind::Large);
    bench.add_chart(&Chart::Bars {
        title: "Envoy's processor time per request, over that without filter",
        y: "microseconds added",
        series: setups[NOOP..].iter().map(|one| one.name.clone()).collect(),
        groups: cases.map(group).collect(),
    })
}

fn name_of(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}
