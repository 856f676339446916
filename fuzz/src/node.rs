//! Arbitrary bytes as data from Envoy and its control plane: the local node,
//! the metadata of clusters and endpoints, and the name in a certificate.

use metadata_exchange::exchange::clusters::Clusters;
use metadata_exchange::exchange::{endpoint, service};
use metadata_exchange::local::share::Share;
use metadata_exchange::local::{LocalNode, Node};
use metadata_exchange::pattern::Pattern;
use metadata_exchange::peer::header::{self, Limits};
use metadata_exchange::peer::{Field, flat};
use metadata_exchange::trust::{SpiffePattern, vouches};

use super::source::{Source, assert_fit, without_empty_maps};

/// What is sent fits into `max_sent_bytes`, and peers accept it.
pub fn run(data: &[u8]) {
    let mut source = Source(data);
    let max_sent_bytes = usize::from(u16::from_le_bytes([source.byte(), source.byte() & 0xF]));
    let share = share(&mut source);
    let rest = source.0;
    check(&Node::from_message(rest), &share, max_sent_bytes);
    if let Some(peer) = endpoint::peer(rest) {
        assert_fit(&peer);
    }
    let mut clusters = Clusters::new(true, Vec::new());
    let cluster = clusters.look_up(b"cluster", || Some(rest.to_vec()));
    assert_eq!(clusters.look_up(b"cluster", || None::<Vec<u8>>), cluster);
    let known = clusters.get(cluster).expect("looked up just now");
    if let Some(service) = &known.service {
        assert_fit(&flat::read(service).expect("a FlatNode"));
    }
    for peer in [
        service::of_cluster_name(rest),
        service::of_external_cluster_name(rest),
    ] {
        peer.iter().for_each(assert_fit);
    }
    assert!(!vouches(rest, &[], &[SpiffePattern::istio()], &[]));
}

fn share(source: &mut Source<'_>) -> Share {
    match source.byte() % 4 {
        0 => Share::All,
        1 => Share::Minimal,
        2 => Share::Only {
            fields: Some(vec![Field::Labels, Field::Name]),
            labels: None,
        },
        _ => Share::Only {
            fields: None,
            labels: Some(vec![
                Pattern::Exact(source.text()),
                Pattern::Prefix(source.text()),
            ]),
        },
    }
}

fn check(node: &Node, share: &Share, max_sent_bytes: usize) {
    let mut notes = Vec::new();
    let local = LocalNode::new(node, share, max_sent_bytes, &mut notes);
    if let Some(sent) = &local.header {
        assert!(sent.len() <= max_sent_bytes);
        let peer = header::decode(sent.as_bytes(), Limits::NONE).expect("fit to be sent");
        assert_fit(&peer);
        assert_eq!(&header::encode(&peer), sent);
    }
    if let Some(id) = &local.id {
        assert_eq!(header::id(id.as_bytes(), Limits::NONE), Ok(id.as_str()));
    }
    if let Some(stored) = &local.flat {
        let peer = node.peer(&mut Vec::new());
        assert_fit(&peer);
        assert_eq!(flat::read(stored), Ok(without_empty_maps(peer)));
    }
    for note in notes {
        let line = note.to_string();
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}
