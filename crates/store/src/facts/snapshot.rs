//! A snapshot of the facts, taken bit by bit while they change.
//!
//! A pass goes through the facts in the order of their keys and writes some of them at each step,
//! as they are then. What changes meanwhile goes to the log in force, as always, and is *carried*
//! along: behind the snapshot it is written again, in its order. Edits are absolute, so it does
//! not matter which of them the snapshot has already. The last entry, the commit, makes the new
//! generation the one in force; then the old one is wiped.
//!
//! | a crash | leaves |
//! |---|---|
//! | before the commit is durable | the old generation in force; slots of the new one are free |
//! | before the old one is wiped | both, with the same facts: the newer is in force |
//! | later | the new generation |

use std::collections::VecDeque;

use holdfast_runtime::DiskError;
use holdfast_runtime::planted::{self, Bug};

use super::entry::{EDITS_MAX, EntryKind};
use super::space::{Chain, Space};
use super::state::{Edit, FactsState, Removal, Scope, Void, behind};
use crate::record::{SliceKey, View};

/// Carried changes that one step writes.
const CARRIED_AT_ONCE: usize = 8;

/// How far a pass has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// First: applied, a removal takes facts with it.
    Removals(Option<(u64, Scope)>),
    Promises(Option<u64>),
    Slices(Option<SliceKey>),
    Voids(Option<(u64, SliceKey)>),
    End,
}

impl Cursor {
    /// Takes what comes next, at most `room` edits, and says where to go on.
    fn moved(self, state: &FactsState, room: usize, edits: &mut Vec<Edit>) -> Self {
        match self {
            Self::Removals(after) => {
                let mut some: Vec<Removal> = state.removals_behind(after).take(room / 2).collect();
                if planted::is_active(Bug::SnapshotForgetsRemovals) {
                    some.clear();
                }
                edits.extend(some.iter().flat_map(|removal| removal.edits()));
                match some.last() {
                    Some(last) => Self::Removals(Some((last.before_lsn, last.scope))),
                    None => Self::Promises(None),
                }
            }
            Self::Promises(after) => {
                let some: Vec<(u64, View)> = state.promises_behind(after).take(room).collect();
                let promise = |(volume, view): &(u64, View)| Edit::Promise {
                    volume: *volume,
                    view: *view,
                };
                edits.extend(some.iter().map(promise));
                match some.last() {
                    Some((volume, _)) => Self::Promises(Some(*volume)),
                    None => Self::Slices(None),
                }
            }
            Self::Slices(after) => {
                let some = state.slices_in(behind(after)).take(room);
                let mut last = None;
                for (key, facts) in some {
                    last = Some(key);
                    let facts = *facts;
                    edits.push(Edit::Slice { key, facts });
                }
                match last {
                    Some(key) => Self::Slices(Some(key)),
                    None => Self::Voids(None),
                }
            }
            Self::Voids(after) => {
                let some: Vec<Void> = state.voids_behind(after).take(room).collect();
                edits.extend(some.iter().copied().map(Edit::Voided));
                match some.last() {
                    Some(last) => Self::Voids(Some((last.before_lsn, last.slice))),
                    None => Self::End,
                }
            }
            Self::End => Self::End,
        }
    }
}

/// A snapshot under way.
pub(super) struct Pass {
    chain: Chain,
    cursor: Cursor,
    /// Facts that one step takes.
    at_once: usize,
    carried: VecDeque<Vec<Edit>>,
}

impl Pass {
    /// A step takes `at_once` facts, as far as they fit into an entry.
    pub(super) fn new(generation: u64, at_once: usize) -> Self {
        Self {
            at_once: at_once.clamp(2, EDITS_MAX),
            chain: Chain::new(generation),
            cursor: Cursor::Removals(None),
            carried: VecDeque::new(),
        }
    }

    /// These changes are durable in the log in force.
    pub(super) fn carry(&mut self, edits: &[Edit]) {
        self.carried.push_back(edits.to_vec());
    }

    /// The slots it has taken.
    pub(super) fn slots(&self) -> &[u32] {
        &self.chain.slots
    }

