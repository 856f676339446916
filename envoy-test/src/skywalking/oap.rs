//! A real OAP, the backend of Apache `SkyWalking`: a running one, or one that is started with its
//! own database.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hyper::StatusCode;
use tempfile::TempDir;
use tokio::fs;

use crate::client::Call;
use crate::ports;
use crate::postgres::{self, Postgres};
use crate::process::{Process, bound_to_us};
use crate::wait::until_within;

/// The environment variable that names the folder of an OAP to start: an unpacked release of Apache
/// `SkyWalking`.
pub const HOME: &str = "SKYWALKING_OAP_HOME";
/// The environment variable that names a running OAP, by its gRPC address.
pub const RUNNING: &str = "SKYWALKING_OAP";
/// The environment variable that names the query address of a running OAP.
pub const QUERIES: &str = "SKYWALKING_OAP_QUERIES";

/// The difference between the ports for queries and for gRPC, 12800 and 11800.
const BETWEEN_PORTS: u16 = 1000;
/// How long an OAP may take to start; alone on two processors it needs half a minute.
const START: Duration = Duration::from_mins(5);
const INTERVAL: Duration = Duration::from_millis(100);
/// How often the OAP writes its counts to the storage.
pub(super) const PERSISTENCE: Duration = Duration::from_secs(3);

/// The OAP that the environment names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// An OAP to start, by its folder.
    Home(PathBuf),
    /// A running OAP, by its addresses for gRPC and for queries.
    Running(SocketAddr, SocketAddr),
}

impl Named {
    /// The OAP that the environment names for a test. Without one it reports that the test is
    /// skipped, or fails if `NO_SKIPPING` is set.
    pub fn for_test() -> Result<Option<Self>> {
        let named = Self::by_environment()?;
        if named.is_none() {
            let skipped = format!(
                "skipped: there is no OAP, because neither {HOME} names a release of Apache \
                 SkyWalking nor {RUNNING} a running OAP"
            );
            ensure!(std::env::var_os("NO_SKIPPING").is_none(), skipped);
            println!("{skipped}");
        }
        Ok(named)
    }

    /// The OAP that the environment names, if any.
    pub fn by_environment() -> Result<Option<Self>> {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self::of(text(RUNNING), text(QUERIES), text(HOME))
    }

    fn of(
        running: Option<String>,
        queries: Option<String>,
        home: Option<String>,
    ) -> Result<Option<Self>> {
        if let Some(running) = running {
            let grpc = address(RUNNING, &running)?;
            let queries = match queries {
                Some(queries) => address(QUERIES, &queries)?,
                None => SocketAddr::new(grpc.ip(), grpc.port().saturating_add(BETWEEN_PORTS)),
            };
            return Ok(Some(Self::Running(grpc, queries)));
        }
        Ok(home.map(|home| Self::Home(home.into())))
    }
}

fn address(variable: &str, text: &str) -> Result<SocketAddr> {
    let context = || format!("{variable}={text}: HOST:PORT is expected");
    let mut addresses = text.to_socket_addrs().with_context(context)?;
    addresses.next().with_context(context)
}

/// A running OAP. If it was started here, dropping it ends it and its database.
#[derive(Debug)]
pub struct Oap {
    /// Its address for access logs.
    pub grpc: SocketAddr,
    /// Its address for queries, by `GraphQL` over HTTP.
    pub queries: SocketAddr,
    started: Option<Started>,
}

#[derive(Debug)]
struct Started {
    /// It ends before its database.
    process: Option<Process>,
    postgres: Postgres,
    /// The address of its own metrics.
    telemetry: SocketAddr,
    home: PathBuf,
    settings: BTreeMap<String, String>,
    dir: TempDir,
}

impl Oap {
    /// Starts or finds the OAP, and waits until it answers.
    pub async fn new(named: &Named) -> Result<Self> {
        Self::with_settings(named, BTreeMap::new()).await
    }

    /// The same; an OAP that is started gets these environment variables, except those for its
    /// ports and its storage's address.
    pub async fn with_settings(named: &Named, settings: BTreeMap<String, String>) -> Result<Self> {
        let mut oap = match named {
            Named::Running(grpc, queries) => Self {
                grpc: *grpc,
                queries: *queries,
                started: None,
            },
            Named::Home(home) => Self::of_home(home, settings).await?,
        };
        oap.start().await?;
        Ok(oap)
    }

