//! Runs `deploy/envoy/tcp.yaml`, with free ports and the addresses of a lab, as the sidecar of an app and as that of its
//! database.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use envoy_test::{Envoy, Lab, Side, repository};
use metadata_exchange::config::{Config, Protocol};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::vm::{INBOUND_LOG, MODULE, OUTBOUND_LOG, address};
use crate::{plugin_configuration, read_one};

envoy_test::stories!(
    a_client_that_speaks_first_is_named_and_learns_the_callee,
    a_server_that_speaks_first_learns_the_caller,
);

const GREETING: &[u8] = b"greeting";

async fn a_client_that_speaks_first_is_named_and_learns_the_callee(lab: &Lab) -> Result<()> {
    let pair = Pair::start(lab, false).await?;
    let mut client = TcpStream::connect(pair.client.listener("mysql_outbound").await?).await?;
    echo(&mut client, b"query").await?;
    drop(client);
    let inbound = pair.entry(lab, INBOUND_LOG).await?;
    let outbound = pair.entry(lab, OUTBOUND_LOG).await?;
    assert_eq!(inbound.peer(Side::Downstream)?, Some(&metadata("orders")));
    assert_eq!(outbound.peer(Side::Upstream)?, Some(&metadata("mysql")));
    Ok(())
}

/// As `MySQL` does: no frame follows its greeting, and the cluster's metadata name the callee.
async fn a_server_that_speaks_first_learns_the_caller(lab: &Lab) -> Result<()> {
    let pair = Pair::start(lab, true).await?;
    let mut client = TcpStream::connect(pair.client.listener("mysql_outbound").await?).await?;
    let mut greeting = [0; GREETING.len()];
    client.read_exact(&mut greeting).await?;
    assert_eq!(greeting, GREETING);
    echo(&mut client, b"login").await?;
    drop(client);
    let inbound = pair.entry(lab, INBOUND_LOG).await?;
    let outbound = pair.entry(lab, OUTBOUND_LOG).await?;
    assert_eq!(inbound.peer(Side::Downstream)?, Some(&metadata("orders")));
    let callee = outbound.peer(Side::Upstream)?.context("no callee")?;
    assert_eq!(callee["LABELS"]["service.istio.io/canonical-name"], "mysql");
    assert_eq!(callee["NAMESPACE"], "vms");
    Ok(())
}

#[test]
fn its_plugin_configurations_are_for_tcp() -> Result<()> {
    let mut bootstrap = bootstrap()?;
    for listener in listeners(&mut bootstrap)? {
        let filter = &listener["filter_chains"][0]["filters"][0];
        let json = plugin_configuration(&filter["typed_config"]).context("no configuration")?;
        let config = Config::parse(json.as_bytes()).map_err(anyhow::Error::msg)?;
        assert_eq!(config.protocol, Protocol::Tcp);
    }
    Ok(())
}

fn bootstrap() -> Result<Value> {
    read_one(&repository("deploy/envoy/tcp.yaml"))
}

fn listeners(bootstrap: &mut Value) -> Result<&mut Vec<Value>> {
    let listeners = &mut bootstrap["static_resources"]["listeners"];
    listeners.as_array_mut().context("no listeners")
}

/// The metadata of the node that is called `name`.
fn metadata(name: &str) -> Value {
    json!({
        "NAME": format!("{name}-1"),
        "NAMESPACE": "vms",
        "WORKLOAD_NAME": name,
        "LABELS": { "app": name },
    })
}

async fn echo(client: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    client.write_all(bytes).await?;
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).await?;
    assert_eq!(answer, bytes);
    Ok(())
}

/// The two sidecars, and a server that repeats what it hears.
struct Pair {
    client: Envoy,
    _server: Envoy,
}

impl Pair {
    async fn start(lab: &Lab, greets: bool) -> Result<Self> {
        let database = TcpListener::bind("127.0.0.1:0").await?;
        let at = database.local_addr()?;
        tokio::spawn(serve(database, greets));
        let server = sidecar(lab, "mysql", at, at)?;
        let server = lab.start_envoy(&server).await?;
        let inbound = server.listener("mysql_inbound").await?;
        let client = sidecar(lab, "orders", inbound, at)?;
        Ok(Self {
            client: lab.start_envoy(&client).await?,
            _server: server,
        })
    }

    /// The entry of the connection.
    async fn entry(&self, lab: &Lab, log: &str) -> Result<std::sync::Arc<envoy_test::Entry>> {
        let entries = lab
            .collector()
            .wait_for(log, 1, |entry| entry.reporter.log == log);
        match entries.await?.as_slice() {
            [entry] => Ok(entry.clone()),
            entries => bail!("{log} has {} entries", entries.len()),
        }
    }
}

async fn serve(database: TcpListener, greets: bool) {
    while let Ok((mut connection, _)) = database.accept().await {
        tokio::spawn(async move {
            if greets {
                connection.write_all(GREETING).await?;
            }
            let (mut heard, mut said) = connection.split();
            tokio::io::copy(&mut heard, &mut said).await
        });
    }
}

/// The bootstrap for the node `name`, with the addresses of its clusters.
fn sidecar(lab: &Lab, name: &str, mysql: SocketAddr, mysqld: SocketAddr) -> Result<Value> {
    let module = lab.module().to_str().context("the module's path")?;
    let text = bootstrap()?.to_string().replace(MODULE, module);
    let mut bootstrap: Value = serde_json::from_str(&text)?;
    bootstrap["node"]["id"] = name.into();
    bootstrap["node"]["metadata"] = metadata(name);
    bootstrap["admin"]["address"] = address(SocketAddr::from(([127, 0, 0, 1], 0)));
    for listener in listeners(&mut bootstrap)? {
        listener["address"] = address(SocketAddr::from(([127, 0, 0, 1], 0)));
    }
    let clusters = bootstrap["static_resources"]["clusters"].as_array_mut();
    for cluster in clusters.context("no clusters")? {
        let at = match cluster["name"].as_str() {
            Some("mysql") => mysql,
            Some("mysqld") => mysqld,
            Some("skywalking") => lab.logs_to(),
            other => bail!("another cluster: {other:?}"),
        };
        let endpoint = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";
        let endpoint = cluster.pointer_mut(endpoint);
        *endpoint.context("no endpoint")? = address(at);
    }
    Ok(bootstrap)
}
