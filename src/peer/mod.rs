//! What one proxy sends another about its workload: the domain type and its three forms.
//!
//! ```text
//! x-envoy-peer-metadata  --header-->  google.protobuf.Struct  --wire-->  Peer  --flat-->  FlatNode
//!      (text)                              (bytes)                                      (filter state)
//! ```

use std::fmt;

use serde::Deserialize;

mod csm;
pub mod flat;
pub mod frame;
pub mod header;
pub mod reject;
pub mod text;
pub mod wire;

pub use reject::RejectReason;

/// Labels or platform metadata: sorted by key bytes, without repeated keys.
pub type Map = Vec<(String, String)>;

/// A workload as its proxy describes it. `None` means that the sender lacks the field; an empty text or map was sent
/// empty.
///
/// The fields are those that Istio's proxies have exchanged since 1.4; none is mandatory, because every dialect omits
/// some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// `APP_CONTAINERS`: container names, separated by commas.
    pub app_containers: Option<String>,
    /// `CLUSTER_ID`: the Kubernetes cluster, not the Envoy cluster.
    pub cluster_id: Option<String>,
    /// `INSTANCE_IPS`: addresses, separated by commas.
    pub instance_ips: Option<String>,
    /// `ISTIO_VERSION` of the proxy.
    pub istio_version: Option<String>,
    /// `LABELS` of the pod, or given to the VM.
    pub labels: Option<Map>,
    /// `MESH_ID`.
    pub mesh_id: Option<String>,
    /// `NAME` of the pod or VM.
    pub name: Option<String>,
    /// `NAMESPACE`.
    pub namespace: Option<String>,
    /// `OWNER`: `kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME`.
    pub owner: Option<String>,
    /// `PLATFORM_METADATA`: what the cloud says of the machine.
    pub platform_metadata: Option<Map>,
    /// `WORKLOAD_NAME`: the deployment, or the `WorkloadGroup`.
    pub workload_name: Option<String>,
}

/// The labels by which readers name the service of a peer, in `SkyWalking`'s order. They are kept when a header is too
/// long.
pub const SERVICE_LABELS: [&str; 4] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
];

/// Whether a label with this key names a service. `SkyWalking` accepts the keys in any case.
#[must_use]
pub fn names_service(key: &str) -> bool {
    SERVICE_LABELS
        .iter()
        .any(|label| label.eq_ignore_ascii_case(key))
}

/// A field of [`Peer`], declared in the byte order of the keys, which is the order on the wire.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum Field {
    /// `APP_CONTAINERS`
    AppContainers,
    /// `CLUSTER_ID`
    ClusterId,
    /// `INSTANCE_IPS`
    InstanceIps,
    /// `ISTIO_VERSION`
    IstioVersion,
    /// `LABELS`
    Labels,
    /// `MESH_ID`
    MeshId,
    /// `NAME`
    Name,
    /// `NAMESPACE`
    Namespace,
    /// `OWNER`
    Owner,
    /// `PLATFORM_METADATA`
    PlatformMetadata,
    /// `WORKLOAD_NAME`
    WorkloadName,
}

impl Field {
    /// Every field, in the byte order of the keys.
    pub const ALL: [Self; 11] = [
        Self::AppContainers,
        Self::ClusterId,
        Self::InstanceIps,
        Self::IstioVersion,
        Self::Labels,
        Self::MeshId,
        Self::Name,
        Self::Namespace,
        Self::Owner,
        Self::PlatformMetadata,
        Self::WorkloadName,
    ];

    /// The key in node metadata and on the wire.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::AppContainers => "APP_CONTAINERS",
            Self::ClusterId => "CLUSTER_ID",
            Self::InstanceIps => "INSTANCE_IPS",
            Self::IstioVersion => "ISTIO_VERSION",
            Self::Labels => "LABELS",
            Self::MeshId => "MESH_ID",
            Self::Name => "NAME",
            Self::Namespace => "NAMESPACE",
            Self::Owner => "OWNER",
            Self::PlatformMetadata => "PLATFORM_METADATA",
            Self::WorkloadName => "WORKLOAD_NAME",
        }
    }

    /// The field with a key; `None` for a key that is not exchanged.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.key() == key)
    }
}

impl TryFrom<String> for Field {
    type Error = &'static str;

    fn try_from(key: String) -> Result<Self, Self::Error> {
        Self::of_key(&key).ok_or("not a key of node metadata")
    }
}

