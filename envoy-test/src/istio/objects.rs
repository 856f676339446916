//! What is in the cluster besides our manifests.

use serde_json::{Value, json};

use super::network::CONTROL_PLANE;
use super::pod::{APP_PORT, EGRESS, INGRESS, Kind, OUTSIDE_HOST, PODS, Pod, VM, address};

const NETWORKING: &str = "networking.istio.io/v1";
/// Where services of the mesh listen.
pub(super) const SERVICE_PORT: u16 = 9080;
/// Where the ingress gateway does, and the egress gateway, as `deploy/istio` has it.
const INGRESS_PORT: u16 = 80;
const EGRESS_PORT: u16 = 443;
/// The host that the ingress gateway serves.
pub(super) const PUBLIC: &str = "productpage.example.com";
/// The host that is reached by the egress gateway.
pub(super) const FOREIGN: &str = "card.example.com";
/// The address of [`FOREIGN`], which nobody else needs.
pub(super) const FOREIGN_PORT: u16 = 80;
pub(super) const FOREIGN_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 97, 0, 3);

pub(super) fn namespaces() -> Vec<Value> {
    let names = [
        "default",
        "istio-system",
        "ingress",
        "vms",
        "shop",
        "old",
        "skywalking",
    ];
    let namespaces = names.map(|name| {
        let is_injected = !["istio-system", "skywalking"].contains(&name);
        let labels = if is_injected {
            json!({ "istio-injection": "enabled" })
        } else {
            json!({})
        };
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        })
    });
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "node-1", "labels": { "topology.kubernetes.io/region": "r1" } },
    });
    namespaces.into_iter().chain([node]).collect()
}

/// Pods, services and their endpoints, the VM, and the way in and out.
pub(super) fn mesh() -> Vec<Value> {
    let mut objects = Vec::new();
    for pod in PODS {
        objects.push(account(pod));
        if pod.kind != Kind::Vm {
            objects.push(self::pod(pod));
        }
        objects.extend(service_of(pod));
    }
    // The collector of access logs, where a user has SkyWalking's OAP.
    let ports = json!([{ "name": "grpc", "port": 11800, "targetPort": 11800 }]);
    objects.push(service(
        "skywalking-oap",
        "skywalking",
        "10.96.0.200",
        &ports,
        &json!(null),
    ));
    objects.push(endpoints(
        "skywalking-oap",
        "skywalking",
        &ports,
        &json!([{
            "addresses": [CONTROL_PLANE],
            "conditions": { "ready": true },
        }]),
    ));
    objects.push(json!({
        "apiVersion": NETWORKING,
        "kind": "WorkloadEntry",
        "metadata": { "name": VM.name, "namespace": VM.namespace },
        "spec": { "address": VM.address(), "labels": VM.labels(), "serviceAccount": VM.account },
    }));
    objects.extend(way_in());
    objects.extend(way_out());
    objects
}

fn account(pod: Pod) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": pod.account, "namespace": pod.namespace },
    })
}

fn pod(pod: Pod) -> Value {
    let replica_set = pod.name.rsplit_once('-').map_or(pod.name, |(set, _)| set);
    let annotations = match pod.kind {
        Kind::Sidecar => json!({
            "sidecar.istio.io/status": r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#,
        }),
        Kind::Vm | Kind::Gateway => json!({}),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "generateName": format!("{replica_set}-"),
            "namespace": pod.namespace,
            "labels": pod.labels(),
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": replica_set,
                "uid": "00000000-0000-0000-0000-000000000001",
                "controller": true,
            }],
        },
        "spec": {
            "nodeName": "node-1",
            "serviceAccountName": pod.account,
            "containers": [
                { "name": "app", "image": "app" },
                { "name": "istio-proxy", "image": "istio/proxyv2" },
            ],
        },
    })
}

/// The status that a kubelet writes once all of a pod's containers run.
pub(super) fn statuses() -> Vec<Value> {
    let pods = PODS.into_iter().filter(|pod| pod.kind != Kind::Vm);
    let statuses = pods.map(|pod| {
        let containers = ["app", "istio-proxy"].map(|name| {
            json!({
                "name": name,
                "ready": true,
                "started": true,
                "restartCount": 0,
                "image": "x",
                "imageID": "x",
                "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
            })
        });
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": pod.name, "namespace": pod.namespace },
            "status": {
                "phase": "Running",
                "podIP": pod.address(),
                "podIPs": [{ "ip": pod.address() }],
                "hostIP": CONTROL_PLANE,
                "conditions": [
                    { "type": "Ready", "status": "True" },
                    { "type": "ContainersReady", "status": "True" },
                ],
                "containerStatuses": containers,
            },
        })
    });
    statuses.collect()
}

