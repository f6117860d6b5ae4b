//! What an owner waits for, and since when.

use std::cell::RefCell;
use std::collections::BTreeSet;

use holdfast_runtime::{Instant, NodeId};

/// What an owner waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// Copies on these nodes have not answered the fence.
    Fence(BTreeSet<NodeId>),
    /// The nodes with a complete copy in sync are down.
    CompleteCopy,
    /// The copies are being made identical.
    Reconcile,
    /// No copy answered while it was being made identical.
    CopyUnderRepair,
    /// A copy's node restarted during the takeover: it begins again.
    RestartedCopy,
    /// The config group has to agree on the opening.
    Opening,
    /// Something is written for the first time, and these nodes have not set copies up.
    Placement(BTreeSet<NodeId>),
    /// The config group has to agree on where it goes.
    PlacementAgreement,
    /// Writes are not acknowledged by copies on these nodes.
    Acknowledgement(BTreeSet<NodeId>),
    /// The config group has to agree that copies on these nodes do not count.
    Removal(BTreeSet<NodeId>),
    /// Reads need leases from copies on these nodes.
    Lease(BTreeSet<NodeId>),
}

/// A wait, for status displays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// For what.
    pub reason: WaitReason,
    /// Since when, by the local clock.
    pub since: Instant,
}

/// The step at which an owner stands.
#[derive(Debug, Default)]
pub(crate) struct WaitsFor {
    current: RefCell<Option<Waiting>>,
}

impl WaitsFor {
    /// It waits for this now; the same as before keeps its time.
    pub(crate) fn set(&self, now: Instant, reason: WaitReason) {
        let mut current = self.current.borrow_mut();
        let since = match &*current {
            Some(before) if same_kind(&before.reason, &reason) => before.since,
            Some(_) | None => now,
        };
        *current = Some(Waiting { reason, since });
    }

    /// It waits for nothing.
    pub(crate) fn clear(&self) {
        self.current.take();
    }

    pub(crate) fn get(&self) -> Option<Waiting> {
        self.current.borrow().clone()
    }
}

/// The nodes may have become fewer or more.
fn same_kind(one: &WaitReason, other: &WaitReason) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_keeps_its_begin_until_it_is_for_something_else() {
        let at = |s| Instant::default() + Duration::from_secs(s);
        let waits = WaitsFor::default();
        let fence = |nodes: &[u64]| WaitReason::Fence(nodes.iter().copied().map(NodeId).collect());
        waits.set(at(1), fence(&[1, 2]));
        waits.set(at(2), fence(&[2]));
        let expected = Waiting {
            reason: fence(&[2]),
            since: at(1),
        };
        assert_eq!(waits.get(), Some(expected));
        waits.set(at(3), WaitReason::Reconcile);
        assert_eq!(waits.get().map(|waiting| waiting.since), Some(at(3)));
        waits.clear();
        assert_eq!(waits.get(), None);
    }
}
