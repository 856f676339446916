//! Ports for programs that cannot bind port 0.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Ports that the kernel does not use for outgoing connections, which could
/// take a port before the program binds it.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A free port that no other call has returned.
pub(crate) fn free() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let length = PORTS.end - PORTS.start;
    // Concurrent runs begin at different ports.
    let begin = std::process::id().wrapping_mul(97) % u32::from(length);
    let begin = u16::try_from(begin)?;
    for _ in 0..length {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % length;
        let port = PORTS.start + (begin + offset) % length;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port of {PORTS:?} is free");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_returned_twice() -> Result<()> {
        let ports = [free()?, free()?, free()?];
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
        Ok(())
    }
}
