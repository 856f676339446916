//! The state of the cart: a real Redis behind a sidecar, which the cart calls over TCP through its own.

use std::net::SocketAddr;

use access_log::Direction;
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::graph::REDIS;
use crate::envoy::Envoy;
use crate::mesh::Lab;
use crate::tcp::{Route, Running, Server, sidecar};
use crate::workload::Workload;

/// The listener for Redis in the cart's sidecar.
pub(super) const OUTBOUND: &str = "redis-outbound";
const INBOUND: &str = "redis-inbound";

/// A running Redis and its sidecar.
#[derive(Debug)]
pub(super) struct Redis {
    inbound: SocketAddr,
    _sidecar: Envoy,
    _server: Running,
}

impl Redis {
    /// `None` if Redis is not installed; with `NO_SKIPPING`, that is an error.
    pub(super) async fn start(lab: &Lab) -> Result<Option<Self>> {
        if let Some(missing) = Server::Redis.missing() {
            ensure!(
                std::env::var_os("NO_SKIPPING").is_none(),
                "{missing} is not installed"
            );
            return Ok(None);
        }
        let server = Server::Redis.start().await?;
        let inbound = Route::new(INBOUND, Direction::Inbound, server.address());
        let bootstrap = sidecar(lab, &REDIS.node("v1"), &[inbound]);
        let envoy = lab.start_envoy(&bootstrap).await;
        let envoy = envoy.context("the sidecar of Redis")?;
        Ok(Some(Self {
            inbound: envoy.listener(INBOUND).await?,
            _sidecar: envoy,
            _server: server,
        }))
    }

    /// The cart's workload, with a listener for Redis in its sidecar.
    pub(super) fn called_by(&self, lab: &Lab, cart: Workload) -> Workload {
        let mut route = Route::new(OUTBOUND, Direction::Outbound, self.inbound);
        REDIS.name.clone_into(&mut route.cluster);
        // Redis' sidecar knows frames.
        let mark = json!({ "metadata_exchange": { "tcp": true } });
        route.overrides = json!({ "metadata": { "filter_metadata": mark } });
        cart.with_listener(route.listener(lab), route.cluster())
    }
}

/// Whether Redis has done what a request to the cart asks for.
pub(super) async fn serves(redis: SocketAddr, path: &str) -> bool {
    let command = match path {
        "/add" => "INCR items",
        "/empty" => "SET items 0",
        _ => "GET items",
    };
    let answer = async {
        let mut stream = BufReader::new(TcpStream::connect(redis).await?);
        let command = format!("{command}\r\n");
        stream.write_all(command.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    // A number, a text, or that it was set.
    let is_answer = |answer: String| answer.starts_with([':', '$', '+']) && answer.ends_with('\n');
    answer.await.is_ok_and(is_answer)
}
