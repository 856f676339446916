//! Any peer as a `FlatNode`, and any bytes in its place.

use metadata_exchange::peer::flat;

use super::source::{Source, without_empty_maps};

/// What is written is read; what can be read at all can be written and read the
/// same.
pub fn run(data: &[u8]) {
    let peer = Source(data).peer();
    let written = flat::write(&peer);
    assert_eq!(flat::read(&written), Ok(without_empty_maps(peer)));
    if let Ok(foreign) = flat::read(data) {
        let written = flat::write(&foreign);
        assert_eq!(flat::read(&written), Ok(without_empty_maps(foreign)));
    }
}