/// A mutable reference to a field of a peer.
#[derive(Debug)]
pub enum Slot<'p> {
    /// A text.
    Text(&'p mut Option<String>),
    /// Comma-separated names, which some senders write as a list.
    Names(&'p mut Option<String>),
    /// Keys and values.
    Map(&'p mut Option<Map>),
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Value<'p> {
    /// A text, also comma-separated names.
    Text(&'p str),
    /// Keys and values.
    Map(&'p [(String, String)]),
}

/// For log lines: `NAME="pay-1" LABELS={app="pay"}`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for field in Field::ALL {
            let Some(value) = self.value(field) else {
                continue;
            };
            write!(f, "{space}{}=", field.key())?;
            space = " ";
            match value {
                Value::Text(text) => write!(f, "{text:?}")?,
                Value::Map(map) => {
                    f.write_str("{")?;
                    let mut space = "";
                    for (key, value) in map {
                        write!(f, "{space}{key}={value:?}")?;
                        space = " ";
                    }
                    f.write_str("}")?;
                }
            }
        }
        Ok(())
    }
}

impl Peer {
    /// A mutable reference to `field`.
    pub fn slot(&mut self, field: Field) -> Slot<'_> {
        match field {
            Field::AppContainers => Slot::Names(&mut self.app_containers),
            Field::ClusterId => Slot::Text(&mut self.cluster_id),
            Field::InstanceIps => Slot::Names(&mut self.instance_ips),
            Field::IstioVersion => Slot::Text(&mut self.istio_version),
            Field::Labels => Slot::Map(&mut self.labels),
            Field::MeshId => Slot::Text(&mut self.mesh_id),
            Field::Name => Slot::Text(&mut self.name),
            Field::Namespace => Slot::Text(&mut self.namespace),
            Field::Owner => Slot::Text(&mut self.owner),
            Field::PlatformMetadata => Slot::Map(&mut self.platform_metadata),
            Field::WorkloadName => Slot::Text(&mut self.workload_name),
        }
    }

    /// The value of `field`, if the peer has it.
    #[must_use]
    pub fn value(&self, field: Field) -> Option<Value<'_>> {
        let text = match field {
            Field::Labels => return self.labels.as_deref().map(Value::Map),
            Field::PlatformMetadata => return self.platform_metadata.as_deref().map(Value::Map),
            Field::AppContainers => &self.app_containers,
            Field::ClusterId => &self.cluster_id,
            Field::InstanceIps => &self.instance_ips,
            Field::IstioVersion => &self.istio_version,
            Field::MeshId => &self.mesh_id,
            Field::Name => &self.name,
            Field::Namespace => &self.namespace,
            Field::Owner => &self.owner,
            Field::WorkloadName => &self.workload_name,
        };
        text.as_deref().map(Value::Text)
    }

    /// Leaves `field` out.
    pub fn clear(&mut self, field: Field) {
        match self.slot(field) {
            Slot::Text(text) | Slot::Names(text) => *text = None,
            Slot::Map(map) => *map = None,
        }
    }

    /// Keeps the labels whose key `keep` accepts; no `LABELS` if none is left.
    pub fn retain_labels(&mut self, keep: impl Fn(&str) -> bool) {
        if let Some(labels) = &mut self.labels {
            labels.retain(|(key, _)| keep(key));
            if labels.is_empty() {
                self.labels = None;
            }
        }
    }

    /// Whether a reader could name the peer: it has a name, a workload or a
    /// label that names its service.
    #[must_use]
    pub fn names_workload(&self) -> bool {
        let is_there = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        is_there(&self.name) || is_there(&self.workload_name) || self.service_labels().count() > 0
    }

    /// The name of the peer's service for readers: the first of [`SERVICE_LABELS`] that it has.
    #[must_use]
    pub fn service_name(&self) -> Option<&str> {
        let of_key = |name: &&str| {
            let mut labels = self.service_labels();
            labels.find(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        let label = SERVICE_LABELS.iter().find_map(of_key);
        label.map(|(_, value)| value.as_str())
    }

    /// The part of the peer that names its service: the namespace and the naming labels. `None` without such a label.
    #[must_use]
    pub fn service(&self) -> Option<Peer> {
        let labels: Map = self.service_labels().cloned().collect();
        let namespace = self.namespace.clone();
        (!labels.is_empty()).then(|| Peer {
            namespace: namespace.filter(|namespace| !namespace.is_empty()),
            labels: Some(labels),
            ..Peer::default()
        })
    }

    fn service_labels(&self) -> impl Iterator<Item = &(String, String)> {
        let labels = self.labels.iter().flatten();
        labels.filter(|(key, value)| !value.is_empty() && names_service(key))
    }

    /// The peer with `workload` as workload, as name, and as canonical name if it has no labels: some readers use only
    /// one of them.
    #[must_use]
    pub fn with_workload(mut self, workload: String) -> Self {
        let [canonical_name, ..] = SERVICE_LABELS;
        let label = || vec![(canonical_name.to_owned(), workload.clone())];
        self.labels.get_or_insert_with(label);
        self.workload_name.get_or_insert_with(|| workload.clone());
        self.name.get_or_insert(workload);
        self
    }

    /// Whether every field is absent or empty. Such a peer is never stored, because readers would draw a nameless node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Field::ALL.iter().all(|field| match self.value(*field) {
            Some(Value::Text(text)) => text.is_empty(),
            Some(Value::Map(map)) => map.is_empty(),
            None => true,
        })
    }
}
