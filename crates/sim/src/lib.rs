//! Whole clusters in one thread and virtual time: faults, oracles, planted bugs.
#![forbid(unsafe_code)]

mod backend;
pub mod clock;
pub mod disk;
pub mod executor;
pub mod faults;
pub mod network;
pub mod oracle;
pub mod random;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod simulation;
pub mod trace;

pub use simulation::{Finished, Machine, Options, ProcessGone, Simulation};
