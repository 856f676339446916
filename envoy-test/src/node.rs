//! Envoy's node, which describes the workload that a proxy belongs to.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::peer::EXCHANGED;

/// A node as in a bootstrap.
#[derive(Clone, Debug)]
pub struct Node {
    /// `sidecar~10.0.0.1~pod.namespace~namespace.svc.cluster.local`, or
    /// `router~...` for a gateway.
    pub id: String,
    /// The node's metadata.
    pub metadata: Value,
}

impl Node {
    /// A Kubernetes pod that calls others.
    pub fn pod_client() -> Result<Self> {
        Self::sidecar(include_str!(
            "../../testdata/nodes/k8s-client-full.metadata.json"
        ))
    }

    /// A Kubernetes pod that serves others.
    pub fn pod_server() -> Result<Self> {
        Self::sidecar(include_str!(
            "../../testdata/nodes/k8s-server-full.metadata.json"
        ))
    }

    /// A VM that calls others.
    pub fn vm_client() -> Result<Self> {
        Self::sidecar(include_str!(
            "../../testdata/nodes/vm-generic-client.metadata.json"
        ))
    }

    /// A VM of a cloud that serves others.
    pub fn vm_server() -> Result<Self> {
        Self::sidecar(include_str!(
            "../../testdata/nodes/vm-gce-server.metadata.json"
        ))
    }

    /// A VM that joined a mesh with a recent Istio: no owner, and numbers
    /// among the metadata.
    pub fn vm_minimal() -> Result<Self> {
        Self::whole(include_str!("../../testdata/nodes/derived-vm.node.json"))
    }

    /// An Istio ingress gateway.
    pub fn gateway() -> Result<Self> {
        Self::whole(include_str!(
            "../../testdata/nodes/derived-gateway.node.json"
        ))
    }

    /// The node of a sidecar, from its metadata alone.
    fn sidecar(metadata: &str) -> Result<Self> {
        let metadata: Value = serde_json::from_str(metadata)?;
        let text = |key: &str| {
            metadata[key]
                .as_str()
                .with_context(|| format!("node metadata has no {key}"))
        };
        let ip = text("INSTANCE_IPS")?.split(',').next().unwrap_or_default();
        let (name, namespace) = (text("NAME")?, text("NAMESPACE")?);
        let id = format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local");
        Ok(Self { id, metadata })
    }

    fn whole(node: &str) -> Result<Self> {
        let node: Value = serde_json::from_str(node)?;
        let id = node["id"].as_str().context("node has no id")?.to_owned();
        let metadata = node["metadata"].clone();
        Ok(Self { id, metadata })
    }

    /// The same node with one more entry in its metadata.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.metadata[key] = value;
        self
    }

    /// What another proxy must learn about this node. Valid for nodes whose exchanged metadata is strings.
    #[must_use]
    pub fn as_peer(&self) -> Value {
        let exchanged = EXCHANGED.into_iter().filter_map(|key| {
            let value = self.metadata.get(key)?;
            Some((key.to_owned(), value.clone()))
        });
        Value::Object(exchanged.collect())
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "id": self.id, "cluster": "envoy-test", "metadata": self.metadata })
    }
}
