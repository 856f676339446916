//! From a header's value to what the filter keeps of a peer, natively.

use anyhow::Result;
use metadata_exchange::cache::KnownPeer;
use metadata_exchange::peer::flat;
use metadata_exchange::peer::header::{self, Limits};

/// What the filter makes of a header's value that it does not know.
pub(crate) fn decode(value: &[u8]) -> Result<KnownPeer> {
    let peer = header::decode(value, Limits::DEFAULT)?;
    Ok(KnownPeer::new(&peer, &[], &mut flat::Writer::default()))
}
