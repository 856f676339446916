//! `PostgreSQL`: its client speaks first, and is first answered by a single byte, for it asks for TLS.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Dialogue, LARGE, LONG, value};
use crate::postgres::{DATABASE, Postgres, USER, programs};

pub(super) fn is_there() -> bool {
    programs().is_ok_and(|programs| programs.join("psql").is_file())
}

pub(super) async fn start() -> Result<Postgres> {
    Postgres::start().await
}

fn client(at: SocketAddr) -> Dialogue {
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    let psql = programs().unwrap_or_default().join("psql");
    let mut client = Dialogue::new(psql, &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    let others = ["-h", &host, "-p", &port, "-U", USER, "-d", DATABASE];
    client.arguments.extend(others.map(Into::into));
    client
}

fn write_and_read(client: &mut Dialogue, space: &str, number: usize, length: usize) {
    let value = value(space, number, length);
    client.says(&format!(
        "INSERT INTO {space} VALUES ({number}, '{value}');"
    ));
    client.says(&format!("SELECT v FROM {space} WHERE k = {number};"));
    client.hears(&value);
}

pub(super) fn short(at: SocketAddr, space: &str, number: usize) -> Vec<Dialogue> {
    let mut client = client(at);
    write_and_read(&mut client, space, number, 20);
    vec![client]
}

/// What goes before all connections, and the long one.
pub(super) fn long(at: SocketAddr, space: &str) -> (Vec<Dialogue>, Vec<Dialogue>) {
    let mut first = client(at);
    first.says(&format!(
        "CREATE TABLE {space} (k INT PRIMARY KEY, v TEXT);"
    ));
    let mut long = client(at);
    for number in 0..LONG {
        write_and_read(&mut long, space, 1000 + number, number);
    }
    write_and_read(&mut long, space, 1000 + LONG, LARGE);
    (vec![first], vec![long])
}
