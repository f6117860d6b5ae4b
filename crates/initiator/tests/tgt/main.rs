//! The initiator against an independent target, so that a misreading of the standard shows.
#![allow(
    clippy::disallowed_methods,
    reason = "real processes and real time are what these tests are about"
)]

mod failover;
mod peer;
mod session;
