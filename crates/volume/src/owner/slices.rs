//! The slices that an owner has streams of: those that were ever written to, and the first.
//!
//! Cost follows what is under way: only slices that need *attention* are looked at regularly,
//! because a copy owes an acknowledgement there, or has not heard the stable position.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::Notify;

use super::slice::Slice;

/// The slice that every volume has from the beginning. Its copies grant the leases under which
/// slices that were never written to are read.
pub(crate) const ANCHOR: u32 = 0;

/// See the module's header.
#[derive(Default)]
pub(crate) struct SliceTable {
    by_index: RefCell<BTreeMap<u32, Slice>>,
    attention: RefCell<BTreeSet<u32>>,
    attention_wanted: Notify,
    /// The highest number that a stream has got: later ones are larger, so that holders can tell.
    last_session: Cell<u64>,
}

impl SliceTable {
    /// Runs `act` on a slice; `None` if it has no stream.
    pub(crate) fn with<R>(&self, index: u32, act: impl FnOnce(&mut Slice) -> R) -> Option<R> {
        self.by_index.borrow_mut().get_mut(&index).map(act)
    }

    pub(crate) fn for_each(&self, mut act: impl FnMut(&mut Slice)) {
        for slice in self.by_index.borrow_mut().values_mut() {
            act(slice);
        }
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.by_index.borrow().contains_key(&index)
    }

    /// Those with a stream in this range of slices, ascending; at most `limit`.
    pub(crate) fn within(&self, range: std::ops::Range<u32>, limit: usize) -> Vec<u32> {
        let slices = self.by_index.borrow();
        slices
            .range(range)
            .map(|(index, _)| *index)
            .take(limit)
            .collect()
    }

    /// Takes a slice in, in the place of what was known of it before.
    pub(crate) fn insert(&self, slice: Slice) {
        let index = slice.key.slice;
        let settled = slice.is_settled();
        self.by_index.borrow_mut().insert(index, slice);
        if !settled {
            self.attend(index);
        }
    }

    /// Answers everybody who waits "interrupted".
    pub(crate) fn interrupt(&self) {
        self.for_each(Slice::interrupt);
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
