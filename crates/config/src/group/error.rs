//! What can go wrong with the group, and what it means for the state.

use std::time::Duration;

use holdfast_runtime::NodeId;
use thiserror::Error;

use super::area::AreaError;

/// Why a group could not be started, or initialized. Nothing was changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GroupError {
    /// The options contradict each other.
    #[error("{0}")]
    Options(#[from] OptionsError),
    /// The node's config log cannot be read or written. It takes no part in any vote.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// The node has been a member, and its config log is gone. It takes no part in any vote:
    /// it may have voted, and cannot know for whom.
    #[error(
        "this node's config log is missing. Remove the node from the cluster and let it join \
         again with an empty data directory"
    )]
    Missing,
    /// The config log decodes, and its contents make no sense to Raft.
    #[error("the config log is inconsistent: {0}")]
    Inconsistent(openraft::error::Fatal<NodeId>),
    /// The node is a member of a group already.
    #[error("this node is a member of a config group already")]
    AlreadyInitialized,
    /// The first change got no outcome in time.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Which options contradict each other.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// A follower would elect between two messages of a healthy leader.
    #[error("the election timeout starts below three heartbeats")]
    ElectionTooSoon,
    /// There is nothing to draw the timeout from.
    #[error("the election timeout ends before it starts")]
    ElectionEmpty,
    /// openraft counts in milliseconds.
    #[error("the heartbeat interval is shorter than 5 ms")]
    HeartbeatTooShort,
    /// A half holds at least a few changes and a small state.
    #[error("a half of the config log is smaller than 64 KiB or no whole number of pages")]
    HalfTooSmall,
}

/// Why a proposal has no outcome.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProposeError {
    /// No outcome within the limit. The change may have taken effect, or may yet.
    #[error("no outcome within {limit:?}: {}", leader_text(*.leader))]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// The leader as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The change is too large for the log. It has no effect.
    #[error("the change has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A newer start of this node has proposed something. The change may have taken effect
    /// before that, and will not any more.
    #[error("another process runs as this node")]
    Superseded,
    /// This node's group has stopped. The change may have taken effect, or may yet.
    #[error("the config group of this node has stopped")]
    Stopped,
}

/// Why a read barrier was not reached. Nothing was changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BarrierError {
    /// No leader with a quorum confirmed the state within the limit.
    #[error("the state was not confirmed within {limit:?}: {}", leader_text(*.leader))]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// The leader as far as this node knows.
        leader: Option<NodeId>,
    },
    /// This node's group has stopped.
    #[error("the config group of this node has stopped")]
    Stopped,
}

/// Why the group's membership was not changed as asked. A part of the change may have happened;
/// asking again completes it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MembershipError {
    /// Only the leader changes the membership.
    #[error("this node does not lead the config group: {}", leader_text(*.0))]
    NotLeader(Option<NodeId>),
    /// Learners did not catch up, or a quorum did not answer, within the limit.
    #[error("the config group's membership is not as wanted after {0:?}")]
    TimedOut(Duration),
    /// No node is eligible.
    #[error("a config group needs at least one eligible node")]
    NobodyEligible,
    /// This node's group has stopped.
    #[error("the config group of this node has stopped")]
    Stopped,
}

fn leader_text(leader: Option<NodeId>) -> String {
    match leader {
        None => "no leader is known".to_owned(),
        Some(leader) => format!("node {leader} leads, as far as is known"),
    }
}
