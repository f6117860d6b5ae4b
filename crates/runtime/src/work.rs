//! Work units: how much a task looks at in one go.
//!
//! Virtual time stands still while a task runs, so the simulator cannot see one that holds its
//! thread for long. What goes through slices, volumes or copies counts here instead, one unit for
//! each that it looks at; the simulator objects to too many between two awaits. A unit stands for
//! some 50 ns to 1 µs. A count costs an addition, so it is never left out.

use std::cell::Cell;

thread_local! {
    static DONE: Cell<u64> = const { Cell::new(0) };
}

/// So many things were looked at.
#[inline]
pub fn note(units: u64) {
    DONE.set(DONE.get().wrapping_add(units));
}

/// What this thread has counted so far; wraps around.
#[inline]
pub fn done() -> u64 {
    DONE.get()
}

/// Counts each item of an iterator when it is looked at.
pub trait Counted: Iterator + Sized {
    /// The same items.
    fn counted(self) -> impl Iterator<Item = Self::Item> {
        self.inspect(|_| note(1))
    }
}

impl<I: Iterator> Counted for I {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_counts_and_what_is_not_does_not() {
        let before = done();
        let mut items = (0..1_000).counted();
        assert_eq!(items.nth(9), Some(9));
        assert_eq!(done() - before, 10);
        note(5);
        assert_eq!(done() - before, 15);
    }
}
