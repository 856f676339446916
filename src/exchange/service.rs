//! The service of a cluster, for callees that send nothing themselves.
//!
//! A service is named by its canonical name and its namespace, without a
//! `NAME`, because the instance is unknown. A host outside the mesh has no
//! namespace either.

use crate::peer::{Peer, text};

/// The label that takes precedence in naming a service.
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";

/// The longest name that DNS allows.
const MAX_HOST_BYTES: usize = 253;

/// The peer of a service inside the mesh.
#[must_use]
pub fn peer(name: &str, namespace: &str) -> Peer {
    Peer {
        namespace: Some(namespace.to_owned()),
        ..external(name)
    }
}

/// The peer of a host outside the mesh.
#[must_use]
pub fn external(host: &str) -> Peer {
    Peer {
        labels: Some(vec![(CANONICAL_NAME.to_owned(), host.to_owned())]),
        ..Peer::default()
    }
}

/// The service in a cluster's name as Istio writes it,
/// `outbound|PORT|SUBSET|NAME.NAMESPACE.svc.DOMAIN`. `None` for any other name:
/// only Kubernetes services have a namespace in their host.
#[must_use]
pub fn of_cluster_name(cluster: &[u8]) -> Option<Peer> {
    let host = istio_host(cluster)?;
    let mut parts = host.split(|byte| *byte == b'.');
    let (name, namespace) = (parts.next()?, parts.next()?);
    if parts.next()? != b"svc" || parts.next().is_none() {
        return None;
    }
    let name_of = |part| text::checked(part).ok();
    Some(peer(name_of(name)?, name_of(namespace)?))
}

/// The host in the name of a cluster outside the mesh: in Istio's form, or the
/// name itself if it is a host name.
#[must_use]
pub fn of_external_cluster_name(cluster: &[u8]) -> Option<Peer> {
    let host = istio_host(cluster).or_else(|| host(cluster))?;
    Some(external(text::checked(host).ok()?))
}

/// The host in `outbound|PORT|SUBSET|HOST`, or in a waypoint's
/// `inbound-vip|PORT|PROTOCOL|HOST`.
fn istio_host(cluster: &[u8]) -> Option<&[u8]> {
    let mut parts = cluster.split(|byte| *byte == b'|');
    let (direction, port) = (parts.next()?, parts.next()?);
    let (_, last, None) = (parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let is_port = !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    let is_outbound = matches!(direction, b"outbound" | b"inbound-vip") && is_port;
    if is_outbound { host(last) } else { None }
}

/// `name`, if it is a DNS name of at least two labels, and not an address.
fn host(name: &[u8]) -> Option<&[u8]> {
    let is_label = |label: &[u8]| {
        let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        label.len() <= 63
            && is_outer(label.first())
            && is_outer(label.last())
            && label.iter().all(is_inner)
    };
    let mut labels = name.split(|byte| *byte == b'.');
    let last = labels.clone().next_back()?;
    let is_host = name.len() <= MAX_HOST_BYTES
        && name.contains(&b'.')
        && !last.iter().all(u8::is_ascii_digit)
        && labels.all(is_label);
    is_host.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(peer: Option<Peer>) -> Option<(String, Option<String>)> {
        let peer = peer?;
        assert_eq!((&peer.name, &peer.workload_name), (&None, &None));
        let labels = peer.labels.unwrap();
        assert_eq!(labels[0].0, CANONICAL_NAME);
        Some((labels[0].1.clone(), peer.namespace))
    }

    #[test]
    fn a_kubernetes_service_is_named_by_its_cluster() {
        let shop = |name: &str| Some((name.to_owned(), Some("shop".to_owned())));
        for (cluster, expected) in [
            ("outbound|80||pay.shop.svc.cluster.local", shop("pay")),
            ("outbound|80|v1|pay-2.shop.svc.example.org", shop("pay-2")),
            (
                "inbound-vip|80|http|pay.shop.svc.cluster.local",
                shop("pay"),
            ),
            // The namespace is unknown.
            ("outbound|80||pay.shop.svc", None),
            ("outbound|80||pay.shop.global", None),
            ("outbound|80||api.svc.example.com", None),
            ("outbound|80||a.b.shop.svc.cluster.local", None),
            ("outbound|80||.shop.svc.cluster.local", None),
            ("outbound|80||pay..svc.cluster.local", None),
            ("outbound|80||pay\n.shop.svc.cluster.local", None),
            // Not Istio's.
            ("outbound|||pay.shop.svc.cluster.local", None),
            ("outbound|http||pay.shop.svc.cluster.local", None),
            ("outbound|80|pay.shop.svc.cluster.local", None),
            ("outbound|80|||pay.shop.svc.cluster.local", None),
            ("inbound|80||pay.shop.svc.cluster.local", None),
            ("pay.shop.svc.cluster.local", None),
            ("PassthroughCluster", None),
            ("", None),
        ] {
            assert_eq!(
                named(of_cluster_name(cluster.as_bytes())),
                expected,
                "{cluster}"
            );
        }
    }

    #[test]
    fn a_host_outside_the_mesh_has_no_namespace() {
        let host = |name: &str| Some((name.to_owned(), None));
        for (cluster, expected) in [
            ("outbound|443||api.example.com", host("api.example.com")),
            ("api.example.com", host("api.example.com")),
            (
                "outbound|80||pay.shop.svc.cluster.local",
                host("pay.shop.svc.cluster.local"),
            ),
            ("outbound|443||*.example.com", None),
            ("PassthroughCluster", None),
            ("10.0.0.1", None),
            ("database", None),
            ("a..b", None),
        ] {
            let named = named(of_external_cluster_name(cluster.as_bytes()));
            assert_eq!(named, expected, "{cluster}");
        }
    }
}
