//! Build, test, bench and docs entry points.
#![forbid(unsafe_code)]

fn main() {}
