//! What it costs every request that Envoy enters the VM once more, when the stream is logged.

use anyhow::{Result, ensure};
use envoy_test::Direction;

use super::lane::{Kind, always};
use super::sidecar::{Apps, Setup, Sidecar};
use super::turns::{Turn, take};
use crate::bench::Bench;
use crate::report::Table;
use crate::sample::{USUAL_LABELS, headers, pod};
use crate::statistics::{Spread, differences};

const STARTS: usize = 6;
const ROUNDS_OF_A_START: usize = 60;
const REQUESTS: usize = 800;

const NONE: usize = 0;
const WITHOUT: usize = 1;
const WITH: usize = 2;

/// The callback, and a name of the same length that Envoy does not look for.
const CALLBACK: &[u8] = b"proxy_on_log";
const NO_CALLBACK: &[u8] = b"proxy_no_log";

pub(crate) async fn run(bench: &mut Bench) -> Result<()> {
    let setups = [
        Setup::none(),
        Setup::of_module("filter without proxy_on_log", &without_callback(bench)?),
        Setup::filter(bench),
    ];
    let apps = Apps::start().await?;
    let directions = [Direction::Inbound, Direction::Outbound];
    let mut times = directions.map(|_| vec![Vec::new(); setups.len()]);
    let starts = bench.scaled(STARTS);
    for start in 1..=starts {
        let mut sidecars = Vec::new();
        for setup in &setups {
            sidecars.push(Sidecar::start(&bench.lab, setup, &apps, 1).await?);
        }
        for (direction, times) in directions.into_iter().zip(&mut times) {
            bench.progress(format_args!("start {start} of {starts}, {direction:?}"));
            let peer = headers(&pod("productpage-v1", USUAL_LABELS)?);
            let headers = always(match direction {
                Direction::Inbound => &peer,
                Direction::Outbound => &[],
            })?;
            let turn = |sidecar| Turn {
                sidecar,
                direction,
                kind: Kind::Small,
                headers: headers.clone(),
            };
            let turns = sidecars.iter().map(turn).collect();
            let new = take(
                turns,
                bench.rounds(ROUNDS_OF_A_START),
                bench.scaled(REQUESTS),
            )
            .await?;
            for (all, new) in times.iter_mut().zip(new) {
                all.extend(new);
            }
        }
    }
    let rows = directions
        .into_iter()
        .zip(&times)
        .map(|(direction, times)| {
            let filter = differences(&times[WITHOUT], &times[NONE]);
            let callback = differences(&times[WITH], &times[WITHOUT]);
            vec![
                format!("{direction:?}").to_lowercase().as_str().into(),
                Spread::of(&filter).into(),
                Spread::of(&callback).into(),
                Spread::of_ratio(&callback, &filter).into(),
            ]
        });
    let rows = rows.collect();
    bench.add_table(Table {
        name: "on-log",
        about: "Envoy's processor time per request for the callback proxy_on_log, in which the filter names callees of \
                requests that ended before their response: what the filter adds without it, what the callback adds to \
                that, and how many times the former that is, with its 95 % interval",
        columns: &[
            "direction",
            "added by the filter without it, us",
            "added by the callback, us",
            "callback / filter",
        ],
        rows,
    });
    Ok(())
}

/// Writes the filter's module with the callback under another name, so that Envoy does not call it.
fn without_callback(bench: &Bench) -> Result<std::path::PathBuf> {
    let mut module = std::fs::read(bench.lab.module())?;
    let places: Vec<usize> = module
        .windows(CALLBACK.len())
        .enumerate()
        .filter_map(|(place, bytes)| (bytes == CALLBACK).then_some(place))
        .collect();
    ensure!(
        places.len() == 1,
        "the module has {} exports of that name",
        places.len()
    );
    for place in places {
        module[place..place + NO_CALLBACK.len()].copy_from_slice(NO_CALLBACK);
    }
    let path = bench.lab.dir().join("without-on-log.wasm");
    std::fs::write(&path, module)?;
    Ok(path)
}