    async fn of_home(home: &Path, settings: BTreeMap<String, String>) -> Result<Self> {
        // Checked before its database is started.
        jars(home)?;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self {
            grpc: local(ports::free()?),
            queries: local(ports::free()?),
            started: Some(Started {
                process: None,
                postgres: Postgres::start().await?,
                telemetry: local(ports::free()?),
                home: home.canonicalize()?,
                settings,
                dir: TempDir::with_prefix("envoy-test-oap-")?,
            }),
        })
    }

    /// Whether it was started here, so that it can be restarted.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.started.is_some()
    }

    /// Ends it like a crash. Counts that it has not written are lost.
    pub fn stop(&mut self) -> Result<()> {
        let started = self.started.as_mut();
        let started = started.context("an OAP that was not started here is not stopped here")?;
        // Dropping it waits until it has ended.
        started.process.take().context("the OAP does not run")?;
        Ok(())
    }

    /// Starts it, or restarts it if it was stopped, and waits until it answers.
    pub async fn start(&mut self) -> Result<()> {
        let (grpc, queries) = (self.grpc, self.queries);
        if let Some(started) = &mut self.started {
            started.start(grpc, queries)?;
        }
        until_within(START, INTERVAL, "the OAP to be healthy", async || {
            self.check_alive().await?;
            let asked = Call::new(queries, "oap").path("/healthcheck").send().await;
            Ok(asked.ok().filter(|reply| reply.status == StatusCode::OK))
        })
        .await?;
        Ok(())
    }

    async fn check_alive(&mut self) -> Result<()> {
        let Some(Started {
            process: Some(process),
            dir,
            ..
        }) = &mut self.started
        else {
            return Ok(());
        };
        let Some(status) = process.ended()? else {
            return Ok(());
        };
        let log = fs::read_to_string(dir.path().join("oap.log")).await;
        bail!(
            "the OAP exited while starting: {status}\n{}",
            log.unwrap_or_default()
        )
    }

    /// Its internal counters whose names begin with `prefix`, each summed over all labels; empty if
    /// it was not started here.
    pub(super) async fn own_counters(&self, prefix: &str) -> Result<BTreeMap<String, f64>> {
        let mut sums = BTreeMap::new();
        let Some(started) = &self.started else {
            return Ok(sums);
        };
        let reply = Call::new(started.telemetry, "oap").path("/metrics");
        let reply = reply.send().await?;
        ensure!(reply.status == StatusCode::OK, "/metrics: {}", reply.status);
        let text = String::from_utf8_lossy(&reply.body);
        for line in text.lines().filter(|line| line.starts_with(prefix)) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let value = line.rsplit(' ').next().and_then(|value| value.parse().ok());
            *sums.entry(name.to_owned()).or_default() += value.unwrap_or(0.0);
        }
        // Latencies are not needed.
        sums.retain(|name, _| name.ends_with("_count") && !name.contains("latency"));
        Ok(sums)
    }

    /// The end of its log, if it was started here.
    #[must_use]
    pub fn log(&self) -> String {
        const END: usize = 4000;
        let Some(started) = &self.started else {
            return String::new();
        };
        let log = started.dir.path().join("skywalking-oap-server.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let begin = log.ceil_char_boundary(log.len().saturating_sub(END));
        log.get(begin..).unwrap_or_default().to_owned()
    }
}

