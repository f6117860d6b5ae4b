//! The task that gives free segments of the home back to the device, bit by bit.
//!
//! What is discarded competes with reads and writes in the device, and takes the lock of the
//! home's writers: so it comes in small steps with pauses between them, and stands back while
//! somebody writes the home, or the journal needs room.
//!
//! Tested with the whole store: `tests/discard.rs`.

use std::rc::Rc;
use std::time::Duration;

use crate::store::Inner;

/// Before each step. With steps of 64 MiB at most, a TiB takes half an hour.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until the store stops.
pub(crate) async fn run(inner: Rc<Inner>) {
    while inner.poison.check().is_ok() {
        inner.home.segment_freed().await;
        loop {
            inner.runtime.sleep(PAUSE).await;
            if inner.poison.check().is_err() {
                return;
            }
            // Whoever writes the home goes first.
            let writers = inner.home_writers.try_lock();
            if let Ok(_writers) = writers
                && !inner.pressure.is_urgent()
                && !inner.home.discard_some().await
            {
                break;
            }
        }
    }
}
