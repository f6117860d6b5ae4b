//! Whole clusters in one thread and virtual time: faults, oracles, planted bugs.
#![forbid(unsafe_code)]
