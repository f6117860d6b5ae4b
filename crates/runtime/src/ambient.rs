//! The runtime of the task being polled, for libraries whose hooks take no argument.
//!
//! openraft's `AsyncRuntime` has only associated functions. A host thread enters its runtime
//! once; the simulator enters the polled task's runtime around every poll. Code of this
//! project passes a [`Runtime`] explicitly instead.

use std::cell::RefCell;

use crate::task::Runtime;

thread_local! {
    static CURRENT: RefCell<Vec<Runtime>> = const { RefCell::new(Vec::new()) };
}

/// Makes `runtime` current on this thread until the guard is dropped.
#[must_use]
pub fn enter(runtime: Runtime) -> Entered {
    CURRENT.with(|stack| stack.borrow_mut().push(runtime));
    Entered { _private: () }
}

/// The current runtime. Panics outside [`enter`]: that is a bug in the caller's set-up.
pub fn current() -> Runtime {
    CURRENT
        .with(|stack| stack.borrow().last().cloned())
        .expect("no runtime entered on this thread")
}

/// Leaves the runtime when dropped.
pub struct Entered {
    _private: (),
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|stack| {
            stack.borrow_mut().pop();
        });
    }
}
