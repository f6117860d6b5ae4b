//! The handle through which code spawns tasks, reads the clock and draws randomness.

use std::future::Future;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures::future::LocalBoxFuture;

use crate::time::Instant;

/// Rough sleeps of a node end at common moments this far apart, so that what is done regularly
/// shares wake-ups: they, and not the work, are what an idle node costs.
pub const SHARED_WAKE: Duration = Duration::from_millis(64);

/// A task that holds the thread for longer holds up more than it may: heartbeats and leases of
/// other tasks wait meanwhile, and so do initiators.
pub const STALL_BOUND: Duration = Duration::from_millis(20);

/// How long single steps of tasks have held the thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// The longest step.
    pub longest: Duration,
    /// Its task; empty if there was none.
    pub longest_in: &'static str,
    /// Steps longer than [`STALL_BOUND`].
    pub count: u64,
    /// For how long this has been measured.
    pub measured: Duration,
}

/// What a runtime has to provide. The host and the simulator implement it.
pub trait Backend {
    /// The node's monotonic clock.
    fn now(&self) -> Instant;
    /// Milliseconds since the Unix epoch: for display and certificates, never for ordering.
    fn unix_time_ms(&self) -> u64;
    /// Resolves at `deadline` or soon after.
    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()>;
    /// Resolves at `deadline` or up to [`SHARED_WAKE`] later, together with others if it can.
    fn sleep_roughly_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        self.sleep_until(deadline)
    }
    /// Runs `future` on this thread until it ends or its task is aborted.
    fn spawn(&self, name: &'static str, future: LocalBoxFuture<'static, ()>) -> Task;
    /// 64 random bits; seeded in the simulator, from the operating system on a host.
    fn random_u64(&self) -> u64;
    /// Processor time that this process has used; zero where nobody counts it.
    fn cpu_time(&self) -> Duration {
        Duration::ZERO
    }
    /// How long tasks have held the thread; nothing where nobody measures it.
    fn stalls(&self) -> Stalls {
        Stalls::default()
    }
    /// Begins to measure anew.
    fn forget_stalls(&self) {}
}

/// A cheap handle on the runtime of one shard of one node.
#[derive(Clone)]
pub struct Runtime {
    backend: Rc<dyn Backend>,
}

impl Runtime {
    /// Wraps a backend.
    pub fn new(backend: Rc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// The node's monotonic clock.
    pub fn now(&self) -> Instant {
        self.backend.now()
    }

    /// Milliseconds since the Unix epoch: for display and certificates, never for ordering.
    pub fn unix_time_ms(&self) -> u64 {
        self.backend.unix_time_ms()
    }

    /// 64 random bits.
    pub fn random_u64(&self) -> u64 {
        self.backend.random_u64()
    }

    /// Processor time that this process has used, for display and for spreading load; zero where
    /// nobody counts it.
    pub fn cpu_time(&self) -> Duration {
        self.backend.cpu_time()
    }

    /// How long tasks have held the thread since the start, or since that was last forgotten;
    /// nothing where nobody measures it.
    pub fn stalls(&self) -> Stalls {
        self.backend.stalls()
    }

    /// Begins to measure anew how long tasks hold the thread.
    pub fn forget_stalls(&self) {
        self.backend.forget_stalls();
    }

    /// A uniform draw from `0..bound`; `bound` must not be zero.
    pub fn random_below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no random member");
        // The multiply-shift draw: its bias is below 2^-32 for every bound used here.
        ((u128::from(self.random_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Fills `bytes` with randomness.
    pub fn random_bytes(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.random_u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Resolves after `duration`.
    pub fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        self.backend.sleep_until(self.now() + duration)
    }

    /// Resolves at `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        self.backend.sleep_until(deadline)
    }

    /// Resolves after `duration`, at most [`SHARED_WAKE`] late: for what is done regularly and
    /// need not be punctual.
    pub fn sleep_roughly(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        self.backend.sleep_roughly_until(self.now() + duration)
    }

    /// Resolves at `deadline`, at most [`SHARED_WAKE`] late.
    pub fn sleep_roughly_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        self.backend.sleep_roughly_until(deadline)
    }

    /// Runs `future` for at most `duration`; `None` says that the time ran out first.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Option<F::Output> {
        let mut sleep = self.sleep(duration);
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(move |context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            match sleep.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Runs `future` on this thread. Dropping the returned task does not stop it.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + 'static) -> Task {
        self.backend.spawn(name, Box::pin(future))
    }
}

/// A spawned task.
pub struct Task {
    abort: Box<dyn Fn()>,
}

impl Task {
    /// Wraps the backend's way of stopping the task.
    pub fn new(abort: impl Fn() + 'static) -> Self {
        Self {
            abort: Box::new(abort),
        }
    }

    /// Drops the task's future at the next opportunity; a task that has ended is left alone.
    pub fn abort(&self) {
        (self.abort)();
    }
}

/// Aborts its tasks when dropped: the lifetime of a component as a value.
#[derive(Default)]
pub struct TaskGroup {
    tasks: Vec<Task>,
}

impl TaskGroup {
    /// Adds a task whose life ends with the group.
    pub fn add(&mut self, task: Task) {
        self.tasks.push(task);
    }
}

impl Drop for TaskGroup {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