/// The OAP's settings for its database.
fn database(postgres: &Postgres) -> [(&'static str, String); 3] {
    let (port, name) = (postgres.port, postgres::DATABASE);
    [
        (
            "SW_JDBC_URL",
            format!("jdbc:postgresql://127.0.0.1:{port}/{name}"),
        ),
        ("SW_DATA_SOURCE_USER", postgres::USER.to_owned()),
        ("SW_DATA_SOURCE_PASSWORD", String::new()),
    ]
}

impl Started {
    fn start(&mut self, grpc: SocketAddr, queries: SocketAddr) -> Result<()> {
        ensure!(self.process.is_none(), "the OAP runs already");
        let java = Path::new("java");
        let mut command = bound_to_us(java, "KILL", None);
        let log = self.dir.path();
        command
            .current_dir(log)
            .envs(ANALYSERS)
            .envs(&self.settings)
            .envs(database(&self.postgres))
            .envs(settings(grpc, queries, self.telemetry))
            // It lives for minutes only: less compilation starts faster.
            .args([
                "-Xms256m",
                "-Xmx1g",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
            ])
            .arg(format!("-Doap.logDir={}", log.display()))
            .arg("-classpath")
            .arg(class_path(&self.home)?)
            .arg("org.apache.skywalking.oap.server.starter.OAPServerStartUp");
        let process = Process::start(command, &log.join("oap.log"), "KILL")?;
        self.process = Some(process);
        Ok(())
    }
}

/// The settings that users make.
const ANALYSERS: [(&str, &str); 3] = [
    ("SW_STORAGE", "postgresql"),
    ("SW_ENVOY_METRIC_ALS_HTTP_ANALYSIS", "mx-mesh"),
    ("SW_ENVOY_METRIC_ALS_TCP_ANALYSIS", "mx-mesh"),
];

/// Further settings for tests: free ports and shorter waits.
fn settings(
    grpc: SocketAddr,
    queries: SocketAddr,
    telemetry: SocketAddr,
) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("SW_CORE_GRPC_HOST", grpc.ip().to_string()),
        ("SW_CORE_GRPC_PORT", grpc.port().to_string()),
        ("SW_CORE_REST_HOST", queries.ip().to_string()),
        ("SW_CORE_REST_PORT", queries.port().to_string()),
        ("SW_TELEMETRY_PROMETHEUS_HOST", telemetry.ip().to_string()),
        ("SW_TELEMETRY_PROMETHEUS_PORT", telemetry.port().to_string()),
        // Counts become visible sooner.
        (
            "SW_CORE_PERSISTENT_PERIOD",
            PERSISTENCE.as_secs().to_string(),
        ),
        ("SW_CORE_L1_AGGREGATION_FLUSH_PERIOD", "500".to_owned()),
        ("SW_SERVICE_CACHE_REFRESH_INTERVAL", "3".to_owned()),
    ];
    // Modules that are switched off for a faster start and fewer ports.
    for off in [
        "SW_PROMQL",
        "SW_LOGQL",
        "SW_TRACEQL",
        "SW_QUERY_ZIPKIN",
        "SW_RECEIVER_ZIPKIN",
        "SW_RECEIVER_AWS_FIREHOSE",
        "SW_OTEL_RECEIVER",
        "SW_RECEIVER_PROFILE",
        "SW_RECEIVER_BROWSER",
        "SW_RECEIVER_EBPF",
        "SW_RECEIVER_TELEGRAF",
        "SW_AI_PIPELINE",
    ] {
        settings.push((off, "-".to_owned()));
    }
    settings
}

/// The configuration and the jars, in the order of the release's own script: some classes are in
/// several jars, and the last jar by name takes precedence.
fn class_path(home: &Path) -> Result<String> {
    let mut jars = jars(home)?;
    jars.sort();
    let jars = jars.iter().rev().map(|jar| jar.display().to_string());
    let config = home.join("config").display().to_string();
    Ok(jars.chain([config]).collect::<Vec<_>>().join(":"))
}

fn jars(home: &Path) -> Result<Vec<PathBuf>> {
    let jars = ["oap-libs", "libs"].into_iter().flat_map(|libs| {
        let files = std::fs::read_dir(home.join(libs)).into_iter();
        files.flatten().flatten().map(|file| file.path())
    });
    let is_jar = |path: &PathBuf| path.extension().is_some_and(|end| end == "jar");
    let jars: Vec<_> = jars.filter(is_jar).collect();
    ensure!(
        !jars.is_empty() && home.join("config/application.yml").is_file(),
        "{HOME}={}: not a release of Apache SkyWalking, because it has no config/application.yml, \
         or neither oap-libs nor libs with its jars",
        home.display()
    );
    Ok(jars)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(running: &str, queries: &str, home: &str) -> Result<Option<Named>> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Named::of(text(running), text(queries), text(home))
    }

    #[test]
    fn a_running_oap_takes_precedence() -> Result<()> {
        let at = |grpc: &str, queries: &str| {
            Named::Running(grpc.parse().unwrap(), queries.parse().unwrap())
        };
        let running = of("127.0.0.1:11800", "", "/opt/skywalking")?;
        assert_eq!(running, Some(at("127.0.0.1:11800", "127.0.0.1:12800")));
        let running = of("127.0.0.1:11800", "127.0.0.1:80", "")?;
        assert_eq!(running, Some(at("127.0.0.1:11800", "127.0.0.1:80")));
        let home = of("", "", "/opt/skywalking")?;
        assert_eq!(home, Some(Named::Home("/opt/skywalking".into())));
        assert_eq!(of("", "", "")?, None);
        Ok(())
    }

    #[test]
    fn an_error_names_its_variable() {
        let error = format!("{:#}", of("11800", "", "").unwrap_err());
        assert!(
            error.starts_with("SKYWALKING_OAP=11800: HOST:PORT is expected"),
            "{error}"
        );
        let error = format!("{:#}", jars(Path::new("/nowhere")).unwrap_err());
        assert!(
            error.starts_with("SKYWALKING_OAP_HOME=/nowhere: "),
            "{error}"
        );
    }
}
