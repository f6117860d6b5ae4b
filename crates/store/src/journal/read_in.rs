//! Reading in what the journal holds, after a start.
//!
//! A recovery finds the journal's records by the headers of its batches, which say which version
//! of a block is the newest. From then on the store serves: a read of a block whose data was not
//! read yet goes to the ring. Meanwhile all data is read and verified in the order of the ring.
//!
//! | until all is read | waits for it | reason |
//! |---|---|---|
//! | reads, appends, truncations, stable points, promises | no | headers are enough |
//! | records above the stable point | read before the start | whether they are damaged decides what a takeover makes of them |
//! | rounds of the destage task | yes | they move data; and the ring's space is not reused |
//! | what goes to other copies or comes from them, verification | yes | has to know what is lost |
//!
//! What turns out to be lost is from then on treated like the damage that a recovery finds.
//!
//! Tested with the whole store: `tests/read_in.rs`.

use std::rc::Rc;

use crate::error::StoreError;
use crate::journal::ring::Ring;
use crate::journal::unread::Unread;
use crate::store::Inner;

impl Inner {
    /// Reads the data of items and enters it into the index. Returns how many of them are damaged.
    pub(crate) async fn read_in_items(&self, ring: &mut Ring, mut items: Unread) -> u64 {
        let places: Vec<Option<u64>> = items.iter().map(|item| item.unread).collect();
        ring.read_data(&mut items).await;
        let mut slices = self.slices.borrow_mut();
        let mut unpinned = Vec::new();
        let mut damaged = 0;
        for (item, place) in items.iter().zip(places) {
            // It may have been removed meanwhile.
            if let (Some(at), Some(index)) = (place, slices.get_mut(&item.slice)) {
                damaged += u64::from(item.is_damaged());
                index.fill(item, at, &mut unpinned);
            }
        }
        self.released.borrow_mut().extend(unpinned);
        damaged
    }

    /// Resolves when all data of the journal's records is in memory.
    ///
    /// # Errors
    ///
    /// `Poisoned`.
    pub(crate) async fn recovered(&self) -> Result<(), StoreError> {
        loop {
            let read_in = self.unread.ended();
            let mut read_in = std::pin::pin!(read_in);
            read_in.as_mut().enable();
            self.poison.check()?;
            if self.unread.is_empty() {
                return Ok(());
            }
            read_in.await;
        }
    }
}

/// The task that reads everything in.
pub(crate) async fn run(inner: Rc<Inner>) {
    if inner.unread.is_empty() {
        return;
    }
    let begun = inner.runtime.now();
    let mut ring = inner.journal.ring();
    let mut damaged = 0;
    loop {
        let Some(items) = inner.unread.next() else {
            break;
        };
        damaged += inner.read_in_items(&mut ring, items).await;
        inner.unread.is_read();
    }
    if damaged > 0 {
        inner.note_lost_records();
        tracing::warn!(damaged, "records in the journal have lost data");
    }
    let took = inner.runtime.now().saturating_since(begun);
    tracing::info!(?took, "the journal is read in");
    inner.unread.end();
}
