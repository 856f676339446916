//! Servers and their own clients, from Debian's packages.

mod mariadb;
mod postgres;
mod rabbitmq;
mod redis;
mod sql;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::wait::PATIENCE;

/// How many connections write and read once.
const CONNECTIONS: usize = 24;
/// How many of them at a time.
const AT_A_TIME: usize = 4;
/// How often one connection writes and reads.
const LONG: usize = 300;
/// The characters of a large value: several times what a socket takes at once.
const LARGE: usize = 600_000;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    /// `MariaDB`.
    MariaDb,
    /// `PostgreSQL`.
    Postgres,
    /// Redis.
    Redis,
    /// `RabbitMQ`.
    RabbitMq,
}

/// Who speaks first on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    /// The client.
    Client,
    /// The server.
    Server,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::MariaDb, Self::Postgres, Self::Redis, Self::RabbitMq];

    /// Its name, in a form that names of links take.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadb",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// Who speaks first in its protocol.
    #[must_use]
    pub fn first(self) -> Speaker {
        match self {
            Self::MariaDb => Speaker::Server,
            Self::Postgres | Self::Redis | Self::RabbitMq => Speaker::Client,
        }
    }

    /// The packages of Debian without which it cannot run, unless it can.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        let (is_there, packages) = match self {
            Self::MariaDb => (mariadb::is_there(), "mariadb-server"),
            Self::Postgres => (postgres::is_there(), "postgresql"),
            Self::Redis => (redis::is_there(), "redis-server"),
            Self::RabbitMq => (rabbitmq::is_there(), "rabbitmq-server amqp-tools"),
        };
        (!is_there).then_some(packages)
    }

    /// Starts it.
    pub async fn start(self) -> Result<Running> {
        Ok(Running(match self {
            Self::MariaDb => Kind::MariaDb(mariadb::MariaDb::start().await?),
            Self::Postgres => Kind::Postgres(postgres::start().await?),
            Self::Redis => Kind::Redis(redis::Redis::start().await?),
            Self::RabbitMq => Kind::RabbitMq(rabbitmq::RabbitMq::start().await?),
        }))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MariaDb => "MariaDB",
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::RabbitMq => "RabbitMQ",
        })
    }
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Running(Kind);

#[derive(Debug)]
enum Kind {
    MariaDb(mariadb::MariaDb),
    Postgres(crate::postgres::Postgres),
    Redis(redis::Redis),
    RabbitMq(rabbitmq::RabbitMq),
}

impl Running {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        crate::daemon::local(match &self.0 {
            Kind::MariaDb(server) => server.port,
            Kind::Postgres(server) => server.port,
            Kind::Redis(server) => server.port,
            Kind::RabbitMq(server) => server.port,
        })
    }

    /// What it has written to its standard output and error.
    pub fn log(&self) -> Result<String> {
        let home = match &self.0 {
            Kind::MariaDb(server) => &server.home,
            Kind::Postgres(server) => &server.home,
            Kind::Redis(server) => &server.home,
            Kind::RabbitMq(server) => &server.home,
        };
        home.log()
    }

    /// Writes and reads back through `at`, on many connections and on one long one. `space` names what is written.
    pub(super) async fn ask(&self, at: SocketAddr, space: &str) -> Result<Answers> {
        let dialogues = |number| match &self.0 {
            Kind::MariaDb(_) => sql::short(mariadb::client(at), space, number),
            Kind::Postgres(_) => sql::short(postgres::client(at), space, number),
            Kind::Redis(_) => redis::short(at, space, number),
            Kind::RabbitMq(_) => rabbitmq::short(at, space, number),
        };
        let (before, long) = match &self.0 {
            Kind::MariaDb(_) => sql::long(|| mariadb::client(at), space, mariadb::TEXT),
            Kind::Postgres(_) => sql::long(|| postgres::client(at), space, postgres::TEXT),
            Kind::Redis(_) => (Vec::new(), redis::long(at, space)),
            Kind::RabbitMq(_) => (Vec::new(), rabbitmq::long(at, space)),
        };
        let mut answers = Answers::default();
        for dialogue in before {
            answers.add(dialogue.run().await?);
        }
        let many = stream::iter(0..CONNECTIONS)
            .map(|number| run_all(dialogues(number)))
            .buffer_unordered(AT_A_TIME)
            .try_collect::<Vec<_>>();
        let (many, long) = tokio::try_join!(many, run_all(long))?;
        for one in many {
            answers.add(one);
        }
        answers.add(long);
        Ok(answers)
    }
}

async fn run_all(dialogues: Vec<Dialogue>) -> Result<Answers> {
    let mut answers = Answers::default();
    for dialogue in dialogues {
        answers.add(dialogue.run().await?);
    }
    Ok(answers)
}

/// Answers to queries.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answers {
    /// The answers that are expected.
    pub expected: usize,
    /// Those that came.
    pub right: usize,
    /// What went wrong.
    pub wrong: Vec<String>,
}

impl Answers {
    fn add(&mut self, other: Self) {
        self.expected += other.expected;
        self.right += other.right;
        self.wrong.extend(other.wrong);
    }
}

/// One run of a client: what it is told, and what it must print.
#[derive(Debug)]
struct Dialogue {
    program: PathBuf,
    arguments: Vec<OsString>,
    input: String,
    /// Each answer, with the line feed if the client prints one.
    expected: Vec<String>,
}

impl Dialogue {
    fn new(program: impl AsRef<Path>, arguments: &[&str]) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: arguments.iter().map(OsString::from).collect(),
            input: String::new(),
            expected: Vec::new(),
        }
    }

    fn says(&mut self, line: &str) {
        self.input.push_str(line);
        self.input.push('\n');
    }

    fn hears(&mut self, line: &str) {
        self.expected.push(format!("{line}\n"));
    }

    async fn run(self) -> Result<Answers> {
        let program = self.program.display().to_string();
        let mut client = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let stdin = client.stdin.take();
        let input = self.input;
        let writing = async move {
            if let Some(mut stdin) = stdin {
                // A client that has ended says why on its standard error.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ended = timeout(PATIENCE, async {
            tokio::join!(writing, client.wait_with_output())
        });
        let mut answers = Answers {
            expected: self.expected.len(),
            ..Answers::default()
        };
        let Ok(((), output)) = ended.await else {
            let problem = format!("{program} has not ended in {} s", PATIENCE.as_secs());
            answers.wrong.push(problem);
            return Ok(answers);
        };
        let output = output?;
        let mut rest = output.stdout.as_slice();
        for expected in &self.expected {
            let Some(after) = rest.strip_prefix(expected.as_bytes()) else {
                break;
            };
            rest = after;
            answers.right += 1;
        }
        if answers.right < answers.expected || !rest.is_empty() || !output.status.success() {
            let rest = &rest[..rest.len().min(100)];
            answers.wrong.push(format!(
                "{program}: {}, {} of {} answers, then \"{}\"; {}",
                output.status,
                answers.right,
                answers.expected,
                rest.escape_ascii(),
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        Ok(answers)
    }
}

/// A text that is different each time, and as long as `length` if it is not shorter than that.
fn value(space: &str, number: usize, length: usize) -> String {
    let seed = format!("{space} {number} ");
    let mut value = seed.repeat(length.div_ceil(seed.len()).max(1));
    value.push('.');
    value
}

/// The first of `programs` that is a file.
fn program(programs: &[&str]) -> Result<PathBuf> {
    let mut found = programs.iter().map(Path::new);
    let found = found.find(|program| program.is_file());
    ensure!(found.is_some(), "there is none of {programs:?}");
    found.map(Path::to_owned).context("checked")
}
