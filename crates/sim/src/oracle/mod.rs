//! What must hold, checked from outside: global, separate from workloads, always on.

pub mod cluster;
pub mod content;
pub mod linearizability;
pub mod service;
