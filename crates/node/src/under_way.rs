//! Operations of initiators that have no answer yet, by volume: how long the oldest has waited.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_runtime::Instant;
use holdfast_wire::VolumeId;

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    next: Cell<u64>,
    operations: RefCell<BTreeSet<(VolumeId, Instant, u64)>>,
}

/// One operation; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Operating<'a> {
    under_way: &'a UnderWay,
    operation: (VolumeId, Instant, u64),
}

impl UnderWay {
    /// An operation begins.
    pub(crate) fn begin(&self, now: Instant, volume: VolumeId) -> Operating<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        let operation = (volume, now, number);
        self.operations.borrow_mut().insert(operation);
        Operating {
            under_way: self,
            operation,
        }
    }

    /// For each volume with operations under way, the age of the oldest.
    pub(crate) fn oldest(&self, now: Instant) -> Vec<(VolumeId, Duration)> {
        let operations = self.operations.borrow();
        let mut oldest = Vec::new();
        let mut next = operations.first();
        while let Some((volume, since, _)) = next.copied() {
            oldest.push((volume, now.saturating_since(since)));
            let beyond = (VolumeId(volume.0 + 1), Instant::default(), 0);
            next = operations.range(beyond..).next();
        }
        oldest
    }
}

impl Drop for Operating<'_> {
    fn drop(&mut self) {
        let mut operations = self.under_way.operations.borrow_mut();
        operations.remove(&self.operation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_volume_has_the_age_of_its_oldest_operation_until_that_ends() {
        let at = |s| Instant::default() + Duration::from_secs(s);
        let s = Duration::from_secs;
        let (one, two) = (VolumeId(1), VolumeId(2));
        let under_way = UnderWay::default();
        assert_eq!(under_way.oldest(at(9)), []);
        let first = under_way.begin(at(1), two);
        let second = under_way.begin(at(2), two);
        let other = under_way.begin(at(2), one);
        assert_eq!(under_way.oldest(at(9)), [(one, s(7)), (two, s(8))]);
        drop(first);
        assert_eq!(under_way.oldest(at(9)), [(one, s(7)), (two, s(7))]);
        drop((second, other));
        assert_eq!(under_way.oldest(at(9)), []);
    }
}
