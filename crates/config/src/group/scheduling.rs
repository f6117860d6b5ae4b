//! openraft's view of the runtime: every task, timer, clock reading and random draw of the
//! Raft library goes through [`holdfast_runtime::ambient`], so a simulated node's Raft is killed
//! with its process and runs the same way for the same seed.
//!
//! Invariant: openraft only calls in here while a task of the node is being polled, which is when
//! the node's runtime is the current one.

use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use holdfast_runtime::{Instant, ambient};
use openraft::AsyncRuntime;
use openraft::async_runtime::AsyncOneshotSendExt;
use rand_core_06::RngCore;
use thiserror::Error;
use tokio::sync::oneshot;

/// The runtime of the node whose task is being polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AmbientRuntime;

/// A reading of the node's monotonic clock, with the arithmetic that openraft asks for.
/// Differences saturate at zero, as those of the standard clock do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reading(Instant);

impl Add<Duration> for Reading {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl AddAssign<Duration> for Reading {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Reading {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(Instant::from_nanos(
            self.0.as_nanos().saturating_sub(nanoseconds),
        ))
    }
}

impl Sub for Reading {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_since(earlier.0)
    }
}

impl SubAssign<Duration> for Reading {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl openraft::Instant for Reading {
    fn now() -> Self {
        Self(ambient::current().now())
    }
}

/// The task was dropped before it ended: its node is stopping.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the task was dropped before it ended")]
pub(super) struct TaskDropped;

/// The time ran out first.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the time ran out")]
pub(super) struct TimeRanOut;

/// The result of a spawned task. Dropping it leaves the task alone.
pub(super) struct Joining<T>(oneshot::Receiver<T>);

impl<T> Future for Joining<T> {
    type Output = Result<T, TaskDropped>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map_err(|_closed| TaskDropped)
    }
}

/// A future with a deadline.
pub(super) struct Limited<F> {
    future: Pin<Box<F>>,
    sleep: LocalBoxFuture<'static, ()>,
}

impl<F: Future> Future for Limited<F> {
    type Output = Result<F::Output, TimeRanOut>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        self.sleep.as_mut().poll(context).map(|()| Err(TimeRanOut))
    }
}

/// The sending half of a one-shot channel.
pub(super) struct Sender<T>(oneshot::Sender<T>);

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sender")
    }
}

impl<T> AsyncOneshotSendExt<T> for Sender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

/// Randomness of the current runtime, in the shape of rand 0.8.
#[derive(Clone, Copy, Debug)]
pub(super) struct AmbientRandom;

impl RngCore for AmbientRandom {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        ambient::current().random_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        ambient::current().random_bytes(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core_06::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl AsyncRuntime for AmbientRuntime {
    type JoinError = TaskDropped;
    type JoinHandle<T: 'static> = Joining<T>;
    type Sleep = LocalBoxFuture<'static, ()>;
    type Instant = Reading;
    type TimeoutError = TimeRanOut;
    type Timeout<R, T: Future<Output = R>> = Limited<T>;
    type ThreadLocalRng = AmbientRandom;
    type OneshotSender<T> = Sender<T>;
    type OneshotReceiverError = oneshot::error::RecvError;
    type OneshotReceiver<T> = oneshot::Receiver<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + 'static,
        T::Output: 'static,
    {
        let (sender, receiver) = oneshot::channel();
        ambient::current().spawn("raft", async move {
            // Nobody has to be waiting for the result.
            let _ = sender.send(future.await);
        });
        Joining(receiver)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        ambient::current().sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        // Only openraft's ticks come here, and they need not be punctual.
        ambient::current().sleep_roughly_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R>>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Limited {
            future: Box::pin(future),
            sleep: Self::sleep(duration),
        }
    }

    fn timeout_at<R, F: Future<Output = R>>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Limited {
            future: Box::pin(future),
            sleep: Self::sleep_until(deadline),
        }
    }

    fn is_panic(_error: &Self::JoinError) -> bool {
        // A panic ends the process on a host and the run in the simulator: nobody joins it.
        false
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        AmbientRandom
    }

    fn oneshot<T>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Sender(sender), receiver)
    }
}
