//! An Envoy process: finds the binary, starts it, queries its admin interface, and ends it with its
//! owner.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hyper::StatusCode;
use serde_json::Value;
use tokio::fs;
use tokio::process::{Child, Command};

use crate::client::{Call, raw};
use crate::process::bound_to_us;
use crate::repository;
use crate::wait::until;

/// The environment variable that names the only Envoy binary to use.
const ENVOY: &str = "ENVOY";

/// The Envoy releases that the harness runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The oldest release.
    Oldest,
    /// The newest release.
    Newest,
    /// The release with this version, one of [`versions`].
    Version(&'static str),
}

/// The releases that `make setup` fetches, the oldest first: version, hash and size.
const RELEASES: &str = include_str!("../releases.txt");

/// The versions of all releases that the tests run, the oldest first.
#[must_use]
pub fn versions() -> impl DoubleEndedIterator<Item = &'static str> {
    let lines = RELEASES.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().next())
}

impl Release {
    /// All releases that the tests run, the oldest first.
    pub fn all() -> impl Iterator<Item = Self> {
        versions().map(Self::Version)
    }

    /// Its version.
    ///
    /// # Panics
    /// Never: a test checks that the list of releases is not empty.
    #[must_use]
    pub fn version(self) -> &'static str {
        let mut versions = versions();
        let version = match self {
            Self::Oldest => versions.next(),
            Self::Newest => versions.next_back(),
            Self::Version(version) => Some(version),
        };
        version.expect("releases.txt lists releases")
    }

    /// Whether this release is skipped, because the environment names the only Envoy and this is
    /// not the newest release.
    pub(crate) fn is_left_out(self) -> bool {
        self.version() != Self::Newest.version() && named_by_environment().is_some()
    }

    /// Its binary: the one in `ENVOY`, or else the one that `make setup` installed.
    pub fn binary(self) -> Result<PathBuf> {
        if let Some(path) = named_by_environment() {
            ensure!(path.is_file(), "ENVOY={} is not a file", path.display());
            return Ok(path);
        }
        let path = repository(&format!(".tools/envoy/{}/envoy", self.version()));
        ensure!(
            path.is_file(),
            "there is no Envoy {}: run `make setup`, or set ENVOY to an Envoy binary",
            self.version()
        );
        Ok(path)
    }
}

/// The version in Envoy's build string: `2c0d6a.../1.40.0/Clean/RELEASE/BoringSSL`.
pub(crate) fn version_of(build: &str) -> &str {
    build.split('/').nth(1).unwrap_or(build)
}

/// The version of the Envoy `binary`.
pub(crate) async fn version_of_binary(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output().await;
    let output = output.with_context(|| binary.display().to_string())?;
    let output = String::from_utf8(output.stdout)?;
    let build = output.split_whitespace().last().unwrap_or_default();
    ensure!(build.contains('/'), "{}: {output}", binary.display());
    Ok(version_of(build).to_owned())
}

/// The binary that the environment names, if any.
#[must_use]
pub(crate) fn named_by_environment() -> Option<PathBuf> {
    std::env::var_os(ENVOY).map(PathBuf::from)
}

/// A running Envoy. It is killed when dropped, and by the kernel if the thread that started it ends
/// for any other reason.
#[derive(Debug)]
pub struct Envoy {
    /// Ends Envoy when dropped.
    process: Child,
    admin: SocketAddr,
    log: PathBuf,
    ready_after: Duration,
}

