//! Who votes: a small odd number of nodes, chosen from those that are eligible.
//!
//! | eligible nodes | voters |
//! |---|---|
//! | 1, 2 | 1 |
//! | 3, 4 | 3 |
//! | 5 and more | 5 |
//!
//! An even number of voters tolerates no more failures than the odd one below it. Every other
//! eligible node is a learner: it has the state, and can become a voter at once.
//!
//! Members that are not eligible stay learners: such as are about to be taken out, or have been and
//! shall hear of it. A leader among them hands its office over with its vote.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{NodeId, Rpc, Runtime};
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::metrics::RaftMetrics;
use openraft::{ChangeMembers, EmptyNode};

use super::error::MembershipError;
use super::types::{Machine, Raft};

/// Most voters.
pub const VOTERS_MAX: usize = 5;
/// A learner that lacks no more entries than this can become a voter: the joint configuration
/// waits for it no longer than for any other voter.
const LAG_MAX: u64 = 16;

/// The next step towards the wanted membership.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Settled,
    Change(ChangeMembers<NodeId, EmptyNode>),
    /// Learners that are to vote have to catch up first.
    Wait,
}

/// Who is in the group, as its leader sees it.
struct Members {
    /// The voters that an unfinished change leads to.
    changing_to: Option<BTreeSet<NodeId>>,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    caught_up: BTreeSet<NodeId>,
}

/// Pause before a change is tried again while another one is on its way.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// See [`super::ConfigGroup::reconcile_voters`].
pub(super) async fn reconcile<M: Machine>(
    runtime: &Runtime,
    rpc: &Rc<Rpc>,
    raft: &Raft<M>,
    members: &[NodeId],
    eligible: &[NodeId],
    limit: Duration,
) -> Result<(), MembershipError> {
    if eligible.is_empty() {
        return Err(MembershipError::NobodyEligible);
    }
    let node = rpc.local_node();
    let mut metrics = raft.metrics();
    let reconciling = async {
        loop {
            let present = {
                let metrics = metrics.borrow_and_update();
                if metrics.running_state.is_err() {
                    return Err(MembershipError::Stopped);
                }
                if metrics.current_leader != Some(node) {
                    return Err(MembershipError::NotLeader(metrics.current_leader));
                }
                Members::of(&metrics)
            };
            match present.next_step(node, members, eligible) {
                Step::Settled => return Ok(()),
                Step::Wait => {
                    if metrics.changed().await.is_err() {
                        return Err(MembershipError::Stopped);
                    }
                }
                Step::Change(change) => match raft.change_membership(change, true).await {
                    // Wait for the metrics to tell of it, lest the same change is made again.
                    Ok(response) => {
                        let log_id = Some(response.log_id);
                        let shown = metrics.wait_for(|metrics| {
                            metrics.running_state.is_err()
                                || *metrics.membership_config.log_id() >= log_id
                        });
                        if shown.await.is_err() {
                            return Err(MembershipError::Stopped);
                        }
                    }
                    Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                        return Err(MembershipError::NotLeader(forward.leader_id));
                    }
                    Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                        ChangeMembershipError::InProgress(_)
                        | ChangeMembershipError::LearnerNotFound(_)
                        | ChangeMembershipError::EmptyMembership(_),
                    ))) => {
                        // Another change is on its way. Metrics change with every try: waiting for
                        // them would try again at once, for ever.
                        runtime.sleep(RETRY_PAUSE).await;
                    }
                    Err(RaftError::Fatal(_)) => return Err(MembershipError::Stopped),
                },
            }
        }
    };
    let result = runtime.timeout(limit, reconciling).await;
    result.unwrap_or(Err(MembershipError::TimedOut(limit)))
}

impl Members {
    fn of(metrics: &RaftMetrics<NodeId, EmptyNode>) -> Self {
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let replication = metrics.replication.iter().flatten();
        let caught_up = replication
            .filter(|(_, matching)| {
                matching
                    .as_ref()
                    .is_some_and(|matching| matching.index + LAG_MAX >= last)
            })
            .map(|(node, _)| *node);
        let configs = membership.get_joint_config();
        Self {
            changing_to: if configs.len() > 1 {
                configs.last().cloned()
            } else {
                None
            },
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            caught_up: caught_up.collect(),
        }
    }

