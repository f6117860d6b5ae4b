//! The facts in memory, and the edits that change them.
//!
//! An edit is *absolute*: it names a key and its new value. So edits may be applied over a state
//! that has some of them already, as long as all of them follow in their order: a snapshot may be
//! taken bit by bit while edits go on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use holdfast_runtime::work::Counted;

use crate::record::{CopyState, Seq, SliceKey, View};

/// What is durably known of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct SliceFacts {
    pub(crate) copy: CopyState,
    /// The stable point, at least as it was before any record up to it left the journal.
    pub(crate) stable: Seq,
    /// Every stream record of this copy up to here had reached the home.
    pub(crate) destaged: Seq,
    /// Records above this point may have been lost to damage.
    pub(crate) suspect: Option<Seq>,
}

/// Stream records of `slice` above `keep_through` in batches before `before_lsn` are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Void {
    pub(crate) slice: SliceKey,
    pub(crate) keep_through: Seq,
    pub(crate) before_lsn: u64,
}

/// What is removed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// All slices of a volume, and what was promised for it.
    Volume(u64),
    /// One slice; its volume stays.
    Slice(SliceKey),
}

impl Scope {
    /// The volume that it is, or is of.
    pub(crate) fn volume(self) -> u64 {
        match self {
            Self::Volume(volume) => volume,
            Self::Slice(key) => key.volume,
        }
    }

    /// Whether this slice goes with it.
    pub(crate) fn covers(self, slice: SliceKey) -> bool {
        match self {
            Self::Volume(volume) => slice.volume == volume,
            Self::Slice(key) => slice == key,
        }
    }

    /// The lowest and the highest slice that it may cover.
    pub(crate) fn bounds(self) -> RangeInclusive<SliceKey> {
        match self {
            Self::Volume(volume) => SliceKey::all_of(volume),
            Self::Slice(key) => key..=key,
        }
    }
}

/// Everything of `scope` in batches before `before_lsn`, and in the home until `cleared`, is
/// void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) scope: Scope,
    pub(crate) before_lsn: u64,
    pub(crate) cleared: bool,
}

impl Removal {
    /// What makes it what it is.
    pub(crate) fn edits(self) -> impl Iterator<Item = Edit> {
        let Self {
            scope,
            before_lsn,
            cleared,
        } = self;
        let begun = Edit::RemovalBegun { scope, before_lsn };
        let cleared = cleared.then_some(Edit::RemovalCleared { scope, before_lsn });
        std::iter::once(begun).chain(cleared)
    }
}

/// One key and its new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// This view is promised for a volume.
    Promise { volume: u64, view: View },
    /// This is known of a slice.
    Slice { key: SliceKey, facts: SliceFacts },
    /// Records were taken back.
    Voided(Void),
    /// Facts and voids of a scope are gone, and what is in the journal does not count.
    RemovalBegun { scope: Scope, before_lsn: u64 },
    /// The home has nothing of it any more. With a volume its promise goes.
    RemovalCleared { scope: Scope, before_lsn: u64 },
    /// What only spoke of batches before this one is gone.
    Forgotten { tail_lsn: u64 },
    /// Whole batches were lost.
    Hole,
}

/// The facts themselves.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct FactsState {
    promises: BTreeMap<u64, View>,
    slices: BTreeMap<SliceKey, SliceFacts>,
    /// Those of `slices` that are suspect.
    suspects: BTreeSet<SliceKey>,
    /// By `before_lsn`: the oldest are forgotten first.
    voids: BTreeMap<(u64, SliceKey), Seq>,
    /// By `before_lsn`; whether each is cleared.
    removals: BTreeMap<(u64, Scope), bool>,
    hole: bool,
}

impl FactsState {
    /// The newest view promised for a volume.
    pub(crate) fn promise(&self, volume: u64) -> View {
        self.promises.get(&volume).copied().unwrap_or_default()
    }

