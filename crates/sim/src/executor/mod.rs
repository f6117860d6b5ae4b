//! The deterministic executor: one thread, virtual time, every choice drawn from the seed.
//!
//! Tasks belong to a process (one start of one node, or the supervisor that runs the scenario).
//! Ready tasks are polled in random order; when none is ready, virtual time jumps to the next
//! timer. What must always hold:
//!
//! * a task is never polled while its process is paused, never again once it is dead;
//! * a killed process' futures are dropped before `kill` returns, except the one being polled,
//!   which is dropped right after its poll;
//! * before a poll, and while futures are dropped, the process' runtime is the ambient one;
//! * user code (polls, drops, timer calls) never runs while the executor's state is borrowed.
//!
//! Tasks run without tokio's cooperative budget: the budget is refilled by tokio's own scheduler,
//! which does not run here. Tokio's `select!` draws its fairness from the thread's generator,
//! which [`Executor::run`] seeds.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use holdfast_runtime::{Runtime, ambient};
use thiserror::Error;
use tokio::runtime::RngSeed;

use crate::random::{Random, nanos};
use crate::trace::{Step, Timestamp, Trace};

/// One start of one node, or the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId(u32);

/// The process of the scenario itself: never paused, never killed, an exact clock.
pub const SUPERVISOR: ProcessId = ProcessId(0);

/// A spawned task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskKey(u64);

/// When to give up on a run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Virtual time.
    pub time: Duration,
    /// Polls in total.
    pub polls: u64,
    /// Polls without virtual time advancing.
    pub polls_at_one_instant: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(3_600),
            polls: 200_000_000,
            polls_at_one_instant: 500_000,
        }
    }
}

/// Why a run ended before its scenario did.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Halt {
    /// The scenario was not finished at the limit of virtual time.
    #[error("the scenario was not finished after {} s of virtual time", Timestamp(*.at_ns))]
    TimeLimit {
        /// Virtual time in nanoseconds.
        at_ns: u64,
    },
    /// More polls than the event budget allows.
    #[error("{polls} polls are spent at {} s", Timestamp(*.at_ns))]
    EventBudget {
        /// Virtual time in nanoseconds.
        at_ns: u64,
        /// Polls made.
        polls: u64,
    },
    /// Tasks keep waking one another without time passing.
    #[error("virtual time stands still at {} s; busy tasks: {}", Timestamp(*.at_ns),
        .tasks.join(", "))]
    Livelock {
        /// Virtual time in nanoseconds.
        at_ns: u64,
        /// The tasks polled last.
        tasks: Vec<String>,
    },
    /// No task is ready and no timer runs, yet the scenario is not finished.
    #[error("nothing can happen any more at {} s", Timestamp(*.at_ns))]
    Deadlock {
        /// Virtual time in nanoseconds.
        at_ns: u64,
    },
}

/// The executor of one run.
pub struct Executor {
    state: RefCell<State>,
    ready: Arc<ReadyQueue>,
    now_ns: Cell<u64>,
    polls: Cell<u64>,
    random: Random,
    trace: Rc<Trace>,
    limits: Limits,
}

#[derive(Default)]
struct State {
    processes: Vec<Process>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    timers: BinaryHeap<Reverse<Timer>>,
    timer_number: u64,
    timers_cancelled: usize,
}

struct Process {
    label: String,
    life: Life,
    runtime: Option<Runtime>,
    /// Tasks that became ready during a pause.
    held: Vec<u64>,
    fuse: Option<Fuse>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Paused,
    Dead,
}

struct Fuse {
    polls_left: u64,
    action: Box<dyn FnOnce()>,
}

impl Executor {
    /// An executor at virtual time zero with the supervisor as its only process.
    pub fn new(random: Random, trace: Rc<Trace>, limits: Limits) -> Rc<Self> {
        let executor = Rc::new(Self {
            state: RefCell::default(),
            ready: Arc::default(),
            now_ns: Cell::new(0),
            polls: Cell::new(0),
            random,
            trace,
            limits,
        });
        let supervisor = executor.create_process("supervisor".to_owned());
        assert_eq!(supervisor, SUPERVISOR);
        executor
    }

    /// Virtual time in nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    /// Polls made so far.
    pub fn polls(&self) -> u64 {
        self.polls.get()
    }

