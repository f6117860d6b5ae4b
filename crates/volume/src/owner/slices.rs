//! The slices that an owner has streams of: those that were ever written to, and the first.
//!
//! Cost follows what is under way: only slices that need *attention* are looked at regularly,
//! because a copy owes an acknowledgement there, or has not heard the stable position; only those
//! whose copies may differ from what the config state says are compared with it. Who looks at all
//! slices does so in parts.
//!
//! Always true between calls: `required` is what counting the required copies of all slices gives.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::NodeId;
use holdfast_runtime::work::Counted;
use tokio::sync::Notify;

use super::slice::Slice;

/// The slice that every volume has from the beginning. Its copies grant the leases under which
/// slices that were never written to are read.
pub(crate) const ANCHOR: u32 = 0;

/// Slices that are looked at before others have their turn: some ten microseconds.
pub(super) const LOOKED_AT_ONCE: usize = 256;

/// See the module's header.
#[derive(Default)]
pub(crate) struct SliceTable {
    by_index: RefCell<BTreeMap<u32, Slice>>,
    attention: RefCell<BTreeSet<u32>>,
    attention_wanted: Notify,
    to_follow: RefCell<ToFollow>,
    /// By node, how many slices require its copy.
    required: RefCell<BTreeMap<NodeId, usize>>,
    /// By node, whether it has space, if all slices have heard the same.
    space: RefCell<BTreeMap<NodeId, bool>>,
    /// The highest number that a stream has got: later ones are larger, so that holders can tell.
    last_session: Cell<u64>,
}

/// Slices that are to be compared with the config state.
#[derive(Default)]
struct ToFollow {
    slices: BTreeSet<u32>,
    /// All from this one on, too.
    all_from: Option<u32>,
}

impl SliceTable {
    /// Runs `act` on a slice; `None` if it has no stream.
    pub(crate) fn with<R>(&self, index: u32, act: impl FnOnce(&mut Slice) -> R) -> Option<R> {
        let mut slices = self.by_index.borrow_mut();
        let slice = slices.get_mut(&index)?;
        let before = slice.membership();
        let result = act(slice);
        if slice.membership() != before {
            self.note_members(slice);
        }
        Some(result)
    }

    /// Runs `act` on every slice; others may have their turn in between.
    pub(crate) async fn for_each(&self, mut act: impl FnMut(&mut Slice)) {
        let mut from = Some(0);
        while let Some(first) = from {
            let part = self.within(first..u32::MAX, LOOKED_AT_ONCE);
            for index in &part {
                self.with(*index, &mut act);
            }
            from = part.last().and_then(|last| last.checked_add(1));
            tokio::task::yield_now().await;
        }
    }

    /// Counts a slice's required copies anew; they are to be compared with the config state.
    fn note_members(&self, slice: &mut Slice) {
        let mut required = self.required.borrow_mut();
        for node in slice.counted.drain(..) {
            if let Some(count) = required.get_mut(&node) {
                *count -= 1;
            }
        }
        slice.counted.extend(slice.stream.required());
        for node in &slice.counted {
            *required.entry(*node).or_default() += 1;
        }
        required.retain(|_, count| *count > 0);
        let mut space = self.space.borrow_mut();
        space.retain(|node, _| !slice.stream.members().contains_key(node));
        self.to_follow.borrow_mut().slices.insert(slice.key.slice);
    }

    /// Nodes whose copy of some slice is required.
    pub(crate) fn required(&self) -> BTreeSet<NodeId> {
        self.required.borrow().keys().copied().collect()
    }

    /// A copy has said how much space its node has. Others have not heard that.
    pub(crate) fn note_space_of_one(&self, node: NodeId, has_space: bool) {
        let mut space = self.space.borrow_mut();
        if space.get(&node).is_some_and(|known| *known != has_space) {
            space.remove(&node);
        }
    }

    /// A node has said how much space it has: whether there is any is what all slices hear.
    pub(crate) async fn note_space(&self, node: NodeId, free_bytes: u64) {
        let has_space = free_bytes > 0;
        let known = self.space.borrow_mut().insert(node, has_space);
        if known != Some(has_space) {
            let set = |slice: &mut Slice| slice.stream.set_free_bytes(node, free_bytes);
            self.for_each(set).await;
        }
    }

    /// These slices are to be compared with the config state.
    pub(crate) fn follow(&self, slices: impl IntoIterator<Item = u32>) {
        self.to_follow.borrow_mut().slices.extend(slices);
    }

    /// All slices are.
    pub(crate) fn follow_all(&self) {
        *self.to_follow.borrow_mut() = ToFollow {
            slices: BTreeSet::new(),
            all_from: Some(0),
        };
    }

