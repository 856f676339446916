//! The Online Boutique as data: its services, and which services each calls to
//! answer a request. Based on `GoogleCloudPlatform/microservices-demo`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::node::Node;

/// The namespace of all services.
pub const NAMESPACE: &str = "boutique";
/// The ingress gateway.
pub const GATEWAY: &str = "gateway";
/// The service outside the mesh.
pub const OUTSIDE: &str = "card-network";
/// The service behind the gateway.
pub const FRONTEND: &str = "frontend";

/// The service that keeps its state in [`REDIS`].
pub const CART: &str = "cart";
/// The database of the cart, called over TCP: once for each request to the cart.
pub const REDIS: Service = leaf("redis");

/// What a service runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// A Kubernetes pod.
    Pod,
    /// A virtual machine.
    Vm,
}

/// A service and the requests that it serves.
#[derive(Debug)]
pub struct Service {
    /// Its name, which is the authority of calls.
    pub name: &'static str,
    /// What it runs on.
    pub host: Host,
    requests: &'static [Request],
}

/// A request's path, and the calls that it needs: service and path.
type Request = (&'static str, &'static [(&'static str, &'static str)]);

/// All services; in the original, each is its own process.
pub const SERVICES: [Service; 10] = [
    Service {
        name: FRONTEND,
        host: Host::Pod,
        requests: &[
            (
                "/",
                &[
                    ("currency", "/currencies"),
                    ("productcatalog", "/products"),
                    ("cart", "/get"),
                    ("currency", "/convert"),
                    ("ad", "/ads"),
                ],
            ),
            (
                "/product",
                &[
                    ("productcatalog", "/product"),
                    ("currency", "/currencies"),
                    ("cart", "/get"),
                    ("currency", "/convert"),
                    ("recommendation", "/list"),
                    ("ad", "/ads"),
                ],
            ),
            (
                "/cart/add",
                &[("productcatalog", "/product"), ("cart", "/add")],
            ),
            (
                "/cart",
                &[
                    ("currency", "/currencies"),
                    ("cart", "/get"),
                    ("recommendation", "/list"),
                    ("shipping", "/quote"),
                    ("productcatalog", "/product"),
                    ("currency", "/convert"),
                ],
            ),
            (
                "/cart/checkout",
                &[
                    ("checkout", "/order"),
                    ("recommendation", "/list"),
                    ("currency", "/currencies"),
                ],
            ),
        ],
    },
    Service {
        name: "recommendation",
        host: Host::Pod,
        requests: &[("/list", &[("productcatalog", "/products")])],
    },
    Service {
        name: "checkout",
        host: Host::Vm,
        requests: &[(
            "/order",
            &[
                ("cart", "/get"),
                ("productcatalog", "/product"),
                ("currency", "/convert"),
                ("shipping", "/quote"),
                ("payment", "/charge"),
                ("shipping", "/ship"),
                ("cart", "/empty"),
                ("email", "/confirm"),
            ],
        )],
    },
    Service {
        name: "payment",
        host: Host::Vm,
        requests: &[("/charge", &[(OUTSIDE, "/authorize")])],
    },
    leaf("productcatalog"),
    leaf("currency"),
    leaf(CART),
    leaf("shipping"),
    leaf("email"),
    leaf("ad"),
];

const fn leaf(name: &'static str) -> Service {
    Service {
        name,
        host: Host::Pod,
        requests: &[],
    }
}

/// The requests of a visitor: browse, fill the cart, check out.
pub const JOURNEY: [&str; 5] = ["/", "/product", "/cart/add", "/cart", "/cart/checkout"];

/// The calls that `service` makes to answer a request for `path`.
#[must_use]
pub fn calls(service: &str, path: &str) -> &'static [(&'static str, &'static str)] {
    let service = SERVICES.iter().find(|one| one.name == service);
    let requests = service.map_or(&[][..], |service| service.requests);
    let request = requests.iter().find(|(one, _)| *one == path);
    request.map_or(&[], |(_, calls)| calls)
}

