//! Bytes between two sidecars per request, by Envoy's own count.

use anyhow::{Context as _, Result};
use envoy_test::Mesh;

use super::app::App;
use super::lane::{Kind, Lanes, always};
use super::sidecar::{CALLEE, Setup, workload};
use crate::bench::Bench;
use crate::report::Table;

const CALLER: &str = "caller";
const WARM_UP: usize = 20;
const REQUESTS: usize = 200;

pub(crate) async fn run(bench: &mut Bench) -> Result<()> {
    let app = App::start(&[]).await?;
    let setups = [Setup::none(), Setup::filter(bench)];
    let mut rows = Vec::new();
    for kind in [Kind::Small, Kind::Http2] {
        for setup in &setups {
            bench.progress(format_args!("{}, {}", kind.name(), setup.name));
            let mesh = bench
                .lab
                .start([
                    workload(CALLER, setup)?,
                    workload(CALLEE, setup)?.served_at(app.address),
                ])
                .await?;
            let mut lanes = Lanes::open(mesh.outbound(CALLER)?, 1, kind, always(&[])?).await?;
            lanes.send(1).await?;
            let start = bytes(&mesh).await?;
            lanes.send(1).await?;
            let second = bytes(&mesh).await?;
            lanes.send(WARM_UP).await?;
            let warm = bytes(&mesh).await?;
            lanes.send(REQUESTS).await?;
            let end = bytes(&mesh).await?;
            let [sent, received] =
                [0, 1].map(|way| (end[way] - warm[way]) as f64 / REQUESTS as f64);
            rows.push(vec![
                kind.name().into(),
                setup.name.as_str().into(),
                start[0].into(),
                start[1].into(),
                (second[0] - start[0]).into(),
                (second[1] - start[1]).into(),
                sent.into(),
                received.into(),
            ]);
        }
    }
    bench.add_table(Table {
        name: "wire-bytes",
        about: "bytes between two sidecars, without TLS: those of the first request of a connection, of the second, and \
                of each of 200 on a warm one",
        columns: &[
            "protocol",
            "module",
            "first request",
            "first response",
            "second request",
            "second response",
            "request",
            "response",
        ],
        rows,
    });
    Ok(())
}

/// Sent to the callee's sidecar so far, and received from it.
async fn bytes(mesh: &Mesh) -> Result<[u64; 2]> {
    let stats = mesh.envoy(CALLER)?.stats().await?;
    let bytes = |way: &str| -> Result<u64> {
        let name = format!("cluster.{CALLEE}.upstream_cx_{way}_bytes_total");
        let value = stats.get(&name).copied();
        value.with_context(|| format!("Envoy has no statistic {name}"))
    };
    Ok([bytes("tx")?, bytes("rx")?])
}
