//! Space that is on its way back: blocks that were zeroed, and slices that are being removed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::facts::Scope;
use crate::record::{Seq, SliceKey};

/// What still takes space and soon will not.
#[derive(Default)]
pub(crate) struct SpaceReturn {
    /// The newest record of each slice that zeroes blocks and may not be at home yet: what they
    /// took is not free before it is.
    zeroes: RefCell<BTreeMap<SliceKey, Seq>>,
    /// What is being removed, and how many calls remove it.
    removing: RefCell<BTreeMap<Scope, u32>>,
}

impl SpaceReturn {
    /// Whether anything is on its way.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.removing.borrow().is_empty() || !self.zeroes.borrow().is_empty()
    }

    /// A record that zeroes was accepted.
    pub(crate) fn zeroed(&self, slice: SliceKey, seq: Seq) {
        self.zeroes.borrow_mut().insert(slice, seq);
    }

    /// Records above `keep_through` were taken back. An earlier zero frees its space in its own
    /// time.
    pub(crate) fn truncated(&self, slice: SliceKey, keep_through: Seq) {
        let mut zeroes = self.zeroes.borrow_mut();
        if zeroes.get(&slice).is_some_and(|seq| *seq > keep_through) {
            zeroes.remove(&slice);
        }
    }

    /// Zeroes that are stable, so that a whole round brings them home.
    pub(crate) fn at_rest(&self, stable: impl Fn(SliceKey) -> Seq) -> Vec<(SliceKey, Seq)> {
        let zeroes = self.zeroes.borrow();
        let rest = zeroes
            .iter()
            .filter(|(slice, seq)| **seq <= stable(**slice));
        rest.map(|(slice, seq)| (*slice, *seq)).collect()
    }

    /// A whole round has brought these home.
    pub(crate) fn came_home(&self, zeroes: &[(SliceKey, Seq)]) {
        let mut known = self.zeroes.borrow_mut();
        for (slice, seq) in zeroes {
            if known.get(slice) == Some(seq) {
                known.remove(slice);
            }
        }
    }

    /// A removal begins.
    pub(crate) fn removal_begun(&self, scopes: &BTreeSet<Scope>) {
        let mut removing = self.removing.borrow_mut();
        for scope in scopes {
            *removing.entry(*scope).or_default() += 1;
        }
        drop(removing);
        let mut zeroes = self.zeroes.borrow_mut();
        zeroes.retain(|slice, _| !self.is_removing(*slice));
    }

    /// It has ended, well or not.
    pub(crate) fn removal_ended(&self, scopes: &BTreeSet<Scope>) {
        let mut removing = self.removing.borrow_mut();
        for scope in scopes {
            let calls = removing.get_mut(scope).expect("a removal that has begun");
            *calls -= 1;
            if *calls == 0 {
                removing.remove(scope);
            }
        }
    }

    /// Whether a removal of this slice, or of its volume, is under way.
    pub(crate) fn is_removing(&self, slice: SliceKey) -> bool {
        let removing = self.removing.borrow();
        let scopes = [Scope::Slice(slice), Scope::Volume(slice.volume)];
        scopes.iter().any(|scope| removing.contains_key(scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn key(volume: u64, slice: u32) -> SliceKey {
        SliceKey { volume, slice }
    }

    #[test]
    fn a_zero_is_under_way_until_a_round_that_had_it_ends() {
        let space = SpaceReturn::default();
        space.zeroed(key(1, 0), Seq(4));
        space.zeroed(key(1, 1), Seq(9));
        let rest = space.at_rest(|_| Seq(5));
        assert_eq!(rest, [(key(1, 0), Seq(4))]);
        space.zeroed(key(1, 0), Seq(6));
        space.came_home(&rest);
        assert!(
            space.at_rest(|_| Seq(6)) == [(key(1, 0), Seq(6))],
            "a newer one"
        );
        space.came_home(&[(key(1, 0), Seq(6)), (key(1, 1), Seq(9))]);
        assert!(!space.is_under_way());
    }

    #[test]
    fn a_zero_that_is_taken_back_frees_nothing() {
        let space = SpaceReturn::default();
        space.zeroed(key(1, 0), Seq(4));
        space.truncated(key(1, 0), Seq(4));
        assert!(space.is_under_way());
        space.truncated(key(1, 0), Seq(3));
        assert!(!space.is_under_way());
    }

    #[test]
    fn a_removal_takes_zeroes_with_it_and_lasts_until_each_call_has_ended() {
        let space = SpaceReturn::default();
        space.zeroed(key(1, 0), Seq(4));
        space.zeroed(key(2, 0), Seq(4));
        space.zeroed(key(2, 1), Seq(4));
        let scopes = BTreeSet::from([Scope::Volume(1), Scope::Slice(key(2, 1))]);
        space.removal_begun(&scopes);
        space.removal_begun(&scopes);
        assert_eq!(space.at_rest(|_| Seq(4)), [(key(2, 0), Seq(4))]);
        assert!(space.is_removing(key(1, 77)) && space.is_removing(key(2, 1)));
        assert!(!space.is_removing(key(2, 0)));
        space.removal_ended(&scopes);
        assert!(space.is_removing(key(2, 1)));
        space.removal_ended(&scopes);
        assert!(!space.is_removing(key(2, 1)));
    }
}
