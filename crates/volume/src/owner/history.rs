//! Exactly once: what an owner knows of the operations that portals may ask for again.
//!
//! | a portal asks for an operation | answer |
//! |---|---|
//! | whose number it has said to be over | over |
//! | that is under way | that of the run under way ([`OperationHistory`]) |
//! | that is in the stream of its slice | done, once that is stable ([`SliceHistory`]) |
//! | that zeroed a slice to which nothing was ever written | done: nothing had to be written |
//! | of this view, of which nothing is known | run |
//! | of an earlier view, which would be remembered had it run | run |
//! | of an earlier view otherwise | its outcome is not known |

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_runtime::planted::{self, Bug};
use holdfast_store::OperationId;
use holdfast_wire::volume::IoStatus;
use holdfast_wire::{Seq, View};
use tokio::sync::{Notify, oneshot};

/// Beyond, they are forgotten even if their portal may ask again.
const OPERATIONS_MAX: usize = 1 << 16;
/// So many zeroed slices without a stream are remembered before those that are over are dropped.
const IDLE_ZEROES_KEPT: usize = 256;

/// What is remembered of the operations before this owner's time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Everything since the stream began.
    whole: bool,
    /// Everything in later views than this.
    after_view: View,
    /// Lowest remembered number of each portal; later records of it are remembered too.
    lowest: BTreeMap<u64, u64>,
}

impl Memory {
    /// Of copies that together hold `operations` (with view and position of their records), of
    /// which every record from `from` on.
    pub(crate) fn new(from: Seq, operations: &[(OperationId, View, Seq)]) -> Self {
        let mut memory = Self {
            whole: from.0 <= 1,
            after_view: View(u64::MAX),
            lowest: BTreeMap::new(),
        };
        for (operation, view, seq) in operations.iter().filter(|(_, _, seq)| *seq >= from) {
            if *seq == from {
                memory.after_view = *view;
            }
            let lowest = memory
                .lowest
                .entry(operation.origin)
                .or_insert(operation.number);
            *lowest = (*lowest).min(operation.number);
        }
        memory
    }

    /// Of a slice to which nothing was ever written.
    pub(crate) fn of_nothing() -> Self {
        Self::new(Seq(1), &[])
    }

    /// Whether the operation would be remembered if an earlier owner had run it: it was first
    /// sent after something that is remembered.
    pub(crate) fn covers(&self, origin: u64, first_view: View, first_floor: u64) -> bool {
        self.whole
            || planted::is_active(Bug::CoverEverything)
            || self.after_view < first_view
            || self
                .lowest
                .get(&origin)
                .is_some_and(|lowest| *lowest < first_floor)
    }
}

/// The operations in one slice's stream.
#[derive(Debug)]
pub(crate) struct SliceHistory {
    memory: Memory,
    /// So many are remembered although their portals cannot ask for them again.
    kept: usize,
    positions: BTreeMap<OperationId, Seq>,
    order: VecDeque<OperationId>,
}

impl SliceHistory {
    pub(crate) fn new(memory: Memory, kept: usize) -> Self {
        Self {
            memory,
            kept,
            positions: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Remembers where an operation is in the stream. `is_over` tells of an operation whether
    /// its portal cannot ask for it again.
    pub(crate) fn remember(
        &mut self,
        operation: OperationId,
        seq: Seq,
        is_over: impl Fn(OperationId) -> bool,
    ) {
        if self.positions.insert(operation, seq).is_none() {
            self.order.push_back(operation);
        }
        while self.order.len() > self.kept {
            let Some(oldest) = self.order.front().copied() else {
                break;
            };
            let early = planted::is_active(Bug::ForgetOperationsEarly);
            if !early && !is_over(oldest) && self.order.len() <= OPERATIONS_MAX {
                break;
            }
            self.order.pop_front();
            self.positions.remove(&oldest);
        }
    }

    /// Where the operation is in the stream, if it is.
    pub(crate) fn position(&self, operation: OperationId) -> Option<Seq> {
        self.positions.get(&operation).copied()
    }

    /// Whether an operation of an earlier view that is not in the stream has never run.
    pub(crate) fn covers(&self, origin: u64, first_view: View, first_floor: u64) -> bool {
        self.memory.covers(origin, first_view, first_floor)
    }
}

/// The operations of one volume, whichever slices they are about.
#[derive(Debug, Default)]
pub(crate) struct OperationHistory {
    /// Lowest operation under way, by portal.
    floors: RefCell<BTreeMap<u64, u64>>,
    /// Operations under way, with those who asked for the same one again.
    running: RefCell<BTreeMap<OperationId, Vec<oneshot::Sender<IoStatus>>>>,
    ended: Notify,
    /// What zeroed a slice that has no stream: nothing is written down anywhere.
    idle_zeroes: RefCell<BTreeSet<(OperationId, u32)>>,
}

impl OperationHistory {
    /// Takes a portal's word that everything below `floor` is over. Whether `operation` is.
    pub(crate) fn is_over(&self, operation: OperationId, floor: u64) -> bool {
        let mut floors = self.floors.borrow_mut();
        let known = floors.entry(operation.origin).or_insert(floor);
        *known = (*known).max(floor);
        operation.number < *known
    }

    /// Whether the operation's portal has said that it has ended.
    pub(crate) fn portal_is_past(&self, operation: OperationId) -> bool {
        let floors = self.floors.borrow();
        floors
            .get(&operation.origin)
            .is_some_and(|floor| operation.number < *floor)
    }

    /// Registers with the same operation if it is under way, else as the one that runs it.
    pub(crate) fn join_running(
        &self,
        operation: OperationId,
    ) -> Option<oneshot::Receiver<IoStatus>> {
        let mut running = self.running.borrow_mut();
        match running.get_mut(&operation) {
            Some(others) => {
                let (sender, receiver) = oneshot::channel();
                others.push(sender);
                Some(receiver)
            }
            None => {
                running.insert(operation, Vec::new());
                None
            }
        }
    }

    /// The run of an operation that [`Self::join_running`] has just registered.
    pub(crate) fn run(&self, operation: OperationId) -> Running<'_> {
        Running {
            history: self,
            operation,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.borrow().is_empty()
    }

    /// Resolves when a run ends, after this call.
    pub(crate) fn run_ended(&self) -> impl Future<Output = ()> + '_ {
        self.ended.notified()
    }

    /// Answers everybody "interrupted".
    pub(crate) fn interrupt(&self) {
        self.running.borrow_mut().clear();
        self.ended.notify_waiters();
    }

    /// The operation zeroed a part of a slice to which nothing was ever written.
    pub(crate) fn note_idle_zero(&self, operation: OperationId, slice: u32) {
        let mut idle_zeroes = self.idle_zeroes.borrow_mut();
        if idle_zeroes.len() >= IDLE_ZEROES_KEPT {
            idle_zeroes.retain(|(operation, _)| !self.portal_is_past(*operation));
        }
        idle_zeroes.insert((operation, slice));
    }

    /// Whether it did.
    pub(crate) fn has_zeroed_idle(&self, operation: OperationId, slice: u32) -> bool {
        self.idle_zeroes.borrow().contains(&(operation, slice))
    }
}

/// An operation under way; if it is dropped, those who joined hear "interrupted".
pub(crate) struct Running<'a> {
    history: &'a OperationHistory,
    operation: OperationId,
}

