//! What a TCP connection and a megabyte cost two sidecars without network filter, with a module whose callbacks do
//! nothing, and with the filter.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use envoy_test::tcp::{Link, Options, Pair, check_module};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::app::MIB;
use super::turns::in_turns;
use crate::bench::Bench;
use crate::report::{Cell, Table};
use crate::statistics::{Spread, differences};

const STARTS: usize = 3;
const ROUNDS_OF_A_START: usize = 20;
/// How many connections are open at a time.
const LANES: usize = 4;
/// What each sends, and is sent.
const SHORT: [u8; 64] = [b'-'; 64];

const NONE: usize = 0;

/// What Envoy calls of a network filter, and the least that a module answers.
const CALLBACKS: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 0))
    (func (export "proxy_on_context_create") (param i32 i32))
    (func (export "proxy_on_new_connection") (param i32) (result i32) (i32.const 0))
    (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32) (i32.const 0))
    (func (export "proxy_on_upstream_data") (param i32 i32 i32) (result i32) (i32.const 0))
    (func (export "proxy_on_downstream_connection_close") (param i32 i32))
    (func (export "proxy_on_upstream_connection_close") (param i32 i32))
    (func (export "proxy_on_done") (param i32) (result i32) (i32.const 1))
    (func (export "proxy_on_log") (param i32))
    (func (export "proxy_on_delete") (param i32)))"#;

/// What the sidecars run.
struct Setup {
    name: String,
    options: Options,
    is_filter: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// A connection that sends little and is sent little.
    Connection,
    /// A megabyte either way, on a connection that stays.
    Megabyte,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Megabyte => "MiB either way",
        }
    }
}

/// A unit over a link, and what it costs the client's sidecar and the server's in each setup.
struct Case {
    unit: Unit,
    link: &'static str,
    times: Vec<Vec<[f64; 2]>>,
}

/// The links, with whether the sidecars use mutual TLS.
const LINKS: [(&str, bool); 2] = [("plain", false), ("mutual-tls", true)];

pub(crate) async fn run(bench: &mut Bench) -> Result<()> {
    let setups = setups(bench).await?;
    let echo = Echo::start().await?;
    let links = LINKS.map(|(name, is_mutual_tls)| Link {
        name: name.to_owned(),
        is_mutual_tls,
        to: echo.address,
    });
    let mut cases: Vec<Case> = [Unit::Connection, Unit::Megabyte]
        .into_iter()
        .flat_map(|unit| LINKS.map(|(link, _)| (unit, link)))
        .map(|(unit, link)| Case {
            unit,
            link,
            times: vec![Vec::new(); setups.len()],
        })
        .collect();
    let starts = bench.scaled(STARTS);
    for start in 1..=starts {
        let mut pairs = Vec::new();
        for setup in &setups {
            let pair = Pair::start(&bench.lab, "bench", &links, &setup.options).await?;
            pairs.push(pair);
        }
        for case in &mut cases {
            let (unit, link) = (case.unit.name(), case.link);
            bench.progress(format_args!("start {start} of {starts}, {unit} {link}"));
            case.measure(bench, &pairs).await?;
        }
        for (setup, pair) in setups.iter().zip(&pairs) {
            if setup.is_filter {
                let stored = |side| format!("wasmcustom.metadata_exchange.{side}_peer_stored");
                pair.client.counts(&stored("upstream"), 1).await?;
                pair.server.counts(&stored("downstream"), 1).await?;
            }
        }
    }
    bench.add_table(Table {
        name: "tcp",
        about: "the processor time of each sidecar per TCP connection (64 bytes and an answer of as many) and per MiB \
                either way on an open one, one worker, no access log: median and quartiles of all rounds; what is added \
                to an Envoy without filter; how many times it is that of an Envoy without filter, with its 95 % \
                interval; \"callbacks\" is a module whose callbacks do nothing",
        columns: &[
            "of each",
            "between",
            "sidecar",
            "module",
            "CPU, us",
            "added, us",
            "with / without",
        ],
        rows: cases.iter().flat_map(|case| case.rows(&setups)).collect(),
    });
    Ok(())
}

/// No filter first, the callbacks second.
async fn setups(bench: &Bench) -> Result<Vec<Setup>> {
    let setup = |name: &str, module: Option<PathBuf>, with_filter: bool, is_filter: bool| Setup {
        name: name.to_owned(),
        options: Options {
            with_filter,
            module,
            workers: 1,
            log_buffer_bytes: None,
        },
        is_filter,
    };
    let callbacks = bench.lab.dir().join("callbacks.wasm");
    std::fs::write(&callbacks, wat::parse_str(CALLBACKS)?)?;
    let mut setups = vec![
        setup("none", None, false, false),
        setup("callbacks", Some(callbacks), true, false),
    ];
    check_module(&bench.lab).await?;
    let modules = bench.modules().into_iter().filter(|one| !one.is_noop);
    setups.extend(modules.map(|one| {
        let is_filter = one.module == bench.lab.module();
        setup(&one.name, Some(one.module), true, is_filter)
    }));
    Ok(setups)
}

