//! The scenarios that seeds are run through.

use crate::runner::Scenario;

pub mod cluster;
pub mod ping_pong;
pub mod store;

/// The scenario of this name.
pub fn named(name: &str) -> Option<&'static dyn Scenario> {
    ALL.iter().copied().find(|scenario| scenario.name() == name)
}

/// Every scenario.
pub const ALL: &[&dyn Scenario] = &[
    &cluster::Cluster,
    &cluster::link_cuts::LinkCuts,
    &ping_pong::PingPong,
    &store::StoreCrashes,
];
