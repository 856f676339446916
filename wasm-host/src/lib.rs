//! A small proxy-wasm host for tests and benchmarks, which behaves like Envoy towards one module.
//!
//! The public test frameworks for proxy-wasm stub properties, filter state and foreign functions, which is most of what
//! a metadata exchange consists of. This host implements them with Envoy's rules, and lets a test do what a real Envoy
//! does not: see every host call in order, return any status from any call, interleave streams, count guest
//! instructions, and read the size of linear memory.
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
//! Where Envoy's behaviour is not obvious, this host follows it exactly:
//! - a header map is accessible only during its own callback, and read-only while the stream is logged;
//! - an empty header is answered with a null pointer of size 0, an absent one with `NotFound`;
//! - `proxy_set_property` stores under the key prefixed with `wasm.`, and cannot overwrite a value declared read-only;
//! - the second declaration of a property is a `BadArgument`;
//! - VMs with the same shared data have the same `vm_id`;
//! - a stream is logged before it is done and deleted;
//! - during initialisation, no import but the log works.
//!
//! HTTP and gRPC calls, queues and local responses are not supported and return `Unimplemented`.

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
