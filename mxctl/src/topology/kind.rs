//! What a workload runs on, inferred from its nodes.

use access_log::Named;
use serde::{Deserialize, Serialize};

/// What a workload runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing is known of it.
    Unknown,
    /// A Kubernetes pod.
    Pod,
    /// A virtual machine.
    Vm,
    /// A standalone proxy.
    Gateway,
    /// Pods and VMs of one service.
    Mixed,
}

impl Kind {
    /// The name for display.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Pod => "pod",
            Self::Vm => "VM",
            Self::Gateway => "gateway",
            Self::Mixed => "pod+VM",
        }
    }
}

/// What a node runs on, and how certain that is, from 0 up:
///
/// | sign | kind |
/// |---|---|
/// | id `router~...` or `waypoint~...` | gateway |
/// | `OWNER` is a `WorkloadGroup` | VM |
/// | another `OWNER`, `APP_CONTAINERS`, or the label `pod-template-hash` | pod |
/// | an id, and none of these | VM, unless another entry has a sign |
/// | not even an id | unknown, unless another entry has a sign |
///
/// The last two are guesses: from Istio 1.24 on, pods without a deployment or job send no owner to
/// their peers, and a callee that did not answer may be named by its endpoint's metadata. Their own
/// proxies report more.
#[must_use]
pub fn kind_of(node: &Named<'_>) -> (u8, Kind) {
    let text = |key: &str| node.metadata[key].as_str().unwrap_or_default();
    let (role, owner) = (Role::of_id(node.id), text("OWNER"));
    if matches!(role, Role::Gateway | Role::Waypoint) {
        (4, Kind::Gateway)
    } else if owner.contains("/workloadgroups/") {
        (3, Kind::Vm)
    } else if !owner.is_empty()
        || !text("APP_CONTAINERS").is_empty()
        || !node.metadata["LABELS"]["pod-template-hash"].is_null()
    {
        (2, Kind::Pod)
    } else if node.id.is_some() {
        (1, Kind::Vm)
    } else {
        (0, Kind::Unknown)
    }
}

/// The role of a proxy, by its node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `sidecar~...`
    Sidecar,
    /// `router~...`
    Gateway,
    /// `waypoint~...`
    Waypoint,
    /// Not an id in Istio's form.
    None,
}

impl Role {
    /// The role in an id.
    #[must_use]
    pub fn of_id(id: Option<&str>) -> Self {
        match id.and_then(|id| id.split_once('~')) {
            Some(("sidecar", _)) => Self::Sidecar,
            Some(("router", _)) => Self::Gateway,
            Some(("waypoint", _)) => Self::Waypoint,
            _ => Self::None,
        }
    }
}