impl Running<'_> {
    pub(crate) fn end(self, status: IoStatus) {
        let others = self.history.running.borrow_mut().remove(&self.operation);
        for other in others.into_iter().flatten() {
            let _ = other.send(status);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.history.running.borrow_mut().remove(&self.operation);
        self.history.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn operation(origin: u64, number: u64) -> OperationId {
        OperationId { origin, number }
    }

    fn at(origin: u64, number: u64, view: u64, seq: u64) -> (OperationId, View, Seq) {
        (operation(origin, number), View(view), Seq(seq))
    }

    #[test]
    fn an_operation_is_covered_if_it_was_first_sent_after_something_remembered() {
        let memory = Memory::new(
            Seq(50),
            &[at(7, 3, 4, 20), at(7, 10, 5, 50), at(8, 2, 6, 51)],
        );
        assert!(
            memory.covers(7, View(5), 11),
            "its portal's number 10 had ended before"
        );
        assert!(
            !memory.covers(7, View(5), 10),
            "it may be older than what is remembered"
        );
        assert!(!memory.covers(7, View(5), 4), "number 3 is beyond the gap");
        assert!(memory.covers(9, View(6), 0), "all of view 6 is remembered");
        assert!(!memory.covers(9, View(5), 0));
    }

    #[test]
    fn a_copy_that_remembers_nothing_covers_nothing_unless_nothing_was_ever_written() {
        assert!(!Memory::new(Seq(50), &[]).covers(7, View(9), 100));
        assert!(Memory::of_nothing().covers(7, View(1), 0));
    }

    #[test]
    fn an_operation_is_forgotten_only_when_its_portal_cannot_ask_again() {
        let mut history = SliceHistory::new(Memory::of_nothing(), 2);
        for number in 1..=4 {
            let over = |operation: OperationId| operation.number < 3;
            history.remember(operation(7, number), Seq(number), over);
        }
        assert_eq!(history.position(operation(7, 2)), None);
        assert_eq!(history.position(operation(7, 3)), Some(Seq(3)));
        history.remember(operation(7, 5), Seq(5), |_| false);
        assert_eq!(history.position(operation(7, 3)), Some(Seq(3)));
    }

    #[test]
    fn what_a_portal_says_is_over_stays_over() {
        let history = OperationHistory::default();
        assert!(!history.is_over(operation(7, 5), 5));
        assert!(history.is_over(operation(7, 4), 2), "the floor was five");
        assert!(history.portal_is_past(operation(7, 4)));
        assert!(!history.portal_is_past(operation(8, 4)));
    }

    #[test]
    fn the_same_operation_joins_the_run_under_way_and_hears_its_outcome() {
        let history = OperationHistory::default();
        assert!(history.join_running(operation(7, 1)).is_none());
        let running = history.run(operation(7, 1));
        let joined = history.join_running(operation(7, 1)).expect("under way");
        running.end(IoStatus::Done);
        assert_eq!(joined.now_or_never(), Some(Ok(IoStatus::Done)));
        assert!(history.is_idle());
        assert!(history.join_running(operation(7, 1)).is_none(), "a new run");
        let joined = history.join_running(operation(7, 1)).expect("under way");
        drop(history.run(operation(7, 1)));
        assert!(matches!(joined.now_or_never(), Some(Err(_))), "interrupted");
    }

    #[test]
    fn a_zeroed_slice_without_a_stream_is_remembered_until_its_portal_is_past_it() {
        let history = OperationHistory::default();
        for number in 0..1000 {
            history.note_idle_zero(operation(7, number), 3);
            history.is_over(operation(7, number), number.saturating_sub(2));
        }
        assert!(history.has_zeroed_idle(operation(7, 999), 3));
        assert!(history.has_zeroed_idle(operation(7, 998), 3));
        assert!(!history.has_zeroed_idle(operation(7, 999), 4));
        let kept = history.idle_zeroes.borrow().len();
        assert!(kept <= IDLE_ZEROES_KEPT + 1, "{kept}");
    }
}
