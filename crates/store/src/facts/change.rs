//! What callers want changed, and which edits that takes.
//!
//! Changes that are written together are resolved one after the other: each sees what those
//! before it have made, although nothing of that is durable, or visible, yet.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Edit, FactsState, Scope, SliceFacts, Void};
use crate::record::{CopyState, Seq, SliceKey, View};

/// A change of the facts.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Promises a view for a volume; a lower one changes nothing.
    Promise { volume: u64, view: View },
    /// Sets what copies are good for; with each the stable point that memory knows.
    Copies(Vec<(SliceKey, CopyState, Seq)>),
    /// Raises stable points, and of copies in sync the points through which the home has all.
    Stable(Vec<StablePoint>),
    /// Records were taken back.
    Void(Void),
    /// What follows [`Change::Cleared`] ends.
    Remove { scopes: Vec<Scope>, before_lsn: u64 },
    /// The home has nothing of these any more.
    Cleared { scopes: Vec<Scope>, before_lsn: u64 },
    /// Forgets what only speaks of batches that have left the journal.
    Forget { tail_lsn: u64 },
}

/// One slice's points.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StablePoint {
    pub(crate) slice: SliceKey,
    pub(crate) stable: Seq,
    pub(crate) home_through: Seq,
}

/// Edits over a state that has none of them yet.
pub(crate) struct Draft<'a> {
    base: &'a FactsState,
    edits: Vec<Edit>,
    slices: BTreeMap<SliceKey, SliceFacts>,
    promises: BTreeMap<u64, View>,
    /// Scopes whose facts in `base` are gone.
    removed: BTreeSet<Scope>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(base: &'a FactsState) -> Self {
        Self {
            base,
            edits: Vec::new(),
            slices: BTreeMap::new(),
            promises: BTreeMap::new(),
            removed: BTreeSet::new(),
        }
    }

    pub(crate) fn into_edits(self) -> Vec<Edit> {
        self.edits
    }

    pub(crate) fn add(&mut self, change: Change) {
        match change {
            Change::Promise { volume, view } => {
                let promised = self.promises.get(&volume).copied();
                if view > promised.unwrap_or_else(|| self.base.promise(volume)) {
                    self.promises.insert(volume, view);
                    self.edits.push(Edit::Promise { volume, view });
                }
            }
            Change::Copies(copies) => {
                for (slice, copy, stable) in copies {
                    self.change(slice, |found| {
                        found.copy = copy;
                        found.stable = found.stable.max(stable);
                        match copy {
                            CopyState::InSync => found.suspect = None,
                            CopyState::Joining { base } => {
                                found.destaged = found.destaged.min(base);
                            }
                            CopyState::Absent => found.destaged = Seq(0),
                        }
                    });
                }
            }
            Change::Stable(points) => {
                for point in points {
                    if self.is_removed(point.slice) {
                        // Since the round began: its facts must not come back.
                        continue;
                    }
                    self.change(point.slice, |found| {
                        match found.copy {
                            CopyState::InSync => {
                                found.destaged = found.destaged.max(point.home_through);
                            }
                            CopyState::Joining { .. } | CopyState::Absent => {}
                        }
                        found.stable = found.stable.max(point.stable);
                    });
                }
            }
            Change::Void(void) => self.edits.push(Edit::Voided(void)),
            Change::Remove { scopes, before_lsn } => {
                for scope in scopes {
                    let keys = self.slices.range(scope.bounds());
                    let keys: Vec<SliceKey> = keys.map(|(key, _)| *key).collect();
                    keys.iter().for_each(|key| _ = self.slices.remove(key));
                    self.removed.insert(scope);
                    self.edits.push(Edit::RemovalBegun { scope, before_lsn });
                }
            }
            Change::Cleared { scopes, before_lsn } => {
                for scope in scopes {
                    match scope {
                        Scope::Volume(volume) => _ = self.promises.insert(volume, View(0)),
                        Scope::Slice(_) => {}
                    }
                    self.edits.push(Edit::RemovalCleared { scope, before_lsn });
                }
            }
            Change::Forget { tail_lsn } => {
                let is_over = self.edits.iter().any(|edit| match edit {
                    Edit::RemovalCleared { before_lsn, .. }
                    | Edit::Voided(Void { before_lsn, .. }) => *before_lsn <= tail_lsn,
                    Edit::Promise { .. }
                    | Edit::Slice { .. }
                    | Edit::RemovalBegun { .. }
                    | Edit::Forgotten { .. }
                    | Edit::Hole => false,
                });
                if is_over || self.base.has_before(tail_lsn) {
                    self.edits.push(Edit::Forgotten { tail_lsn });
                }
            }
        }
    }

    /// Whether the slice is being removed, and was not set up again since.
    fn is_removed(&self, key: SliceKey) -> bool {
        let scopes = [Scope::Slice(key), Scope::Volume(key.volume)];
        let is_known = self.slices.contains_key(&key) || self.base.slice(key).is_some();
        let removed_here = scopes.iter().any(|scope| self.removed.contains(scope));
        removed_here && !self.slices.contains_key(&key)
            || !is_known && self.base.is_being_removed(key)
    }

    /// Changes what is known of a slice; known is from then on that it exists, too.
    fn change(&mut self, key: SliceKey, change: impl FnOnce(&mut SliceFacts)) {
        let scopes = [Scope::Slice(key), Scope::Volume(key.volume)];
        let is_removed = scopes.iter().any(|scope| self.removed.contains(scope));
        let base = self.base.slice(key).filter(|_| !is_removed);
        let known = self.slices.get(&key).or(base).copied();
        let mut facts = known.unwrap_or_default();
        change(&mut facts);
        if known != Some(facts) {
            self.slices.insert(key, facts);
            self.edits.push(Edit::Slice { key, facts });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SliceKey = SliceKey {
        volume: 4,
        slice: 1,
    };

    fn state(changes: &[Change]) -> FactsState {
        let mut state = FactsState::default();
        for change in changes {
            let mut draft = Draft::new(&state);
            draft.add(change.clone());
            let edits = draft.into_edits();
            edits.iter().for_each(|edit| state.apply(edit));
        }
        state
    }

    fn at_once(changes: &[Change]) -> (FactsState, usize) {
        let mut state = FactsState::default();
        let mut draft = Draft::new(&state);
        changes.iter().for_each(|change| draft.add(change.clone()));
        let edits = draft.into_edits();
        edits.iter().for_each(|edit| state.apply(edit));
        (state, edits.len())
    }

    fn promise(view: u64) -> Change {
        let view = View(view);
        Change::Promise { volume: 4, view }
    }

    fn copy(copy: CopyState, stable: u64) -> Change {
        Change::Copies(vec![(KEY, copy, Seq(stable))])
    }

    fn stable(stable: u64, home_through: u64) -> Change {
        Change::Stable(vec![StablePoint {
            slice: KEY,
            stable: Seq(stable),
            home_through: Seq(home_through),
        }])
    }

    /// A destage round that began before the removal ends behind it.
    #[test]
    fn a_late_stable_point_does_not_bring_a_removed_slice_back_and_a_new_set_up_does() {
        for scope in [Scope::Volume(4), Scope::Slice(KEY)] {
            let removed = [
                copy(CopyState::InSync, 5),
                Change::Remove {
                    scopes: vec![scope],
                    before_lsn: 7,
                },
                stable(9, 7),
            ];
            assert_eq!(state(&removed).slice(KEY), None);
            assert_eq!(at_once(&removed).0.slice(KEY), None);
            let again = [&removed[..], &[copy(CopyState::InSync, 0), stable(3, 3)]].concat();
            let found = state(&again).slice(KEY).copied().expect("set up again");
            assert_eq!((found.copy, found.stable), (CopyState::InSync, Seq(3)));
        }
    }

    #[test]
    fn changes_written_together_make_what_they_make_one_by_one() {
        let scopes = || vec![Scope::Volume(4)];
        let changes = [
            promise(3),
            promise(2),
            copy(CopyState::InSync, 5),
            stable(9, 7),
            Change::Void(Void {
                slice: KEY,
                keep_through: Seq(9),
                before_lsn: 6,
            }),
            Change::Remove {
                scopes: scopes(),
                before_lsn: 7,
            },
            stable(1, 1),
            Change::Cleared {
                scopes: scopes(),
                before_lsn: 7,
            },
            promise(1),
            copy(CopyState::Joining { base: Seq(2) }, 0),
            Change::Forget { tail_lsn: 7 },
            stable(3, 3),
        ];
        for until in 0..=changes.len() {
            let changes = &changes[..until];
            assert_eq!(at_once(changes).0, state(changes), "{until}");
        }
    }

    #[test]
    fn what_changes_nothing_takes_no_edit() {
        let changes = [
            promise(3),
            promise(3),
            promise(1),
            copy(CopyState::InSync, 5),
            copy(CopyState::InSync, 4),
            stable(5, 0),
            Change::Forget { tail_lsn: 100 },
        ];
        assert_eq!(at_once(&changes).1, 2);
    }

    #[test]
    fn a_copy_that_joins_has_less_at_home_and_one_in_sync_is_no_longer_suspect() {
        let known = |changes: &[Change]| *state(changes).slice(KEY).unwrap();
        let joined = [copy(CopyState::InSync, 9), stable(9, 8)];
        assert_eq!(known(&joined).destaged, Seq(8));
        let mut back = joined.to_vec();
        back.push(copy(CopyState::Joining { base: Seq(3) }, 9));
        assert_eq!(known(&back).destaged, Seq(3));
        back.push(stable(12, 12));
        let joining = known(&back);
        assert_eq!((joining.stable, joining.destaged), (Seq(12), Seq(3)));
        back.push(copy(CopyState::Absent, 0));
        assert_eq!(known(&back).destaged, Seq(0));
    }
}
