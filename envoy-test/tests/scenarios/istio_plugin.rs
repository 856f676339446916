//! What Istio generates from a `WasmPlugin`: an extension configuration that is
//! discovered separately from the listeners, the same one for inbound and
//! outbound, without a VM id.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode as Status;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use envoy_test::bootstrap::{FILTER, discovered_filter, filter_resource, pass_through, text_log};
use envoy_test::{Entry, FailurePolicy, Lab, Mesh, Node, Plugin, Reply, Side, Workload, until};
use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::vms::vms;
use crate::{assert_clean, assert_no_peer, assert_peer, removal_of_peer_headers};

envoy_test::stories!(
    one_resource_serves_both_listeners,
    an_update_reaches_both_listeners,
    removal_strips_where_the_filter_is_idle,
    a_missing_module_costs_every_request,
    a_default_lets_requests_pass_meanwhile,
    a_listener_waits_for_its_plugin,
);

/// The resource's names: in all releases with `WasmPlugin`, and since Istio
/// 1.30.
const NAMES: [&str; 2] = [
    "extensions.istio.io/wasmplugin/istio-system.metadata-exchange",
    "extensions.istio.io/trafficextension/istio-system.metadata-exchange~istio-translated-wasmplugin",
];

/// A `WasmPlugin` that fails open.
fn plugin(resource: &str, configuration: Value) -> Plugin {
    Plugin {
        filter: resource.to_owned(),
        name: "istio-system.metadata-exchange".to_owned(),
        root_id: "metadata_exchange".to_owned(),
        vm_id: String::new(),
        configuration,
        watched: true,
        failure_policy: FailurePolicy::Open,
        ..Plugin::default()
    }
}

fn sidecar(name: &str, node: Node, plugin: &Plugin) -> Workload {
    let put = |listener: &mut envoy_test::Listener| listener.plugin = plugin.clone();
    Workload::sidecar(name, node)
        .listener("inbound", put)
        .listener("outbound", put)
}

async fn one_resource_serves_both_listeners(lab: &Lab) -> Result<()> {
    for name in NAMES {
        let (client, server) = (Node::pod_client()?, Node::vm_server()?);
        let plugin = plugin(name, json!({}));
        let mesh = lab
            .start([
                sidecar("productpage", client.clone(), &plugin),
                sidecar("ratings", server.clone(), &plugin),
                Workload::gateway("one-listener", Node::gateway()?)
                    .listener("gateway", |listener| listener.plugin = plugin.clone()),
            ])
            .await?;

        for (from, caller, to, callee) in [
            ("productpage", &client, "ratings", &server),
            ("ratings", &server, "productpage", &client),
        ] {
            let call = Called::new(lab, &mesh, from, to).await?;
            assert_peer(&call.outbound, Side::Upstream, callee)?;
            assert_peer(&call.inbound, Side::Downstream, caller)?;
            assert_clean(&mesh, to, &call.reply)?;
        }
        let vms_of_one = vms(&mesh, "one-listener").await?;
        assert_eq!(vms(&mesh, "ratings").await?, vms_of_one);
    }
    Ok(())
}

/// A refused update reaches neither listener, and costs nothing.
async fn an_update_reaches_both_listeners(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let [_, name] = NAMES;
    let first = plugin(name, json!({}));
    let mesh = lab
        .start([
            sidecar("productpage", client, &first),
            sidecar("ratings", server.clone(), &first),
        ])
        .await?;
    let local_nodes = async || {
        let inbound = Called::new(lab, &mesh, "productpage", "ratings").await?;
        let outbound = Called::new(lab, &mesh, "ratings", "productpage").await?;
        anyhow::Ok((inbound.inbound, outbound.outbound))
    };
    let (inbound, outbound) = local_nodes().await?;
    assert_no_peer(&inbound, Side::Upstream)?;
    assert_no_peer(&outbound, Side::Downstream)?;

    let recording = plugin(name, json!({ "record_local_node": true }));
    mesh.reconfigure("ratings", &recording).await?;
    until("both listeners to record the local node", async || {
        let (inbound, outbound) = local_nodes().await?;
        let sides = [
            inbound.peer(Side::Upstream)?.is_some(),
            outbound.peer(Side::Downstream)?.is_some(),
        ];
        Ok((sides == [true, true]).then_some(()))
    })
    .await?;

    let refused = plugin(name, json!({ "record_local_node": "yes" }));
    mesh.reconfigure("ratings", &refused).await?;
    mesh.envoy("ratings")?
        .counts(&statistic(name, "update_rejected"), 1)
        .await?;
    let (inbound, outbound) = local_nodes().await?;
    assert_peer(&inbound, Side::Upstream, &server)?;
    assert_peer(&outbound, Side::Downstream, &server)
}

