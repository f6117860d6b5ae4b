//! The timers of a run, in order of virtual time; equal times in order of setting.

use std::cell::{Cell, RefCell};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::task::Waker;

/// A sleeping task's place among the timers.
#[derive(Default)]
pub(crate) struct Alarm {
    /// Absent once rung or cancelled.
    pub(crate) waker: RefCell<Option<Waker>>,
    /// The timer has passed.
    pub(crate) rung: Cell<bool>,
}

/// What to do at a time.
pub(super) enum Action {
    Wake(Rc<Alarm>),
    Call(Box<dyn FnOnce()>),
}

impl Action {
    pub(super) fn perform(self) {
        match self {
            Self::Wake(alarm) => {
                alarm.rung.set(true);
                let waker = alarm.waker.take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Self::Call(call) => call(),
        }
    }

    fn is_wanted(&self) -> bool {
        match self {
            Self::Wake(alarm) => alarm.waker.borrow().is_some(),
            Self::Call(_) => true,
        }
    }
}

/// The heap.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Timer>>,
    number: u64,
    cancelled: usize,
}

/// Below this many a clean-up is not worth its time.
const CANCELLED_MIN: usize = 4096;

impl Timers {
    pub(super) fn add(&mut self, at_ns: u64, action: Action) {
        let number = self.number;
        self.number += 1;
        self.heap.push(Reverse(Timer {
            at_ns,
            number,
            action,
        }));
    }

    /// When the next timer is due.
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(timer)| timer.at_ns)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Takes the next timer if it is due.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<Action> {
        if self.next_ns()? > now_ns {
            return None;
        }
        self.heap.pop().map(|Reverse(timer)| timer.action)
    }

    /// Counts a cancelled alarm; once most are, they are removed.
    pub(super) fn note_cancelled(&mut self) {
        self.cancelled += 1;
        if self.cancelled > CANCELLED_MIN && self.cancelled * 2 > self.heap.len() {
            self.heap.retain(|Reverse(timer)| timer.action.is_wanted());
            self.cancelled = 0;
        }
    }
}

struct Timer {
    at_ns: u64,
    number: u64,
    action: Action,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_ns, self.number).cmp(&(other.at_ns, other.number))
    }
}
