//! Peers of gRPC's own metadata exchange (Cloud Service Mesh observability, in C++, Java, Go and
//! Python), which uses the same header: a `google.protobuf.Struct` with its own keys. See
//! `grpc/grpc`, `src/cpp/ext/csm/metadata_exchange.cc`.

use prost_types::Struct;
use prost_types::value::Kind;

use super::{Peer, RejectReason, SERVICE_LABELS, text};

/// The value that gRPC sends for unknown.
const UNKNOWN: &str = "unknown";

/// The values of gRPC's keys.
#[derive(Debug)]
pub(super) struct CsmMetadata {
    workload_name: Option<String>,
    namespace_name: Option<String>,
    cluster_name: Option<String>,
    canonical_service: Option<String>,
}

impl CsmMetadata {
    /// Reads them from `message`.
    pub(super) fn new(message: &Struct) -> Self {
        let text = |key| match message.fields.get(key)?.kind.as_ref()? {
            Kind::StringValue(text) if !text.is_empty() && text != UNKNOWN => Some(text.clone()),
            _ => None,
        };
        Self {
            workload_name: text("workload_name"),
            namespace_name: text("namespace_name"),
            cluster_name: text("cluster_name"),
            canonical_service: text("canonical_service"),
        }
    }

    /// Adds them to a `peer` that Istio's keys do not name. Existing values stay.
    pub(super) fn complete(self, peer: &mut Peer) -> Result<(), RejectReason> {
        let checked = |value: String| {
            let is_bad = text::has_control_character(&value);
            let checked = (!is_bad).then_some(value);
            checked.ok_or(RejectReason::ControlCharacter)
        };
        for (value, slot) in [
            (self.workload_name, &mut peer.workload_name),
            (self.namespace_name, &mut peer.namespace),
            (self.cluster_name, &mut peer.cluster_id),
        ] {
            if let Some(value) = value
                && slot.as_ref().is_none_or(String::is_empty)
            {
                *slot = Some(checked(value)?);
            }
        }
        if let Some(service) = self.canonical_service {
            let [canonical_name, ..] = SERVICE_LABELS;
            let service = checked(service)?;
            let labels = peer.labels.get_or_insert_default();
            labels.retain(|(key, _)| key != canonical_name);
            let index = labels.partition_point(|(key, _)| key.as_str() < canonical_name);
            labels.insert(index, (canonical_name.to_owned(), service));
        }
        Ok(())
    }
}