/// With an invalid first configuration, still no peer header reaches the app if
/// Envoy removes them itself.
async fn removal_strips_where_the_filter_is_idle(lab: &Lab) -> Result<()> {
    let idle = plugin(NAMES[1], json!({ "max_sent_byts": 1 }));
    let mesh = with_removal(lab, &idle).await?;

    for _ in 0..3 {
        let call = Called::new(lab, &mesh, "productpage", "ratings").await?;
        assert_no_peer(&call.inbound, Side::Downstream)?;
        assert_no_peer(&call.outbound, Side::Upstream)?;
        assert_clean(&mesh, "ratings", &call.reply)?;
    }
    until_accepted(lab, &mesh, StatusCode::OK).await
}

/// Failing open applies to plugins whose VM has died. Here there never was a
/// VM, and Envoy has no filter to skip.
async fn a_missing_module_costs_every_request(lab: &Lab) -> Result<()> {
    let mesh = refused_at_first(lab, None).await?;

    for _ in 0..3 {
        let reply = mesh.call("productpage", "ratings")?.send().await?;
        assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(mesh.app("ratings")?.received(&reply.call).is_empty());
    }
    let flags = lab.lines(&lab.dir().join(FLAGS), 3).await?;
    assert_eq!(flags, ["NFCF"; 3], "no filter configuration found");
    until_accepted(lab, &mesh, StatusCode::INTERNAL_SERVER_ERROR).await
}

/// Also, no peer header reaches the app if Envoy removes them itself.
async fn a_default_lets_requests_pass_meanwhile(lab: &Lab) -> Result<()> {
    let mesh = refused_at_first(lab, Some(pass_through())).await?;

    for _ in 0..3 {
        let call = Called::new(lab, &mesh, "productpage", "ratings").await?;
        assert_no_peer(&call.inbound, Side::Downstream)?;
        assert_no_peer(&call.outbound, Side::Upstream)?;
        assert_clean(&mesh, "ratings", &call.reply)?;
    }
    until_accepted(lab, &mesh, StatusCode::OK).await
}

/// The file to which the proxy logs why it answered itself.
const FLAGS: &str = "flags.log";

async fn refused_at_first(lab: &Lab, default_config: Option<Value>) -> Result<Mesh> {
    let missing = Plugin {
        default_config,
        module: Some(lab.dir().join("missing.wasm")),
        ..plugin(NAMES[1], json!({}))
    };
    let mesh = with_removal(lab, &missing).await?;
    let envoy = mesh.envoy("ratings")?;
    let rejected = statistic(NAMES[1], "update_rejected");
    assert_eq!(envoy.counts(&rejected, 1).await?, 1);
    Ok(mesh)
}

/// A callee with this plugin, whose Envoy removes peer headers itself.
async fn with_removal(lab: &Lab, plugin: &Plugin) -> Result<Mesh> {
    let ratings = Workload::sidecar("ratings", Node::vm_server()?);
    let ratings = ratings.listener("inbound", |listener| {
        listener.plugin = plugin.clone();
        listener.virtual_host = removal_of_peer_headers();
        let flags = text_log(&lab.dir().join(FLAGS), "%RESPONSE_FLAGS%");
        listener.access_logs.push(flags);
    });
    let productpage = Workload::sidecar("productpage", Node::pod_client()?);
    lab.start([productpage, ratings]).await
}

/// Corrects the configuration. Until it applies, requests are answered with
/// `meanwhile`.
async fn until_accepted(lab: &Lab, mesh: &Mesh, meanwhile: StatusCode) -> Result<()> {
    mesh.reconfigure("ratings", &plugin(NAMES[1], json!({})))
        .await?;
    let inbound = until("the corrected configuration", async || {
        let reply = mesh.call("productpage", "ratings")?.send().await?;
        let inbound = lab.entry("ratings/inbound", &reply.call).await?;
        if inbound.peer(Side::Downstream)?.is_none() {
            assert_eq!(reply.status, meanwhile);
            return Ok(None);
        }
        assert_eq!(reply.status, StatusCode::OK);
        Ok(Some(inbound))
    })
    .await?;
    assert_peer(&inbound, Side::Downstream, &Node::pod_client()?)
}

