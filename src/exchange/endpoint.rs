//! The control plane's metadata of an endpoint, for callees that send none
//! themselves.

use crate::peer::{Peer, text};

/// The peer in an endpoint's `istio.workload` metadata:
/// `workload;namespace;canonical-name;revision;cluster`. `None` without workload or namespace, because such a peer would name nobody. The workload replaces a missing canonical name, as in Istio, because some readers use only labels.
#[must_use]
pub fn peer(workload: &[u8]) -> Option<Peer> {
    let mut parts = text::checked(workload).ok()?.split(';');
    let mut part = || {
        parts
            .next()
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
    };
    let (workload, namespace, name, revision, cluster) = (part(), part(), part(), part(), part());
    let labels: Vec<_> = [
        (
            "service.istio.io/canonical-name",
            name.or_else(|| workload.clone()),
        ),
        ("service.istio.io/canonical-revision", revision),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    .collect();
    Some(Peer {
        name: Some(workload.clone()?),
        workload_name: workload,
        namespace: Some(namespace?),
        labels: (!labels.is_empty()).then_some(labels),
        cluster_id: cluster,
        ..Peer::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_parts_name_a_workload() {
        let peer = peer(b"pay;shop;payment;v2;east").unwrap();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(peer.name, text("pay"));
        assert_eq!(peer.workload_name, text("pay"));
        assert_eq!(peer.namespace, text("shop"));
        assert_eq!(peer.cluster_id, text("east"));
        assert_eq!(
            peer.labels,
            Some(vec![
                ("service.istio.io/canonical-name".into(), "payment".into()),
                ("service.istio.io/canonical-revision".into(), "v2".into()),
            ])
        );
    }

    #[test]
    fn missing_parts_are_absent_but_a_workload_needs_name_and_namespace() {
        let short = peer(b"pay;shop").unwrap();
        let labels = vec![("service.istio.io/canonical-name".into(), "pay".into())];
        assert_eq!((short.labels, short.cluster_id), (Some(labels), None));
        for none in ["", ";", "pay", "pay;", ";shop;x;y;z", "pay\n;shop"] {
            assert_eq!(peer(none.as_bytes()), None, "{none:?}");
        }
    }
}
