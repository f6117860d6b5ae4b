//! Which copies belong to a slice's stream, after the config group or a node has changed. Pure.
//!
//! | the stream counts the copy as | the directory | its process | what follows |
//! |---|---|---|---|
//! | required | whatever it says, while a promotion is under way | | it stays: the promotion decides |
//! | required | in sync | runs | it stays |
//! | required | in sync | is gone | it stays, and the config group is asked to take it out |
//! | required | stale, or not a copy | | it leaves the stream |
//! | joining | | runs | it stays |
//! | joining | | is gone | it leaves the stream |

use holdfast_config::state::SliceRecord;
use holdfast_replica::stream::Role;
use holdfast_runtime::{Incarnation, NodeId};

use super::slice::Slice;

/// What becomes of a copy in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    Stays,
    /// It stays until the config group has taken it out.
    Gone,
    Leaves,
}

/// See the module's header. `placed` is `None` if the directory does not know the slice.
pub(crate) fn judge(
    placed: Option<&SliceRecord>,
    (node, role): (NodeId, Role),
    is_promoted: bool,
    is_running: bool,
) -> Membership {
    let in_sync = placed.is_some_and(|placed| placed.is_in_sync(node));
    match role {
        Role::Required if is_promoted => Membership::Stays,
        Role::Required if in_sync && is_running => Membership::Stays,
        Role::Required if in_sync => Membership::Gone,
        Role::Required => Membership::Leaves,
        Role::Joining if is_running => Membership::Stays,
        Role::Joining => Membership::Leaves,
    }
}

impl Slice {
    /// Lets copies leave the stream that do not belong to it any more. Answers the nodes whose
    /// copies the config group has to take out.
    pub(crate) fn follow(
        &mut self,
        placed: Option<&SliceRecord>,
        is_running: impl Fn(NodeId, Incarnation) -> bool,
    ) -> Vec<NodeId> {
        let members = self.stream.members().iter();
        let members: Vec<(NodeId, Role, Incarnation)> = members
            .map(|(node, member)| (*node, member.role, member.incarnation))
            .collect();
        let mut gone = Vec::new();
        for (node, role, incarnation) in members {
            let is_promoted = self.promoting.contains(&node);
            let runs = is_running(node, incarnation);
            match judge(placed, (node, role), is_promoted, runs) {
                Membership::Stays => {}
                Membership::Gone => gone.push(node),
                Membership::Leaves => {
                    let commands = self.stream.remove(node);
                    self.absorb(commands);
                }
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use holdfast_config::state::{CopyRecord, CopyStatus};

    use super::*;

    const NODE: NodeId = NodeId(2);

    fn placed(status: CopyStatus) -> SliceRecord {
        let copy = CopyRecord { node: NODE, status };
        SliceRecord::from_iter([copy])
    }

    fn judged(status: Option<CopyStatus>, role: Role, is_promoted: bool, runs: bool) -> Membership {
        let placed = status.map(placed);
        judge(placed.as_ref(), (NODE, role), is_promoted, runs)
    }

    #[test]
    fn a_promotion_under_way_decides_first() {
        for status in [None, Some(CopyStatus::Stale), Some(CopyStatus::InSync)] {
            for runs in [false, true] {
                let verdict = judged(status, Role::Required, true, runs);
                assert_eq!(verdict, Membership::Stays);
            }
        }
    }

    #[test]
    fn a_copy_in_sync_stays_until_the_config_group_has_taken_it_out() {
        let status = Some(CopyStatus::InSync);
        assert_eq!(
            judged(status, Role::Required, false, true),
            Membership::Stays
        );
        assert_eq!(
            judged(status, Role::Required, false, false),
            Membership::Gone
        );
    }

    #[test]
    fn a_required_copy_that_is_not_in_sync_leaves() {
        for status in [None, Some(CopyStatus::Stale)] {
            let verdict = judged(status, Role::Required, false, true);
            assert_eq!(verdict, Membership::Leaves);
        }
    }

    #[test]
    fn a_joining_copy_leaves_with_its_process() {
        let status = Some(CopyStatus::Stale);
        assert_eq!(
            judged(status, Role::Joining, false, true),
            Membership::Stays
        );
        assert_eq!(
            judged(status, Role::Joining, false, false),
            Membership::Leaves
        );
    }
}
