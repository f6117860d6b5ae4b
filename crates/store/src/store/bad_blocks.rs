//! Blocks whose newest stable version was found to be lost and was not written again yet.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::{Bound, RangeInclusive};

use tokio::sync::Notify;

use crate::record::SliceKey;

/// What is known to be lost.
#[derive(Default)]
pub(crate) struct BadBlocks {
    blocks: RefCell<BTreeSet<(SliceKey, u32)>>,
    /// One was added.
    found: Notify,
}

impl BadBlocks {
    /// Notes one; false if it was known.
    pub(crate) fn note(&self, slice: SliceKey, block: u32) -> bool {
        let is_news = self.blocks.borrow_mut().insert((slice, block));
        if is_news {
            self.found.notify_one();
        }
        is_news
    }

    /// It is not lost any more.
    pub(crate) fn heal(&self, slice: SliceKey, block: u32) {
        self.blocks.borrow_mut().remove(&(slice, block));
    }

    /// These slices are gone.
    pub(crate) fn forget(&self, slices: RangeInclusive<SliceKey>) {
        let (first, last) = slices.into_inner();
        let mut blocks = self.blocks.borrow_mut();
        let range = (first, 0)..=(last, u32::MAX);
        let gone: Vec<(SliceKey, u32)> = blocks.range(range).copied().collect();
        for one in gone {
            blocks.remove(&one);
        }
    }

    pub(crate) fn contains(&self, slice: SliceKey, block: u32) -> bool {
        self.blocks.borrow().contains(&(slice, block))
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.borrow().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.borrow().is_empty()
    }

    /// The first ones behind `after`: at most `limit`, all of one slice.
    pub(crate) fn behind(
        &self,
        after: Option<(SliceKey, u32)>,
        limit: usize,
    ) -> Option<(SliceKey, Vec<u32>)> {
        let blocks = self.blocks.borrow();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = blocks.range((from, Bound::Unbounded)).peekable();
        let slice = behind.peek()?.0;
        let of_slice = behind.take_while(|(key, _)| *key == slice).take(limit);
        Some((slice, of_slice.map(|(_, block)| *block).collect()))
    }

    /// Resolves when one was added; at once, if that has happened since the last call.
    pub(crate) async fn found(&self) {
        self.found.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const fn key(volume: u64, slice: u32) -> SliceKey {
        SliceKey { volume, slice }
    }

    #[test]
    fn what_is_noted_once_is_news_once() {
        let bad = BadBlocks::default();
        assert!(bad.found().now_or_never().is_none());
        assert!(bad.note(key(1, 0), 5));
        assert!(bad.found().now_or_never().is_some());
        assert!(!bad.note(key(1, 0), 5));
        assert!(bad.found().now_or_never().is_none());
        bad.heal(key(1, 0), 5);
        assert!(bad.is_empty() && !bad.contains(key(1, 0), 5));
    }

    #[test]
    fn they_are_listed_slice_by_slice_in_parts() {
        let bad = BadBlocks::default();
        for (slice, block) in [(1, 9), (0, 3), (0, 1), (0, 2)] {
            bad.note(key(1, slice), block);
        }
        let first = bad.behind(None, 2);
        assert_eq!(first, Some((key(1, 0), vec![1, 2])));
        let rest = bad.behind(Some((key(1, 0), 2)), 2);
        assert_eq!(rest, Some((key(1, 0), vec![3])));
        let next = bad.behind(Some((key(1, 0), 3)), 2);
        assert_eq!(next, Some((key(1, 1), vec![9])));
        assert_eq!(bad.behind(Some((key(1, 1), 9)), 2), None);
    }

    #[test]
    fn slices_that_are_gone_have_none() {
        let bad = BadBlocks::default();
        for slice in 0..4 {
            bad.note(key(1, slice), 7);
        }
        bad.forget(key(1, 1)..=key(1, 2));
        assert_eq!(bad.len(), 2);
        assert!(bad.contains(key(1, 0), 7) && bad.contains(key(1, 3), 7));
    }
}
