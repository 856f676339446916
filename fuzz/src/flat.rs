//! An arbitrary peer as a `FlatNode`, and arbitrary bytes in place of one.

use metadata_exchange::peer::flat;

use super::source::{Source, without_empty_maps};

/// A written peer can be read back; whatever can be read can be written and
/// read again with the same result.
pub fn run(data: &[u8]) {
    let peer = Source(data).peer();
    let written = flat::write(&peer);
    assert_eq!(flat::read(&written), Ok(without_empty_maps(peer)));
    if let Ok(foreign) = flat::read(data) {
        let written = flat::write(&foreign);
        assert_eq!(flat::read(&written), Ok(without_empty_maps(foreign)));
    }
}
