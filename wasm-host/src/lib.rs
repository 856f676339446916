//! A small proxy-wasm host for tests and benches: it plays Envoy to one module, exactly enough.
//!
//! The public test frameworks for proxy-wasm stub properties, filter state and foreign functions, which is most of what
//! a metadata exchange consists of. This host carries them out with Envoy's rules, and lets a test reach what a real
//! Envoy does not show: every host call in its order, any status in place of any answer, several streams interleaved,
//! guest instructions counted, pages of linear memory.
//!
//! ```no_run
//! use wasm_host::{Direction, Headers, Module, Properties, Settings, Vm};
//!
//! # fn main() -> Result<(), wasm_host::Error> {
//! let module = Module::from_file("filter.wasm".as_ref())?;
//! let mut vm = Vm::start(&module, Settings::default())?;
//! let root = vm.configure("{}")?;
//! let stream = vm.open(&root, Properties::new().direction(Direction::Inbound));
//! vm.request_headers(&stream, Headers::from([("x-envoy-peer-metadata-id", "caller")]))?;
//! vm.response_headers(&stream, Headers::new())?;
//! vm.finish(&stream)?;
//! assert!(!stream.request_headers().contains("x-envoy-peer-metadata-id"));
//! # Ok(())
//! # }
//! ```
//!
//! Where Envoy's behaviour is not obvious, this host follows it to the letter:
//! - a header map is in reach only during its own callback, and read-only while the stream is logged;
//! - an empty header is answered with a null pointer of size 0, an absent one with `NotFound`;
//! - `proxy_set_property` stores under `wasm.` and the key, and cannot overwrite what was declared read-only;
//! - the second declaration of a property is a `BadArgument`;
//! - VMs that are given the same shared data have one `vm_id`;
//! - a stream is logged before it is done and deleted;
//! - no import but the log works while the module is initialised.
//!
//! Not carried out: HTTP and gRPC calls, queues, local responses. These answer `Unimplemented`.

#![forbid(unsafe_code)]

mod abi;
mod call;
mod context;
pub mod cost;
mod error;
mod guest;
mod headers;
mod host;
mod metrics;
mod node;
mod pairs;
mod properties;
mod shared_data;
mod status;
mod vm;
mod wasi;

pub use call::{BufferKind, HostCall, Recorded};
pub use context::{Declaration, LifeSpan, Root, StateObject, StateType, Stream};
pub use error::Error;
pub use headers::{Headers, MapKind};
pub use host::{LogLine, Settings};
pub use node::{Extension, Node};
pub use properties::{Direction, Properties};
pub use prost_types::value::Kind as MetadataKind;
pub use shared_data::SharedData;
pub use status::{Action, LogLevel, Status};
pub use vm::{Module, Vm};
