//! The direction of a listener.

/// The direction of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the workload.
    Inbound,
    /// From the workload.
    Outbound,
    /// Between workloads: configured as a gateway, or a listener without a
    /// direction.
    Gateway,
}
