//! Which node is on which side of a call, by its entry alone.

use access_log::{Direction, Entry, Named, Side};

use super::kind::Role;
use super::names;
use crate::naming::Naming;

/// The sides of a call.
#[derive(Debug)]
pub(crate) struct Sides<'e> {
    /// The node that logged.
    pub(crate) local: Named<'e>,
    /// Whether it is a standalone proxy between caller and callee.
    pub(crate) is_proxy: bool,
    /// The direction of its listener, if known.
    pub(crate) direction: Option<Direction>,
    /// Another node that calls.
    pub(crate) caller: Option<Named<'e>>,
    /// Another node that is called.
    pub(crate) callee: Option<Named<'e>>,
}

impl<'e> Sides<'e> {
    /// Reads the sides from an entry.
    pub(crate) fn of(entry: &'e Entry, naming: &Naming) -> Self {
        let local = entry.local();
        let mut caller = entry.peer(Side::Downstream);
        let mut callee = entry.peer(Side::Upstream);
        let is_local = |peer: &Option<Named<'_>>| {
            let peer = peer.as_ref();
            peer.is_some_and(|peer| is_same(naming, peer, &local))
        };
        let local_peers = [is_local(&caller), is_local(&callee)];
        // With `record_local_node`, the local node is the peer on one side,
        // which implies the direction.
        let direction = entry.direction().or(match local_peers {
            [true, false] => Some(Direction::Outbound),
            [false, true] => Some(Direction::Inbound),
            _ => None,
        });
        if direction == Some(Direction::Inbound) && local_peers[1] {
            callee = None;
        }
        if direction == Some(Direction::Outbound) && local_peers[0] {
            caller = None;
        }
        Self {
            is_proxy: matches!(Role::of_id(local.id), Role::Gateway | Role::Waypoint),
            local,
            direction,
            caller,
            callee,
        }
    }

    /// Whether the local node is the caller, if known.
    pub(crate) fn is_client(&self) -> bool {
        self.callee.is_some()
            || self.caller.is_none() && self.direction == Some(Direction::Outbound)
    }

    /// Whether the local node is the callee, if known.
    pub(crate) fn is_server(&self) -> bool {
        self.is_proxy
            || self.caller.is_some()
            || self.callee.is_none() && self.direction == Some(Direction::Inbound)
    }
}

/// The host in the name of an Envoy cluster, as Istio forms it:
/// `outbound|443||api.example.com`.
pub(crate) fn host_of_cluster(cluster: &str) -> Option<&str> {
    let host = cluster.rsplit('|').next();
    host.filter(|host| !host.is_empty())
}

fn is_same(naming: &Naming, peer: &Named<'_>, local: &Named<'_>) -> bool {
    if let (Some(peer), Some(local)) = (peer.id, local.id) {
        return peer == local;
    }
    let peer = names::of_node(naming, peer);
    peer.is_ok() && peer == names::of_node(naming, local)
}
