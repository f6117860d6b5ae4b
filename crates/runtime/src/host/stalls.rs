//! How long single steps hold the node's thread.
//!
//! A node is one thread: while one task runs, every other waits, leases and heartbeats among them.
//! Each step of a task (one poll) is timed. What counts is the time that the thread ran or was
//! blocked; time in which another process had the processor is taken off, because no code here can
//! shorten it.
//!
//! | a step that was long | counts as |
//! |---|---|
//! | and was never blocked | the time that the thread ran |
//! | and may have been blocked | its length without the thread's waits for a processor of late |
//!
//! The second is no less than the time that the thread ran, and of late means a second at most.
//! The cost of a step is two readings of the clock; the kernel is asked at most once a millisecond,
//! and for the waits (`/proc/thread-self/schedstat`, which costs more) after such a step, and once
//! a second.

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

/// The kernel is asked again once its figures are so old: a stall's error is no larger.
const REFERENCE_AGE: Duration = Duration::from_millis(1);
/// How long the thread has waited is read again once that is so old.
const WAITED_AGE: Duration = Duration::from_secs(1);
/// Shorter steps are not worth asking the kernel: they cannot be the stalls looked for, and
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
    /// When it was last read how long the thread had waited for a processor, and what it was.
    waited: (Instant, Duration),
    /// When the kernel was asked, and what it said.
    reference: (Instant, Ran),
}

/// What the kernel counts of a thread since its start.
#[derive(Clone, Copy, Debug, Default)]
struct Ran {
    time: Duration,
    /// How often it was blocked: it gave the processor up by itself.
    blocked: i64,
}

impl Ran {
    fn so_far() -> Self {
        // SAFETY: all zeroes are a valid `rusage`.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` is valid and writable for the whole call.
        let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
        assert!(result == 0, "a thread may always ask about itself");
        let duration = |time: libc::timeval| {
            let micros = time.tv_sec * 1_000_000 + time.tv_usec;
            Duration::from_micros(u64::try_from(micros).unwrap_or(0))
        };
        Self {
            time: duration(usage.ru_utime) + duration(usage.ru_stime),
            blocked: usage.ru_nvcsw,
        }
    }
}

impl Meter {
    fn new(now: Instant) -> Self {
        // Absent in kernels without scheduling statistics: then all of a step counts that may have
        // been blocked.
        let schedule = File::open("/proc/thread-self/schedstat").ok();
        Self {
            since: now,
            longest: Duration::ZERO,
            longest_in: "",
            count: 0,
            waited: (now, waited(schedule.as_ref())),
            schedule,
            reference: (now, Ran::so_far()),
        }
    }

    fn read_waited(&mut self, now: Instant) -> Duration {
        self.waited = (now, waited(self.schedule.as_ref()));
        self.waited.1
    }

    fn begin(&mut self, now: Instant) {
        if now.saturating_since(self.waited.0) >= WAITED_AGE {
            self.read_waited(now);
        }
        if now.saturating_since(self.reference.0) >= REFERENCE_AGE {
            self.reference = (now, Ran::so_far());
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
            let (_, before) = std::mem::replace(&mut self.reference, (now, Ran::so_far()));
            let (_, after) = self.reference;
            let ran = after.time.saturating_sub(before.time).min(took);
            if after.blocked == before.blocked {
                ran
            } else {
                let (_, before) = self.waited;
                let after = self.read_waited(now);
                ran.max(took.saturating_sub(after.saturating_sub(before)))
            }
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
            meter.read_waited(meter.since);
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
