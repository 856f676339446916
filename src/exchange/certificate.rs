//! Names a peer that sends no metadata by the URI SAN of its certificate.

use super::Exchange;
use super::side::Side;
use super::trust::uri_san;
use crate::counters::Counter;
use crate::host::{Host, Property};
use crate::peer::{Field, Peer, Slot, text};
use crate::trust::{identity, names_workload};

impl Exchange {
    /// Stores the caller by its certificate, unless one is already stored, for example by a second filter in the chain.
    pub(super) fn name_caller_by_certificate(&self, host: &impl Host) {
        if self.config.name_from_certificate {
            let stored = host.property(Property::DownstreamPeer).ok().flatten();
            if stored.is_none_or(|stored| stored.is_empty()) {
                self.store_certificate(host, Side::Downstream);
            }
        }
    }

    /// Stores the peer of a side by its certificate, which `trust` or `upstream_trust` has to demand. Returns whether it
    /// is stored.
    pub(super) fn store_certificate(&self, host: &impl Host, side: Side) -> bool {
        let is_on = self.config.name_from_certificate && self.trust(side).needs_certificate();
        if !is_on || self.check_connection(host, side).is_err() {
            return false;
        }
        let source = match side {
            Side::Downstream => Counter::DownstreamPeerFromCertificate,
            Side::Upstream => Counter::UpstreamPeerFromCertificate,
        };
        let uri_san = uri_san(host, side);
        self.store_from(host, side, &uri_san, source, &|| {
            let patterns = &self.config.spiffe_patterns;
            text::checked(&uri_san).ok()?;
            peer(&identity(
                &uri_san,
                patterns,
                &self.config.trust_domains,
                names,
            )?)
        })
    }
}

/// Whether these fields name a workload.
fn names(fields: &[(Field, &str)]) -> bool {
    fields.iter().any(|(field, _)| names_workload(*field))
}

/// The peer with these fields. As the workload of an endpoint, it is named by all that readers use.
fn peer(fields: &[(Field, &str)]) -> Option<Peer> {
    let mut peer = Peer::default();
    for (field, value) in fields {
        if let Slot::Text(text) = peer.slot(*field) {
            *text = Some((*value).to_owned());
        }
    }
    let name = peer.workload_name.clone().or_else(|| peer.name.clone())?;
    Some(peer.with_workload(name))
}