    /// What the next step writes of the facts: bounded work, however many there are.
    pub(super) fn next_edits(&mut self, state: &FactsState) -> Vec<Edit> {
        let mut edits = Vec::new();
        // A removal takes two.
        while edits.len() + 2 <= self.at_once && self.cursor != Cursor::End {
            let room = self.at_once - edits.len();
            self.cursor = self.cursor.moved(state, room, &mut edits);
            if self.cursor == Cursor::End && state.hole() {
                self.carried.push_front(vec![Edit::Hole]);
            }
        }
        edits
    }

    /// Writes what [`Self::next_edits`] gave.
    pub(super) async fn write(
        &mut self,
        edits: Vec<Edit>,
        space: &mut Space,
    ) -> Result<Option<Chain>, DiskError> {
        if !edits.is_empty() {
            let written = space.append(&mut self.chain, EntryKind::Snapshot, &edits);
            written.await?;
        }
        if self.cursor != Cursor::End {
            return Ok(None);
        }
        for _ in 0..CARRIED_AT_ONCE {
            let Some(edits) = self.carried.pop_front() else {
                break;
            };
            space.append_all(&mut self.chain, &edits).await?;
        }
        if !self.carried.is_empty() {
            return Ok(None);
        }
        space
            .append(&mut self.chain, EntryKind::Commit, &[])
            .await?;
        Ok(Some(self.chain.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::state::SliceFacts;
    use crate::record::Seq;

    fn key(number: u32) -> SliceKey {
        SliceKey {
            volume: u64::from(number / 100),
            slice: number % 100,
        }
    }

    fn slice(number: u32, stable: u64) -> Edit {
        let facts = SliceFacts {
            stable: Seq(stable),
            ..SliceFacts::default()
        };
        Edit::Slice {
            key: key(number),
            facts,
        }
    }

    fn many() -> FactsState {
        let mut state = FactsState::default();
        for number in 0..3000 {
            state.apply(&slice(number, 1));
            let volume = u64::from(number);
            let view = View(volume + 1);
            state.apply(&Edit::Promise { volume, view });
        }
        for number in 0..1000 {
            let before_lsn = u64::from(number / 3);
            let scope = Scope::Slice(key(10_000 + number));
            state.apply(&Edit::RemovalBegun { scope, before_lsn });
            if number % 2 == 0 {
                state.apply(&Edit::RemovalCleared { scope, before_lsn });
            }
            state.apply(&Edit::Voided(Void {
                slice: key(number),
                keep_through: Seq(3),
                before_lsn,
            }));
        }
        state.apply(&Edit::Hole);
        state
    }

    /// What a pass would write, with changes made between its steps.
    fn taken(mut state: FactsState, mut change: impl FnMut(usize) -> Vec<Edit>) -> [FactsState; 2] {
        let mut pass = Pass::new(1, EDITS_MAX);
        let mut snapshot = FactsState::default();
        let mut steps = 0;
        while pass.cursor != Cursor::End {
            let edits = pass.next_edits(&state);
            assert!(edits.len() <= EDITS_MAX);
            edits.iter().for_each(|edit| snapshot.apply(edit));
            let changed = change(steps);
            changed.iter().for_each(|edit| state.apply(edit));
            pass.carry(&changed);
            steps += 1;
        }
        assert!(steps > 10);
        pass.carried
            .iter()
            .flatten()
            .for_each(|edit| snapshot.apply(edit));
        [snapshot, state]
    }

    #[test]
    fn a_snapshot_of_facts_at_rest_has_all_of_them() {
        let [snapshot, state] = taken(many(), |_| Vec::new());
        assert_eq!(snapshot, state);
    }

    #[test]
    fn a_snapshot_of_facts_that_change_at_each_step_has_them_as_they_are_in_the_end() {
        for stride in [1, 7, 311] {
            let [snapshot, state] = taken(many(), |step| {
                let number = (step * 997 * stride % 4000) as u32;
                let before_lsn = 900 + step as u64;
                let scope = match step % 3 {
                    0 => Scope::Volume(u64::from(number / 100)),
                    _ => Scope::Slice(key(number)),
                };
                vec![
                    slice(number, 50 + step as u64),
                    Edit::RemovalBegun { scope, before_lsn },
                    slice((number + 1) % 3000, 60 + step as u64),
                    Edit::RemovalCleared { scope, before_lsn },
                    Edit::Forgotten {
                        tail_lsn: 20 * step as u64,
                    },
                ]
            });
            assert_eq!(snapshot, state, "{stride}");
        }
    }
}
