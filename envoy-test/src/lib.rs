//! The test harness: real Envoys as sidecars, an app behind each, and an
//! access-log collector. It observes from the outside which workload called
//! which.
//!
//! A test, called story here, starts workloads with [`Lab::start`], makes calls
//! through their sidecars and reads what each Envoy logged:
//!
//! ```no_run
//! # use envoy_test::{Lab, Node, Release, Side, Workload};
//! # async fn story() -> anyhow::Result<()> {
//! let lab = Lab::new(&Release::Newest.binary()?).await?;
//! let mesh = lab
//!     .start([
//!         Workload::sidecar("productpage", Node::pod_client()?),
//!         Workload::sidecar("ratings", Node::vm_server()?),
//!     ])
//!     .await?;
//! let reply = mesh.call("productpage", "ratings")?.send().await?;
//! let logged = lab.entry("ratings/inbound", &reply.call).await?;
//! println!("called by {:?}", logged.peer(Side::Downstream)?);
//! # Ok(())
//! # }
//! ```
//!
//! The harness knows nothing of the filter's implementation: it reads only what
//! any operator could read, the access log, the statistics and what the apps
//! received.

#![forbid(unsafe_code)]

mod app;
pub mod bootstrap;
pub mod boutique;
pub mod client;
mod collector;
pub mod consumers;
mod daemon;
pub mod demo;
pub mod docker;
mod envoy;
pub mod istio;
mod mesh;
pub mod node;
pub mod peer;
mod ports;
mod postgres;
mod process;
pub mod report;
pub mod scenario;
pub mod skywalking;
pub mod soak;
pub mod tcp;
pub mod tls;
pub mod traffic;
mod wait;
mod workload;

pub use access_log::Direction;
pub use app::{App, Received};
pub use client::Reply;
pub use collector::{Collector, Entry, Reporter, Side};
pub use envoy::{Envoy, Release, versions};
pub use mesh::{Lab, Mesh};
pub use node::Node;
pub use wait::until;
pub use workload::{FailurePolicy, Listener, Plugin, Workload};

use std::path::{Path, PathBuf};

/// A file of the repository.
#[must_use]
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
