//! Exclusive block ranges within a slice, for operations that read before they write.
//!
//! Plain writes need no lock among themselves: the stream orders them. They only wait for a
//! range that a read-modify-write or a compare-and-write holds.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::Notify;

/// A range of blocks: first, and one past the last.
pub(crate) type Blocks = (u32, u32);

#[derive(Default)]
struct State {
    held: Vec<Blocks>,
}

/// The ranges held in one slice.
#[derive(Clone, Default)]
pub(crate) struct RangeLocks {
    state: Rc<RefCell<State>>,
    released: Rc<Notify>,
}

fn overlap(a: Blocks, b: Blocks) -> bool {
    a.0 < b.1 && b.0 < a.1
}

impl RangeLocks {
    fn is_free(&self, range: Blocks) -> bool {
        !self
            .state
            .borrow()
            .held
            .iter()
            .any(|held| overlap(*held, range))
    }

    /// Resolves when nobody holds any block of `range`. The caller must act before it awaits
    /// anything else.
    pub(crate) async fn wait_free(&self, range: Blocks) {
        loop {
            let released = self.released.notified();
            if self.is_free(range) {
                return;
            }
            released.await;
        }
    }

    /// Holds `range` until the guard is dropped.
    pub(crate) async fn lock(&self, range: Blocks) -> RangeGuard {
        self.wait_free(range).await;
        self.state.borrow_mut().held.push(range);
        RangeGuard {
            locks: self.clone(),
            range,
        }
    }
}

/// Releases its range when dropped.
pub(crate) struct RangeGuard {
    locks: RangeLocks,
    range: Blocks,
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut state = self.locks.state.borrow_mut();
        if let Some(index) = state.held.iter().position(|held| *held == self.range) {
            state.held.swap_remove(index);
        }
        drop(state);
        self.locks.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn overlapping_ranges_wait_and_others_do_not() {
        let locks = RangeLocks::default();
        let guard = locks.lock((4, 8)).now_or_never().expect("free");
        assert!(locks.lock((7, 9)).now_or_never().is_none());
        assert!(locks.wait_free((0, 4)).now_or_never().is_some());
        assert!(locks.wait_free((8, 9)).now_or_never().is_some());
        drop(guard);
        assert!(locks.lock((7, 9)).now_or_never().is_some());
    }
}
