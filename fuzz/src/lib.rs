//! What the fuzz targets share: bounded memory, a structured reading of the input, and the target
//! as an initiator sees it, with the oracles that judge what it says.
//!
//! Nothing here does I/O or waits, so one input costs microseconds. Everything is made anew for
//! each input: the same input gives the same run.
#![forbid(unsafe_code)]

pub mod chap;
pub mod input;
pub mod memory;
pub mod seeds;
pub mod session;
pub mod unit;