/// A plugin that arrives at running listeners: a listener that waits for it
/// does not serve yet, and the previous one keeps serving.
async fn a_listener_waits_for_its_plugin(lab: &Lab) -> Result<()> {
    let (client, server) = (Node::pod_client()?, Node::vm_server()?);
    let control_plane = ControlPlane::start().await?;
    let mesh = lab
        .start([
            Workload::sidecar("productpage", client.clone()),
            Workload::sidecar("ratings", server.clone())
                .watching_listeners()
                .served_at(control_plane.address),
        ])
        .await?;

    let plugin = plugin(NAMES[0], json!({ "record_local_node": true }));
    mesh.change_listeners("ratings", |listener| {
        if listener["name"] != "inbound" {
            return;
        }
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        let filters = manager["http_filters"].as_array_mut();
        for filter in filters.into_iter().flatten() {
            if filter["name"] == FILTER {
                *filter = discovered_filter(&plugin, &ControlPlane::source());
            }
        }
    })
    .await?;
    let envoy = mesh.envoy("ratings")?;
    let warming = "listener_manager.total_listeners_warming";
    assert_eq!(envoy.counts(warming, 1).await?, 1);
    // The listener is waiting for the plugin.
    until("several requests for the plugin", async || {
        Ok((control_plane.asked() >= 3).then_some(()))
    })
    .await?;
    let meanwhile = Called::new(lab, &mesh, "productpage", "ratings").await?;
    assert_no_peer(&meanwhile.inbound, Side::Upstream)?;
    assert_peer(&meanwhile.inbound, Side::Downstream, &client)?;
    assert_eq!(envoy.stats().await?[warming], 1);

    control_plane.deliver(filter_resource(&plugin, lab.module()))?;
    let served = until("the listener with its plugin", async || {
        let call = Called::new(lab, &mesh, "productpage", "ratings").await?;
        let is_new = call.inbound.peer(Side::Upstream)?.is_some();
        Ok(is_new.then_some(call))
    })
    .await?;
    assert_peer(&served.inbound, Side::Upstream, &server)?;
    assert_peer(&served.inbound, Side::Downstream, &client)?;
    assert_eq!(envoy.stats().await?[warming], 0);
    Ok(())
}

/// An answered call, and its entries in both proxies' logs.
struct Called {
    reply: Reply,
    outbound: Arc<Entry>,
    inbound: Arc<Entry>,
}

impl Called {
    async fn new(lab: &Lab, mesh: &Mesh, from: &str, to: &str) -> Result<Self> {
        let reply = mesh.call(from, to)?.send().await?;
        assert_eq!(reply.status, StatusCode::OK);
        Ok(Self {
            outbound: lab.entry(&format!("{from}/outbound"), &reply.call).await?,
            inbound: lab.entry(&format!("{to}/inbound"), &reply.call).await?,
            reply,
        })
    }
}

pub(crate) fn statistic(filter: &str, name: &str) -> String {
    format!("extension_config_discovery.http_filter.{filter}.{name}")
}

/// Discovery of one extension configuration over HTTP: unlike a file, it can be
/// reachable without having a configuration yet. It answers everything else
/// with 200, like an app.
struct ControlPlane {
    address: SocketAddr,
    shared: Arc<Discovery>,
}

#[derive(Default)]
struct Discovery {
    resource: OnceLock<String>,
    asked: AtomicU64,
}

impl ControlPlane {
    async fn start() -> Result<Self> {
        let shared = Arc::new(Discovery::default());
        let router = Router::new()
            .route("/v3/discovery:extension_configs", post(discover))
            .fallback(async || Status::OK)
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, shared })
    }

    /// The configuration source of the proxy, whose app it is. Like Istio's, it
    /// has no timeout.
    fn source() -> Value {
        json!({
            "resource_api_version": "V3",
            "initial_fetch_timeout": "0s",
            "api_config_source": {
                "api_type": "REST",
                "transport_api_version": "V3",
                "cluster_names": ["app"],
                "refresh_delay": "0.05s",
            },
        })
    }

    fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    fn deliver(&self, mut resource: Value) -> Result<()> {
        resource["version_info"] = "1".into();
        let delivered = self.shared.resource.set(resource.to_string()).ok();
        delivered.context("it delivers once")
    }
}

async fn discover(State(shared): State<Arc<Discovery>>) -> Response {
    shared.asked.fetch_add(1, Ordering::Relaxed);
    match shared.resource.get() {
        Some(resource) => resource.clone().into_response(),
        None => Status::NOT_MODIFIED.into_response(),
    }
}
