//! A deterministic machine room for these tests: one thread, a seeded ready queue, virtual
//! time, links with delay and partitions, disks that tear the writes of a killed process.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_runtime::{
    Backend, DownReason, Incarnation, Instant, LinkEvent, NodeId, Rpc, Runtime, Task, ambient,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::{Group, GroupError, GroupOptions, Machine};
use super::disks::{AreaBytes, NodeDirectory};
use super::links::NodeLinks;
use crate::state::Progress;

/// From this number on, a number is noted [`BULK_TIMES`] times: so a state becomes large.
pub(super) const BULK: u64 = 1 << 50;
pub(super) const BULK_TIMES: usize = 12_000;

/// Every applied number, in order: a change applied twice shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger(pub(super) Vec<u64>);

impl Machine for Ledger {
    type Change = u64;
    type Outcome = usize;
    type Pieces = std::iter::Once<Vec<u8>>;

    fn apply(&mut self, number: u64) -> usize {
        let times = if number < BULK { 1 } else { BULK_TIMES };
        self.0.extend(std::iter::repeat_n(number, times));
        self.0.len()
    }

    fn pieces(&self) -> Self::Pieces {
        std::iter::once(postcard::to_stdvec(self).expect("plain data"))
    }

    fn take_up<'a>(&mut self, bytes: &'a [u8]) -> Option<(Progress, &'a [u8])> {
        let (ledger, rest) = postcard::take_from_bytes(bytes).ok()?;
        *self = ledger;
        Some((Progress::Complete, rest))
    }

    fn read_first(bytes: &[u8]) -> Option<(Self, &[u8])> {
        postcard::take_from_bytes(bytes).ok()
    }

    fn supply(&mut self, supplement: &[u8]) -> bool {
        supplement.is_empty()
    }
}

pub(super) type LedgerGroup = Group<Ledger>;

/// The process of the test itself.
const OBSERVER: u64 = 0;
/// No scenario here needs more; a livelock does.
const POLLS_MAX: u64 = 20_000_000;

/// See the module.
pub(super) struct World {
    now: Cell<u64>,
    random: Cell<u64>,
    woken: Arc<Mutex<Vec<u64>>>,
    tasks: RefCell<BTreeMap<u64, Slot>>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    next_id: Cell<u64>,
    trace: Cell<u64>,
    polls: Cell<u64>,
    frames: Cell<u64>,
    processes: RefCell<BTreeMap<NodeId, Process>>,
    disks: RefCell<BTreeMap<(NodeId, String), AreaBytes>>,
    starts: RefCell<BTreeMap<NodeId, u64>>,
    blocked: RefCell<BTreeSet<(NodeId, NodeId)>>,
    last_arrival: RefCell<BTreeMap<(NodeId, NodeId), u64>>,
    lost_per_mille: Cell<u64>,
}

struct Slot {
    process: u64,
    runtime: Runtime,
    future: Option<LocalBoxFuture<'static, ()>>,
}

struct Process {
    id: u64,
    incarnation: Incarnation,
    runtime: Runtime,
    events: mpsc::UnboundedSender<LinkEvent>,
    group: Option<Rc<LedgerGroup>>,
}

/// Runs `body` in a world of its own; returns its result and the hash of everything that
/// happened.
pub(super) fn simulate<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    body: impl FnOnce(Rc<World>) -> F,
) -> (T, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()))
        .build()
        .expect("a runtime without drivers");
    let _seed = PrintSeed(seed);
    let world = World::new(seed);
    let future = body(world.clone());
    // Tokio's budget is meant for its own scheduler: here nobody would refill it.
    let running = tokio::task::coop::unconstrained(async move {
        let result = world.run(future);
        world.end();
        (result, world.trace.get())
    });
    // Through the handle: without a scheduler context a deferred wake (`yield_now`) is an immediate
    // one. The scheduler would deliver it once the whole run has ended.
    runtime.handle().block_on(running)
}

/// Names the seed of a run that panics.
struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this run had seed {}", self.0);
        }
    }
}

