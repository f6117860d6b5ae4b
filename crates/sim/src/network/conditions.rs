//! How frames travel from one node to another at the moment.

use crate::faults::FaultClass;

/// The conditions of one ordered pair of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Mean one-way latency in nanoseconds, of an everyday frame.
    pub latency_ns: u64,
    /// Nothing gets through; the class says on whose account the stopped frames are counted.
    pub blocked: Option<FaultClass>,
    /// Every frame takes up to this much longer, in nanoseconds.
    pub extra_delay_ns: u64,
    /// Probability that a frame vanishes.
    pub loss_ppm: u32,
    /// Probability that a frame arrives twice.
    pub duplicate_ppm: u32,
    /// Probability that a frame is let out of line.
    pub reorder_ppm: u32,
}

impl Conditions {
    /// A healthy path with this mean latency.
    pub const fn everyday(latency_ns: u64) -> Self {
        Self {
            latency_ns,
            blocked: None,
            extra_delay_ns: 0,
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
        }
    }

    /// Ends every fault.
    pub const fn heal(&mut self) {
        *self = Self::everyday(self.latency_ns);
    }

    /// Why a frame that arrives now is stopped.
    pub(crate) const fn stop(&self) -> Option<FaultClass> {
        self.blocked
    }
}
