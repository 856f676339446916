//! `RabbitMQ`: its client speaks first.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{Dialogue, LARGE, LONG, program, value};
use crate::daemon::Home;
use crate::ports;
use crate::process::Process;

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// Erlang's port mapper. The server would start one that outlives it.
const MAPPER: &str = "/usr/bin/epmd";
const DECLARE: &str = "/usr/bin/amqp-declare-queue";
const PUBLISH: &str = "/usr/bin/amqp-publish";
const GET: &str = "/usr/bin/amqp-get";
const CONSUME: &str = "/usr/bin/amqp-consume";

#[derive(Debug)]
pub(in super::super) struct RabbitMq {
    /// Dropped in this order.
    _process: Process,
    _mapper: Process,
    pub(super) port: u16,
    pub(super) home: Home,
}

pub(super) fn is_there() -> bool {
    let programs = [SERVER, MAPPER, DECLARE, PUBLISH, GET, CONSUME];
    programs.iter().all(|path| program(&[path]).is_ok())
}

impl RabbitMq {
    pub(super) async fn start() -> Result<Self> {
        let home = Home::new("rabbitmq", "rabbitmq")?;
        let data = home.folder("data")?;
        let mapper_port = ports::free()?;
        let mut mapper = home.command(Path::new(MAPPER), "KILL", &data);
        mapper.args(["-address", "127.0.0.1", "-port", &mapper_port.to_string()]);
        let mapper = home.start("epmd", mapper, "KILL", mapper_port).await?;
        let (port, nodes) = (ports::free()?, ports::free()?);
        let mut server = home.command(Path::new(SERVER), "KILL", &data);
        server
            .arg("-noinput")
            .env("HOME", &data)
            .env("ERL_EPMD_PORT", mapper_port.to_string())
            // It replaces its script by Erlang's process, which then has our signal.
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_NODENAME", format!("lab{port}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", nodes.to_string())
            .env("RABBITMQ_MNESIA_BASE", data.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", data.join("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", data.join("plugins"));
        let process = home.start("RabbitMQ", server, "KILL", port).await?;
        Ok(Self {
            _process: process,
            _mapper: mapper,
            port,
            home,
        })
    }
}

fn client(program: &str, at: SocketAddr, arguments: &[&str]) -> Dialogue {
    let url = format!("amqp://guest:guest@{at}");
    let mut client = Dialogue::new(program, &["--url", &url]);
    client.arguments.extend(arguments.iter().map(Into::into));
    client
}

fn declare(at: SocketAddr, queue: &str) -> Dialogue {
    let mut declare = client(DECLARE, at, &["-q", queue]);
    declare.hears(queue);
    declare
}

pub(super) fn short(at: SocketAddr, space: &str, number: usize) -> Vec<Dialogue> {
    let queue = format!("{space}-{number}");
    let value = value(space, number, 20);
    let publish = client(PUBLISH, at, &["-r", &queue, "-b", &value]);
    let mut get = client(GET, at, &["-q", &queue]);
    get.expected.push(value);
    vec![declare(at, &queue), publish, get]
}

/// A connection that publishes many messages, one that gets them, and two for a large one.
pub(super) fn long(at: SocketAddr, space: &str) -> Vec<Dialogue> {
    let count = LONG.to_string();
    let mut publish = client(PUBLISH, at, &["-r", space, "-l"]);
    let mut consume = client(CONSUME, at, &["-q", space, "-c", &count, "cat"]);
    for number in 0..LONG {
        let value = value(space, number, number);
        publish.says(&value);
        consume.hears(&value);
    }
    let mut publish_large = client(PUBLISH, at, &["-r", space]);
    publish_large.input = value(space, LONG, LARGE);
    let mut get_large = client(GET, at, &["-q", space]);
    get_large.expected.push(publish_large.input.clone());
    vec![
        declare(at, space),
        publish,
        consume,
        publish_large,
        get_large,
    ]
}
