//! The unit of `deploy/envoy`, started as systemd starts it: its command, with standard output and standard error on a
//! socket, which is where the journal listens.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::example::{Example, list, manager};
use super::sidecar::workload;
use super::{Consumer, sidecar};
use crate::app::App;
use crate::client::Call;
use crate::envoy::listening_at;
use crate::mesh::Lab;
use crate::process::bound_to_us;
use crate::repository;
use crate::wait::until;

/// Where the unit has Envoy and its bootstrap, and systemd the folders of logs.
const ENVOY: &str = "/usr/local/bin/envoy";
const BOOTSTRAP: &str = "/etc/envoy/sidecar.yaml";
const LOGS: &str = "/var/log";

/// The value of a setting of the unit.
fn setting(name: &str) -> Result<String> {
    let unit = std::fs::read_to_string(repository("deploy/envoy/envoy.service"))?;
    let value = unit
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}=")));
    Ok(value
        .with_context(|| format!("the unit has no {name}"))?
        .to_owned())
}

/// What becomes of the JSON log under the unit.
#[derive(Debug)]
pub enum Started {
    /// Envoy runs, and logs calls there: its lines, those after the log was moved away and Envoy was told to reopen it
    /// last.
    Logs(Vec<String>),
    /// Envoy ended, and said so.
    Ended(String),
}

/// Starts the unit with the bootstrap of the JSON log, whose file is `log` if that is named, and calls its app twice:
/// between the calls the log is moved away, as `logrotate` does, and the unit reloaded.
pub async fn start_with_json_log(lab: &Lab, log: Option<&str>) -> Result<Started> {
    let app = App::start().await?;
    let root = tempfile::TempDir::with_prefix_in("unit-", lab.dir())?.keep();
    // What systemd makes for LogsDirectory.
    let logs = root.join(setting("LogsDirectory")?);
    std::fs::create_dir(&logs)?;
    let example = Example::read(Consumer::JsonLog.file())?;
    let named = ["app", "productpage", "payments"].map(|name| (name, app.address));
    let mut bootstrap = example.settled(lab.module(), &root, &named.into())?;
    let mut path = PathBuf::new();
    for listener in ["inbound", "outbound"] {
        let file = &mut list(&mut manager(&mut bootstrap, listener)?["access_log"])
            .next()
            .context("no log")?["typed_config"]["path"];
        let shipped = example_log(&example, listener)?;
        path = in_folder(&shipped, &root)?;
        *file = match log {
            Some(log) => log.into(),
            None => path.to_string_lossy().as_ref().into(),
        };
    }
    let config = root.join("sidecar.json");
    std::fs::write(&config, bootstrap.to_string())?;

    let mut running = Running::start(lab, &config, &root)?;
    let Some(admin) = running.admin(&root).await? else {
        return Ok(Started::Ended(running.said().await?));
    };
    let inbound = listening_at(admin, "inbound").await?;
    let call = || sidecar::as_from(Call::new(inbound, "ratings"), &workload("checkout", "shop"));
    call()?.send().await?;
    let mut lines = lab.lines(&path, 1).await?;
    let rotated = path.with_extension("log.1");
    std::fs::rename(&path, &rotated)?;
    running.reload()?;
    // Envoy makes the file anew.
    until("the log to be opened anew", async || {
        Ok(path.exists().then_some(()))
    })
    .await?;
    call()?.send().await?;
    lines.extend(lab.lines(&path, 1).await?);
    Ok(Started::Logs(lines))
}

/// The log's path in the file as it is shipped.
fn example_log(example: &Example, listener: &str) -> Result<String> {
    let mut bootstrap = example.bootstrap()?;
    let log = &manager(&mut bootstrap, listener)?["access_log"][0]["typed_config"]["path"];
    Ok(log.as_str().context("no path")?.to_owned())
}

/// A path under `/var/log` in the folder that stands for that.
fn in_folder(path: &str, root: &Path) -> Result<PathBuf> {
    let path = Path::new(path).strip_prefix(LOGS);
    Ok(root.join(path.context("the log is not in /var/log")?))
}

struct Running {
    process: Child,
    /// The other end of its standard output and standard error.
    said: UnixStream,
}

impl Running {
    fn start(lab: &Lab, config: &Path, root: &Path) -> Result<Self> {
        let command_line = setting("ExecStart")?;
        let mut words = command_line.split_whitespace();
        anyhow::ensure!(words.next() == Some(ENVOY), "{command_line}");
        let mut command = Command::from(bound_to_us(lab.envoy(), "KILL", None));
        for word in words {
            if word == BOOTSTRAP {
                command.arg(config);
            } else {
                command.arg(word);
            }
        }
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = || anyhow::Ok(Stdio::from(OwnedFd::from(theirs.try_clone()?)));
        command
            .arg("--admin-address-path")
            .arg(root.join("admin-address"))
            // Sooner than in ten seconds.
            .args(["--file-flush-interval-msec", "100"])
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(theirs()?)
            .stderr(theirs()?);
        let process = command.spawn()?;
        Ok(Self {
            process,
            said: ours,
        })
    }

    /// Where its admin interface is, or nothing if it has ended.
    async fn admin(&mut self, root: &Path) -> Result<Option<std::net::SocketAddr>> {
        until("Envoy to start or to end", async || {
            if self.process.try_wait()?.is_some() {
                return Ok(Some(None));
            }
            let address = std::fs::read_to_string(root.join("admin-address")).ok();
            let Some(admin) = address.and_then(|address| address.parse().ok()) else {
                return Ok(None);
            };
            let ready = Call::new(admin, "admin").path("/ready").send().await;
            let is_ready = ready.is_ok_and(|reply| reply.status == hyper::StatusCode::OK);
            Ok(is_ready.then_some(Some(admin)))
        })
        .await
    }

    /// What the unit's `ExecReload` does.
    fn reload(&self) -> Result<()> {
        let reload = setting("ExecReload")?;
        let id = self.process.id().context("Envoy has ended")?.to_string();
        let words: Vec<_> = reload
            .split_whitespace()
            .map(|word| word.replace("$MAINPID", &id))
            .collect();
        let [program, arguments @ ..] = words.as_slice() else {
            bail!("ExecReload is empty");
        };
        let status = std::process::Command::new(program)
            .args(arguments)
            .status()?;
        anyhow::ensure!(status.success(), "{reload}: {status}");
        Ok(())
    }

    /// All that it has said, once it has ended.
    async fn said(mut self) -> Result<String> {
        self.process.wait().await?;
        self.said.set_nonblocking(true)?;
        let mut said = String::new();
        let mut stream = tokio::net::UnixStream::from_std(self.said)?;
        stream.read_to_string(&mut said).await?;
        Ok(said)
    }
}

/// The field of a line.
pub fn field(line: &str, name: &str) -> Result<Value> {
    let line: Value = serde_json::from_str(line)?;
    Ok(line[name].clone())
}
