//! The holdfast command: node, cluster administration, demo, simulator.
#![forbid(unsafe_code)]

fn main() {}
