//! The latch of a failed write or sync: after the first one no call that changes anything
//! succeeds until the store is opened again (a retry that "succeeds" would prove nothing).

use std::cell::RefCell;
use std::rc::Rc;

use holdfast_runtime::DiskError;
use tokio::sync::Notify;

use crate::error::StoreError;

/// The latch and those to be woken when it falls.
#[derive(Default)]
pub(crate) struct Poison {
    cause: RefCell<Option<DiskError>>,
    listeners: RefCell<Vec<Rc<Notify>>>,
}

impl Poison {
    /// Fails once the latch has fallen.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match &*self.cause.borrow() {
            Some(cause) => Err(StoreError::Poisoned {
                cause: cause.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Lets the latch fall, keeping the first cause, and says what every caller gets from now.
    pub(crate) fn set(&self, cause: DiskError) -> StoreError {
        let first = self.cause.borrow().is_none();
        if first {
            tracing::error!(%cause, "the store stops: a write or sync failed");
            *self.cause.borrow_mut() = Some(cause.clone());
            for listener in &*self.listeners.borrow() {
                listener.notify_waiters();
                listener.notify_one();
            }
        }
        let cause = self.cause.borrow().clone().unwrap_or(cause);
        StoreError::Poisoned { cause }
    }

    /// Adds a task that must not sleep through the fall.
    pub(crate) fn listen(&self, listener: Rc<Notify>) {
        self.listeners.borrow_mut().push(listener);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_first_failure_stays_and_wakes_whoever_must_not_sleep() {
        let (poison, listener) = (Poison::default(), Rc::new(Notify::new()));
        poison.listen(listener.clone());
        assert_eq!(poison.check(), Ok(()));
        let failure = |wanted_bytes| DiskError::Full {
            name: "area".to_owned(),
            wanted_bytes,
        };
        let cause = failure(1);
        let told = poison.set(cause.clone());
        assert_eq!(told, StoreError::Poisoned { cause });
        assert!(listener.notified().now_or_never().is_some());
        assert_eq!(poison.set(failure(2)), told);
        assert_eq!(poison.check(), Err(told));
    }
}