    /// Volumes behind `after` for which a view is promised.
    pub(crate) fn promises_behind(
        &self,
        after: Option<u64>,
    ) -> impl Iterator<Item = (u64, View)> + '_ {
        let promises = self.promises.range(behind(after));
        promises.map(|(volume, view)| (*volume, *view))
    }

    /// The first volume from this one on for which a view is promised.
    pub(crate) fn promised_from(&self, volume: u64) -> Option<u64> {
        self.promises
            .range(volume..)
            .next()
            .map(|(volume, _)| *volume)
    }

    pub(crate) fn slice(&self, key: SliceKey) -> Option<&SliceFacts> {
        self.slices.get(&key)
    }

    pub(crate) fn slices_in(
        &self,
        range: impl std::ops::RangeBounds<SliceKey>,
    ) -> impl Iterator<Item = (SliceKey, &SliceFacts)> {
        let found = self.slices.range(range).counted();
        found.map(|(key, facts)| (*key, facts))
    }

    /// Slices of which records may have been lost.
    pub(crate) fn suspects(&self) -> &BTreeSet<SliceKey> {
        &self.suspects
    }

    /// In the order in which they are forgotten, behind `after`.
    pub(crate) fn voids_behind(
        &self,
        after: Option<(u64, SliceKey)>,
    ) -> impl Iterator<Item = Void> + '_ {
        let voids = self.voids.range(behind(after));
        voids.map(|((before_lsn, slice), keep_through)| Void {
            slice: *slice,
            keep_through: *keep_through,
            before_lsn: *before_lsn,
        })
    }

    /// In the order in which they are forgotten, behind `after`.
    pub(crate) fn removals_behind(
        &self,
        after: Option<(u64, Scope)>,
    ) -> impl Iterator<Item = Removal> + '_ {
        let removals = self.removals.range(behind(after));
        removals.map(|((before_lsn, scope), cleared)| Removal {
            scope: *scope,
            before_lsn: *before_lsn,
            cleared: *cleared,
        })
    }

    /// Whether a removal covers the slice.
    pub(crate) fn is_being_removed(&self, slice: SliceKey) -> bool {
        let mut removals = self.removals.keys();
        removals.any(|(_, scope)| scope.covers(slice))
    }

    /// Whole batches were lost once: a slice without facts may have been in them.
    pub(crate) fn hole(&self) -> bool {
        self.hole
    }

    /// Promises, slices, voids and removals there are.
    pub(crate) fn counts(&self) -> [usize; 4] {
        [
            self.promises.len(),
            self.slices.len(),
            self.voids.len(),
            self.removals.len(),
        ]
    }

    /// Whether [`Edit::Forgotten`] with this tail would forget anything.
    pub(crate) fn has_before(&self, tail_lsn: u64) -> bool {
        let old_void = self.voids.first_key_value();
        let old_void = old_void.is_some_and(|((before_lsn, _), _)| *before_lsn <= tail_lsn);
        old_void || self.cleared_before(tail_lsn).next().is_some()
    }

    fn cleared_before(&self, tail_lsn: u64) -> impl Iterator<Item = (u64, Scope)> + '_ {
        let removals = self.removals.iter();
        removals
            .take_while(move |((before_lsn, _), _)| *before_lsn <= tail_lsn)
            .filter(|(_, cleared)| **cleared)
            .map(|(key, _)| *key)
    }

    pub(crate) fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Promise { volume, view } => _ = self.promises.insert(*volume, *view),
            Edit::Slice { key, facts } => {
                self.slices.insert(*key, *facts);
                match facts.suspect {
                    Some(_) => _ = self.suspects.insert(*key),
                    None => _ = self.suspects.remove(key),
                }
            }
            Edit::Voided(void) => {
                let key = (void.before_lsn, void.slice);
                let kept = self.voids.entry(key).or_insert(void.keep_through);
                *kept = void.keep_through.min(*kept);
            }
            Edit::RemovalBegun { scope, before_lsn } => {
                let keys: Vec<SliceKey> = self
                    .slices
                    .range(scope.bounds())
                    .map(|(key, _)| *key)
                    .collect();
                for key in keys {
                    self.slices.remove(&key);
                    self.suspects.remove(&key);
                }
                self.voids.retain(|(_, slice), _| !scope.covers(*slice));
                self.removals.insert((*before_lsn, *scope), false);
            }
            Edit::RemovalCleared { scope, before_lsn } => {
                self.removals.insert((*before_lsn, *scope), true);
                match scope {
                    Scope::Volume(volume) => _ = self.promises.remove(volume),
                    Scope::Slice(_) => {}
                }
            }
            Edit::Forgotten { tail_lsn } => {
                let stays = self.voids.split_off(&(tail_lsn + 1, LOWEST));
                self.voids = stays;
                let gone: Vec<(u64, Scope)> = self.cleared_before(*tail_lsn).collect();
                for key in gone {
                    self.removals.remove(&key);
                }
            }
            Edit::Hole => self.hole = true,
        }
    }
}

const LOWEST: SliceKey = SliceKey {
    volume: 0,
    slice: 0,
};

