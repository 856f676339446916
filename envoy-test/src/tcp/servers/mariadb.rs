//! `MariaDB`: its server speaks first.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Dialogue, program};
use crate::daemon::Home;
use crate::ports;
use crate::process::{Process, run};

const CLIENT: &str = "/usr/bin/mariadb";
const INSTALL: &str = "/usr/bin/mariadb-install-db";
const SERVER: [&str; 2] = ["/usr/sbin/mariadbd", "/usr/bin/mariadbd"];
/// User, password and database.
const NAME: &str = "lab";

#[derive(Debug)]
pub(in super::super) struct MariaDb {
    /// Dropped before its folder.
    _process: Process,
    pub(super) port: u16,
    pub(super) home: Home,
}

pub(super) fn is_there() -> bool {
    program(&SERVER)
        .and(program(&[CLIENT]))
        .and(program(&[INSTALL]))
        .is_ok()
}

impl MariaDb {
    pub(super) async fn start() -> Result<Self> {
        let home = Home::new("mariadb", "mysql")?;
        let data = home.folder("data")?;
        let at_data = format!("--datadir={}", data.display());
        run(home
            .command(&program(&[INSTALL])?, "KILL", &data)
            .args(["--no-defaults", "--skip-test-db", "--skip-name-resolve"])
            .args(["--auth-root-authentication-method=normal", &at_data]))?;
        let first = home.file(
            "first.sql",
            &format!(
                "CREATE DATABASE {NAME};\nCREATE USER '{NAME}'@'%' IDENTIFIED BY '{NAME}';\n\
                 GRANT ALL ON {NAME}.* TO '{NAME}'@'%';\n"
            ),
        )?;
        let port = ports::free()?;
        let mut server = home.command(&program(&SERVER)?, "KILL", &data);
        server
            .args(["--no-defaults", &at_data, "--bind-address=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--socket={}", data.join("socket").display()))
            .arg(format!("--pid-file={}", data.join("pid").display()))
            .arg(format!("--init-file={}", first.display()))
            // The data need not survive a crash.
            .args(["--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"])
            .arg("--innodb-buffer-pool-size=16M");
        let process = home.start("MariaDB", server, "KILL", port).await?;
        Ok(Self {
            _process: process,
            port,
            home,
        })
    }
}

/// The type of a large text.
pub(super) const TEXT: &str = "LONGTEXT";

/// A client of the server behind `at`.
pub(super) fn client(at: SocketAddr) -> Dialogue {
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    let mut client = Dialogue::new(
        CLIENT,
        &["--no-defaults", "--protocol=tcp", "--host", &host],
    );
    let others = ["--port", &port, "--user", NAME, "--password=lab"];
    client.arguments.extend(others.map(Into::into));
    let others = ["--batch", "--skip-column-names", NAME];
    client.arguments.extend(others.map(Into::into));
    client
}
