//! Native tests of the pure core, without a VM or Envoy.

mod admission;
mod cache;
mod callees;
mod codec;
mod exchange;
mod header_limits;
mod hostile;
mod identity;
mod node;
mod schema;
mod standard_metrics;
mod support;
mod tcp;
mod vectors;
