//! Random bytes through two sidecars: each end compares every byte that it receives with what the other end sends.
//!
//! Both ends of a connection generate both directions from its seed, so a byte that is lost, added, changed or in another
//! place is found where it is, also if the connection was reset and only a beginning arrived.

mod connection;
mod content;
mod plan;
mod report;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use access_log::Direction;
use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::pair::{Link, Naming, Options as PairOptions, Pair};
use crate::envoy::Envoy;
use crate::mesh::Lab;
use crate::wait::{PATIENCE, until};
use content::Pool;
use plan::Plan;
pub use report::{Logged, Report, Tally};

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The bytes of both directions together.
    pub bytes: u64,
    /// The seed of everything random.
    pub seed: u64,
    /// Connections at a time.
    pub lanes: usize,
    /// The workers of each sidecar.
    pub workers: u32,
    /// Whether the sidecars have the filter.
    pub with_filter: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes: 10_000_000_000,
            seed: 4,
            lanes: 16,
            workers: 2,
            with_filter: true,
        }
    }
}

/// A link for each lane, half of them over mutual TLS.
///
/// Lanes share none: Envoy gives a connection that waits the first that is ready of those that it opens to a cluster, so
/// that two clients of one link may be led to each other's server.
fn links(lanes: usize, to: SocketAddr) -> Vec<Link> {
    let link = |lane: usize| {
        let is_mutual_tls = lane % 8 >= 4;
        let tls = if is_mutual_tls { "tls" } else { "plain" };
        Link {
            name: format!("lane{lane}-{tls}"),
            is_mutual_tls,
            to,
        }
    };
    (0..lanes).map(link).collect()
}

/// Runs until `options.bytes` have arrived, and reports. `progress` receives a line now and then.
pub async fn run(lab: &Lab, options: Options, progress: impl Fn(&str)) -> Result<Report> {
    if options.with_filter {
        super::check_module(lab).await?;
    }
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let links = links(options.lanes, server.local_addr()?);
    let pair = PairOptions {
        with_filter: options.with_filter,
        module: None,
        workers: options.workers,
        log_buffer_bytes: Some(1 << 16),
    };
    let pair = Arc::new(Pair::start(lab, "soak", &links, &pair).await?);
    let logged = Arc::<std::sync::Mutex<Logged>>::default();
    let (drain, naming) = (Arc::clone(&logged), Arc::clone(&pair));
    lab.collector().drain(move |entry| {
        let direction = if entry.reporter.log.contains("/inbound/") {
            Direction::Inbound
        } else {
            Direction::Outbound
        };
        let naming = naming.naming(direction, entry).unwrap_or(Naming::Wrong);
        if let Ok(mut logged) = drain.lock() {
            logged.add(direction, naming);
        }
    })?;

    let resident_before = resident(&pair).await?;
    let begin = Instant::now();
    let work = Arc::new(Work {
        server: Mutex::new(server),
        pool: Pool::new(options.seed),
        options,
        next: AtomicU64::new(0),
        planned: AtomicU64::new(0),
        arrived: AtomicU64::new(0),
    });
    let mut lanes = JoinSet::new();
    for link in &links {
        lanes.spawn(Arc::clone(&work).lane(pair.address(&link.name)?));
    }
    let mut tally = Tally::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    ticks.tick().await;
    loop {
        tokio::select! {
            lane = lanes.join_next() => match lane {
                Some(lane) => tally.add(lane??),
                None => break,
            },
            _ = ticks.tick() => {
                let arrived = work.arrived.load(Ordering::Relaxed);
                let connections = work.next.load(Ordering::Relaxed);
                progress(&format!(
                    "{} of {} MB, {connections} connections, {:.0} s",
                    arrived / 1_000_000,
                    options.bytes / 1_000_000,
                    begin.elapsed().as_secs_f64()
                ));
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let all_logged = until("all entries", async || {
        let logged = logged.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        Ok((logged.least() >= tally.connections).then_some(()))
    });
    // The report says what is missing.
    let _ = all_logged.await;
    let logged = logged
        .lock()
        .map_err(|_| anyhow::anyhow!("poisoned"))?
        .clone();
    Ok(Report {
        envoy: pair.client.version().await?,
        seed: options.seed,
        with_filter: options.with_filter,
        bytes: options.bytes,
        seconds,
        tally,
        logged,
        resident_before,
        resident_after: resident(&pair).await?,
        logged_errors: [errors(&pair.client).await?, errors(&pair.server).await?].concat(),
    })
}

async fn resident(pair: &Pair) -> Result<u64> {
    Ok(pair.client.resident_bytes().await? + pair.server.resident_bytes().await?)
}

async fn errors(envoy: &Envoy) -> Result<Vec<String>> {
    let log = envoy.log().await?;
    let is_error = |line: &&str| line.contains("[error]") || line.contains("[critical]");
    Ok(log.lines().filter(is_error).map(str::to_owned).collect())
}

/// What all lanes share.
struct Work {
    /// The server accepts the connection that a lane has just opened: one is opened at a time.
    server: Mutex<TcpListener>,
    pool: Arc<Pool>,
    options: Options,
    next: AtomicU64,
    planned: AtomicU64,
    arrived: AtomicU64,
}

impl Work {
    async fn lane(self: Arc<Self>, to: SocketAddr) -> Result<Tally> {
        let mut tally = Tally::default();
        while self.planned.load(Ordering::Relaxed) < self.options.bytes {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let plan = Plan::new(self.options.seed, number);
            let length = plan.client.length + plan.server.length;
            // Of a reset connection a part arrives.
            if plan.reset.is_none() {
                self.planned.fetch_add(length, Ordering::Relaxed);
            }
            let (client, server) = self.connect(to).await?;
            let done = connection::run(&plan, &self.pool, client, server).await;
            self.arrived
                .fetch_add(done.to_client + done.to_server, Ordering::Relaxed);
            tally.count(number, &plan, &done);
        }
        Ok(tally)
    }

    /// Both ends of a new connection. The sidecars connect to the server before the client has sent anything.
    async fn connect(&self, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
        let server = self.server.lock().await;
        let client = TcpStream::connect(to).await?;
        let accepted = timeout(PATIENCE, server.accept()).await;
        let (server, _) = accepted.context("a connection does not reach the server")??;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        Ok((client, server))
    }
}