    /// Some of the slices that are to be compared with the config state; empty when none are left.
    pub(crate) fn take_to_follow(&self) -> Vec<u32> {
        let mut to_follow = self.to_follow.borrow_mut();
        if let Some(first) = to_follow.all_from {
            let part = self.within(first..u32::MAX, LOOKED_AT_ONCE);
            let last = part.last().filter(|_| part.len() == LOOKED_AT_ONCE);
            to_follow.all_from = last.and_then(|last| last.checked_add(1));
            if !part.is_empty() {
                return part;
            }
        }
        let rest = to_follow.slices.iter().nth(LOOKED_AT_ONCE).copied();
        let rest = rest.map_or_else(BTreeSet::new, |first| to_follow.slices.split_off(&first));
        let part = std::mem::replace(&mut to_follow.slices, rest);
        part.into_iter().collect()
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.by_index.borrow().contains_key(&index)
    }

    /// Those with a stream in this range of slices, ascending; at most `limit`.
    pub(crate) fn within(&self, range: std::ops::Range<u32>, limit: usize) -> Vec<u32> {
        let slices = self.by_index.borrow();
        slices
            .range(range)
            .counted()
            .map(|(index, _)| *index)
            .take(limit)
            .collect()
    }

    /// Takes a slice in, in the place of what was known of it before.
    pub(crate) fn insert(&self, mut slice: Slice) {
        let index = slice.key.slice;
        let settled = slice.is_settled();
        let mut slices = self.by_index.borrow_mut();
        if let Some(before) = slices.remove(&index) {
            slice.counted = before.counted;
        }
        self.note_members(&mut slice);
        slices.insert(index, slice);
        drop(slices);
        if !settled {
            self.attend(index);
        }
    }

    /// Answers everybody who waits "interrupted". All at once, and not counted as work: it is the
    /// end, and takes some ten nanoseconds for each slice.
    pub(crate) fn interrupt(&self) {
        for slice in self.by_index.borrow_mut().values_mut() {
            slice.interrupt();
        }
    }

    /// Something is under way on a slice.
    pub(crate) fn attend(&self, index: u32) {
        if self.attention.borrow_mut().insert(index) {
            self.attention_wanted.notify_one();
        }
    }

    /// Slices that need attention.
    pub(crate) fn attended(&self) -> Vec<u32> {
        self.attention.borrow().iter().copied().collect()
    }

    /// Some of them, from this one on.
    pub(crate) fn attended_from(&self, first: u32) -> Vec<u32> {
        let attended = self.attention.borrow();
        let part = attended.range(first..).take(LOOKED_AT_ONCE);
        part.counted().copied().collect()
    }

    /// A slice needs no attention any more.
    pub(crate) fn leave(&self, index: u32) {
        self.attention.borrow_mut().remove(&index);
    }

    /// Resolves when some slice needs attention.
    pub(crate) async fn wanted(&self) {
        loop {
            let wanted = self.attention_wanted.notified();
            if !self.attention.borrow().is_empty() {
                return;
            }
            wanted.await;
        }
    }

    /// The number of a stream about to be set up.
    pub(crate) fn next_session(&self) -> u64 {
        self.last_session.set(self.last_session.get() + 1);
        self.last_session.get()
    }

    pub(crate) fn last_session(&self) -> u64 {
        self.last_session.get()
    }

    /// Streams up to this number have been set up.
    pub(crate) fn note_session(&self, session: u64) {
        self.last_session.set(self.last_session.get().max(session));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use holdfast_replica::stream::Role;
    use holdfast_runtime::{Incarnation, Instant, NodeId};
    use holdfast_wire::{Seq, SliceKey};

    use super::super::history::{Memory, SliceHistory};
    use super::*;

    fn slice(index: u32, last: u64) -> Slice {
        let key = SliceKey {
            volume: 1,
            slice: index,
        };
        let history = SliceHistory::new(Memory::of_nothing(), 16);
        let mut slice = Slice::new(key, Seq(last), history);
        let (now, role) = (Instant::default(), Role::Required);
        slice.stream.add(now, NodeId(1), Incarnation(1), 7, role);
        slice
    }

    #[test]
    fn a_slice_whose_copies_have_to_hear_something_gets_attention_and_an_empty_one_does_not() {
        let table = SliceTable::default();
        table.insert(slice(3, 0));
        assert_eq!(table.attended(), [0; 0]);
        assert!(table.wanted().now_or_never().is_none());
        table.insert(slice(9, 5));
        assert_eq!(table.attended(), [9]);
        assert!(table.wanted().now_or_never().is_some());
        table.leave(9);
        assert!(table.wanted().now_or_never().is_none());
        table.attend(3);
        assert_eq!(table.attended(), [3]);
    }

    #[test]
    fn only_slices_in_the_range_are_named_and_no_more_than_wanted() {
        let table = SliceTable::default();
        for index in [1, 5, 1_000_000] {
            table.insert(slice(index, 0));
        }
        assert_eq!(table.within(0..u32::MAX, 10), [1, 5, 1_000_000]);
        assert_eq!(table.within(2..u32::MAX, 1), [5]);
        assert!(table.contains(5) && !table.contains(4));
        assert_eq!(table.with(4, |_| ()), None);
    }

    #[test]
    fn numbers_of_streams_rise_whoever_gives_them() {
        let table = SliceTable::default();
        assert_eq!(table.next_session(), 1);
        table.note_session(10);
        table.note_session(4);
        assert_eq!((table.last_session(), table.next_session()), (10, 11));
    }
}
