//! Bytes that this node's owners have copied because a node is drained.
//!
//! A stale copy of a slice stands in for a copy on a drained node as long as the slice has one: the
//! first stale copy for the first such copy, the second for the second, and around again.

use std::cell::RefCell;
use std::collections::BTreeMap;

use holdfast_config::state::{ClusterState, CopyStatus, SliceRecord};
use holdfast_runtime::NodeId;

/// One drain: the node, and when it began. The same node may be drained again.
pub type DrainKey = (NodeId, u64);

/// See the module's header.
#[derive(Default)]
pub struct CopiedBytes {
    of: RefCell<BTreeMap<DrainKey, u64>>,
}

impl CopiedBytes {
    /// Bytes copied for a drain since this node started.
    pub fn of(&self, drain: DrainKey) -> u64 {
        self.of.borrow().get(&drain).copied().unwrap_or(0)
    }

    /// Forgets drains that are over.
    pub fn retain(&self, draining: &BTreeMap<NodeId, u64>) {
        let goes_on = |drain: &DrainKey| draining.get(&drain.0) == Some(&drain.1);
        self.of.borrow_mut().retain(|drain, _| goes_on(drain));
    }

    /// The drain for which the stale copy on `target` is brought up to date, if any.
    pub fn drain_of(state: &ClusterState, slice: &SliceRecord, target: NodeId) -> Option<DrainKey> {
        let since = |node: NodeId| state.draining.get(&node).copied();
        let drained = slice
            .copies()
            .filter_map(|copy| Some((copy.node, since(copy.node)?)));
        let drained: Vec<DrainKey> = drained.collect();
        let stale = slice
            .copies()
            .filter(|copy| copy.status == CopyStatus::Stale && since(copy.node).is_none());
        let place = stale
            .map(|copy| copy.node)
            .position(|node| node == target)?;
        drained.get(place % drained.len().max(1)).copied()
    }

    pub(crate) fn note(
        &self,
        state: &ClusterState,
        slice: &SliceRecord,
        target: NodeId,
        bytes: u64,
    ) {
        if let Some(drain) = Self::drain_of(state, slice, target) {
            *self.of.borrow_mut().entry(drain).or_default() += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_config::state::CopyRecord;

    use super::*;

    fn slice(in_sync: &[u64], stale: &[u64]) -> SliceRecord {
        let copy = |status| {
            move |node: &u64| CopyRecord {
                node: NodeId(*node),
                status,
            }
        };
        let in_sync = in_sync.iter().map(copy(CopyStatus::InSync));
        let stale = stale.iter().map(copy(CopyStatus::Stale));
        in_sync.chain(stale).collect()
    }

    #[test]
    fn what_is_copied_counts_for_the_drain_whose_copy_is_replaced() {
        let mut state = ClusterState::default();
        state.draining.extend([(NodeId(1), 7), (NodeId(2), 9)]);
        let copied = CopiedBytes::default();
        let two = slice(&[1, 2, 3], &[4, 5]);
        copied.note(&state, &two, NodeId(4), 100);
        copied.note(&state, &two, NodeId(5), 10);
        copied.note(&state, &slice(&[2, 3], &[4]), NodeId(4), 1);
        // Nothing to do with a drain, and a copy that is not listed any more.
        copied.note(&state, &slice(&[3], &[4]), NodeId(4), 1000);
        copied.note(&state, &two, NodeId(6), 1000);
        let first = (NodeId(1), 7);
        assert_eq!((copied.of(first), copied.of((NodeId(2), 9))), (100, 11));
        assert_eq!(
            copied.of((NodeId(1), 8)),
            0,
            "another drain of the same node"
        );
        state.draining.insert(NodeId(1), 8);
        copied.retain(&state.draining);
        assert_eq!((copied.of(first), copied.of((NodeId(2), 9))), (0, 11));
    }
}
