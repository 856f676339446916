//! Real servers behind the sidecars: whether every query is answered, and who is named in the logs.

use std::collections::BTreeMap;
use std::fmt;

use access_log::Direction;
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use super::pair::Naming;
use super::pair::{Link, Options, Pair};
use super::servers::{Answers, Running, Server, Speaker};
use super::sidecar::check_module;
use crate::mesh::Lab;
use crate::wait::PATIENCE;

/// How a direction's entries name the peer.
pub type Namings = BTreeMap<Naming, usize>;

/// A server in one setting.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The server.
    pub server: Server,
    /// Who speaks first.
    pub first: Speaker,
    /// Whether the sidecars use mutual TLS.
    pub mutual_tls: bool,
    /// Whether the sidecars have the filter.
    pub with_filter: bool,
    /// The answers to queries.
    pub answers: Answers,
    /// The connections that the client's sidecar accepted.
    pub connections: usize,
    /// How the server's sidecar names the caller.
    pub caller: Namings,
    /// How the client's sidecar names the callee.
    pub callee: Namings,
}

impl Row {
    /// What is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.answers.wrong.clone();
        let mut must = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let Answers {
            expected, right, ..
        } = self.answers;
        must(
            right == expected && expected > 0,
            format!("{right} of {expected} answers"),
        );
        let [inbound, outbound] = if self.with_filter {
            // It cannot answer ahead of a greeting that has passed.
            let by_answer = match self.first {
                Speaker::Client => Naming::Exchanged,
                Speaker::Server => Naming::ByEndpoint,
            };
            [Naming::Exchanged, by_answer]
        } else {
            [Naming::None; 2]
        };
        let connections = self.connections;
        must(connections > 0, "no connections".to_owned());
        for (whose, found, expected) in [
            ("caller", &self.caller, inbound),
            ("callee", &self.callee, outbound),
        ] {
            must(
                *found == Namings::from([(expected, connections)]),
                format!("{connections} connections, but entries name the {whose}: {found:?}"),
            );
        }
        let who = format!("{}, {}", self.server, self.setting());
        faults
            .iter()
            .map(|fault| format!("{who}: {fault}"))
            .collect()
    }

    fn setting(&self) -> String {
        let tls = if self.mutual_tls {
            "mutual TLS"
        } else {
            "plain"
        };
        let filter = if self.with_filter { "with" } else { "without" };
        format!("{tls}, {filter} filter")
    }
}

/// All rows.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Envoy's version.
    pub envoy: String,
    /// Every server in every setting.
    pub rows: Vec<Row>,
    /// Servers that were not run, each with the packages that it needs.
    pub skipped: BTreeMap<Server, &'static str>,
}

impl Report {
    /// What is wrong.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.rows.iter().flat_map(Row::faults).collect()
    }
}

/// Sends queries to `servers`, plain and over mutual TLS, through sidecars without and, for each `true` in `filters`,
/// with the filter.
pub async fn run(
    lab: &Lab,
    servers: &[Server],
    filters: &[bool],
    progress: impl Fn(&str),
) -> Result<Report> {
    if filters.contains(&true) {
        check_module(lab).await?;
    }
    let mut report = Report {
        envoy: lab.version().await?,
        rows: Vec::new(),
        skipped: BTreeMap::new(),
    };
    let mut running = Vec::new();
    for &server in servers {
        if let Some(packages) = server.missing() {
            report.skipped.insert(server, packages);
            continue;
        }
        let begin = std::time::Instant::now();
        running.push((server, server.start().await?));
        let seconds = begin.elapsed().as_secs_f64();
        progress(&format!("{server} started in {seconds:.1} s"));
    }
    let links: Vec<Link> = running
        .iter()
        .flat_map(|(server, running)| {
            [false, true].map(|is_mutual_tls| Link {
                name: link_name(*server, is_mutual_tls),
                is_mutual_tls,
                to: running.address(),
            })
        })
        .collect();
    for &with_filter in filters {
        let name = if with_filter { "with" } else { "without" };
        progress(&format!("two sidecars {name} filter"));
        let options = Options {
            with_filter,
            ..Options::default()
        };
        let pair = Pair::start(lab, name, &links, &options).await?;
        for (server, running) in &running {
            for is_mutual_tls in [false, true] {
                let row = row(lab, &pair, *server, running, is_mutual_tls, with_filter).await;
                let row = row.with_context(|| format!("{server} {name} filter"))?;
                progress(&format!("{server}, {}", row.setting()));
                report.rows.push(row);
            }
        }
    }
    report
        .rows
        .sort_by_key(|row| (row.server, row.mutual_tls, row.with_filter));
    Ok(report)
}