/// All keys behind one, or all.
pub(super) fn behind<T>(after: Option<T>) -> (std::ops::Bound<T>, std::ops::Bound<T>) {
    let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
    (from, std::ops::Bound::Unbounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(volume: u64, slice: u32) -> SliceKey {
        SliceKey { volume, slice }
    }

    fn slice(volume: u64, number: u32, suspect: Option<Seq>) -> Edit {
        let facts = SliceFacts {
            copy: CopyState::InSync,
            suspect,
            ..SliceFacts::default()
        };
        Edit::Slice {
            key: key(volume, number),
            facts,
        }
    }

    fn voided(volume: u64, number: u32, keep: u64, before_lsn: u64) -> Edit {
        Edit::Voided(Void {
            slice: key(volume, number),
            keep_through: Seq(keep),
            before_lsn,
        })
    }

    fn begun(scope: Scope, before_lsn: u64) -> Edit {
        Edit::RemovalBegun { scope, before_lsn }
    }

    fn cleared(scope: Scope, before_lsn: u64) -> Edit {
        Edit::RemovalCleared { scope, before_lsn }
    }

    fn of(edits: &[Edit]) -> FactsState {
        let mut state = FactsState::default();
        edits.iter().for_each(|edit| state.apply(edit));
        state
    }

    #[test]
    fn a_removed_volume_takes_slices_suspicions_and_voids_with_it_and_at_the_end_its_promise() {
        let volume = Scope::Volume(2);
        let promise = Edit::Promise {
            volume: 2,
            view: View(8),
        };
        let mut state = of(&[
            promise,
            slice(1, 9, None),
            slice(2, 0, Some(Seq(1))),
            slice(2, 7, None),
            slice(3, 0, Some(Seq(2))),
            voided(2, 7, 4, 10),
            voided(3, 0, 4, 10),
            begun(volume, 11),
        ]);
        let left: Vec<SliceKey> = state.slices_in(..).map(|(key, _)| key).collect();
        assert_eq!(left, [key(1, 9), key(3, 0)]);
        assert_eq!(state.suspects(), &BTreeSet::from([key(3, 0)]));
        assert_eq!(state.voids_behind(None).count(), 1);
        assert_eq!(state.promise(2), View(8), "it fences until all is gone");
        state.apply(&cleared(volume, 11));
        assert_eq!(state.promise(2), View(0));
    }

    #[test]
    fn voids_and_cleared_removals_are_forgotten_once_the_tail_has_passed_them() {
        let (one, other) = (Scope::Slice(key(1, 1)), Scope::Slice(key(1, 2)));
        let mut state = of(&[
            voided(1, 0, 4, 10),
            voided(1, 0, 2, 20),
            begun(one, 10),
            begun(other, 10),
            cleared(one, 10),
        ]);
        assert!(!state.has_before(9));
        assert!(state.has_before(10));
        state.apply(&Edit::Forgotten { tail_lsn: 19 });
        assert_eq!(state.counts(), [0, 0, 1, 1], "one void, one not cleared");
        assert!(!state.has_before(19));
        state.apply(&cleared(other, 10));
        assert!(state.has_before(19));
        state.apply(&Edit::Forgotten { tail_lsn: 20 });
        assert_eq!(state, FactsState::default());
    }

    #[test]
    fn of_two_voids_of_one_moment_the_lower_holds() {
        let state = of(&[
            voided(1, 0, 4, 10),
            voided(1, 0, 2, 10),
            voided(1, 0, 3, 10),
        ]);
        let kept: Vec<Seq> = state.voids_behind(None).map(|v| v.keep_through).collect();
        assert_eq!(kept, [Seq(2)]);
    }

    #[test]
    fn edits_over_a_state_that_has_some_of_them_end_in_the_same_state() {
        let volume = Scope::Volume(1);
        let promise = |view| Edit::Promise {
            volume: 1,
            view: View(view),
        };
        let edits = [
            promise(5),
            slice(1, 0, None),
            voided(1, 0, 4, 10),
            begun(volume, 11),
            slice(1, 0, Some(Seq(3))),
            cleared(volume, 11),
            promise(2),
            voided(1, 0, 1, 12),
            Edit::Forgotten { tail_lsn: 11 },
            Edit::Hole,
        ];
        let whole = of(&edits);
        for already in 0..=edits.len() {
            let mut state = of(&edits[..already]);
            edits.iter().for_each(|edit| state.apply(edit));
            assert_eq!(state, whole, "{already}");
        }
    }
}
