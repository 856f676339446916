//! `PostgreSQL` from Debian's package.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::daemon::Home;
use crate::ports;
use crate::process::{Process, run};

/// The user that Debian's package creates. `PostgreSQL` does not run as root.
pub(crate) const USER: &str = "postgres";
/// A database that every `PostgreSQL` has.
pub(crate) const DATABASE: &str = "postgres";

/// A running `PostgreSQL`. Dropping it ends it and removes its data.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// Dropped before its folder.
    _process: Process,
    pub(crate) port: u16,
    pub(crate) home: Home,
}

impl Postgres {
    /// Starts one and waits until it accepts connections.
    pub(crate) async fn start() -> Result<Self> {
        let programs = programs()?;
        let home = Home::new("postgres", USER)?;
        let data = home.folder("data")?;
        run(home
            .command(&programs.join("initdb"), "KILL", &data)
            .args(["--username", USER, "--auth", "trust", "--no-sync"])
            .args(["--encoding", "UTF8", "--locale", "C", "--pgdata"])
            .arg(&data))?;

        let port = ports::free()?;
        let mut server = home.command(&programs.join("postgres"), "QUIT", &data);
        server
            .arg("-D")
            .arg(&data)
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""]);
        // The data need not survive a crash.
        for setting in [
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "max_connections=60",
            "shared_buffers=64MB",
        ] {
            server.args(["-c", setting]);
        }
        let process = home.start("PostgreSQL", server, "QUIT", port).await?;
        Ok(Self {
            _process: process,
            port,
            home,
        })
    }
}

/// The folder of `PostgreSQL`'s programs, of the newest version that Debian's packages have
/// installed.
pub(crate) fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter();
    let has_all = |programs: &Path| programs.join("initdb").is_file();
    let programs = versions.flatten().flatten().filter_map(|version| {
        let number: u32 = version.file_name().to_str()?.parse().ok()?;
        let programs = version.path().join("bin");
        has_all(&programs).then_some((number, programs))
    });
    let newest = programs.max().map(|(_, programs)| programs);
    newest.context("there is no PostgreSQL: on Debian, apt-get install postgresql")
}
