//! Whole clusters in one thread and virtual time: faults, oracles, planted bugs.
//!
//! ```text
//!  runner ─▶ scenario ─▶ Simulation ─┬─ executor   tasks, timers, virtual time
//!    │          │                    ├─ disk       images, crashes, damage
//!  report    oracles                 ├─ network    links, partitions
//!               ▲                    └─ faults     counts, the nemesis
//!               └── the code under test, unchanged, over `holdfast_runtime`
//! ```
//!
//! One seed decides everything that happens in a [`Simulation`]; the [`trace`]'s hash proves it.
//! Real time exists in [`runner`] alone.
#![forbid(unsafe_code)]

mod backend;
pub mod cli;
pub mod clock;
pub mod disk;
mod events;
pub mod executor;
pub mod faults;
pub mod floors;
pub mod network;
pub mod oracle;
pub mod random;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod simulation;
pub mod trace;

pub use cli::{RunArgs, run};
pub use report::Report;
pub use simulation::{Finished, Machine, Options, ProcessGone, Simulation};
