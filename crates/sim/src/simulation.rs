//! One simulated world: hosts with clocks and disks, processes on them, a network between.
//!
//! A host keeps its disks for ever, its clock until its power is cut, and runs at most one
//! process. A scenario runs as the supervisor's task and may do anything to hosts, processes,
//! disks and network at any time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{Directory, Incarnation, Links, NodeId, Runtime};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::backend;
use crate::clock::HostClock;
use crate::disk::{DiskTiming, HostDisks};
use crate::events::Capture;
use crate::executor::{Executor, Halt, Limits, ProcessId, SUPERVISOR};
use crate::faults::{FaultClass, FaultCounts};
use crate::network::{Network, NetworkTiming};
use crate::random::Random;
use crate::trace::{Step, Trace, TraceText, digest};

/// How to build a world.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Where the text of the trace goes.
    pub trace: TraceText,
    /// When to give up.
    pub limits: Limits,
    /// The network without faults.
    pub network: NetworkTiming,
    /// The disks without faults.
    pub disk: DiskTiming,
    /// Each host's clock runs at a rate drawn from plus or minus this.
    pub drift_ppm_max: u32,
    /// How late timers of nodes ring at most.
    pub timer_slack: Duration,
    /// Pauses longer than this count as past the lease.
    pub lease: Duration,
}

impl Options {
    /// The everyday world of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            trace: TraceText::Off,
            limits: Limits::default(),
            network: NetworkTiming::default(),
            disk: DiskTiming::default(),
            drift_ppm_max: 200,
            timer_slack: Duration::from_micros(200),
            lease: Duration::from_secs(2),
        }
    }
}

/// What a process gets from its host.
pub struct Machine {
    /// Clock, randomness, tasks. Ends with the process.
    pub runtime: Runtime,
    /// The host's disks.
    pub directory: Rc<dyn Directory>,
    /// Links to the other nodes.
    pub links: Rc<dyn Links>,
}

/// The process does not run, or died before the answer. What was asked for may have happened.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the process of node {0} is gone")]
pub struct ProcessGone(pub NodeId);

/// What is left of a run.
#[derive(Debug)]
pub struct Finished<T> {
    /// The scenario's result, or why there is none.
    pub result: Result<T, Halt>,
    /// Hash over every step.
    pub trace_hash: u64,
    /// The kept lines of the trace, if a ring was asked for.
    pub trace_lines: Vec<String>,
    /// Virtual time passed.
    pub virtual_time: Duration,
    /// Polls made.
    pub polls: u64,
    /// How often each fault class fired.
    pub faults: BTreeMap<FaultClass, u64>,
}

/// A handle on the world. Clones are the same world.
#[derive(Clone)]
pub struct Simulation {
    world: Rc<World>,
}

struct World {
    options: Options,
    executor: Rc<Executor>,
    network: Rc<Network>,
    random: Random,
    counts: Rc<FaultCounts>,
    supervisor: Runtime,
    hosts: RefCell<BTreeMap<NodeId, Host>>,
}

struct Host {
    clock: Rc<HostClock>,
    disks: Rc<HostDisks>,
    powered: bool,
    process: Option<Process>,
    starts: u64,
    power_ups: u64,
}

#[derive(Clone)]
struct Process {
    id: ProcessId,
    incarnation: Incarnation,
    runtime: Runtime,
    /// Virtual time of the pause's begin.
    paused_at_ns: Rc<Cell<Option<u64>>>,
}

