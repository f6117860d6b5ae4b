//! Runs one shard: a single-threaded tokio runtime with local tasks.
//!
//! Promises: an idle shard burns nothing (it sleeps in `epoll_wait` until its next timer); a
//! task that panics stops the whole shard with that panic, because an assertion that failed
//! says that the state it guards can no longer be trusted.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tokio::sync::mpsc;

use super::stalls;
use crate::ambient;
use crate::task::{Backend, Runtime, SHARED_WAKE, Stalls, Task};
use crate::time::Instant;

/// Resolution of tokio's timers.
const WHEEL_TICK: Duration = Duration::from_millis(1);

/// How long the end of a shard waits for threads that do something for it.
const THREADS_LIMIT: Duration = Duration::from_secs(5);

type PanicPayload = Box<dyn Any + Send>;

/// Runs `main` on this thread until it ends, with the tasks it spawns; tasks that outlive it
/// are dropped.
///
/// Panics if the operating system refuses an event queue (there is nothing to run on), and with
/// the panic of any task spawned through [`Runtime::spawn`].
pub fn run<F: Future>(main: impl FnOnce(Runtime) -> F) -> F::Output {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the operating system refused an event queue");
    FIRST_SHARED_WAKE.with(|_| ());
    stalls::start();
    let (crash_sender, mut crashes) = mpsc::unbounded_channel();
    let runtime = Runtime::new(Rc::new(HostRuntime::new(crash_sender)));
    let _entered = ambient::enter(runtime.clone());
    // Declared last so that the tasks are dropped while the runtime and its timers still live.
    let local = tokio::task::LocalSet::new();
    let outcome = local.block_on(&tokio, async move {
        let main = pin!(main(runtime));
        // A `LocalSet` polls this future at every step of any of its tasks; the set around `main`
        // hands on only those that `main` asked for.
        let mut main: FuturesUnordered<_> = std::iter::once(stalls::timed("main", main)).collect();
        tokio::select! {
            biased;
            Some(payload) = crashes.recv() => Err(payload),
            Some(output) = main.next() => Ok(output),
        }
    });
    drop(local);
    // A thread that hangs in a dead disk or a name server must not keep the process.
    tokio.shutdown_timeout(THREADS_LIMIT);
    match outcome {
        Ok(output) => output,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// The host's clock, timers, tasks and randomness. Made by [`run`].
struct HostRuntime {
    random: RefCell<ChaCha12Rng>,
    crashes: mpsc::UnboundedSender<PanicPayload>,
}

impl HostRuntime {
    fn new(crashes: mpsc::UnboundedSender<PanicPayload>) -> Self {
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).expect("the operating system gives no randomness");
        Self {
            random: RefCell::new(ChaCha12Rng::from_seed(seed)),
            crashes,
        }
    }
}

impl Backend for HostRuntime {
    fn now(&self) -> Instant {
        boot_time()
    }

    fn unix_time_ms(&self) -> u64 {
        // A clock before 1970 shows as 1970: this time is for display, never for ordering.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn cpu_time(&self) -> Duration {
        Duration::from_nanos(clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID))
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            // tokio's timers run on CLOCK_MONOTONIC; the loop keeps the promise not to wake
            // before the deadline on CLOCK_BOOTTIME.
            loop {
                let left = deadline.saturating_since(boot_time());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left).await;
            }
        })
    }

    fn sleep_roughly_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let left = deadline.saturating_since(boot_time());
                if left.is_zero() {
                    return;
                }
                let wake = shared_wake_after(left);
                tokio::time::sleep_until(wake).await;
                if (RARE_WAKE - SHARED_WAKE..=RARE_WAKE).contains(&left) {
                    LAST_RARE_WAKE.set(wake);
                }
            }
        })
    }

    fn spawn(&self, name: &'static str, future: LocalBoxFuture<'static, ()>) -> Task {
        let crashes = self.crashes.clone();
        let handle = tokio::task::spawn_local(async move {
            let future = AssertUnwindSafe(future).catch_unwind();
            if let Err(payload) = stalls::timed(name, future).await {
                tracing::error!(task = name, "a task panicked; stopping the shard");
                // A closed channel means that the shard is stopping already.
                let _ = crashes.send(payload);
            }
        });
        let abort = handle.abort_handle();
        Task::new(move || abort.abort())
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    fn stalls(&self) -> Stalls {
        stalls::measured()
    }

    fn forget_stalls(&self) {
        stalls::forget();
    }
}

/// Distance of rare wake-ups.
pub(super) const RARE_WAKE: Duration = Duration::from_millis(512);
const _: () = assert!(RARE_WAKE.as_nanos().is_multiple_of(SHARED_WAKE.as_nanos()));