/// A workload's service, with the endpoint that a controller would find; of a VM
/// istiod finds it by itself.
fn service_of(pod: Pod) -> Vec<Value> {
    let (port, name) = match pod.short {
        "ingress" => (INGRESS_PORT, "http2"),
        "egress" => (EGRESS_PORT, "https"),
        _ => (SERVICE_PORT, "http"),
    };
    let ports = json!([{ "name": name, "port": port, "targetPort": APP_PORT }]);
    let address = pod.service_address().to_string();
    let selector = json!({ "app": pod.app });
    let mut objects = vec![service(pod.app, pod.namespace, &address, &ports, &selector)];
    if pod.kind != Kind::Vm {
        let endpoint = json!([{
            "addresses": [pod.address()],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": "node-1",
            "targetRef": { "kind": "Pod", "name": pod.name, "namespace": pod.namespace },
        }]);
        objects.push(endpoints(pod.app, pod.namespace, &ports, &endpoint));
    }
    objects
}

fn service(name: &str, namespace: &str, address: &str, ports: &Value, selector: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "clusterIP": address, "ports": ports, "selector": selector },
    })
}

fn endpoints(name: &str, namespace: &str, ports: &Value, endpoints: &Value) -> Value {
    let ports = ports.as_array().into_iter().flatten();
    let ports = ports
        .map(|port| json!({ "name": port["name"], "port": port["targetPort"], "protocol": "TCP" }));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-1"),
            "namespace": namespace,
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": "IPv4",
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints,
    })
}

fn way_in() -> [Value; 2] {
    let gateway = json!({
        "apiVersion": NETWORKING,
        "kind": "Gateway",
        "metadata": { "name": "public", "namespace": INGRESS.namespace },
        "spec": {
            "selector": { "istio": "ingressgateway" },
            "servers": [{
                "port": { "number": INGRESS_PORT, "name": "http", "protocol": "HTTP" },
                "hosts": ["*"],
            }],
        },
    });
    let route = json!({
        "apiVersion": NETWORKING,
        "kind": "VirtualService",
        "metadata": { "name": "public", "namespace": INGRESS.namespace },
        "spec": {
            "hosts": [PUBLIC],
            "gateways": ["public"],
            "http": [{ "route": [{ "destination": {
                "host": "ratings.default.svc.cluster.local",
                "port": { "number": SERVICE_PORT },
            } }] }],
        },
    });
    [gateway, route]
}

/// The egress gateway itself, and mutual TLS up to it, are those of
/// `deploy/istio/README.md`.
fn way_out() -> [Value; 2] {
    let host = json!({
        "apiVersion": NETWORKING,
        "kind": "ServiceEntry",
        "metadata": { "name": "card", "namespace": "default" },
        "spec": {
            "hosts": [FOREIGN],
            "location": "MESH_EXTERNAL",
            "resolution": "STATIC",
            "addresses": [FOREIGN_ADDRESS],
            "ports": [{ "number": FOREIGN_PORT, "name": "http", "protocol": "HTTP" }],
            "endpoints": [{ "address": address(OUTSIDE_HOST), "ports": { "http": APP_PORT } }],
        },
    });
    let destination = |host: &str, port: u16| json!([{ "destination": { "host": host, "port": { "number": port } } }]);
    let route = json!({
        "apiVersion": NETWORKING,
        "kind": "VirtualService",
        "metadata": { "name": "card", "namespace": "default" },
        "spec": {
            "hosts": [FOREIGN],
            "gateways": ["mesh", "istio-system/egress"],
            "http": [
                {
                    "match": [{ "gateways": ["mesh"], "port": FOREIGN_PORT }],
                    "route": destination(&EGRESS.service(), EGRESS_PORT),
                },
                {
                    "match": [{ "gateways": ["istio-system/egress"], "port": EGRESS_PORT }],
                    "route": destination(FOREIGN, FOREIGN_PORT),
                },
            ],
        },
    });
    [host, route]
}

/// What has istiod judge whatever is applied.
pub(super) fn webhook(root_certificate: &str) -> Value {
    use base64::Engine as _;
    let bundle = base64::prelude::BASE64_STANDARD.encode(root_certificate);
    let groups = [
        "extensions.istio.io",
        "networking.istio.io",
        "security.istio.io",
        "telemetry.istio.io",
    ];
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {
            "name": "istio-validator-istio-system",
            "labels": { "app": "istiod", "istio": "istiod", "istio.io/rev": "default" },
        },
        "webhooks": [{
            "name": "rev.validation.istio.io",
            "clientConfig": { "url": "https://localhost:15017/validate", "caBundle": bundle },
            "rules": [{
                "operations": ["CREATE", "UPDATE"],
                "apiGroups": groups,
                "apiVersions": ["*"],
                "resources": ["*"],
            }],
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }],
    })
}
