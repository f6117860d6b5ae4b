//! The simulator's [`Backend`]: virtual clock, seeded randomness, tasks on the executor.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::future::LocalBoxFuture;
use holdfast_runtime::{Backend, Instant, Runtime, Task};

use crate::clock::HostClock;
use crate::executor::{Alarm, Executor, ProcessId};
use crate::random::Random;

/// 2026-01-01 in Unix milliseconds: where calendar time starts in every run.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Makes the runtime of one process.
pub(crate) fn runtime_of(
    executor: &Rc<Executor>,
    process: ProcessId,
    clock: Rc<HostClock>,
    random: Random,
    timer_slack_ns: u64,
) -> Runtime {
    let backend = ProcessBackend {
        executor: executor.clone(),
        process,
        clock,
        random,
        timer_slack_ns,
    };
    let runtime = Runtime::new(Rc::new(backend));
    executor.set_runtime(process, runtime.clone());
    runtime
}

struct ProcessBackend {
    executor: Rc<Executor>,
    process: ProcessId,
    clock: Rc<HostClock>,
    random: Random,
    /// How late a timer may ring; zero for the supervisor.
    timer_slack_ns: u64,
}

impl Backend for ProcessBackend {
    fn now(&self) -> Instant {
        self.clock.read(self.executor.now_ns())
    }

    fn unix_time_ms(&self) -> u64 {
        EPOCH_MS + self.executor.now_ns() / 1_000_000
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let slack_ns = match self.timer_slack_ns {
            0 => 0,
            slack_ns => self.random.below(slack_ns),
        };
        Box::pin(Sleep {
            executor: self.executor.clone(),
            clock: self.clock.clone(),
            deadline,
            slack_ns: Cell::new(slack_ns),
            alarm: None,
        })
    }

    fn spawn(&self, name: &'static str, future: LocalBoxFuture<'static, ()>) -> Task {
        let key = self.executor.spawn(self.process, name, future);
        let executor = self.executor.clone();
        Task::new(move || executor.abort(key))
    }

    fn random_u64(&self) -> u64 {
        self.random.next_u64()
    }
}

struct Sleep {
    executor: Rc<Executor>,
    clock: Rc<HostClock>,
    deadline: Instant,
    slack_ns: Cell<u64>,
    alarm: Option<Rc<Alarm>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.read(self.executor.now_ns()) >= self.deadline {
            return Poll::Ready(());
        }
        match &self.alarm {
            Some(alarm) if !alarm.rung.get() => {
                alarm.waker.replace(Some(context.waker().clone()));
            }
            // Not set yet, or the clock has been slowed since it was.
            Some(_) | None => {
                let alarm = Rc::new(Alarm::default());
                alarm.waker.replace(Some(context.waker().clone()));
                let at_ns = self.clock.virtual_time_of(self.deadline) + self.slack_ns.take();
                self.executor.wake_at(at_ns, alarm.clone());
                self.alarm = Some(alarm);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(alarm) = &self.alarm
            && alarm.waker.take().is_some()
        {
            self.executor.forget_alarm();
        }
    }
}
