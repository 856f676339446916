//! A sidecar that runs a bootstrap of `examples/`, with an app behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::example::Example;
use crate::app::App;
use crate::client::{Call, PEER_HEADERS};
use crate::envoy::Envoy;
use crate::mesh::Lab;
use crate::node::Node;
use crate::peer;
use crate::tls::{Authority, Identity};

/// The services that the bootstraps lead to, inside the mesh and outside.
pub(super) const PRODUCTPAGE: &str = "productpage.example.internal";
pub(super) const PAYMENTS: &str = "payments.example.com";

/// A sidecar to start.
pub(super) struct Plan<'a> {
    pub(super) example: &'a Example,
    /// Which workload it is, if not the bootstrap's own.
    pub(super) node: Option<Node>,
    /// Where the clusters of the bootstrap lead, but for the app's own. Those that are not named lead to the app.
    pub(super) clusters: Vec<(&'a str, SocketAddr)>,
    /// Its certificate, and the authority.
    pub(super) identity: Option<(&'a Authority, Identity)>,
    /// What else is changed.
    pub(super) change: &'a (dyn Fn(&mut Value) -> Result<()> + Sync),
}

impl<'a> Plan<'a> {
    pub(super) fn new(example: &'a Example) -> Self {
        Self {
            example,
            node: None,
            clusters: Vec::new(),
            identity: None,
            change: &|_| Ok(()),
        }
    }

    pub(super) async fn start(self, lab: &Lab) -> Result<Sidecar> {
        let app = App::start().await?;
        let files = TempDir::with_prefix_in("files-", lab.dir())?.keep();
        if let Some((authority, identity)) = &self.identity {
            let tls = files.join("tls");
            std::fs::create_dir(&tls)?;
            authority.write(&tls.join("ca.pem"))?;
            identity.write(&tls.join("cert.pem"), &tls.join("key.pem"))?;
        }
        let mut addresses: BTreeMap<&str, SocketAddr> = ["app", "productpage", "payments"]
            .map(|name| (name, app.address))
            .into();
        addresses.extend(self.clusters);
        let mut bootstrap = self.example.settled(lab.module(), &files, &addresses)?;
        if let Some(node) = &self.node {
            bootstrap["node"] = node.to_json();
        }
        (self.change)(&mut bootstrap)?;
        self.example.move_node(&mut bootstrap)?;
        let envoy = lab.start_envoy(&bootstrap).await?;
        let outbound = envoy.listener("outbound").await?;
        app.calls_through(outbound);
        Ok(Sidecar {
            inbound: envoy.listener("inbound").await?,
            outbound,
            envoy,
            app,
            files,
        })
    }
}

/// One that runs.
pub(super) struct Sidecar {
    /// Where others call the app.
    pub(super) inbound: SocketAddr,
    /// Where the app calls others.
    pub(super) outbound: SocketAddr,
    pub(super) app: App,
    /// What the bootstrap has under `/etc/envoy/tls` and `/var/log/envoy`.
    pub(super) files: PathBuf,
    /// It ends with the value.
    pub(super) envoy: Envoy,
}

/// A workload by its names.
#[must_use]
pub fn workload(name: &str, namespace: &str) -> Node {
    let instance = format!("{name}-1");
    Node {
        id: format!("sidecar~10.0.0.9~{instance}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: json!({
            "NAME": instance,
            "NAMESPACE": namespace,
            "WORKLOAD_NAME": name,
            "CLUSTER_ID": "east",
            "LABELS": {
                "app": name,
                "service.istio.io/canonical-name": name,
                "service.istio.io/canonical-revision": "v2",
            },
        }),
    }
}

/// The call with the headers of a proxy that says it is `node`.
pub(super) fn as_from(call: Call, node: &Node) -> Result<Call> {
    let [metadata, id] = PEER_HEADERS;
    call.header(metadata, &peer::header(&node.as_peer()))?
        .header(id, &node.id)
}
