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
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use holdfast_runtime::{Runtime, ambient, work};
use thiserror::Error;
use tokio::runtime::RngSeed;

use crate::random::{Random, nanos};
use crate::trace::{Step, Timestamp, Trace};

mod tasks;
#[cfg(test)]
mod tests;
mod timers;

use tasks::{Body, ReadyQueue, Tasks};
pub(crate) use timers::Alarm;
use timers::{Action, Timers};

/// One start of one node, or the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId(u32);

/// The process of the scenario itself: never paused, never killed, an exact clock.
pub const SUPERVISOR: ProcessId = ProcessId(0);

/// A spawned task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskKey(u64);

/// Most units of work between two awaits. Simulated clusters have some thousand slices at most, so
/// who looks at all of them is found; one that takes a bounded part at a time is not.
pub const UNITS_AT_ONCE: u64 = 1_000;

/// When to give up on a run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Virtual time.
    pub time: Duration,
    /// Polls in total.
    pub polls: u64,
    /// Polls without virtual time advancing.
    pub polls_at_one_instant: u64,
    /// Units of work between two awaits of a process: see [`holdfast_runtime::work`].
    pub units_at_once: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(3_600),
            polls: 200_000_000,
            polls_at_one_instant: 500_000,
            units_at_once: UNITS_AT_ONCE,
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
    /// A task looks at too much in one go: with a thousand times as much, as clusters have, it
    /// would hold its node's thread.
    #[error("{task} looked at {units} things in one go at {} s", Timestamp(*.at_ns))]
    Hold {
        /// Virtual time in nanoseconds.
        at_ns: u64,
        /// The task.
        task: String,
        /// At how much it looked.
        units: u64,
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
    ready: ReadyQueue,
    now_ns: Cell<u64>,
    polls: Cell<u64>,
    polled: Cell<ProcessId>,
    /// The first time that a task looked at too much.
    hold: RefCell<Option<Halt>>,
    random: Random,
    trace: Rc<Trace>,
    limits: Limits,
}