    /// Where this run's events are recorded.
    pub fn trace(&self) -> &Rc<Trace> {
        &self.trace
    }

    /// A new running process without tasks.
    pub fn create_process(&self, label: String) -> ProcessId {
        let mut state = self.state.borrow_mut();
        let process = ProcessId(state.processes.len() as u32);
        state.processes.push(Process {
            label,
            life: Life::Running,
            runtime: None,
            held: Vec::new(),
            fuse: None,
        });
        process
    }

    /// Sets the runtime that is ambient while tasks of `process` are polled.
    pub fn set_runtime(&self, process: ProcessId, runtime: Runtime) {
        self.state.borrow_mut().processes[process.0 as usize].runtime = Some(runtime);
    }

    /// Whether the process has not been killed.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.state.borrow().processes[process.0 as usize].life != Life::Dead
    }

    /// Whether the process is paused.
    pub fn is_paused(&self, process: ProcessId) -> bool {
        self.state.borrow().processes[process.0 as usize].life == Life::Paused
    }

    /// Adds a task. A dead process gets none: its future is dropped at once.
    pub fn spawn(
        &self,
        process: ProcessId,
        name: &'static str,
        future: LocalBoxFuture<'static, ()>,
    ) -> TaskKey {
        let mut state = self.state.borrow_mut();
        if state.processes[process.0 as usize].life == Life::Dead {
            drop(state);
            drop(future);
            return TaskKey(u64::MAX);
        }
        let index = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::default());
            state.slots.len() as u32 - 1
        });
        let slot = &mut state.slots[index as usize];
        let key = key_of(slot.generation, index);
        let task = Arc::new(TaskWaker {
            key,
            queued: AtomicBool::new(false),
            ready: self.ready.clone(),
        });
        let body = Body {
            future,
            waker: Waker::from(task.clone()),
            task,
        };
        body.task.wake_by_ref();
        slot.occupant = Some(Occupant {
            process,
            name,
            aborted: false,
            body: Some(body),
        });
        TaskKey(key)
    }

    /// Drops the task's future when it would be polled next. An ended task is left alone.
    pub fn abort(&self, task: TaskKey) {
        let mut state = self.state.borrow_mut();
        if let Some(occupant) = state.occupant(task.0) {
            occupant.aborted = true;
            if let Some(body) = &occupant.body {
                body.task.wake_by_ref();
            }
        }
    }

    /// Ends a process: drops all its futures. A dead process is left alone.
    pub fn kill(&self, process: ProcessId) {
        assert_ne!(process, SUPERVISOR, "the supervisor ends with the run");
        self.end(process);
    }

    /// Stops polling the tasks of a running process.
    pub fn pause(&self, process: ProcessId) {
        assert_ne!(process, SUPERVISOR, "the supervisor cannot be paused");
        let process = &mut self.state.borrow_mut().processes[process.0 as usize];
        if process.life == Life::Running {
            process.life = Life::Paused;
        }
    }

    /// Goes on with a paused process.
    pub fn resume(&self, process: ProcessId) {
        let process = &mut self.state.borrow_mut().processes[process.0 as usize];
        if process.life == Life::Paused {
            process.life = Life::Running;
            self.ready
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(&mut process.held);
        }
    }

    /// Calls `action` instead of the poll that follows `polls` more polls of this process: the
    /// way to kill a process at a chosen await.
    pub fn after_polls(&self, process: ProcessId, polls: u64, action: impl FnOnce() + 'static) {
        let process = &mut self.state.borrow_mut().processes[process.0 as usize];
        process.fuse = Some(Fuse {
            polls_left: polls,
            action: Box::new(action),
        });
    }

    /// Calls `action` at virtual time `at_ns`, or now if that has passed.
    pub fn call_at(&self, at_ns: u64, action: impl FnOnce() + 'static) {
        self.add_timer(at_ns, Action::Call(Box::new(action)));
    }

    /// Calls `action` after `delay_ns` of virtual time.
    pub fn call_after(&self, delay_ns: u64, action: impl FnOnce() + 'static) {
        self.call_at(self.now_ns().saturating_add(delay_ns), action);
    }

    pub(crate) fn wake_at(&self, at_ns: u64, alarm: Rc<Alarm>) {
        self.add_timer(at_ns, Action::Wake(alarm));
    }

    /// Says that an alarm in the heap has lost its waker.
    pub(crate) fn forget_alarm(&self) {
        // A future may be dropped by the unwinding of a panic from anywhere.
        let Ok(mut state) = self.state.try_borrow_mut() else {
            return;
        };
        state.timers_cancelled += 1;
        if state.timers_cancelled > 4096 && state.timers_cancelled * 2 > state.timers.len() {
            state.timers.retain(|Reverse(timer)| match &timer.action {
                Action::Wake(alarm) => alarm.waker.borrow().is_some(),
                Action::Call(_) => true,
            });
            state.timers_cancelled = 0;
        }
    }

    /// Runs `main` as a task of the supervisor until it ends, then ends every process. Must not
    /// be called from inside a tokio runtime. Panics in tasks pass through.
    pub fn run<T: 'static>(
        self: &Rc<Self>,
        main: impl Future<Output = T> + 'static,
    ) -> Result<T, Halt> {
        let seed = self.random.fork("tokio").next_u64();
        let tokio_runtime = tokio::runtime::Builder::new_current_thread()
            .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
            .build()
            .expect("a runtime without drivers needs nothing from the system");
        let result: Rc<RefCell<Option<T>>> = Rc::default();
        let slot = result.clone();
        let main = Box::pin(async move {
            let output = main.await;
            *slot.borrow_mut() = Some(output);
        });
        self.spawn(SUPERVISOR, "scenario", main);
        // `Handle::block_on` rather than `Runtime::block_on`: it seeds the thread's generator,
        // and without a scheduler context a deferred wake (`yield_now`) is an immediate one.
        let outcome = tokio_runtime.handle().block_on(async {
            let outcome = self.drive(&result);
            self.end_all();
            outcome
        });
        outcome.map(|()| result.take().expect("driven until the result was there"))
    }

    fn drive<T>(&self, result: &RefCell<Option<T>>) -> Result<(), Halt> {
        let mut polls_here = 0_u64;
        let mut recent: VecDeque<u64> = VecDeque::new();
        loop {
            while let Some(key) = self.next_ready() {
                if !self.poll(key) {
                    continue;
                }
                if result.borrow().is_some() {
                    return Ok(());
                }
                polls_here += 1;
                let at_ns = self.now_ns();
                if polls_here + 64 > self.limits.polls_at_one_instant {
                    recent.push_back(key);
                    if polls_here > self.limits.polls_at_one_instant {
                        return Err(Halt::Livelock {
                            at_ns,
                            tasks: self.names(&recent),
                        });
                    }
                }
                if self.polls.get() > self.limits.polls {
                    return Err(Halt::EventBudget {
                        at_ns,
                        polls: self.polls.get(),
                    });
                }
            }
            let Some(next_ns) = self.next_timer_ns() else {
                return Err(Halt::Deadlock {
                    at_ns: self.now_ns(),
                });
            };
            if next_ns > nanos(self.limits.time) {
                return Err(Halt::TimeLimit {
                    at_ns: self.now_ns(),
                });
            }
            if next_ns > self.now_ns() {
                self.now_ns.set(next_ns);
                polls_here = 0;
                recent.clear();
            }
            self.fire_due();
        }
    }

    fn next_ready(&self) -> Option<u64> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        match ready.len() {
            0 => None,
            1 => ready.pop(),
            several => {
                let index = self.random.below(several as u64) as usize;
                Some(ready.swap_remove(index))
            }
        }
    }

    /// Polls the task; false if there was nothing to poll.
    fn poll(&self, key: u64) -> bool {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some(occupant) = state.occupant(key) else {
            return false;
        };
        let id = occupant.process;
        let process = &mut state.processes[id.0 as usize];
        if process.life == Life::Paused {
            process.held.push(key);
            return false;
        }
        if let Some(fuse) = &mut process.fuse {
            if fuse.polls_left == 0 {
                let fuse = process.fuse.take();
                drop(guard);
                self.ready
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(key);
                if let Some(fuse) = fuse {
                    (fuse.action)();
                }
                return false;
            }
            fuse.polls_left -= 1;
        }
        let runtime = process.runtime.clone();
        let occupant = state.occupant(key).expect("it was there a moment ago");
        let (aborted, name) = (occupant.aborted, occupant.name);
        let Some(mut body) = occupant.body.take() else {
            return false;
        };
        if aborted {
            state.free(key);
        }
        drop(guard);
        let _entered = runtime.map(ambient::enter);
        if aborted {
            drop(body);
            return true;
        }
        self.polls.set(self.polls.get() + 1);
        self.trace.record(
            self.now_ns(),
            Step::Poll,
            key,
            u64::from(id.0) << 32 | name_hash(name),
        );
        body.task.queued.store(false, Ordering::Relaxed);
        let ended = {
            let mut context = Context::from_waker(&body.waker);
            let mut future = tokio::task::unconstrained(body.future.as_mut());
            std::pin::Pin::new(&mut future).poll(&mut context) == Poll::Ready(())
        };
        let mut state = self.state.borrow_mut();
        if ended {
            state.free(key);
        } else if let Some(occupant) = state.occupant(key) {
            occupant.body = Some(body);
            return true;
        }
        // Ended, or its process was killed during the poll.
        drop(state);
        drop(body);
        true
    }

    fn next_timer_ns(&self) -> Option<u64> {
        self.state
            .borrow()
            .timers
            .peek()
            .map(|Reverse(timer)| timer.at_ns)
    }

    fn fire_due(&self) {
        loop {
            let mut state = self.state.borrow_mut();
            let due = state
                .timers
                .peek()
                .is_some_and(|next| next.0.at_ns <= self.now_ns());
            if !due {
                return;
            }
            let action = state.timers.pop().map(|Reverse(timer)| timer.action);
            drop(state);
            match action {
                Some(Action::Wake(alarm)) => {
                    alarm.rung.set(true);
                    let waker = alarm.waker.borrow_mut().take();
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Some(Action::Call(call)) => call(),
                None => return,
            }
        }
    }

    fn add_timer(&self, at_ns: u64, action: Action) {
        let mut state = self.state.borrow_mut();
        let number = state.timer_number;
        state.timer_number += 1;
        let at_ns = at_ns.max(self.now_ns());
        state.timers.push(Reverse(Timer {
            at_ns,
            number,
            action,
        }));
    }

    fn end(&self, id: ProcessId) {
        let mut state = self.state.borrow_mut();
        let process = &mut state.processes[id.0 as usize];
        if process.life == Life::Dead {
            return;
        }
        process.life = Life::Dead;
        process.held.clear();
        let fuse = process.fuse.take();
        let runtime = process.runtime.take();
        let mut bodies = Vec::new();
        for index in 0..state.slots.len() {
            let slot = &mut state.slots[index];
            if slot
                .occupant
                .as_ref()
                .is_some_and(|occupant| occupant.process == id)
            {
                let key = key_of(slot.generation, index as u32);
                bodies.extend(
                    slot.occupant
                        .as_mut()
                        .and_then(|occupant| occupant.body.take()),
                );
                state.free(key);
            }
        }
        drop(state);
        let _entered = runtime.map(ambient::enter);
        drop(bodies);
        drop(fuse);
    }

    fn end_all(&self) {
        let processes = self.state.borrow().processes.len() as u32;
        for process in (0..processes).rev() {
            self.end(ProcessId(process));
        }
        // Timer calls hold parts of the simulation: without this they would be a cycle.
        let timers = std::mem::take(&mut self.state.borrow_mut().timers);
        drop(timers);
    }

    fn names(&self, keys: &VecDeque<u64>) -> Vec<String> {
        let mut state = self.state.borrow_mut();
        let mut names = BTreeSet::new();
        for key in keys {
            if let Some(occupant) = state.occupant(*key) {
                let (name, process) = (occupant.name, occupant.process);
                names.insert(format!(
                    "{} of {}",
                    name, state.processes[process.0 as usize].label
                ));
            }
        }
        names.into_iter().collect()
    }
}

fn name_hash(name: &str) -> u64 {
    // Names are few and short: their length and ends tell them apart well enough for a trace.
    let bytes = name.as_bytes();
    let ends = (bytes.first().copied(), bytes.last().copied());
    (bytes.len() as u64) << 16
        | u64::from(ends.0.unwrap_or(0)) << 8
        | u64::from(ends.1.unwrap_or(0))
}