impl World {
    fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(1_000_000_000),
            random: Cell::new(seed),
            woken: Arc::default(),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            next_id: Cell::new(1),
            trace: Cell::new(seed),
            polls: Cell::new(0),
            frames: Cell::new(0),
            processes: RefCell::default(),
            disks: RefCell::default(),
            starts: RefCell::default(),
            blocked: RefCell::default(),
            last_arrival: RefCell::default(),
            lost_per_mille: Cell::new(0),
        })
    }

    /// Virtual time since the start of the run.
    pub(super) fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now.get() - 1_000_000_000)
    }

    /// A draw from `0..bound` (splitmix64).
    pub(super) fn draw(&self, bound: u64) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        if bound == 0 { word } else { word % bound }
    }

    /// Frames sent so far.
    pub(super) fn frames(&self) -> u64 {
        self.frames.get()
    }

    /// Polls of tasks so far.
    pub(super) fn polls(&self) -> u64 {
        self.polls.get()
    }

    /// Waits for virtual time to pass.
    pub(super) fn sleep(self: &Rc<Self>, duration: Duration) -> LocalBoxFuture<'static, ()> {
        let deadline = self.now.get() + duration.as_nanos() as u64;
        Sleep {
            world: self.clone(),
            deadline,
            timer: None,
        }
        .boxed_local()
    }

    /// Loses this many of a thousand frames from now on.
    pub(super) fn lose(&self, per_mille: u64) {
        self.lost_per_mille.set(per_mille);
    }

    /// Drops frames from `from` to `to` silently.
    pub(super) fn block(&self, from: NodeId, to: NodeId) {
        self.blocked.borrow_mut().insert((from, to));
    }

    /// Cuts `node` off from all others, silently.
    pub(super) fn isolate(&self, node: NodeId) {
        for other in self.running() {
            self.block(node, other);
            self.block(other, node);
        }
    }

    /// Heals every partition.
    pub(super) fn heal(&self) {
        self.blocked.borrow_mut().clear();
    }

    /// The nodes whose process runs.
    pub(super) fn running(&self) -> Vec<NodeId> {
        self.processes.borrow().keys().copied().collect()
    }

    /// The group of a running node.
    pub(super) fn group(&self, node: NodeId) -> Rc<LedgerGroup> {
        self.processes.borrow()[&node]
            .group
            .clone()
            .expect("started")
    }

    /// The bytes of a node's area.
    pub(super) fn disk(&self, node: NodeId, name: &str) -> AreaBytes {
        self.disks.borrow()[&(node, name.to_owned())].clone()
    }

    /// Starts a node's process and its group.
    pub(super) async fn start(
        self: &Rc<Self>,
        node: NodeId,
        options: GroupOptions,
    ) -> Result<Rc<LedgerGroup>, GroupError> {
        assert!(!self.running().contains(&node));
        let start = *self
            .starts
            .borrow_mut()
            .entry(node)
            .and_modify(|start| *start += 1)
            .or_insert(1);
        let incarnation = Incarnation(start);
        let id = self.take_id();
        let backend = Rc::new(NodeBackend {
            world: self.clone(),
            node,
            process: id,
        });
        let runtime = Runtime::new(backend);
        let (events, receiver) = mpsc::unbounded_channel();
        for (peer, process) in self.processes.borrow().iter() {
            let up = LinkEvent::Up {
                peer: node,
                incarnation,
            };
            self.deliver(node, *peer, process.incarnation, up);
            let _ = events.send(LinkEvent::Up {
                peer: *peer,
                incarnation: process.incarnation,
            });
        }
        let process = Process {
            id,
            incarnation,
            runtime: runtime.clone(),
            events,
            group: None,
        };
        self.processes.borrow_mut().insert(node, process);
        let links = Rc::new(NodeLinks {
            world: self.clone(),
            node,
            incarnation,
            events: RefCell::new(Some(receiver)),
        });
        let directory = Rc::new(NodeDirectory {
            world: self.clone(),
            node,
        });
        let started = self.run_on(node, async move {
            let rpc = Rpc::start(runtime.clone(), links);
            LedgerGroup::start(runtime, rpc, directory, options).await
        });
        let group = started.await.expect("nobody kills a starting node")?;
        if let Some(process) = self.processes.borrow_mut().get_mut(&node) {
            process.group = Some(group.clone());
        }
        Ok(group)
    }

    /// Kills a node's process at once; its peers hear of it within a moment.
    pub(super) fn kill(self: &Rc<Self>, node: NodeId, reason: DownReason) {
        let process = self.processes.borrow_mut().remove(&node).expect("running");
        for (peer, other) in self.processes.borrow().iter() {
            let incarnation = process.incarnation;
            let down = LinkEvent::Down {
                peer: node,
                incarnation,
                reason,
            };
            self.deliver(node, *peer, other.incarnation, down);
        }
        self.drop_tasks(|slot| slot.process == process.id);
    }

    /// Kills a node's process; nobody is told.
    pub(super) fn vanish(&self, node: NodeId) {
        let process = self.processes.borrow_mut().remove(&node).expect("running");
        self.drop_tasks(|slot| slot.process == process.id);
    }

    /// Runs `future` in the process of `node`; `None` if that is killed first.
    pub(super) fn run_on<T: 'static>(
        self: &Rc<Self>,
        node: NodeId,
        future: impl Future<Output = T> + 'static,
    ) -> LocalBoxFuture<'static, Option<T>> {
        let (sender, receiver) = oneshot::channel();
        let (process, runtime) = {
            let processes = self.processes.borrow();
            let process = &processes[&node];
            (process.id, process.runtime.clone())
        };
        self.spawn(process, runtime, async move {
            let _ = sender.send(future.await);
        });
        async move { receiver.await.ok() }.boxed_local()
    }

    /// Counts a frame; the receiving process, unless the frame gets lost.
    pub(super) fn carries(&self, from: NodeId, to: NodeId) -> Option<Incarnation> {
        self.frames.set(self.frames.get() + 1);
        let lost = self.draw(1000) < self.lost_per_mille.get();
        let blocked = self.blocked.borrow().contains(&(from, to));
        let processes = self.processes.borrow();
        let receiver = processes.get(&to).map(|process| process.incarnation);
        receiver.filter(|_| !lost && !blocked)
    }

    /// The bytes of a node's area, made if absent.
    pub(super) fn create_disk(&self, node: NodeId, name: &str) -> AreaBytes {
        let mut disks = self.disks.borrow_mut();
        disks.entry((node, name.to_owned())).or_default().clone()
    }

    /// Whether the area was ever opened.
    pub(super) fn has_disk(&self, node: NodeId, name: &str) -> bool {
        self.disks.borrow().contains_key(&(node, name.to_owned()))
    }

    /// Forgets an area.
    pub(super) fn remove_disk(&self, node: NodeId, name: &str) {
        self.disks.borrow_mut().remove(&(node, name.to_owned()));
    }

    fn take_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Makes `bytes` a part of the trace.
    pub(super) fn note(&self, bytes: &[u8]) {
        self.trace.set(xxh3_64_with_seed(bytes, self.trace.get()));
    }

    fn spawn(
        &self,
        process: u64,
        runtime: Runtime,
        future: impl Future<Output = ()> + 'static,
    ) -> u64 {
        let id = self.take_id();
        let slot = Slot {
            process,
            runtime,
            future: Some(future.boxed_local()),
        };
        self.tasks.borrow_mut().insert(id, slot);
        self.woken.lock().expect("one thread").push(id);
        id
    }

    fn drop_tasks(&self, which: impl Fn(&Slot) -> bool) {
        let dropped: Vec<Slot> = {
            let mut tasks = self.tasks.borrow_mut();
            let ids: Vec<u64> = tasks
                .iter()
                .filter(|(_, slot)| which(slot))
                .map(|(id, _)| *id)
                .collect();
            ids.iter().filter_map(|id| tasks.remove(id)).collect()
        };
        drop(dropped);
    }

    /// Frees what refers to the world.
    fn end(&self) {
        self.processes.borrow_mut().clear();
        self.drop_tasks(|_| true);
    }

    /// Lets an event reach a process after a while, in order with others on the same link.
    pub(super) fn deliver(
        self: &Rc<Self>,
        from: NodeId,
        to: NodeId,
        incarnation: Incarnation,
        event: LinkEvent,
    ) {
        let arrival = {
            let mut last = self.last_arrival.borrow_mut();
            let last = last.entry((from, to)).or_default();
            *last = (*last + 1).max(self.now.get() + 100_000 + self.draw(400_000));
            *last
        };
        let world = self.clone();
        let observer = Runtime::new(Rc::new(NodeBackend {
            world: self.clone(),
            node: NodeId(0),
            process: OBSERVER,
        }));
        self.spawn(OBSERVER, observer, async move {
            Sleep {
                world: world.clone(),
                deadline: arrival,
                timer: None,
            }
            .await;
            let processes = world.processes.borrow();
            if let Some(process) = processes.get(&to)
                && process.incarnation == incarnation
            {
                let _ = process.events.send(event);
            }
        });
    }

    fn run<T: 'static>(self: &Rc<Self>, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let observer = Runtime::new(Rc::new(NodeBackend {
            world: self.clone(),
            node: NodeId(0),
            process: OBSERVER,
        }));
        let slot = result.clone();
        self.spawn(OBSERVER, observer, async move {
            let output = future.await;
            *slot.borrow_mut() = Some(output);
        });
        let mut ready = BTreeSet::new();
        loop {
            if let Some(output) = result.borrow_mut().take() {
                return output;
            }
            ready.extend(self.woken.lock().expect("one thread").drain(..));
            if ready.is_empty() {
                let timer = self.timers.borrow_mut().pop_first();
                let ((deadline, _), waker) = timer.expect("the scenario waits for nothing");
                self.now.set(self.now.get().max(deadline));
                waker.wake();
                continue;
            }
            let choice = self.draw(ready.len() as u64) as usize;
            let id = *ready.iter().nth(choice).expect("in range");
            ready.remove(&id);
            self.poll(id);
        }
    }

    fn poll(self: &Rc<Self>, id: u64) {
        let taken = {
            let mut tasks = self.tasks.borrow_mut();
            tasks
                .get_mut(&id)
                .map(|slot| (slot.future.take(), slot.runtime.clone()))
        };
        let Some((Some(mut future), runtime)) = taken else {
            return;
        };
        self.polls.set(self.polls.get() + 1);
        assert!(self.polls.get() < POLLS_MAX, "a livelock");
        self.note(&[id.to_le_bytes(), self.now.get().to_le_bytes()].concat());
        let waker = Waker::from(Arc::new(TaskWaker {
            id,
            woken: self.woken.clone(),
        }));
        let outcome = {
            let _entered = ambient::enter(runtime);
            future.as_mut().poll(&mut Context::from_waker(&waker))
        };
        let mut tasks = self.tasks.borrow_mut();
        match (outcome, tasks.get_mut(&id)) {
            (Poll::Pending, Some(slot)) => slot.future = Some(future),
            (Poll::Ready(()), Some(_)) => {
                let slot = tasks.remove(&id);
                drop(tasks);
                drop((slot, future));
            }
            // Killed by its own poll.
            (_, None) => {
                drop(tasks);
                drop(future);
            }
        }
    }
}

