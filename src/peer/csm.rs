//! What gRPC's own metadata exchange (Cloud Service Mesh observability, in C++,
//! Java, Go and Python) sends under the same header: a `google.protobuf.Struct`
//! with keys of its own. Seen in `grpc/grpc`, `src/cpp/ext/csm/metadata_exchange.cc`.

use alloc::vec;

use super::wire::{self, Simple};
use super::{Peer, Refused, SERVICE_LABELS, Text};

/// How many entries are looked at: gRPC sends seven.
const MAX_ENTRIES: usize = 32;

/// What gRPC sends for a value that it does not know.
const UNKNOWN: &[u8] = b"unknown";

/// Adds what gRPC's keys in `message` say to a `peer` that Istio's keys do not
/// name: `workload_name`, `namespace_name`, `cluster_name` and
/// `canonical_service`. What the peer has stays.
pub(super) fn complete<'a>(peer: &mut Peer<'a>, message: &'a [u8]) -> Result<(), Refused> {
    let [canonical_name, ..] = SERVICE_LABELS;
    for (key, value) in wire::entries_of_struct(message).take(MAX_ENTRIES) {
        let Simple::Text(value) = value else {
            continue;
        };
        let slot = match key {
            b"workload_name" => &mut peer.workload_name,
            b"namespace_name" => &mut peer.namespace,
            b"cluster_name" => &mut peer.cluster_id,
            b"canonical_service" if !matches!(value, b"" | UNKNOWN) => {
                let label = (canonical_name.into(), Text::checked(value)?);
                match &mut peer.labels {
                    Some(labels) => {
                        labels.retain(|(key, _)| key.as_bytes() != canonical_name.as_bytes());
                        let place = labels.partition_point(|(key, _)| *key < label.0);
                        labels.insert(place, label);
                    }
                    labels => *labels = Some(vec![label]),
                }
                continue;
            }
            _ => continue,
        };
        if !matches!(value, b"" | UNKNOWN) && slot.as_ref().is_none_or(Text::is_empty) {
            *slot = Some(Text::checked(value)?);
        }
    }
    Ok(())
}