impl Envoy {
    /// Starts an Envoy with its files in `dir` and waits until it is ready. An error contains
    /// Envoy's log.
    pub(crate) async fn start(
        binary: &Path,
        dir: &Path,
        concurrency: u32,
        drain: Option<Duration>,
        environment: &BTreeMap<String, String>,
        bootstrap: &Value,
    ) -> Result<Self> {
        let config = dir.join("bootstrap.json");
        fs::write(&config, serde_json::to_vec_pretty(bootstrap)?).await?;
        let log = dir.join("envoy.log");
        let address_file = dir.join("admin-address");
        let begin = Instant::now();
        let mut command = command(binary);
        if let Some(drain) = drain {
            command.args(["--drain-time-s", &drain.as_secs().to_string()]);
        }
        let process = command
            .envs(environment)
            .arg("--config-path")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&address_file)
            .args(["--concurrency", &concurrency.to_string()])
            .args(["--log-level", "warning"])
            .args(["--component-log-level", "wasm:info"])
            .args(["--file-flush-interval-msec", "100"])
            .arg("--disable-hot-restart")
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot run `setpriv` of util-linux, which starts Envoy")?;
        let mut starting = Starting { process, log };
        match starting.ready(&address_file).await {
            Ok(admin) => Ok(Self {
                process: starting.process,
                admin,
                log: starting.log,
                ready_after: begin.elapsed(),
            }),
            Err(error) => {
                let log = fs::read_to_string(&starting.log).await.unwrap_or_default();
                Err(error.context(format!("Envoy's log:\n{log}")))
            }
        }
    }

    /// The address of the listener `name`.
    pub async fn listener(&self, name: &str) -> Result<SocketAddr> {
        listening_at(self.admin, name).await
    }

    /// Waits until the host of the cluster `name` is at `address`.
    pub(crate) async fn has_host(&self, name: &str, address: SocketAddr) -> Result<()> {
        until(
            &format!("a host of cluster {name} at {address}"),
            async || {
                let clusters = self.admin_json("/clusters?format=json").await?;
                let statuses = clusters["cluster_statuses"].as_array();
                let status = statuses.and_then(|all| all.iter().find(|one| one["name"] == name));
                let host = status.and_then(|status| status["host_statuses"].get(0));
                let host = host.and_then(|host| socket_address(&host["address"]).ok());
                Ok(host.filter(|host| *host == address).map(|_| ()))
            },
        )
        .await
    }

    /// Every counter and gauge.
    pub async fn stats(&self) -> Result<BTreeMap<String, u64>> {
        let stats = self.admin_json("/stats?format=json").await?;
        let stats = stats["stats"].as_array().context("no stats")?;
        let value_of = |stat: &Value| {
            let name = stat["name"].as_str()?.to_owned();
            Some((name, stat["value"].as_u64()?))
        };
        Ok(stats.iter().filter_map(value_of).collect())
    }

    /// Waits until the statistic `name` is at least `least`.
    pub async fn counts(&self, name: &str, least: u64) -> Result<u64> {
        until(&format!("{name} to be {least}"), async || {
            let stats = self.stats().await?;
            Ok(stats.get(name).copied().filter(|value| *value >= least))
        })
        .await
    }

    /// The address of its admin interface, as text.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// Its version.
    pub async fn version(&self) -> Result<String> {
        let info = self.admin_json("/server_info").await?;
        let build = info["version"].as_str().context("no version")?;
        Ok(version_of(build).to_owned())
    }

    /// Drains its listeners: they accept no more connections, and open ones are closed once their
    /// requests are answered.
    pub async fn drain_listeners(&self) -> Result<()> {
        let request = b"POST /drain_listeners HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let reply = raw(self.admin, request).await?;
        ensure!(
            reply.starts_with(b"HTTP/1.1 200 "),
            "the admin interface answered {}",
            reply.escape_ascii()
        );
        Ok(())
    }

    /// Ends it once it has answered all of its requests.
    pub async fn retire(self) -> Result<()> {
        self.drain_listeners().await?;
        until("the connections of an Envoy to end", async || {
            let stats = self.stats().await?;
            let is_open = |(name, count): (&String, &u64)| {
                let is_ours = name.starts_with("http.") && !name.starts_with("http.admin.");
                is_ours && name.ends_with(".downstream_cx_active") && *count > 0
            };
            Ok((!stats.iter().any(is_open)).then_some(()))
        })
        .await
    }

    /// Kills it. Entries that it has not sent yet are lost.
    pub(crate) async fn kill(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }

    /// Its resident memory in bytes.
    pub async fn resident_bytes(&self) -> Result<u64> {
        let id = self.process.id().context("Envoy has ended")?;
        let status = fs::read_to_string(format!("/proc/{id}/status")).await?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.context("the kernel reports no VmRSS")?.parse()?;
        Ok(kib * 1024)
    }

    /// The CPU time of its threads so far.
    pub async fn cpu_time(&self) -> Result<Duration> {
        let id = self.process.id().context("Envoy has ended")?;
        let mut tasks = fs::read_dir(format!("/proc/{id}/task")).await?;
        let mut nanoseconds = 0;
        while let Some(task) = tasks.next_entry().await? {
            let schedstat = fs::read_to_string(task.path().join("schedstat")).await?;
            let on_processor = schedstat.split_whitespace().next();
            let on_processor = on_processor.context("the kernel has no schedstat")?;
            nanoseconds += on_processor.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The time from its start until it was ready.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The address of its admin interface.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The folder of its files: `bootstrap.json` and `envoy.log`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.log.parent().unwrap_or(&self.log)
    }

    /// Envoy's log so far.
    pub async fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log).await?)
    }

    async fn admin_json(&self, path: &str) -> Result<Value> {
        admin_json(self.admin, path).await
    }
}

