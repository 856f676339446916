//! Redis: its client speaks first.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{Dialogue, LARGE, LONG, program, value};
use crate::daemon::Home;
use crate::ports;
use crate::process::Process;

const CLIENT: &str = "/usr/bin/redis-cli";
const SERVER: &str = "/usr/bin/redis-server";

#[derive(Debug)]
pub(in super::super) struct Redis {
    /// Dropped before its folder.
    _process: Process,
    pub(super) port: u16,
    pub(super) home: Home,
}

pub(super) fn is_there() -> bool {
    program(&[SERVER]).and(program(&[CLIENT])).is_ok()
}

impl Redis {
    pub(super) async fn start() -> Result<Self> {
        let home = Home::new("redis", "redis")?;
        let data = home.folder("data")?;
        let port = ports::free()?;
        let mut server = home.command(Path::new(SERVER), "TERM", &data);
        server
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            // The data need not survive.
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&data);
        let process = home.start("Redis", server, "TERM", port).await?;
        Ok(Self {
            _process: process,
            port,
            home,
        })
    }
}

fn client(at: SocketAddr) -> Dialogue {
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    Dialogue::new(CLIENT, &["-h", &host, "-p", &port])
}

fn write_and_read(client: &mut Dialogue, space: &str, number: usize, length: usize) {
    let value = value(space, number, length);
    client.says(&format!("SET {space}:{number} \"{value}\""));
    client.hears("OK");
    client.says(&format!("GET {space}:{number}"));
    client.hears(&value);
}

pub(super) fn short(at: SocketAddr, space: &str, number: usize) -> Vec<Dialogue> {
    let mut client = client(at);
    write_and_read(&mut client, space, number, 20);
    vec![client]
}

pub(super) fn long(at: SocketAddr, space: &str) -> Vec<Dialogue> {
    let mut long = client(at);
    for number in 0..LONG {
        write_and_read(&mut long, space, 1000 + number, number);
    }
    write_and_read(&mut long, space, 1000 + LONG, LARGE);
    vec![long]
}
