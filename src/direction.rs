//! The side of the workload on which a listener stands.

/// On which side of the workload the listener stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// In front of the workload.
    Inbound,
    /// Behind the workload.
    Outbound,
    /// Between workloads: a listener without direction, or so configured.
    Gateway,
}