thread_local! {
    static FIRST_SHARED_WAKE: tokio::time::Instant = tokio::time::Instant::now();
    /// The end of the last rough sleep of this length, to which rare wake-ups are joined: the node
    /// probably sleeps so again.
    static LAST_RARE_WAKE: Cell<tokio::time::Instant> = Cell::new(FIRST_SHARED_WAKE.with(|it| *it));
}

/// The first common moment of this thread that is at least `delay` away.
///
/// The moments lie where tokio's timer wheel turns its second level, of 64 slots of 64 ms: a
/// timer there costs one wake-up, any other that is further away than that costs two.
pub(super) fn shared_wake_after(delay: Duration) -> tokio::time::Instant {
    let first = FIRST_SHARED_WAKE.with(|first| *first);
    // The wheel counts whole milliseconds, rounded up, from a moment just before the first.
    let after = round_up(delay + WHEEL_TICK, first, SHARED_WAKE);
    after - WHEEL_TICK
}

/// The first of the thread's rare wake-ups that is at least `delay` away.
pub(super) fn rare_wake_after(delay: Duration) -> tokio::time::Instant {
    round_up(delay, LAST_RARE_WAKE.get(), RARE_WAKE)
}

/// The first moment that is at least `delay` away, and whole periods from `first`.
fn round_up(
    delay: Duration,
    first: tokio::time::Instant,
    period: Duration,
) -> tokio::time::Instant {
    let earliest = (tokio::time::Instant::now() + delay).saturating_duration_since(first);
    let rounds = earliest.as_nanos().div_ceil(period.as_nanos());
    let after_ns = u64::try_from(rounds * period.as_nanos()).unwrap_or(u64::MAX);
    first + Duration::from_nanos(after_ns)
}

pub(super) fn boot_time() -> Instant {
    Instant::from_nanos(clock_ns(libc::CLOCK_BOOTTIME))
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid, writable timespec for the whole call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert!(result == 0, "both clocks exist since Linux 2.6.39");
    let seconds = u64::try_from(time.tv_sec).expect("neither clock is ever negative");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("neither clock is ever negative");
    seconds * 1_000_000_000 + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rough_sleeps_that_begin_apart_end_together_and_never_early() {
        run(async |runtime| {
            let start = runtime.now();
            let mut ends = Vec::new();
            for _ in 0..4 {
                let sleep = runtime.sleep_roughly(SHARED_WAKE * 2);
                let ended = async {
                    sleep.await;
                    runtime.now()
                };
                ends.push(ended);
                runtime.sleep(Duration::from_millis(3)).await;
            }
            let moments = futures::future::join_all(ends).await;
            let mut wakes: Vec<_> = moments
                .iter()
                .map(|moment| (*moment - start).as_millis())
                .collect();
            assert!(wakes[0] >= 128, "{wakes:?}");
            wakes.dedup_by(|later, earlier| *later - *earlier < 16);
            // At most one common moment lies between the first start and the last.
            assert!(wakes.len() <= 2, "{wakes:?}");
        });
    }

    #[test]
    fn a_sleep_ends_after_its_deadline_and_a_timeout_before_its_future() {
        run(async |runtime| {
            let start = runtime.now();
            runtime.sleep(Duration::from_millis(5)).await;
            assert!(runtime.now() - start >= Duration::from_millis(5));
            let never = std::future::pending::<()>();
            assert_eq!(runtime.timeout(Duration::from_millis(1), never).await, None);
        });
    }

    #[test]
    fn an_aborted_task_drops_its_future() {
        run(async |runtime| {
            let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
            let task = runtime.spawn("waits", async move {
                let _held = sender;
                std::future::pending::<()>().await;
            });
            task.abort();
            assert!(
                receiver.await.is_err(),
                "the sender was dropped with the future"
            );
        });
    }

    #[test]
    #[should_panic(expected = "the guarded state is broken")]
    fn a_panic_in_a_task_stops_the_shard() {
        run(async |runtime| {
            runtime.spawn("broken", async { panic!("the guarded state is broken") });
            std::future::pending::<()>().await;
        });
    }

    #[test]
    fn randomness_differs_from_run_to_run() {
        let draw = || run(async |runtime| (runtime.random_u64(), runtime.random_u64()));
        assert_ne!(draw(), draw());
    }

    #[test]
    fn the_runtime_is_ambient_inside_and_the_idle_shard_uses_no_cpu_time() {
        run(async |_| {
            let before = thread_cpu_time();
            ambient::current().sleep(Duration::from_millis(300)).await;
            let spent = thread_cpu_time() - before;
            assert!(
                spent < Duration::from_millis(5),
                "idle for 300 ms cost {spent:?} of CPU"
            );
        });
    }

    fn thread_cpu_time() -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is a valid, writable timespec for the whole call.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        assert_eq!(result, 0);
        Duration::new(
            time.tv_sec.unsigned_abs(),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }
}