    fn next_step(&self, leader: NodeId, members: &[NodeId], eligible: &[NodeId]) -> Step {
        if let Some(voters) = &self.changing_to {
            // Left behind by a leader that is gone: nothing else may change before it is done.
            return Step::Change(ChangeMembers::ReplaceAllVoters(voters.clone()));
        }
        let known = |node: &NodeId| self.voters.contains(node) || self.learners.contains(node);
        let missing: BTreeMap<NodeId, EmptyNode> = members
            .iter()
            .filter(|node| !known(node))
            .map(|node| (*node, EmptyNode::new()))
            .collect();
        if !missing.is_empty() {
            return Step::Change(ChangeMembers::AddNodes(missing));
        }
        let wanted = choose_voters(leader, &self.voters, &self.caught_up, eligible);
        if wanted != self.voters {
            let ready = wanted
                .iter()
                .all(|node| self.voters.contains(node) || self.caught_up.contains(node));
            return if ready {
                Step::Change(ChangeMembers::ReplaceAllVoters(wanted))
            } else {
                Step::Wait
            };
        }
        let strangers: BTreeSet<NodeId> = self
            .learners
            .iter()
            .filter(|node| !members.contains(node))
            .copied()
            .collect();
        if strangers.is_empty() {
            Step::Settled
        } else {
            Step::Change(ChangeMembers::RemoveNodes(strangers))
        }
    }
}

/// How many of so many eligible nodes vote.
pub fn voter_count(nodes: usize) -> usize {
    let most = nodes.min(VOTERS_MAX);
    match most.is_multiple_of(2) {
        true => most.saturating_sub(1),
        false => most,
    }
}

/// The voters among `eligible`: the leader first, then present voters, then nodes that have
/// caught up, then the others, each in the order given.
fn choose_voters(
    leader: NodeId,
    voters: &BTreeSet<NodeId>,
    caught_up: &BTreeSet<NodeId>,
    eligible: &[NodeId],
) -> BTreeSet<NodeId> {
    let distinct: BTreeSet<NodeId> = eligible.iter().copied().collect();
    let count = voter_count(distinct.len());
    let mut ranked: Vec<NodeId> = eligible.to_vec();
    ranked.sort_by_key(|node| {
        (
            *node != leader,
            !voters.contains(node),
            !caught_up.contains(node),
        )
    });
    let mut chosen = BTreeSet::new();
    for node in ranked {
        if chosen.len() < count {
            chosen.insert(node);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    fn list(ids: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    fn members(voters: BTreeSet<NodeId>, learners: BTreeSet<NodeId>) -> Members {
        let caught_up = voters.union(&learners).copied().collect();
        Members {
            changing_to: None,
            voters,
            learners,
            caught_up,
        }
    }

    #[test]
    fn voters_are_the_largest_odd_number_up_to_five() {
        for (eligible, expected) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (9, 5)] {
            let chosen = choose_voters(NodeId(1), &nodes([1]), &nodes(1..=9), &list(1..=eligible));
            assert_eq!(chosen.len(), expected, "of {eligible}");
        }
    }

    #[test]
    fn present_voters_are_kept_and_a_removed_one_is_replaced() {
        let present = nodes([2, 4, 5]);
        let chosen = choose_voters(NodeId(4), &present, &nodes(1..=5), &list([1, 2, 3, 4]));
        assert_eq!(chosen, nodes([1, 2, 4]));
    }

    #[test]
    fn a_node_joins_as_learner_then_votes_and_a_stranger_leaves_last() {
        let mut group = members(nodes([1]), nodes([9]));
        let eligible = list([1, 2, 3]);
        let step = group.next_step(NodeId(1), &eligible, &eligible);
        let learners = [(NodeId(2), EmptyNode::new()), (NodeId(3), EmptyNode::new())];
        assert_eq!(step, Step::Change(ChangeMembers::AddNodes(learners.into())));

        group.learners.extend(nodes([2, 3]));
        assert_eq!(
            group.next_step(NodeId(1), &eligible, &eligible),
            Step::Wait,
            "not caught up"
        );

        group.caught_up.extend(nodes([2, 3]));
        let step = group.next_step(NodeId(1), &eligible, &eligible);
        assert_eq!(
            step,
            Step::Change(ChangeMembers::ReplaceAllVoters(nodes([1, 2, 3])))
        );

        group = members(nodes([1, 2, 3]), nodes([9]));
        let step = group.next_step(NodeId(1), &eligible, &eligible);
        assert_eq!(step, Step::Change(ChangeMembers::RemoveNodes(nodes([9]))));

        group.learners.clear();
        assert_eq!(
            group.next_step(NodeId(1), &eligible, &eligible),
            Step::Settled
        );
        group.changing_to = Some(nodes([1, 2]));
        let step = group.next_step(NodeId(1), &list([1, 2, 3, 4]), &list([1, 2, 3, 4]));
        let finished = Step::Change(ChangeMembers::ReplaceAllVoters(nodes([1, 2])));
        assert_eq!(
            step, finished,
            "an unfinished change is completed before the next"
        );
    }
}
