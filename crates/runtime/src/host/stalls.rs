//! How long single steps hold the node's thread.
//!
//! A node is one thread: while one task runs, every other waits, leases and heartbeats among them.
//! Each step of a task (one poll) is timed. What counts is the time that the thread ran or was
//! blocked; time in which another process had the processor is taken off, as far as the kernel
//! says (`/proc/thread-self/schedstat`), because no code here can shorten it.
//!
//! The cost of a step is two readings of the clock; the kernel is asked at most once a millisecond.

use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::executor::boot_time;
use crate::task::{STALL_BOUND, Stalls};
use crate::time::Instant;

/// The kernel's figure is read again once it is so old: a stall's error is no larger.
const REFERENCE_AGE: Duration = Duration::from_millis(1);
/// Shorter steps are not worth the kernel's figure: they cannot be the stalls looked for, and
/// count as a whole.
const WORTH_ASKING: Duration = Duration::from_millis(2);
const _: () = assert!(WORTH_ASKING.as_nanos() * 5 < STALL_BOUND.as_nanos());

thread_local! {
    static METER: RefCell<Option<Meter>> = const { RefCell::new(None) };
}

/// What was measured on one thread.
struct Meter {
    since: Instant,
    longest: Duration,
    longest_in: &'static str,
    count: u64,
    schedule: Option<File>,
    /// When the kernel's figure was read, and what it was.
    reference: (Instant, Duration),
}

impl Meter {
    fn new(now: Instant) -> Self {
        // Absent in kernels without scheduling statistics: then all of a step counts.
        let schedule = File::open("/proc/thread-self/schedstat").ok();
        Self {
            since: now,
            longest: Duration::ZERO,
            longest_in: "",
            count: 0,
            reference: (now, waited(schedule.as_ref())),
            schedule,
        }
    }

    fn begin(&mut self, now: Instant) {
        if now.saturating_since(self.reference.0) >= REFERENCE_AGE {
            self.reference = (now, waited(self.schedule.as_ref()));
        }
    }

    fn end(&mut self, task: &'static str, began: Instant, now: Instant) {
        let took = now.saturating_since(began);
        if took <= self.longest && took <= STALL_BOUND {
            return;
        }
        let held = if took < WORTH_ASKING {
            took
        } else {
            let waited = waited(self.schedule.as_ref());
            let before = std::mem::replace(&mut self.reference, (now, waited));
            took.saturating_sub(waited.saturating_sub(before.1))
        };
        if held > self.longest {
            self.longest = held;
            self.longest_in = task;
        }
        if held > STALL_BOUND {
            self.count += 1;
        }
    }
}

/// How long this thread has waited for a processor since its start: the second figure.
fn waited(schedule: Option<&File>) -> Duration {
    let mut bytes = [0; 96];
    let read = schedule.and_then(|file| file.read_at(&mut bytes, 0).ok());
    let text = std::str::from_utf8(&bytes[..read.unwrap_or(0)]).unwrap_or_default();
    let figure = text.split_whitespace().nth(1);
    Duration::from_nanos(figure.and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// Begins to measure on this thread.
pub(super) fn start() {
    METER.set(Some(Meter::new(boot_time())));
}

/// What was measured on this thread since the start or since it was last forgotten.
pub(super) fn measured() -> Stalls {
    METER.with_borrow(|meter| match meter {
        None => Stalls::default(),
        Some(meter) => Stalls {
            longest: meter.longest,
            longest_in: meter.longest_in,
            count: meter.count,
            measured: boot_time().saturating_since(meter.since),
        },
    })
}

/// Forgets what was measured.
pub(super) fn forget() {
    METER.with_borrow_mut(|meter| {
        if let Some(meter) = meter {
            meter.since = boot_time();
            meter.longest = Duration::ZERO;
            meter.longest_in = "";
            meter.count = 0;
        }
    });
}

/// `future`, each step of which is timed as one of `task`.
pub fn timed<F: Future + Unpin>(task: &'static str, future: F) -> Timed<F> {
    Timed { task, future }
}

/// See [`timed`].
pub struct Timed<F> {
    task: &'static str,
    future: F,
}

impl<F: Future + Unpin> Future for Timed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let began = boot_time();
        METER.with_borrow_mut(|meter| {
            if let Some(meter) = meter {
                meter.begin(began);
            }
        });
        let outcome = Pin::new(&mut self.future).poll(context);
        METER.with_borrow_mut(|meter| {
            if let Some(meter) = meter {
                meter.end(self.task, began, boot_time());
            }
        });
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::run;

    /// Holds the thread, running or asleep.
    fn hold(duration: Duration) {
        std::thread::sleep(duration);
    }

    #[test]
    fn a_step_that_holds_the_thread_is_found_with_its_task_and_forgotten_on_demand() {
        run(async |runtime| {
            runtime.forget_stalls();
            let (sender, held) = tokio::sync::oneshot::channel();
            runtime.spawn("holds", async move {
                hold(STALL_BOUND * 2);
                let _ = sender.send(());
            });
            held.await.unwrap();
            let stalls = runtime.stalls();
            assert_eq!((stalls.count, stalls.longest_in), (1, "holds"));
            assert!(stalls.longest >= STALL_BOUND * 2, "{stalls:?}");
            assert!(stalls.measured >= stalls.longest);
            runtime.forget_stalls();
            let stalls = runtime.stalls();
            assert_eq!((stalls.count, stalls.longest), (0, Duration::ZERO));
        });
    }

    #[test]
    fn a_task_that_waits_holds_nothing() {
        run(async |runtime| {
            runtime.forget_stalls();
            let (sender, waited) = tokio::sync::oneshot::channel();
            let sleep = runtime.sleep(STALL_BOUND * 2);
            runtime.spawn("waits", async move {
                sleep.await;
                let _ = sender.send(());
            });
            waited.await.unwrap();
            assert_eq!(runtime.stalls().count, 0);
        });
    }

    #[test]
    fn short_steps_one_after_another_are_no_stall() {
        run(async |runtime| {
            runtime.forget_stalls();
            let (sender, done) = tokio::sync::oneshot::channel();
            runtime.spawn("steps", async move {
                for _ in 0..10 {
                    hold(STALL_BOUND / 5);
                    tokio::task::yield_now().await;
                }
                let _ = sender.send(());
            });
            done.await.unwrap();
            let stalls = runtime.stalls();
            assert!(stalls.longest >= STALL_BOUND / 5, "{stalls:?}");
            assert_eq!(stalls.count, 0, "{stalls:?}");
        });
    }
}
