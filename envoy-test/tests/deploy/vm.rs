//! Runs `deploy/envoy/sidecar.yaml`, with free ports and the addresses of a
//! lab, as the sidecar of an app that calls and is called.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use envoy_test::client::{METADATA_OF_NAME_X, PEER_HEADERS, has_peer_headers};
use envoy_test::scenario::assert_peer;
use envoy_test::{Envoy, Lab, Mesh, Node, Reply, Side, Workload, repository};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::read_one;

envoy_test::stories!(it_exchanges, it_sends_nothing_outside_the_mesh);

/// The path of the module on a VM.
pub(crate) const MODULE: &str = "/etc/envoy/metadata_exchange.wasm";

/// The log's name in the bootstrap.
pub(crate) const INBOUND_LOG: &str = "metadata_exchange_inbound";
pub(crate) const OUTBOUND_LOG: &str = "metadata_exchange_outbound";

/// The services that the bootstrap routes to, inside the mesh and outside.
pub(crate) const PRODUCTPAGE: &str = "productpage.example.internal";
const PAYMENTS: &str = "payments.example.com";

pub(crate) fn bootstrap() -> Result<Value> {
    read_one(&repository("deploy/envoy/sidecar.yaml"))
}

/// The filter chain of the listener with that direction.
pub(crate) fn filter_chain<'a>(bootstrap: &'a mut Value, direction: &str) -> Result<&'a mut Value> {
    let listeners = bootstrap["static_resources"]["listeners"].as_array_mut();
    let listener = listeners
        .into_iter()
        .flatten()
        .find(|listener| listener["traffic_direction"] == direction)
        .with_context(|| format!("no listener is {direction}"))?;
    Ok(&mut listener["filter_chains"][0])
}

/// The HTTP connection manager of the listener with that direction.
pub(crate) fn connection_manager<'a>(
    bootstrap: &'a mut Value,
    direction: &str,
) -> Result<&'a mut Value> {
    Ok(&mut filter_chain(bootstrap, direction)?["filters"][0]["typed_config"])
}

/// The HTTP filters of the listener with that direction.
pub(crate) fn http_filters<'a>(
    bootstrap: &'a mut Value,
    direction: &str,
) -> Result<&'a mut Vec<Value>> {
    let filters = &mut connection_manager(bootstrap, direction)?["http_filters"];
    filters.as_array_mut().context("no HTTP filters")
}

/// A call from a pod to the app.
pub(crate) struct Called {
    pub(crate) node: Node,
    pub(crate) reply: Reply,
    /// Kept running, because an Envoy that has ended may not have logged
    /// everything.
    _pods: Mesh,
}

/// A VM with its sidecar, the services that it calls and its app.
pub(crate) struct Vm {
    pub(crate) node: Node,
    pub(crate) productpage: Node,
    pub(crate) envoy: Envoy,
    pub(crate) mesh: Mesh,
}

