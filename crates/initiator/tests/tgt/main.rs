//! The initiator against an independent target, so that a misreading of the standard shows.

mod failover;
mod peer;
mod session;