struct TaskWaker {
    id: u64,
    woken: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.lock().expect("one thread").push(self.id);
    }
}

struct Sleep {
    world: Rc<World>,
    deadline: u64,
    timer: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.world.now.get() >= self.deadline {
            return Poll::Ready(());
        }
        let timer = self
            .timer
            .unwrap_or_else(|| (self.deadline, self.world.take_id()));
        self.timer = Some(timer);
        self.world
            .timers
            .borrow_mut()
            .insert(timer, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.world.timers.borrow_mut().remove(&timer);
        }
    }
}

struct NodeBackend {
    world: Rc<World>,
    node: NodeId,
    process: u64,
}

impl NodeBackend {
    /// Clocks of different nodes have nothing in common.
    fn origin(&self) -> u64 {
        self.node.0 * 1_000_000_000_000
    }
}

impl Backend for NodeBackend {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin() + self.world.now.get())
    }

    fn unix_time_ms(&self) -> u64 {
        self.world.now.get() / 1_000_000
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let deadline = deadline.as_nanos().saturating_sub(self.origin());
        Sleep {
            world: self.world.clone(),
            deadline,
            timer: None,
        }
        .boxed_local()
    }

    fn spawn(&self, _name: &'static str, future: LocalBoxFuture<'static, ()>) -> Task {
        let alive = self.process == OBSERVER
            || self
                .world
                .processes
                .borrow()
                .values()
                .any(|process| process.id == self.process);
        if !alive {
            return Task::new(|| {});
        }
        let runtime = Runtime::new(Rc::new(Self {
            world: self.world.clone(),
            node: self.node,
            process: self.process,
        }));
        let id = self.world.spawn(self.process, runtime, future);
        let world = Rc::downgrade(&self.world);
        Task::new(move || {
            if let Some(world) = world.upgrade() {
                let slot = world.tasks.borrow_mut().remove(&id);
                drop(slot);
            }
        })
    }

    fn random_u64(&self) -> u64 {
        self.world.draw(0)
    }
}
