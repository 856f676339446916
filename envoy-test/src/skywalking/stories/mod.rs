//! The stories that run against the OAP, each in its own namespace.

mod exchange;
mod failures;
mod handmade;
mod names;
mod restart;
mod tcp;

use anyhow::Result;
pub use restart::Restart;
pub(super) use restart::restart;
use serde_json::json;

use super::expected::Expected;
use crate::boutique;
use crate::envoy::Envoy;
use crate::mesh::{Lab, Mesh};
use crate::node::Node;

/// The environment of the stories, and their expectations.
#[derive(Debug)]
pub(super) struct Stage<'l> {
    pub(super) lab: &'l Lab,
    /// Distinguishes this run from others against the same OAP.
    pub(super) run: &'l str,
    pub(super) expected: Expected,
    /// Kept running, because an Envoy that has ended sends no more entries.
    meshes: Vec<Mesh>,
    envoys: Vec<Envoy>,
    shop: Option<boutique::Open>,
}

impl<'l> Stage<'l> {
    pub(super) fn new(lab: &'l Lab, run: &'l str) -> Self {
        Self {
            lab,
            run,
            expected: Expected::default(),
            meshes: Vec::new(),
            envoys: Vec::new(),
            shop: None,
        }
    }

    /// Runs all stories except the one that stops the OAP.
    pub(super) async fn tell_all(&mut self, progress: &mut impl FnMut(&str)) -> Result<()> {
        progress("pods and VMs call each other");
        exchange::pods_and_vms(self).await?;
        progress("calls through gateways");
        exchange::gateways(self).await?;
        progress("retries");
        exchange::retries(self).await?;
        progress("callees without filter");
        exchange::silent_callees(self).await?;
        progress("calls that fail");
        failures::all(self).await?;
        progress("nodes that are named in every way");
        names::all(self).await?;
        progress("a TCP connection");
        tcp::connection(self).await
    }

    /// Sends entries that no Envoy of these stories would send, to an OAP that
    /// has not seen them before.
    pub(super) async fn handmade(&mut self) -> Result<()> {
        handmade::send(self).await
    }

    fn namespace(&self, story: &str) -> String {
        format!("{story}-{}", self.run)
    }

    fn keep(&mut self, mesh: Mesh) {
        self.meshes.push(mesh);
    }

    /// Makes this number of journeys through the whole shop.
    pub(super) async fn shop(&mut self, envoy: &std::path::Path, journeys: u64) -> Result<()> {
        use super::drawn::{Calls, Sides};
        const STORY: &str = "boutique";
        let namespace = self.namespace(STORY);
        let oap = self.lab.logs_to();
        self.shop = Some(boutique::browse(envoy, oap, &namespace, journeys).await?);
        let name = |service: &str| match service {
            boutique::graph::GATEWAY => format!("istio-ingressgateway.{namespace}"),
            service => format!("{service}.{namespace}"),
        };
        for ((from, to), calls) in boutique::graph::calls_of_journey() {
            let made = Sides::both(Calls::all(calls * journeys));
            if to == boutique::graph::OUTSIDE {
                continue;
            }
            self.expected.edge(STORY, &name(from), &name(to), made);
        }
        let visits = boutique::graph::JOURNEY.len() as u64 * journeys;
        let visits = Sides::server(Calls::all(visits));
        let gateway = name(boutique::graph::GATEWAY);
        self.expected.edge(STORY, UNKNOWN, &gateway, visits);
        Ok(())
    }
}

/// The unknown caller of a gateway.
pub(super) const UNKNOWN: &str = "UNKNOWN";

/// A pod of a deployment.
fn pod(service: &str, namespace: &str) -> Node {
    node(
        "sidecar",
        service,
        namespace,
        &format!("{service}-84975bc778-pxz2w"),
    )
}

/// A VM of a group.
fn vm(service: &str, namespace: &str) -> Node {
    node("sidecar", service, namespace, &format!("{service}-vm-1"))
}

/// A gateway.
fn gateway(service: &str, namespace: &str) -> Node {
    node(
        "router",
        service,
        namespace,
        &format!("{service}-6f9c5c7d8b-x2x2x"),
    )
}

fn node(role: &str, service: &str, namespace: &str, instance: &str) -> Node {
    Node {
        id: format!("{role}~10.0.0.1~{instance}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: json!({
            "NAME": instance,
            "NAMESPACE": namespace,
            "WORKLOAD_NAME": service,
            "CLUSTER_ID": "Kubernetes",
            "LABELS": {
                "app": service,
                "version": "v1",
                "service.istio.io/canonical-name": service,
                "service.istio.io/canonical-revision": "v1",
            },
        }),
    }
}
