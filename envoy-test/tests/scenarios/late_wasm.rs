//! The filter arrives at a running Envoy without Wasm, by its listener or by extension discovery, as in a rollout.
//! Envoy up to 1.37 then crashes on a CPU with memory protection keys, unless V8 was started first.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use envoy_test::bootstrap::{
    discovered_filter, filter_resource, pass_through, router, v8_first, wasm_filter,
};
use envoy_test::client::{Call, PEER_HEADERS, has_peer_headers};
use envoy_test::{App, Envoy, Lab, Plugin, until};
use serde_json::{Value, json};
use tokio::fs;

envoy_test::stories!(
    a_listener_brings_it_where_v8_came_first,
    discovery_brings_it_where_v8_came_first,
    a_listener_brings_it,
    discovery_brings_it,
    it_is_there_at_the_start,
);

/// `{"NAME": "a"}`.
const CALLER: &str = "CgsKBE5BTUUSAxoBYQ==";

async fn a_listener_brings_it_where_v8_came_first(lab: &Lab) -> Result<()> {
    Running::start(lab, true, false)
        .await?
        .is_given(By::Listener)
        .await
}

async fn discovery_brings_it_where_v8_came_first(lab: &Lab) -> Result<()> {
    Running::start(lab, true, false)
        .await?
        .is_given(By::Discovery)
        .await
}

async fn a_listener_brings_it(lab: &Lab) -> Result<()> {
    let running = Running::start(lab, false, false).await?;
    let survives = running.survives_late_wasm().await?;
    running.is_given_and_lives(By::Listener, survives).await
}

async fn discovery_brings_it(lab: &Lab) -> Result<()> {
    let running = Running::start(lab, false, false).await?;
    let survives = running.survives_late_wasm().await?;
    running.is_given_and_lives(By::Discovery, survives).await
}

/// The order for Istio: apply the filter, then restart the proxies. A starting proxy receives it before its workers
/// run.
async fn it_is_there_at_the_start(lab: &Lab) -> Result<()> {
    let running = Running::start(lab, false, true).await?;
    running.serves_with_the_filter().await
}

/// How the filter arrives.
#[derive(Clone, Copy)]
enum By {
    /// In an update of its listener.
    Listener,
    /// As the extension configuration that its listener waits for.
    Discovery,
}

/// An Envoy in front of an app. Its two listeners come from a file: one without the filter, and one that discovers it
/// and passes requests until then.
struct Running<'a> {
    lab: &'a Lab,
    app: App,
    envoy: Envoy,
    plain: SocketAddr,
    discovering: SocketAddr,
}

impl<'a> Running<'a> {
    async fn start(lab: &'a Lab, is_v8_first: bool, has_filter: bool) -> Result<Self> {
        let app = App::start().await?;
        let resource = if has_filter {
            resource(lab)
        } else {
            json!({ "resources": [] })
        };
        replace(&plugin_file(lab), &resource).await?;
        replace(&listeners_file(lab), &listeners(lab, &[])).await?;
        let mut bootstrap = json!({
            "node": { "id": "sidecar~10.0.0.1~a.b~b.svc.cluster.local", "cluster": "a" },
            "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
            "dynamic_resources": { "lds_config": { "path_config_source": { "path": listeners_file(lab) } } },
            "static_resources": { "clusters": [cluster(app.address)] },
        });
        if is_v8_first {
            bootstrap["bootstrap_extensions"] = v8_first();
        }
        let envoy = lab.start_envoy(&bootstrap).await?;
        Ok(Self {
            lab,
            app,
            plain: envoy.listener("plain").await?,
            discovering: envoy.listener("discovering").await?,
            envoy,
        })
    }

