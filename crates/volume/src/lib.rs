//! The owner of a volume: orders I/O, routes reads, takes over.
#![forbid(unsafe_code)]
