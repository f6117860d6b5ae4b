//! A copy's end of one slice's stream: puts records in order, drops duplicates. Pure.

use std::collections::BTreeMap;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_wire::{Seq, View};

/// Records held back because an earlier one is missing; more are dropped and come again.
const HELD_BACK_MAX: usize = 1024;

/// See the module's header. `T` is a record as the shell wants it back.
pub struct Receiver<T> {
    /// View of the owner whose stream this is.
    pub view: View,
    /// The owner's number for this stream.
    pub session: u64,
    /// Journaled up to here, without gaps since the stream's start.
    pub durable: Seq,
    /// The owner's stable position, as far as heard.
    pub announced_stable: Seq,
    /// Newest position acknowledged to the owner.
    pub acknowledged: Seq,
    /// A record could not be journaled: nothing more is taken.
    pub failed: bool,
    next: Seq,
    held_back: BTreeMap<Seq, T>,
    /// What was journaled behind something that is not yet, or never will be: first and last.
    journaled: BTreeMap<Seq, Seq>,
}

impl<T> Receiver<T> {
    /// A stream that begins at `next`.
    pub fn new(view: View, session: u64, next: Seq) -> Self {
        let before = Seq(next.0 - 1);
        Self {
            view,
            session,
            durable: before,
            announced_stable: Seq(0),
            acknowledged: before,
            failed: false,
            next,
            held_back: BTreeMap::new(),
            journaled: BTreeMap::new(),
        }
    }

    /// These records are journaled. What cannot be journaled is never passed over: a later record
    /// says nothing about an earlier one that was refused.
    pub fn note_journaled(&mut self, first: Seq, last: Seq) {
        if planted::is_active(Bug::PassOverRefused) {
            self.durable = self.durable.max(last);
            return;
        }
        self.journaled.insert(first, last);
        while let Some(last) = self.journaled.remove(&self.durable.next()) {
            self.durable = last;
        }
    }

    /// Takes a record; returns those that can be journaled now, in order.
    pub fn take(&mut self, seq: Seq, item: T) -> Vec<T> {
        if self.failed || seq < self.next {
            return Vec::new();
        }
        if seq > self.next {
            reach::note(Row::RecordsHeldBack);
            if self.held_back.len() < HELD_BACK_MAX {
                self.held_back.entry(seq).or_insert(item);
            }
            return Vec::new();
        }
        let mut ready = vec![item];
        self.next = seq.next();
        while let Some(item) = self.held_back.remove(&self.next) {
            ready.push(item);
            self.next = self.next.next();
        }
        ready
    }

    /// Position of the newest record handed out by [`Receiver::take`].
    pub fn handed_out(&self) -> Seq {
        Seq(self.next.0 - 1)
    }

    /// The stable position that this copy may act on: never beyond what it holds.
    pub fn usable_stable(&self) -> Seq {
        if planted::is_active(Bug::DestageUnstable) {
            return self.durable;
        }
        if planted::is_active(Bug::StableBeyondHeld) {
            return self.announced_stable;
        }
        self.announced_stable.min(self.durable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_in_order_once() {
        let mut receiver = Receiver::new(View(1), 7, Seq(5));
        assert_eq!(receiver.take(Seq(6), "b"), Vec::<&str>::new());
        assert_eq!(receiver.take(Seq(4), "old"), Vec::<&str>::new());
        assert_eq!(receiver.take(Seq(5), "a"), ["a", "b"]);
        assert_eq!(receiver.take(Seq(5), "a"), Vec::<&str>::new());
        assert_eq!(receiver.handed_out(), Seq(6));
    }

    #[test]
    fn stable_is_not_acted_on_beyond_what_is_held() {
        let mut receiver = Receiver::new(View(1), 7, Seq(5));
        receiver.announced_stable = Seq(9);
        assert_eq!(receiver.usable_stable(), Seq(4));
        receiver.take(Seq(5), ());
        receiver.durable = Seq(5);
        assert_eq!(receiver.usable_stable(), Seq(5));
    }

    #[test]
    fn a_record_that_is_refused_is_never_passed_over() {
        let mut receiver = Receiver::new(View(1), 7, Seq(5));
        receiver.take(Seq(5), ());
        receiver.take(Seq(6), ());
        receiver.take(Seq(7), ());
        receiver.note_journaled(Seq(7), Seq(7));
        assert_eq!(receiver.durable, Seq(4), "6 is not journaled");
        receiver.note_journaled(Seq(5), Seq(5));
        assert_eq!(receiver.durable, Seq(5), "nor is it now");
        receiver.note_journaled(Seq(6), Seq(6));
        assert_eq!(receiver.durable, Seq(7));
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let mut receiver = Receiver::new(View(1), 7, Seq(1));
        for seq in 2..10_000 {
            receiver.take(Seq(seq), ());
        }
        assert_eq!(receiver.take(Seq(1), ()).len(), HELD_BACK_MAX + 1);
    }
}
