//! Whether a peer is believed: compares its connection with the configured
//! [`Trust`].

use super::side::Side;
use super::{Exchange, Stream};
use crate::cache::KnownPeer;
use crate::config::Config;
use crate::counters::Counter;
use crate::direction::Direction;
use crate::host::{Host, Property};
use crate::local::Role;
use crate::trust::{Distrust, Trust, vouches};

impl Exchange {
    pub(super) fn trust(&self, side: Side) -> Trust {
        match side {
            Side::Downstream => self.config.trust,
            Side::Upstream => self.config.upstream_trust,
        }
    }

    pub(super) fn check_connection(&self, host: &impl Host, side: Side) -> Result<(), Distrust> {
        match self.trust(side) {
            Trust::Any => Ok(()),
            Trust::None => Err(Distrust::Nobody),
            Trust::Mtls | Trust::Spiffe => check_certificate(host, side),
        }
    }

    /// A listener without direction may face the Internet: other control planes than Istio's give
    /// no listener of a gateway a direction.
    pub(super) fn check_direction(
        &self,
        host: &impl Host,
        side: Side,
        stream: &Stream,
    ) -> Result<(), Distrust> {
        let is_undirected = stream.direction == Some(Direction::Gateway)
            && self.config.direction.is_none()
            && self.local.role != Role::Waypoint;
        if side == Side::Downstream && is_undirected && self.config.trust == Trust::Any {
            return check_certificate(host, side).map_err(|_| Distrust::NoDirection);
        }
        Ok(())
    }

    /// The verdict depends on this request's connection, so it is never cached.
    pub(super) fn check_identity(
        &self,
        host: &impl Host,
        side: Side,
        peer: &KnownPeer,
    ) -> Result<(), Distrust> {
        match self.trust(side) {
            Trust::Spiffe => self.check_claims(host, side, peer),
            Trust::Any | Trust::Mtls | Trust::None => Ok(()),
        }
    }

    fn check_claims(&self, host: &impl Host, side: Side, peer: &KnownPeer) -> Result<(), Distrust> {
        let Config {
            spiffe_patterns,
            trust_domains,
            ..
        } = &self.config;
        vouches(
            &uri_san(host, side),
            &peer.claims,
            spiffe_patterns,
            trust_domains,
        )
        .then_some(())
        .ok_or(Distrust::OtherIdentity)
    }

    pub(super) fn count_distrust(&self, distrust: Distrust) {
        log::debug!("peer not trusted: {distrust:?}");
        self.counters.count(match distrust {
            Distrust::Nobody => Counter::RefusedTrustNone,
            Distrust::NoCertificate => Counter::RefusedTrustMtls,
            Distrust::OtherIdentity => Counter::RefusedTrustSpiffe,
            Distrust::NoDirection => Counter::RefusedNoDirection,
        });
    }
}

fn check_certificate(host: &impl Host, side: Side) -> Result<(), Distrust> {
    let is_there = match side {
        Side::Downstream => {
            let mtls = host.property(Property::DownstreamMtls).ok().flatten();
            mtls.as_deref() == Some(&[1])
        }
        Side::Upstream => {
            let digest = host.property(Property::UpstreamCertificate).ok().flatten();
            digest.is_some_and(|digest| !digest.is_empty())
        }
    };
    is_there.then_some(()).ok_or(Distrust::NoCertificate)
}

/// The first URI SAN of a side's certificate; empty if there is none.
pub(super) fn uri_san(host: &impl Host, side: Side) -> Vec<u8> {
    let property = match side {
        Side::Downstream => Property::DownstreamUriSan,
        Side::Upstream => Property::UpstreamUriSan,
    };
    host.property(property).ok().flatten().unwrap_or_default()
}
