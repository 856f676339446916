//! A server for Envoy's gRPC Access Log Service v3 and for OpenTelemetry logs with the attributes of
//! `examples/otlp-log`, and the model of an access-log entry with its peers.
//!
//! [`server`] receives streams within [`limits`] and passes messages to a sink such as [`each`].
//! [`read`] converts them to [`Entry`], which has a form as JSON lines. An entry has a [`Reporter`]
//! and the logged [`State`].

#![forbid(unsafe_code)]

mod codec;
mod convert;
pub mod each;
pub mod entry;
pub mod limits;
mod otlp;
pub mod read;
pub mod reporter;
pub mod server;
pub mod side;
pub mod state;
mod unchecked;

pub use convert::convert;
pub use each::Each;
pub use entry::{Entry, Named, Protocol, is_unanswered};
pub use limits::Limits;
pub use read::entries;
pub use reporter::Reporter;
pub use server::{Server, Sink};
pub use side::{Direction, Side};
pub use state::State;
