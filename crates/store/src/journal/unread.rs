//! What of the journal was not read yet after a start: batches, in the order of the ring.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::journal::item::Item;
use crate::poison::Poison;

/// Items of one batch, some of which have unread data.
pub(crate) type Unread = Vec<Item>;

/// The queue of them.
pub(crate) struct UnreadQueue {
    batches: RefCell<VecDeque<Unread>>,
    /// Signalled to all when there is none any more and when the store is poisoned.
    done: Rc<Notify>,
}

impl UnreadQueue {
    pub(crate) fn new(poison: &Poison) -> Self {
        let done = Rc::new(Notify::new());
        poison.listen(done.clone());
        Self {
            batches: RefCell::default(),
            done,
        }
    }

    pub(crate) fn push(&self, items: Unread) {
        self.batches.borrow_mut().push_back(items);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.borrow().is_empty()
    }

    /// The items to read next. They stay in the queue, as an empty batch, until [`Self::is_read`]:
    /// until then they are not in the index.
    pub(crate) fn next(&self) -> Option<Unread> {
        self.batches.borrow_mut().front_mut().map(std::mem::take)
    }

    /// What [`Self::next`] gave is in the index.
    pub(crate) fn is_read(&self) {
        self.batches.borrow_mut().pop_front();
    }

    /// All is read.
    pub(crate) fn end(&self) {
        self.done.notify_waiters();
    }

    /// Resolves at the end, or when the store is poisoned.
    pub(crate) fn ended(&self) -> Notified<'_> {
        self.done.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_is_being_read_counts_as_unread_until_it_is_in_the_index() {
        let queue = UnreadQueue::new(&Poison::default());
        assert!(queue.is_empty() && queue.next().is_none());
        queue.push(Vec::new());
        assert!(queue.next().is_some());
        assert!(!queue.is_empty());
        queue.is_read();
        assert!(queue.is_empty());
    }
}