#[derive(Default)]
struct State {
    processes: Vec<Process>,
    tasks: Tasks,
    timers: Timers,
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

/// What the next task in the queue needs.
enum Next {
    /// It has ended, or is being held.
    Nothing,
    /// Its process is to meet its fate first.
    Blow(Fuse),
    /// Its future is to be dropped.
    Drop(Body, Option<Runtime>),
    /// Its future is to be polled.
    Poll {
        body: Body,
        runtime: Option<Runtime>,
        process: ProcessId,
        label: u64,
    },
}

impl Executor {
    /// An executor at virtual time zero with the supervisor as its only process.
    pub fn new(random: Random, trace: Rc<Trace>, limits: Limits) -> Rc<Self> {
        let executor = Rc::new(Self {
            state: RefCell::default(),
            ready: ReadyQueue::default(),
            now_ns: Cell::new(0),
            polls: Cell::new(0),
            polled: Cell::new(SUPERVISOR),
            hold: RefCell::default(),
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

    /// The process whose task was polled last, in words.
    pub(crate) fn polled_process(&self) -> String {
        self.state
            .borrow_mut()
            .process(self.polled.get())
            .label
            .clone()
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
        self.state.borrow_mut().process(process).runtime = Some(runtime);
    }

    /// Whether the process has not been killed.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.state.borrow_mut().process(process).life != Life::Dead
    }

    /// Whether the process is paused.
    pub fn is_paused(&self, process: ProcessId) -> bool {
        self.state.borrow_mut().process(process).life == Life::Paused
    }

    /// Adds a task. A dead process gets none: its future is dropped at once.
    pub fn spawn(
        &self,
        process: ProcessId,
        name: &'static str,
        future: LocalBoxFuture<'static, ()>,
    ) -> TaskKey {
        let mut state = self.state.borrow_mut();
        if state.process(process).life == Life::Dead {
            drop(state);
            drop(future);
            return TaskKey(u64::MAX);
        }
        TaskKey(state.tasks.add(process, name, future, &self.ready))
    }

    /// Drops the task's future when it would be polled next. An ended task is left alone.
    pub fn abort(&self, task: TaskKey) {
        let mut state = self.state.borrow_mut();
        if let Some(occupant) = state.tasks.get(task.0) {
            occupant.aborted = true;
            match &occupant.body {
                Some(body) => body.wake(),
                // It aborts itself: queued once more, it is dropped instead of polled.
                None => self.ready.push(task.0),
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
        let mut state = self.state.borrow_mut();
        let process = state.process(process);
        if process.life == Life::Running {
            process.life = Life::Paused;
        }
    }

    /// Goes on with a paused process.
    pub fn resume(&self, process: ProcessId) {
        let mut state = self.state.borrow_mut();
        let process = state.process(process);
        if process.life == Life::Paused {
            process.life = Life::Running;
            self.ready.append(&mut process.held);
        }
    }

    /// Calls `action` instead of the poll that follows `polls` more polls of this process: the
    /// way to kill a process at a chosen await. A new call replaces an earlier one.
    pub fn after_polls(&self, process: ProcessId, polls: u64, action: impl FnOnce() + 'static) {
        let fuse = Fuse {
            polls_left: polls,
            action: Box::new(action),
        };
        let replaced = self.state.borrow_mut().process(process).fuse.replace(fuse);
        drop(replaced);
    }

    /// Forgets what [`Executor::after_polls`] was told.
    pub fn disarm(&self, process: ProcessId) {
        let fuse = self.state.borrow_mut().process(process).fuse.take();
        drop(fuse);
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

    /// Says that an alarm has lost its waker.
    pub(crate) fn forget_alarm(&self) {
        // The unwinding of a panic may drop a sleeping future anywhere.
        if let Ok(mut state) = self.state.try_borrow_mut() {
            state.timers.note_cancelled();
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
            while let Some(key) = self.ready.take(&self.random) {
                self.attend(key);
                if let Some(hold) = self.hold.borrow_mut().take() {
                    return Err(hold);
                }
                if result.borrow().is_some() {
                    return Ok(());
                }
                polls_here += 1;
                let at_ns = self.now_ns();
                if polls_here + RECENT > self.limits.polls_at_one_instant {
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
            let next_ns = self.state.borrow().timers.next_ns();
            let Some(next_ns) = next_ns else {
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
            while let Some(action) = self.take_due() {
                action.perform();
            }
        }
    }

    fn take_due(&self) -> Option<Action> {
        self.state.borrow_mut().timers.take_due(self.now_ns())
    }

    /// Polls or drops the future of a task taken from the queue.
    fn attend(&self, key: u64) {
        let next = self.next(key);
        match next {
            Next::Nothing => {}
            Next::Blow(fuse) => {
                self.ready.push(key);
                (fuse.action)();
            }
            Next::Drop(body, runtime) => {
                let _entered = runtime.map(ambient::enter);
                drop(body);
            }
            Next::Poll {
                mut body,
                runtime,
                process,
                label,
            } => {
                self.polled.set(process);
                let _entered = runtime.map(ambient::enter);
                self.polls.set(self.polls.get() + 1);
                self.trace.record(self.now_ns(), Step::Poll, key, label);
                body.taken_from_queue();
                let worked = work::done();
                let ended = {
                    let mut context = Context::from_waker(&body.waker);
                    let mut future = tokio::task::unconstrained(body.future.as_mut());
                    Pin::new(&mut future).poll(&mut context).is_ready()
                };
                let units = work::done().wrapping_sub(worked);
                if units > self.limits.units_at_once && process != SUPERVISOR {
                    self.note_hold(label, key, units);
                }
                let mut state = self.state.borrow_mut();
                if ended {
                    state.tasks.remove_if_living(key);
                } else if let Some(occupant) = state.tasks.get(key) {
                    occupant.body = Some(body);
                    return;
                }
                // It has ended, or its process was killed meanwhile.
                drop(state);
                drop(body);
            }
        }
    }

    fn note_hold(&self, label: u64, task: u64, units: u64) {
        let name = label & u64::from(u32::MAX);
        if SLICE_BY_SLICE.iter().any(|may| name == name_hash(may)) {
            return;
        }
        let task = self.names(&VecDeque::from([task])).pop();
        self.hold.borrow_mut().get_or_insert_with(|| Halt::Hold {
            at_ns: self.now_ns(),
            task: task.unwrap_or_else(|| "a task that was killed".to_owned()),
            units,
        });
    }

    fn next(&self, key: u64) -> Next {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some(occupant) = state.tasks.get(key) else {
            return Next::Nothing;
        };
        let id = occupant.process;
        let process = &mut state.processes[id.0 as usize];
        if process.life == Life::Paused {
            process.held.push(key);
            return Next::Nothing;
        }
        match process.fuse.take() {
            Some(fuse) if fuse.polls_left == 0 => return Next::Blow(fuse),
            Some(fuse) => {
                process.fuse = Some(Fuse {
                    polls_left: fuse.polls_left - 1,
                    ..fuse
                });
            }
            None => {}
        }
        let runtime = process.runtime.clone();
        // Queued twice by an abort, it may be gone from its place.
        let Some(body) = occupant.body.take() else {
            return Next::Nothing;
        };
        if occupant.aborted {
            state.tasks.remove_if_living(key);
            return Next::Drop(body, runtime);
        }
        let label = u64::from(id.0) << 32 | name_hash(occupant.name);
        Next::Poll {
            body,
            runtime,
            process: id,
            label,
        }
    }

    fn add_timer(&self, at_ns: u64, action: Action) {
        self.state
            .borrow_mut()
            .timers
            .add(at_ns.max(self.now_ns()), action);
    }

    fn end(&self, id: ProcessId) {
        let mut state = self.state.borrow_mut();
        let process = state.process(id);
        if process.life == Life::Dead {
            return;
        }
        process.life = Life::Dead;
        process.held.clear();
        let fuse = process.fuse.take();
        let runtime = process.runtime.take();
        let bodies = state.tasks.remove_all(id);
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
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let mut names = BTreeSet::new();
        for key in keys {
            if let Some(occupant) = state.tasks.get(*key) {
                let label = &state.processes[occupant.process.0 as usize].label;
                names.insert(format!("{} of {label}", occupant.name));
            }
        }
        names.into_iter().collect()
    }
}

impl State {
    fn process(&mut self, process: ProcessId) -> &mut Process {
        &mut self.processes[process.0 as usize]
    }
}

/// Tasks that may look at every used slice of a volume, or of the store, some 50 ns for each: a
/// node that starts, and has nothing else to do yet; a takeover, which asks about each of them, and
/// the config state, which judges its outcome.
const SLICE_BY_SLICE: [&str; 4] = ["main", "owner-takeover", "owner-takeover-step", "raft"];

/// How many of the last polled tasks a livelock report looks at.
const RECENT: u64 = 64;

fn name_hash(name: &str) -> u64 {
    // Names are few and short: their length and ends tell them apart well enough for a trace.
    let bytes = name.as_bytes();
    let ends = (bytes.first().copied(), bytes.last().copied());
    (bytes.len() as u64) << 16
        | u64::from(ends.0.unwrap_or(0)) << 8
        | u64::from(ends.1.unwrap_or(0))
}
