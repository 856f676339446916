//! How soon Envoy is ready, and how much memory it holds then.

use anyhow::Result;
use envoy_test::Direction;

use super::lane::{Kind, Lanes, always};
use super::sidecar::{Apps, Setup, Sidecar};
use crate::bench::Bench;
use crate::report::{Cell, Table};
use crate::sample::{USUAL_LABELS, headers, pod};
use crate::statistics::{Spread, differences};

const WORKERS: [u32; 3] = [1, 2, 4];
const STARTS: usize = 10;
const MIB: f64 = (1 << 20) as f64;

#[derive(Default)]
struct Starts {
    milliseconds: Vec<f64>,
    mebibytes: Vec<f64>,
}

pub(crate) async fn run(bench: &mut Bench) -> Result<()> {
    let setups = Setup::all(bench);
    let apps = Apps::start().await?;
    let starts = bench.scaled(STARTS);
    let mut rows = Vec::new();
    for workers in WORKERS {
        let mut all: Vec<Starts> = setups.iter().map(|_| Starts::default()).collect();
        for start in 1..=starts {
            bench.progress(format_args!("{workers} workers, start {start} of {starts}"));
            for (setup, all) in setups.iter().zip(&mut all) {
                let sidecar = Sidecar::start(&bench.lab, setup, &apps, workers).await?;
                all.look_at(&sidecar).await?;
            }
        }
        for (number, (setup, one)) in setups.iter().zip(&all).enumerate() {
            let added = |of: fn(&Starts) -> &Vec<f64>| match number {
                0 => Cell::None,
                _ => Spread::of(&differences(of(one), of(&all[0]))).into(),
            };
            rows.push(vec![
                u64::from(workers).into(),
                setup.name.as_str().into(),
                Spread::of(&one.milliseconds).into(),
                added(|starts| &starts.milliseconds),
                Spread::of(&one.mebibytes).into(),
                added(|starts| &starts.mebibytes),
            ]);
        }
    }
    bench.add_table(Table {
        name: "start",
        about: "from the start of Envoy until it is ready, in steps of 10 ms, and its resident memory after 100 requests, by \
                number of workers: median and quartiles",
        columns: &[
            "workers",
            "module",
            "ready after, ms",
            "added, ms",
            "RSS, MiB",
            "added, MiB",
        ],
        rows,
    });
    Ok(())
}

impl Starts {
    async fn look_at(&mut self, sidecar: &Sidecar) -> Result<()> {
        let peer = always(&headers(&pod("productpage-v1", USUAL_LABELS)?))?;
        let to = sidecar.address(Direction::Inbound)?;
        let mut lanes = Lanes::open(to, 4, Kind::Small, peer).await?;
        lanes.send(100).await?;
        let envoy = sidecar.envoy()?;
        let ready_after = envoy.ready_after().as_secs_f64();
        self.milliseconds.push(ready_after * 1e3);
        self.mebibytes
            .push(envoy.resident_bytes().await? as f64 / MIB);
        Ok(())
    }
}
