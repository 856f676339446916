//! The workloads of the mesh.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::network::Namespace;

/// What kind of proxy a workload has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A sidecar of a pod.
    Sidecar,
    /// A sidecar on a VM: no pod, and no owner.
    Vm,
    /// A gateway.
    Gateway,
}

/// A workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pod {
    /// Its network namespace, and how reports call it.
    pub(super) short: &'static str,
    pub(super) kind: Kind,
    /// Of pods, the name of the pod; of VMs, that of the host.
    pub(super) name: &'static str,
    pub(super) namespace: &'static str,
    pub(super) workload: &'static str,
    pub(super) account: &'static str,
    /// The label `app`, and of gateways `istio`.
    pub(super) app: &'static str,
    /// The last part of its address.
    pub(super) host: u8,
    /// Whether its Envoy is the oldest that tests run.
    pub(super) is_old: bool,
}

/// A sidecar in the namespace `default`; others differ from it.
const SIDECAR: Pod = Pod {
    short: "",
    kind: Kind::Sidecar,
    name: "",
    namespace: "default",
    workload: "",
    account: "",
    app: "",
    host: 0,
    is_old: false,
};

pub(super) const PRODUCTPAGE: Pod = Pod {
    short: "productpage",
    name: "productpage-v1-84975bc778-pxz2w",
    workload: "productpage-v1",
    account: "bookinfo-productpage",
    app: "productpage",
    host: 11,
    ..SIDECAR
};

pub(super) const RATINGS: Pod = Pod {
    short: "ratings",
    name: "ratings-v1-7d99676f7f-k4kkw",
    workload: "ratings-v1",
    account: "bookinfo-ratings",
    app: "ratings",
    host: 12,
    ..SIDECAR
};

pub(super) const VM: Pod = Pod {
    short: "vm",
    kind: Kind::Vm,
    name: "ratings-vm-1",
    namespace: "vms",
    workload: "ratings-vm",
    account: "ratings-vm",
    app: "ratings",
    host: 13,
    ..SIDECAR
};

pub(super) const INGRESS: Pod = Pod {
    short: "ingress",
    kind: Kind::Gateway,
    name: "istio-ingressgateway-6b8d9c5b7-abcde",
    namespace: "ingress",
    workload: "istio-ingressgateway",
    account: "istio-ingressgateway-service-account",
    app: "istio-ingressgateway",
    host: 14,
    ..SIDECAR
};

pub(super) const EGRESS: Pod = Pod {
    short: "egress",
    kind: Kind::Gateway,
    name: "istio-egressgateway-5f7c8d9b6-fghij",
    namespace: "istio-system",
    workload: "istio-egressgateway",
    account: "istio-egressgateway-service-account",
    app: "istio-egressgateway",
    host: 15,
    ..SIDECAR
};

pub(super) const FRONTEND: Pod = Pod {
    short: "frontend",
    name: "frontend-6d5b7c9f4d-q2w3e",
    namespace: "shop",
    workload: "frontend",
    account: "frontend",
    app: "frontend",
    host: 16,
    ..SIDECAR
};

pub(super) const CART: Pod = Pod {
    short: "cart",
    name: "cart-75f8b6d9c4-r4t5y",
    namespace: "shop",
    workload: "cart",
    account: "cart",
    app: "cart",
    host: 17,
    ..SIDECAR
};

pub(super) const BILLING: Pod = Pod {
    short: "billing",
    name: "billing-5c8d7f6b9-u7i8o",
    namespace: "old",
    workload: "billing",
    account: "billing",
    app: "billing",
    host: 18,
    is_old: true,
    ..SIDECAR
};

pub(super) const LEDGER: Pod = Pod {
    short: "ledger",
    name: "ledger-7b9c6d8f5-p9a1s",
    namespace: "old",
    workload: "ledger",
    account: "ledger",
    app: "ledger",
    host: 19,
    is_old: true,
    ..SIDECAR
};

/// All that have a proxy.
pub(super) const PODS: [Pod; 9] = [
    PRODUCTPAGE,
    RATINGS,
    VM,
    INGRESS,
    EGRESS,
    FRONTEND,
    CART,
    BILLING,
    LEDGER,
];

/// A host outside the mesh.
pub(super) const OUTSIDE: Namespace = Namespace("outside");
pub(super) const OUTSIDE_HOST: u8 = 99;

/// Where apps listen.
pub(super) const APP_PORT: u16 = 8080;

pub(super) fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 44, 0, host)
}

impl Pod {
    pub(super) fn network(self) -> Namespace {
        Namespace(self.short)
    }

    pub(super) fn address(self) -> Ipv4Addr {
        address(self.host)
    }

    /// The address of its service.
    pub(super) fn service_address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 0, self.host)
    }

    /// The host of its service.
    pub(super) fn service(self) -> String {
        format!("{}.{}.svc.cluster.local", self.app, self.namespace)
    }

    /// As istiod names the proxy.
    pub(super) fn proxy_id(self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// What Istio's agent is called with.
    pub(super) fn role(self) -> &'static str {
        match self.kind {
            Kind::Sidecar | Kind::Vm => "sidecar",
            Kind::Gateway => "router",
        }
    }

    pub(super) fn labels(self) -> Value {
        let mut labels = json!({
            "app": self.app,
            "service.istio.io/canonical-name": self.app,
        });
        match self.kind {
            Kind::Gateway => {
                labels["istio"] = self.app.trim_start_matches("istio-").into();
                labels["service.istio.io/canonical-revision"] = "latest".into();
            }
            Kind::Sidecar | Kind::Vm => {
                labels["version"] = "v1".into();
                labels["service.istio.io/canonical-revision"] = "v1".into();
            }
        }
        if self.kind != Kind::Vm {
            let hash = self.name.rsplit('-').nth(1).unwrap_or_default();
            labels["pod-template-hash"] = hash.into();
        }
        if self.kind == Kind::Sidecar {
            labels["security.istio.io/tlsMode"] = "istio".into();
        }
        labels
    }
}