    /// Whether this Envoy survives on this CPU without V8 at its start.
    async fn survives_late_wasm(&self) -> Result<bool> {
        let version = self.envoy.version().await?;
        let minor = version
            .split('.')
            .nth(1)
            .context("no version")?
            .parse::<u32>()?;
        let flags = fs::read_to_string("/proc/cpuinfo").await?;
        let has_keys = flags.split_whitespace().any(|flag| flag == "pku");
        Ok(minor >= 38 || !has_keys)
    }

    async fn is_given(&self, by: By) -> Result<()> {
        self.is_given_and_lives(by, true).await
    }

    /// Requests run while the filter arrives: all are answered, and then the filter works.
    async fn is_given_and_lives(&self, by: By, survives: bool) -> Result<()> {
        for _ in 0..20 {
            ensure!(!self.call(self.plain).await?, "the filter is there already");
            ensure!(
                !self.call(self.discovering).await?,
                "the filter is there already"
            );
        }
        let to = match by {
            By::Listener => {
                let filter = wasm_filter(&Plugin::default(), self.lab.module());
                let listeners = listeners(self.lab, &[filter]);
                replace(&listeners_file(self.lab), &listeners).await?;
                self.plain
            }
            By::Discovery => {
                replace(&plugin_file(self.lab), &resource(self.lab)).await?;
                self.discovering
            }
        };
        if !survives {
            return until("the end of this Envoy, on this CPU", async || {
                Ok(self.envoy.stats().await.err().map(|_| ()))
            })
            .await;
        }
        until("the filter", async || {
            Ok(self.call(to).await?.then_some(()))
        })
        .await?;
        for _ in 0..100 {
            ensure!(self.call(to).await?, "the filter is gone");
        }
        self.envoy.stats().await?;
        Ok(())
    }

    async fn serves_with_the_filter(&self) -> Result<()> {
        for _ in 0..20 {
            ensure!(
                self.call(self.discovering).await?,
                "the filter is not there"
            );
        }
        Ok(())
    }

    /// Makes a call, which must be answered; returns whether the filter ran, which removes the caller's headers.
    async fn call(&self, to: SocketAddr) -> Result<bool> {
        let call = Call::new(to, "app").header(PEER_HEADERS[0], CALLER)?;
        let reply = call.send().await?;
        ensure!(reply.status == 200, "answered {}", reply.status);
        match self.app.received(&reply.call).as_slice() {
            [one] => Ok(!has_peer_headers(&one.headers)),
            several => bail!("received {} times", several.len()),
        }
    }
}

fn plugin_file(lab: &Lab) -> std::path::PathBuf {
    lab.dir().join("plugin.json")
}

fn listeners_file(lab: &Lab) -> std::path::PathBuf {
    lab.dir().join("listeners.json")
}

fn resource(lab: &Lab) -> Value {
    filter_resource(&Plugin::default(), lab.module())
}

/// Both listeners; the first with `filters`.
fn listeners(lab: &Lab, filters: &[Value]) -> Value {
    let discovering = Plugin {
        default_config: Some(pass_through()),
        ..Plugin::default()
    };
    let source = json!({ "path_config_source": { "path": plugin_file(lab) } });
    json!({ "resources": [
        listener("plain", filters),
        listener("discovering", &[discovered_filter(&discovering, &source)]),
    ] })
}

fn listener(name: &str, filters: &[Value]) -> Value {
    let mut filters = filters.to_vec();
    filters.push(router());
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": name,
        "traffic_direction": "INBOUND",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": name,
                "http_filters": filters,
                "route_config": { "virtual_hosts": [{
                    "name": "app", "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "app" } }],
                }] },
            },
        }] }],
    })
}

fn cluster(app: SocketAddr) -> Value {
    let address = json!({ "socket_address": { "address": app.ip(), "port_value": app.port() } });
    json!({
        "name": "app",
        "load_assignment": {
            "cluster_name": "app",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
    })
}

/// Envoy watches for a file that is moved into place.
async fn replace(path: &Path, json: &Value) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(json)?).await?;
    Ok(fs::rename(new, path).await?)
}
