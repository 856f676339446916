//! TCP between two sidecars: the plugin as a network filter ahead of `tcp_proxy`.
//!
//! [`Pair`] is the two Envoys, and [`sidecar()`] one of any configuration. [`matrix`] sends the queries of real servers' own clients through them, and [`soak`]
//! random bytes.

pub mod matrix;
mod pair;
mod servers;
mod sidecar;
pub mod soak;

pub use pair::{Link, Options, Pair};
pub use servers::{Running, Server};
pub use sidecar::{Route, check_module, sidecar};
