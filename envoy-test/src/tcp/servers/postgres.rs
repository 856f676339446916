//! `PostgreSQL`: its client speaks first, and is first answered by a single byte, for it asks for TLS.

use std::net::SocketAddr;

use anyhow::Result;

use super::Dialogue;
use crate::postgres::{DATABASE, Postgres, USER, programs};

pub(super) fn is_there() -> bool {
    programs().is_ok_and(|programs| programs.join("psql").is_file())
}

pub(super) async fn start() -> Result<Postgres> {
    Postgres::start().await
}

/// The type of a large text.
pub(super) const TEXT: &str = "TEXT";

/// A client of the server behind `at`.
pub(super) fn client(at: SocketAddr) -> Dialogue {
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    let psql = programs().unwrap_or_default().join("psql");
    let mut client = Dialogue::new(psql, &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    let others = ["-h", &host, "-p", &port, "-U", USER, "-d", DATABASE];
    client.arguments.extend(others.map(Into::into));
    client
}
