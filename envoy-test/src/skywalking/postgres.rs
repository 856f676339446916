//! A `PostgreSQL` for the OAP: from Debian's package, with a temporary data folder and a free port.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::ports;
use crate::process::{Process, bound_to_us, run};
use crate::wait::until;

/// The user that Debian's package creates. `PostgreSQL` does not run as root.
const USER: &str = "postgres";
const DATABASE: &str = "postgres";

/// A running `PostgreSQL`. Dropping it ends it and removes its data.
#[derive(Debug)]
pub(super) struct Postgres {
    /// Dropped before its folder.
    _process: Process,
    port: u16,
    _dir: TempDir,
}

impl Postgres {
    /// Starts one and waits until it accepts connections.
    pub(super) async fn start() -> Result<Self> {
        let programs = programs()?;
        let user = is_root()?.then_some(USER);
        let dir = TempDir::with_prefix("envoy-test-postgres-")?;
        // The other user needs to traverse it to reach the data.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711))?;
        let data = dir.path().join("data");
        run(Command::new("install")
            .args(["-d", "-m", "700"])
            .args(user.map(|user| format!("--owner={user}")))
            .arg(&data))?;
        run(bound_to_us(&programs.join("initdb"), "KILL", user)
            .args(["--username", USER, "--auth", "trust", "--no-sync"])
            .args(["--encoding", "UTF8", "--locale", "C", "--pgdata"])
            .arg(&data)
            .current_dir(&data))?;

        let port = ports::free()?;
        let mut server = bound_to_us(&programs.join("postgres"), "QUIT", user);
        server
            .arg("-D")
            .arg(&data)
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""])
            .current_dir(&data);
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
        let log = dir.path().join("postgres.log");
        let mut process = Process::start(server, &log, "QUIT")?;
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        until("PostgreSQL", async || {
            if let Some(status) = process.ended()? {
                bail!("PostgreSQL exited while starting: {status}\n{}", log());
            }
            let connection = TcpStream::connect(("127.0.0.1", port)).await;
            Ok(connection.is_ok().then_some(()))
        })
        .await?;
        Ok(Self {
            _process: process,
            port,
            _dir: dir,
        })
    }

    /// The OAP's settings for it.
    pub(super) fn environment(&self) -> [(&'static str, String); 3] {
        let url = format!("jdbc:postgresql://127.0.0.1:{}/{DATABASE}", self.port);
        [
            ("SW_JDBC_URL", url),
            ("SW_DATA_SOURCE_USER", USER.to_owned()),
            ("SW_DATA_SOURCE_PASSWORD", String::new()),
        ]
    }
}

/// The folder of `PostgreSQL`'s programs, of the newest version that Debian's packages have
/// installed.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter();
    let programs = versions.flatten().flatten().filter_map(|version| {
        let number: u32 = version.file_name().to_str()?.parse().ok()?;
        let programs = version.path().join("bin");
        programs
            .join("initdb")
            .is_file()
            .then_some((number, programs))
    });
    let newest = programs.max().map(|(_, programs)| programs);
    newest.context("there is no PostgreSQL for the OAP: on Debian, apt-get install postgresql")
}

fn is_root() -> Result<bool> {
    let id = Command::new("id").arg("-u").output().context("id")?;
    Ok(id.stdout.trim_ascii() == b"0")
}