impl Vm {
    /// Starts it with the bootstrap, modified by `change`.
    pub(crate) async fn start(
        lab: &Lab,
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<Self> {
        let productpage = Node::pod_server()?;
        let callee = Workload::sidecar("productpage", productpage.clone());
        Self::calling(lab, callee, productpage, change).await
    }

    /// Starts it with `callee`, whose node is `productpage`, as the service
    /// inside the mesh.
    pub(crate) async fn calling(
        lab: &Lab,
        callee: Workload,
        productpage: Node,
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<Self> {
        let others = [Workload::bare("own-app"), Workload::bare("payments")];
        let mesh = lab.start(others.into_iter().chain([callee])).await?;
        let mut bootstrap = bootstrap()?;
        settle(lab, &mesh, &mut bootstrap)?;
        change(&mut bootstrap)?;
        let node = &bootstrap["node"];
        Ok(Self {
            node: Node {
                id: node["id"].as_str().context("no node id")?.to_owned(),
                metadata: node["metadata"].clone(),
            },
            productpage,
            envoy: lab.start_envoy(&bootstrap).await?,
            mesh,
        })
    }

    /// The app calls `authority` through its sidecar.
    pub(crate) async fn calls(&self, authority: &str) -> Result<Reply> {
        let outbound = self.envoy.listener("outbound").await?;
        let [value, id] = PEER_HEADERS;
        // Apps and strangers may send any headers, which are not passed on.
        envoy_test::client::Call::new(outbound, authority)
            .header(value, METADATA_OF_NAME_X)?
            .header(id, "forged")?
            .send()
            .await
    }

    /// A pod calls the app.
    pub(crate) async fn is_called(&self, lab: &Lab) -> Result<Called> {
        let node = Node::pod_client()?;
        let inbound = self.envoy.listener("inbound").await?;
        let pods = lab
            .start([
                Workload::sidecar("pod", node.clone()),
                Workload::bare("ratings").served_at(inbound),
            ])
            .await?;
        let reply = pods.call("pod", "ratings")?.send().await?;
        Ok(Called {
            node,
            reply,
            _pods: pods,
        })
    }

    /// In both directions, both sides are named, and no app sees a header of
    /// the exchange.
    pub(crate) async fn assert_exchanges(&self, lab: &Lab) -> Result<()> {
        let called = self.calls(PRODUCTPAGE).await?;
        self.assert_clean("productpage", &called)?;
        let ours = lab.entry(OUTBOUND_LOG, &called.call).await?;
        assert_peer(&ours, Side::Upstream, &self.productpage)?;
        let theirs = lab.entry("productpage/inbound", &called.call).await?;
        assert_peer(&theirs, Side::Downstream, &self.node)?;

        let Called { node, reply, .. } = &self.is_called(lab).await?;
        self.assert_clean("own-app", reply)?;
        let ours = lab.entry(INBOUND_LOG, &reply.call).await?;
        assert_peer(&ours, Side::Downstream, node)?;
        let theirs = lab.entry("pod/outbound", &reply.call).await?;
        assert_peer(&theirs, Side::Upstream, &self.node)
    }

    /// Asserts that the call succeeded, and neither side saw a header of the
    /// exchange.
    pub(crate) fn assert_clean(&self, app: &str, reply: &Reply) -> Result<()> {
        assert_eq!(reply.status, StatusCode::OK);
        assert!(!has_peer_headers(&reply.headers), "{reply:?}");
        let received = self.mesh.app(app)?.received(&reply.call);
        assert!(!received.is_empty(), "{app} was not called");
        for request in received {
            assert!(!has_peer_headers(&request.headers), "{request:?}");
        }
        Ok(())
    }
}

/// Replaces what the bootstrap's comment says to change, ports and addresses;
/// and adds the call to the log.
fn settle(lab: &Lab, mesh: &Mesh, bootstrap: &mut Value) -> Result<()> {
    bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0.into();
    let resources = &mut bootstrap["static_resources"];
    for listener in resources["listeners"]
        .as_array_mut()
        .context("no listeners")?
    {
        listener["address"] = address(SocketAddr::from(([127, 0, 0, 1], 0)));
    }
    for cluster in resources["clusters"]
        .as_array_mut()
        .context("no clusters")?
    {
        let to = match cluster["name"].as_str().context("no name")? {
            "skywalking" => lab.collector().address,
            // The sidecars of the mesh also have a cluster of this name.
            "app" => mesh.address("own-app")?,
            name => mesh.address(name)?,
        };
        cluster["type"] = "STATIC".into();
        let endpoint =
            &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        endpoint["address"] = address(to);
    }
    for direction in ["INBOUND", "OUTBOUND"] {
        let manager = connection_manager(bootstrap, direction)?;
        let log = &mut manager["access_log"][0]["typed_config"];
        log["additional_request_headers_to_log"] = json!([envoy_test::client::CALL]);
        let vm = &mut manager["http_filters"][0]["typed_config"]["config"]["vm_config"];
        let file = &mut vm["code"]["local"]["filename"];
        assert_eq!(*file, MODULE);
        *file = json!(lab.module());
    }
    Ok(())
}

pub(crate) fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

async fn it_exchanges(lab: &Lab) -> Result<()> {
    let vm = Vm::start(lab, |_| Ok(())).await?;
    vm.assert_exchanges(lab).await?;
    // SkyWalking names the local side by it.
    let entry = lab
        .collector()
        .wait_for("the VM", 1, |entry| entry.reporter.log == INBOUND_LOG)
        .await?
        .remove(0);
    assert!(
        entry.reporter.id.starts_with("sidecar~"),
        "{}",
        entry.reporter.id
    );
    assert_eq!(entry.reporter.metadata, vm.node.metadata);
    Ok(())
}

/// The service outside the mesh receives nothing, and is not believed.
async fn it_sends_nothing_outside_the_mesh(lab: &Lab) -> Result<()> {
    let vm = Vm::start(lab, |_| Ok(())).await?;
    let called = vm.calls(PAYMENTS).await?;
    vm.assert_clean("payments", &called)?;
    let entry = lab.entry(OUTBOUND_LOG, &called.call).await?;
    assert_eq!(entry.peer(Side::Upstream)?, None);
    assert_eq!(entry.peer(Side::Downstream)?, None);
    Ok(())
}