async fn admin_json(admin: SocketAddr, path: &str) -> Result<Value> {
    let reply = Call::new(admin, "admin").path(path).send().await?;
    ensure!(
        reply.status == StatusCode::OK,
        "{path} of the admin interface answered {}",
        reply.status
    );
    Ok(serde_json::from_slice(&reply.body)?)
}

/// The address of the listener `name` of the Envoy whose admin interface is at `admin`.
pub(crate) async fn listening_at(admin: SocketAddr, name: &str) -> Result<SocketAddr> {
    let listeners = admin_json(admin, "/listeners?format=json").await?;
    let statuses = listeners["listener_statuses"].as_array();
    let status = statuses
        .and_then(|statuses| statuses.iter().find(|status| status["name"] == name))
        .with_context(|| format!("Envoy has no listener {name}: {listeners}"))?;
    socket_address(&status["local_address"])
}

/// The socket address in an `Address` of the admin interface.
fn socket_address(address: &Value) -> Result<SocketAddr> {
    let socket = &address["socket_address"];
    let address = socket["address"].as_str().context("no address")?;
    let port = socket["port_value"].as_u64().context("no port")?;
    Ok(SocketAddr::new(address.parse()?, u16::try_from(port)?))
}

/// What the filter logs for an invalid plugin configuration.
const CONFIGURATION_ERROR: &str = "plugin configuration refused";

/// Validates a bootstrap with the Envoy `binary`, including the plugin configurations. An error
/// contains Envoy's log.
pub(crate) async fn validate(binary: &Path, bootstrap: &Path) -> Result<()> {
    let checked = command(binary)
        .args(["--mode", "validate", "--log-level", "error"])
        .arg("--config-path")
        .arg(bootstrap)
        .output()
        .await
        .context("cannot run `setpriv` of util-linux, which starts Envoy")?;
    ensure!(
        checked.status.success(),
        "Envoy refuses {}:\n{}",
        bootstrap.display(),
        String::from_utf8_lossy(&checked.stderr)
    );
    // Envoy accepts them, because the filter is merely idle with them.
    let log = String::from_utf8_lossy(&checked.stderr);
    let error = log.lines().find(|line| line.contains(CONFIGURATION_ERROR));
    if let Some(error) = error {
        bail!("the filter is idle in {}:\n{error}", bootstrap.display());
    }
    Ok(())
}

fn command(binary: &Path) -> Command {
    let mut command = Command::from(bound_to_us(binary, "KILL", None));
    command.kill_on_drop(true);
    command
}

/// An Envoy that is starting, and may still refuse its configuration.
struct Starting {
    process: Child,
    log: PathBuf,
}

impl Starting {
    async fn ready(&mut self, address_file: &Path) -> Result<SocketAddr> {
        let admin = until("Envoy's admin interface", async || {
            self.check_alive()?;
            let address = fs::read_to_string(address_file).await.ok();
            Ok(address.and_then(|address| address.parse().ok()))
        })
        .await?;
        until("Envoy to be ready", async || {
            self.check_alive()?;
            let reply = Call::new(admin, "admin").path("/ready").send().await;
            Ok(reply.ok().filter(|reply| reply.status == StatusCode::OK))
        })
        .await?;
        Ok(admin)
    }

    fn check_alive(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("Envoy exited while starting: {status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_releases_are_a_list_from_old_to_new() {
        let number = |version: &str| -> Vec<u32> {
            version
                .split('.')
                .map(|part| part.parse().unwrap())
                .collect()
        };
        let listed: Vec<_> = versions().map(number).collect();
        assert!(listed.is_sorted_by(|a, b| a < b), "{listed:?}");
        assert!(listed.len() >= 2, "{listed:?}");
        assert_eq!(Release::Oldest.version(), versions().next().unwrap());
        assert_eq!(Release::Newest.version(), versions().last().unwrap());
    }
}