impl Case {
    async fn measure(&mut self, bench: &Bench, pairs: &[Pair]) -> Result<()> {
        let count = bench.scaled(match self.unit {
            Unit::Connection => 200,
            Unit::Megabyte => 40,
        });
        let mut lanes = Vec::new();
        for pair in pairs {
            let mut lane = Lane::open(pair.address(self.link)?).await?;
            // One round goes before.
            lane.send(self.unit, count).await?;
            lanes.push(lane);
        }
        let rounds = bench.rounds(ROUNDS_OF_A_START);
        let times = in_turns(pairs.len(), rounds, async |number| {
            let envoys = [&pairs[number].client, &pairs[number].server];
            let before = [envoys[0].cpu_time().await?, envoys[1].cpu_time().await?];
            lanes[number].send(self.unit, count).await?;
            let mut spent = [0.0; 2];
            for (number, envoy) in envoys.into_iter().enumerate() {
                let time = envoy.cpu_time().await?.saturating_sub(before[number]);
                spent[number] = time.as_secs_f64() * 1e6 / count as f64;
            }
            Ok(spent)
        })
        .await?;
        for (all, new) in self.times.iter_mut().zip(times) {
            all.extend(new);
        }
        Ok(())
    }

    fn rows(&self, setups: &[Setup]) -> Vec<Vec<Cell>> {
        let mut rows = Vec::new();
        for (side, sidecar) in ["client's", "server's"].into_iter().enumerate() {
            let of = |setup: usize| -> Vec<f64> {
                let times = self.times[setup].iter();
                times.map(|both| both[side]).collect()
            };
            let is_more = |setup: &usize| *setup > NONE;
            let added = |setup| {
                let setup = Some(setup).filter(is_more)?;
                Some(differences(&of(setup), &of(NONE)))
            };
            let ratio = |setup| {
                let setup = Some(setup).filter(is_more)?;
                Some(Spread::of_ratio(&of(setup), &of(NONE)))
            };
            for (number, setup) in setups.iter().enumerate() {
                rows.push(vec![
                    self.unit.name().into(),
                    self.link.into(),
                    sidecar.into(),
                    setup.name.as_str().into(),
                    Spread::of(&of(number)).into(),
                    added(number).map_or(Cell::None, |added| Spread::of(&added).into()),
                    ratio(number).map_or(Cell::None, Cell::from),
                ]);
            }
        }
        rows
    }
}

/// Sends every byte back, and closes a connection that begins with [`SHORT`]: who closes first keeps the pair of addresses
/// for a minute, and clients have only some 28,000 ports. It stops with its value.
struct Echo {
    address: SocketAddr,
    server: AbortHandle,
}

impl Echo {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    stream.set_nodelay(true)?;
                    let mut first = SHORT;
                    stream.read_exact(&mut first).await?;
                    stream.write_all(&first).await?;
                    if first == SHORT {
                        return stream.shutdown().await;
                    }
                    let (mut input, mut output) = stream.split();
                    tokio::io::copy(&mut input, &mut output).await?;
                    output.shutdown().await
                });
            }
        });
        Ok(Self {
            address,
            server: server.abort_handle(),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The client of one pair.
struct Lane {
    to: SocketAddr,
    open: TcpStream,
}

impl Lane {
    async fn open(to: SocketAddr) -> Result<Self> {
        let open = TcpStream::connect(to).await?;
        open.set_nodelay(true)?;
        Ok(Self { to, open })
    }

    /// Sends `count` units, and returns when all have come back.
    async fn send(&mut self, unit: Unit, count: usize) -> Result<()> {
        match unit {
            Unit::Megabyte => {
                for _ in 0..count {
                    megabyte(&mut self.open).await?;
                }
            }
            Unit::Connection => {
                let mut running = JoinSet::new();
                let to = self.to;
                for lane in 0..LANES {
                    let share = (count + LANES - 1 - lane) / LANES;
                    running.spawn(async move {
                        for _ in 0..share {
                            connection(to).await?;
                        }
                        anyhow::Ok(())
                    });
                }
                while let Some(lane) = running.join_next().await {
                    lane??;
                }
            }
        }
        Ok(())
    }
}

async fn connection(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&SHORT).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer == SHORT, "the echo differs");
    Ok(())
}

async fn megabyte(stream: &mut TcpStream) -> Result<()> {
    let (mut input, mut output) = stream.split();
    let sending = output.write_all(&MIB);
    let receiving = async {
        let mut buffer = vec![0; 1 << 16];
        let mut left = MIB.len();
        while left > 0 {
            let most = left.min(buffer.len());
            let count = input.read(&mut buffer[..most]).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            left -= count;
        }
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}