impl Simulation {
    /// Runs a scenario to its end, then ends every process. Panics of the code under test pass
    /// through. Must not be called from inside a tokio runtime.
    pub fn run<T, F>(options: Options, scenario: impl FnOnce(Self) -> F) -> Finished<T>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let random = Random::new(options.seed);
        let trace = Rc::new(Trace::new(options.trace));
        let executor = Executor::new(random.fork("executor"), trace.clone(), options.limits);
        let counts = Rc::new(FaultCounts::default());
        let exact = Rc::new(HostClock::new(0, 0, 0));
        let supervisor =
            backend::runtime_of(&executor, SUPERVISOR, exact, random.fork("supervisor"), 0);
        let network = Network::new(
            executor.clone(),
            counts.clone(),
            random.fork("network"),
            options.network,
        );
        let world = Rc::new(World {
            options,
            executor: executor.clone(),
            network,
            random,
            counts: counts.clone(),
            supervisor,
            hosts: RefCell::default(),
        });
        let simulation = Self {
            world: world.clone(),
        };
        let capture = Capture::start(&executor, &trace);
        let result = executor.run(scenario(simulation));
        drop(capture);
        for host in std::mem::take(&mut *world.hosts.borrow_mut()).into_values() {
            host.disks.discard();
        }
        Finished {
            result,
            trace_hash: trace.hash(),
            trace_lines: trace.lines(),
            virtual_time: Duration::from_nanos(executor.now_ns()),
            polls: executor.polls(),
            faults: counts.snapshot(),
        }
    }

    /// The options of this world.
    pub fn options(&self) -> &Options {
        &self.world.options
    }

    /// The supervisor's runtime: exact clock, immortal tasks.
    pub fn runtime(&self) -> &Runtime {
        &self.world.supervisor
    }

    /// The network, to change its conditions.
    pub fn network(&self) -> &Rc<Network> {
        &self.world.network
    }

    /// The fault counters.
    pub fn faults(&self) -> &FaultCounts {
        &self.world.counts
    }

    /// A stream of randomness for a purpose of the scenario.
    pub fn random(&self, purpose: &str) -> Random {
        self.world.random.fork("scenario").fork(purpose)
    }

    /// Virtual time in nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        self.world.executor.now_ns()
    }

    /// Puts a remark into the trace.
    pub fn note(&self, step: Step, subject: u64, detail: u64, words: impl FnOnce() -> String) {
        self.world
            .executor
            .trace()
            .event(self.now_ns(), step, subject, detail, words);
    }

    /// Adds a host with power, empty disks and no process.
    pub fn add_host(&self, node: NodeId) {
        let random = self.world.random.fork_numbered("host", node.0);
        let drift_ppm = self.draw_drift(&random);
        let clock = HostClock::new(self.now_ns(), random.below(1 << 50), drift_ppm);
        let disks = HostDisks::new(
            node,
            self.world.executor.clone(),
            self.world.counts.clone(),
            random.fork("disks"),
            self.world.options.disk,
        );
        let host = Host {
            clock: Rc::new(clock),
            disks,
            powered: true,
            process: None,
            starts: 0,
            power_ups: 0,
        };
        let before = self.world.hosts.borrow_mut().insert(node, host);
        assert!(before.is_none(), "host {node} was added twice");
    }

    /// All hosts.
    pub fn hosts(&self) -> Vec<NodeId> {
        self.world.hosts.borrow().keys().copied().collect()
    }

    /// The disks of a host, to inject faults.
    pub fn disks(&self, node: NodeId) -> Rc<HostDisks> {
        self.with_host(node, |host| host.disks.clone())
    }

    /// Starts a process on a host that has power and no process. The process ends when `main`
    /// does.
    pub fn start<F>(&self, node: NodeId, main: impl FnOnce(Machine) -> F) -> Incarnation
    where
        F: Future<Output = ()> + 'static,
    {
        let world = &self.world;
        let (clock, disks, starts) = self.with_host(node, |host| {
            assert!(
                host.powered && host.process.is_none(),
                "node {node} cannot be started now"
            );
            host.starts += 1;
            (host.clock.clone(), host.disks.clone(), host.starts)
        });
        let incarnation = Incarnation(starts);
        let id = world
            .executor
            .create_process(format!("node {node} start {starts}"));
        let random = world
            .random
            .fork_numbered("host", node.0)
            .fork_numbered("process", starts);
        let slack_ns = crate::random::nanos(world.options.timer_slack);
        let runtime = backend::runtime_of(&world.executor, id, clock, random, slack_ns);
        let links = world.network.attach(node, incarnation, id);
        let directory = disks.directory(id);
        let process = Process {
            id,
            incarnation,
            runtime: runtime.clone(),
            paused_at_ns: Rc::default(),
        };
        self.with_host(node, |host| host.process = Some(process));
        self.say(node, starts, || {
            format!("node {node} starts as incarnation {starts}")
        });
        let main = main(Machine {
            runtime: runtime.clone(),
            directory,
            links,
        });
        let simulation = self.clone();
        runtime.spawn("main", async move {
            main.await;
            if simulation.incarnation(node) == Some(incarnation) {
                simulation.stop(node, "ends");
            }
        });
        incarnation
    }

    /// The incarnation of the running (or paused) process of a node.
    pub fn incarnation(&self, node: NodeId) -> Option<Incarnation> {
        self.with_host(node, |host| {
            host.process.as_ref().map(|process| process.incarnation)
        })
    }

    /// Whether the node's process is paused.
    pub fn is_paused(&self, node: NodeId) -> bool {
        self.with_host(node, |host| {
            host.process
                .as_ref()
                .is_some_and(|process| process.paused_at_ns.get().is_some())
        })
    }

    /// Whether the host has power.
    pub fn is_powered(&self, node: NodeId) -> bool {
        self.with_host(node, |host| host.powered)
    }

    /// Runs a future as a task of the node's process and waits for its output. The way for
    /// anything outside the node (clients, oracles) to use objects inside it: what was started
    /// dies with the process.
    pub async fn call<T: 'static>(
        &self,
        node: NodeId,
        name: &'static str,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, ProcessGone> {
        let runtime = self
            .with_host(node, |host| {
                host.process.as_ref().map(|process| process.runtime.clone())
            })
            .ok_or(ProcessGone(node))?;
        let (sender, receiver) = oneshot::channel();
        runtime.spawn(name, async move {
            // A caller that has given up does not stop what it asked for.
            let _ = sender.send(future.await);
        });
        receiver.await.map_err(|_| ProcessGone(node))
    }

    /// Kills the node's process; its host lives on. False if there was none.
    pub fn kill(&self, node: NodeId) -> bool {
        let killed = self.stop(node, "is killed");
        if killed {
            self.world.counts.fired(FaultClass::Crash);
        }
        killed
    }

    /// Ends the node's process in the expected course of things. False if there was none.
    pub fn end(&self, node: NodeId) -> bool {
        self.stop(node, "is ended")
    }

    /// Kills the node's present process right before its poll after the next `polls`.
    pub fn kill_after_polls(&self, node: NodeId, polls: u64) {
        let process = self.with_host(node, |host| host.process.clone());
        let Some(Process {
            id, incarnation, ..
        }) = process
        else {
            return;
        };
        let simulation = self.clone();
        self.world.executor.after_polls(id, polls, move || {
            if simulation.incarnation(node) == Some(incarnation)
                && simulation.stop(node, "is killed at a chosen poll")
            {
                simulation.world.counts.fired(FaultClass::CrashAtPoll);
            }
        });
    }

    /// Takes back [`Simulation::kill_after_polls`].
    pub fn disarm_kill(&self, node: NodeId) {
        if let Some(process) = self.with_host(node, |host| host.process.clone()) {
            self.world.executor.disarm(process.id);
        }
    }

    /// Cuts the power of several hosts at once: processes and unsynced data are gone.
    pub fn cut_power(&self, nodes: &[NodeId]) {
        let all = nodes.len() > 1 && nodes.len() == self.world.hosts.borrow().len();
        for node in nodes {
            let powered = self.with_host(*node, |host| std::mem::replace(&mut host.powered, false));
            if !powered {
                continue;
            }
            self.say(*node, 0, || format!("node {node} loses its power"));
            // First the cable, so that no peer hears a dying process refuse it.
            self.world.network.set_power(*node, false);
            self.stop(*node, "dies of it");
            self.disks(*node).crash_power();
            if !all {
                self.world.counts.fired(FaultClass::PowerCut);
            }
        }
        if all {
            self.world.counts.fired(FaultClass::PowerCutOfAll);
        }
    }

    /// Gives a host its power back, with a clock of new origin.
    pub fn restore_power(&self, node: NodeId) {
        let now_ns = self.now_ns();
        let restored = self.with_host(node, |host| {
            if host.powered {
                return false;
            }
            host.powered = true;
            host.power_ups += 1;
            let random = self
                .world
                .random
                .fork_numbered("host", node.0)
                .fork_numbered("power", host.power_ups);
            let drift_ppm = self.draw_drift(&random);
            host.clock = Rc::new(HostClock::new(now_ns, random.below(1 << 50), drift_ppm));
            true
        });
        if restored {
            self.say(node, 1, || format!("node {node} has power again"));
            self.world.network.set_power(node, true);
        }
    }

    /// Stops polling the node's process: a long scheduling delay, or a suspended machine.
    pub fn pause(&self, node: NodeId) {
        let now_ns = self.now_ns();
        let Some(process) = self.with_host(node, |host| host.process.clone()) else {
            return;
        };
        if process.paused_at_ns.get().is_none() {
            process.paused_at_ns.set(Some(now_ns));
            self.say(node, 2, || format!("node {node} stands still"));
            self.world.executor.pause(process.id);
            self.world.network.paused(node);
        }
    }

    /// Goes on with a paused process.
    pub fn resume(&self, node: NodeId) {
        let Some(process) = self.with_host(node, |host| host.process.clone()) else {
            return;
        };
        let Some(paused_at_ns) = process.paused_at_ns.take() else {
            return;
        };
        let pause = Duration::from_nanos(self.now_ns() - paused_at_ns);
        self.say(node, 3, || format!("node {node} goes on after {pause:?}"));
        self.world
            .counts
            .fired(match pause > self.world.options.lease {
                true => FaultClass::PausePastLease,
                false => FaultClass::ShortPause,
            });
        self.world.network.resumed(node, pause);
        self.world.executor.resume(process.id);
    }

    /// Lets a host's clock run at another rate from now on.
    pub fn set_drift(&self, node: NodeId, drift_ppm: i32) {
        let clock = self.with_host(node, |host| host.clock.clone());
        clock.set_drift(self.now_ns(), drift_ppm);
        self.say(node, 4, || {
            format!("the clock of node {node} drifts by {drift_ppm} ppm")
        });
        if drift_ppm.unsigned_abs() > self.world.options.drift_ppm_max {
            self.world.counts.fired(FaultClass::ClockDrift);
        }
    }

    /// Gives the clock of a host an everyday rate again.
    pub fn reset_drift(&self, node: NodeId) {
        let drift_ppm = self.draw_drift(&self.world.random.fork_numbered("drift", self.now_ns()));
        self.set_drift(node, drift_ppm);
    }

    fn stop(&self, node: NodeId, how: &str) -> bool {
        let Some(process) = self.with_host(node, |host| host.process.take()) else {
            return false;
        };
        let incarnation = process.incarnation.0;
        self.say(node, incarnation, || {
            format!("incarnation {incarnation} of node {node} {how}")
        });
        self.world.executor.kill(process.id);
        // Afterwards: dropped futures may have begun a last write.
        self.disks(node).crash_process();
        self.world.network.detach(node);
        true
    }

    fn draw_drift(&self, random: &Random) -> i32 {
        let bound = self.world.options.drift_ppm_max;
        random.below(2 * u64::from(bound) + 1) as i32 - bound as i32
    }

    fn say(&self, node: NodeId, detail: u64, words: impl FnOnce() -> String) {
        let subject = node.0 << 8 | detail & 0xff;
        self.note(Step::Process, subject, detail ^ digest(b"process"), words);
    }

    fn with_host<T>(&self, node: NodeId, act: impl FnOnce(&mut Host) -> T) -> T {
        let mut hosts = self.world.hosts.borrow_mut();
        let host = hosts.get_mut(&node);
        act(host.unwrap_or_else(|| panic!("there is no host {node}")))
    }
}