/// Numbers of calls by caller and callee.
pub type Calls = BTreeMap<(&'static str, &'static str), u64>;

/// All calls of one journey, from the gateway on.
#[must_use]
pub fn calls_of_journey() -> Calls {
    let mut all = Calls::new();
    for path in JOURNEY {
        *all.entry((GATEWAY, FRONTEND)).or_default() += 1;
        add_calls(FRONTEND, path, &mut all);
    }
    all
}

/// The connections of the cart to its database in one journey.
#[must_use]
pub fn connections_of_journey() -> u64 {
    let calls = calls_of_journey();
    let of_cart = calls.iter().filter(|((_, callee), _)| *callee == CART);
    of_cart.map(|(_, calls)| calls).sum()
}

fn add_calls(service: &'static str, path: &str, all: &mut Calls) {
    for (callee, path) in calls(service, path) {
        *all.entry((service, callee)).or_default() += 1;
        add_calls(callee, path, all);
    }
}

/// How the topology names a service.
#[must_use]
pub fn shown(service: &str) -> String {
    match service {
        GATEWAY => "istio-ingressgateway.istio-system".to_owned(),
        OUTSIDE => OUTSIDE.to_owned(),
        service => format!("{service}.{NAMESPACE}"),
    }
}

impl Service {
    /// Istio's metadata of its endpoint.
    #[must_use]
    pub fn endpoint(&self, version: &str) -> Value {
        let name = self.name;
        json!({ "istio": { "workload": format!("{name};{NAMESPACE};{name};{version};Kubernetes") } })
    }

    /// The node of its single instance with this version. The id is the same
    /// for every version.
    #[must_use]
    pub fn node(&self, version: &str) -> Node {
        let Self { name, host, .. } = self;
        let mut labels = json!({
            "app": name,
            "version": version,
            "service.istio.io/canonical-name": name,
            "service.istio.io/canonical-revision": version,
        });
        let (instance, owner) = match host {
            Host::Pod => {
                labels["pod-template-hash"] = json!("84975bc778");
                (
                    format!("{name}-84975bc778-pxz2w"),
                    format!("apps/v1/namespaces/{NAMESPACE}/deployments/{name}"),
                )
            }
            Host::Vm => (
                format!("{name}-vm"),
                format!(
                    "networking.istio.io/v1alpha3/namespaces/{NAMESPACE}/workloadgroups/{name}"
                ),
            ),
        };
        Node {
            id: format!("sidecar~127.0.0.1~{instance}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
            metadata: json!({
                "NAME": instance,
                "NAMESPACE": NAMESPACE,
                "WORKLOAD_NAME": name,
                "CLUSTER_ID": "Kubernetes",
                "OWNER": format!("kubernetes://apis/{owner}"),
                "LABELS": labels,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses that the original's services are configured with,
    /// `*_SERVICE_ADDR` in its `kubernetes-manifests/`, plus the gateway for
    /// the visitors and the card network behind the payment.
    #[test]
    fn a_journey_makes_every_call_of_the_shop_and_no_other() {
        let mut known = vec![
            ("gateway", "frontend"),
            ("frontend", "ad"),
            ("frontend", "cart"),
            ("frontend", "checkout"),
            ("frontend", "currency"),
            ("frontend", "productcatalog"),
            ("frontend", "recommendation"),
            ("frontend", "shipping"),
            ("recommendation", "productcatalog"),
            ("checkout", "cart"),
            ("checkout", "currency"),
            ("checkout", "email"),
            ("checkout", "payment"),
            ("checkout", "productcatalog"),
            ("checkout", "shipping"),
            ("payment", "card-network"),
        ];
        known.sort_unstable();
        let made: Vec<_> = calls_of_journey().into_keys().collect();
        assert_eq!(made, known);
    }
}
