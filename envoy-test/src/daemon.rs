//! Servers of Debian's packages, each with a temporary folder, a free port and the user of its package.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::process::{Process, bound_to_us, run};
use crate::wait::until;

/// Where a server keeps its files, and the user as which it runs.
#[derive(Debug)]
pub(crate) struct Home {
    dir: TempDir,
    user: Option<&'static str>,
}

impl Home {
    /// A home for the server `name`. As root, its programs run as `user`, which its package creates.
    pub(crate) fn new(name: &str, user: &'static str) -> Result<Self> {
        let dir = TempDir::with_prefix(format!("envoy-test-{name}-"))?;
        // The other user needs to traverse it to reach its folders.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711))?;
        Ok(Self {
            dir,
            user: is_root()?.then_some(user),
        })
    }

    /// A new folder that the server owns.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.dir.path().join(name);
        run(Command::new("install")
            .args(["-d", "-m", "700"])
            .args(self.user.map(|user| format!("--owner={user}")))
            .arg(&folder))?;
        Ok(folder)
    }

    /// A new file that the server can read.
    pub(crate) fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let file = self.dir.path().join(name);
        std::fs::write(&file, content)?;
        std::fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        Ok(file)
    }

    /// What its programs have written to their standard output and error.
    pub(crate) fn log(&self) -> Result<String> {
        let mut log = String::new();
        for file in std::fs::read_dir(self.dir.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                log.push_str(&String::from_utf8_lossy(&std::fs::read(path)?));
            }
        }
        Ok(log)
    }

    /// A program of the server, which runs in `folder` and ends by `signal` if the harness is gone.
    pub(crate) fn command(&self, program: &Path, signal: &str, folder: &Path) -> Command {
        let mut command = bound_to_us(program, signal, self.user);
        command.current_dir(folder);
        command
    }

    /// Starts `command`, and waits until it accepts connections at `port`.
    pub(crate) async fn start(
        &self,
        name: &str,
        command: Command,
        signal: &'static str,
        port: u16,
    ) -> Result<Process> {
        let log = self.dir.path().join(format!("{name}.log"));
        let mut process = Process::start(command, &log, signal)?;
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        until(name, async || {
            if let Some(status) = process.ended()? {
                bail!("{name} exited while starting: {status}\n{}", log());
            }
            let connection = TcpStream::connect(local(port)).await;
            Ok(connection.is_ok().then_some(()))
        })
        .await
        .with_context(|| format!("{name} does not start:\n{}", log()))?;
        Ok(process)
    }
}

/// `port` on the loopback interface.
pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn is_root() -> Result<bool> {
    let id = Command::new("id").arg("-u").output().context("id")?;
    Ok(id.stdout.trim_ascii() == b"0")
}