fn link_name(server: Server, is_mutual_tls: bool) -> String {
    let tls = if is_mutual_tls { "tls" } else { "plain" };
    format!("{}-{tls}", server.name())
}

async fn row(
    lab: &Lab,
    pair: &Pair,
    server: Server,
    running: &Running,
    is_mutual_tls: bool,
    with_filter: bool,
) -> Result<Row> {
    let link = link_name(server, is_mutual_tls);
    let at = pair.address(&link)?;
    // A name that is one in SQL, too.
    let space = format!("{}_{with_filter}", link.replace('-', "_"));
    let mut answers = running.ask(at, &space).await?;
    if server.first() == Speaker::Server {
        answers.expected += 1;
        match greeting(at).await {
            Ok(()) => answers.right += 1,
            Err(error) => answers.wrong.push(format!("the greeting: {error:#}")),
        }
    }
    let connections = usize::try_from(pair.connections(&link).await?)?;
    let naming = async |direction| {
        let log = pair.log(direction, &link);
        let entries = lab
            .collector()
            .wait_for(&log, connections, |entry| entry.reporter.log == log)
            .await?;
        let mut namings = Namings::new();
        for entry in entries {
            *namings.entry(pair.naming(direction, &entry)?).or_default() += 1;
        }
        anyhow::Ok(namings)
    };
    Ok(Row {
        server,
        first: server.first(),
        mutual_tls: is_mutual_tls,
        with_filter,
        answers,
        connections,
        caller: naming(Direction::Inbound).await?,
        callee: naming(Direction::Outbound).await?,
    })
}

/// The server's greeting comes before the client has sent anything. Then the client says something, so that its sidecar
/// has an occasion to name it.
async fn greeting(at: std::net::SocketAddr) -> Result<()> {
    /// A packet that quits.
    const QUIT: &[u8] = b"\x01\0\0\x01\x01";
    let mut stream = TcpStream::connect(at).await?;
    let mut byte = [0; 1];
    let read = timeout(PATIENCE, stream.read(&mut byte)).await;
    ensure!(
        read.context("nothing comes")?? == 1,
        "the connection is closed"
    );
    stream.write_all(QUIT).await?;
    let mut rest = Vec::new();
    // How the server ends it does not matter.
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    ended
        .context("the server does not end the connection")?
        .ok();
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Envoy {}", self.envoy)?;
        writeln!(
            f,
            "{:<11} {:<6} {:<10} {:<8} {:>13} {:>11}  {:<18} callee named",
            "server", "first", "between", "filter", "answers", "connections", "caller named"
        )?;
        for row in &self.rows {
            let first = match row.first {
                Speaker::Client => "client",
                Speaker::Server => "server",
            };
            let between = if row.mutual_tls {
                "mutual TLS"
            } else {
                "plain"
            };
            let filter = if row.with_filter { "with" } else { "without" };
            let answers = format!("{} of {}", row.answers.right, row.answers.expected);
            writeln!(
                f,
                "{:<11} {first:<6} {between:<10} {filter:<8} {answers:>13} {:>11}  {:<18} {}",
                row.server,
                row.connections,
                text(&row.caller),
                text(&row.callee)
            )?;
        }
        for (server, packages) in &self.skipped {
            writeln!(f, "SKIPPED {server}: on Debian, apt-get install {packages}")?;
        }
        for fault in self.faults() {
            writeln!(f, "wrong: {fault}")?;
        }
        Ok(())
    }
}

/// How many entries name the peer in which way.
fn text(namings: &Namings) -> String {
    let texts = namings.iter().map(|(naming, count)| {
        let how = match naming {
            Naming::None => "nobody",
            Naming::Exchanged => "exchanged",
            Naming::ByEndpoint => "endpoint",
            Naming::Wrong => "WRONG",
        };
        format!("{count} {how}")
    });
    texts.collect::<Vec<_>>().join(", ")
}
