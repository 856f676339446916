//! Envoy's gRPC Access Log Service, v3: a server for it, and an entry of an access
//! log with the peers that it names.
//!
//! [`server`] receives the streams within [`limits`] and hands what it receives to a
//! sink, as [`each`]. [`read`] makes an [`Entry`] of each message's entries, which
//! JSON lines carry. An entry has its [`Reporter`] and the [`State`] that was logged.

#![forbid(unsafe_code)]

mod codec;
pub mod each;
pub mod entry;
pub mod json;
pub mod limits;
pub mod read;
pub mod reporter;
pub mod server;
pub mod side;
pub mod state;
mod unchecked;

pub use each::Each;
pub use entry::{Entry, Named, Protocol};
pub use limits::Limits;
pub use read::entries;
pub use reporter::Reporter;
pub use server::{Server, Sink};
pub use side::{Direction, Side};
pub use state::State;
