//! The cluster's small, precious state: a pure state machine on a Raft library.
#![forbid(unsafe_code)]

pub mod group;
pub mod state;
