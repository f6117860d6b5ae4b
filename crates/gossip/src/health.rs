//! What a node believes of its peers.

use holdfast_runtime::{Incarnation, Instant, NodeId};

/// How a peer is doing, as rumour has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It answers somebody's probes.
    Alive,
    /// It failed a probe and has not refuted that yet, or was never heard so far.
    Suspect,
    /// It stayed silent, left, or is known to be gone ([`Health::proof`]).
    Down,
}

/// Evidence stronger than silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The peer's live host refused a connection: the process of that incarnation is gone.
    Refused,
}

/// What is believed of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The start of the peer that this is about; zero if none was ever heard of.
    pub incarnation: Incarnation,
    /// How it is doing.
    pub status: Status,
    /// When the status of this incarnation became what it is, by the local clock.
    pub since: Instant,
    /// Set only for [`Status::Down`], if more than silence speaks for it.
    pub proof: Option<Proof>,
}

/// A change of belief.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// The peer.
    pub node: NodeId,
    /// `None` if it was no peer before.
    pub before: Option<Health>,
    /// `None` if it is no peer any more.
    pub after: Option<Health>,
}
