//! Simulated links between nodes.
//!
//! Every node keeps one dialled link to each of its peers, sends on it, and receives on the links
//! that the others dialled to it; so each ordered pair fails on its own. Promises:
//!
//! * `Refused` is reported only of an incarnation that is dead, and only while its host has
//!   power and both directions to it are open. Everything else is `Lost`, after silence;
//! * without a reordering fault, frames of one link arrive in order and at most once;
//! * a frame reaches only the process that its link was connected to;
//! * frames stopped by a partition arrive late if it heals before the silence is noticed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{DownReason, Frame, Incarnation, LinkEvent, Links, NodeId};
use tokio::sync::mpsc;

use crate::executor::{Executor, ProcessId};
use crate::faults::FaultCounts;
use crate::random::{Random, nanos};
use crate::trace::Step;

pub mod conditions;
mod delivery;
mod link;
mod places;
#[cfg(test)]
mod tests;

pub use conditions::Conditions;
use link::{Link, Phase};
use places::Places;

/// Everyday behaviour of the network.
#[derive(Clone, Copy, Debug)]
pub struct NetworkTiming {
    /// Each ordered pair draws its mean one-way latency from this range once.
    pub latency: (Duration, Duration),
    /// Nanoseconds per KiB of a frame.
    pub ns_per_kib: u64,
    /// Silence after which a link counts as lost.
    pub silence: Duration,
    /// First and longest pause between two attempts to connect.
    pub redial: (Duration, Duration),
    /// Whether a refusal is also reported when it comes after the link was already lost.
    pub refused_after_lost: bool,
}

impl Default for NetworkTiming {
    fn default() -> Self {
        Self {
            latency: (Duration::from_micros(25), Duration::from_micros(150)),
            ns_per_kib: 800,
            silence: Duration::from_secs(2),
            redial: (Duration::from_millis(20), Duration::from_millis(500)),
            refused_after_lost: true,
        }
    }
}

/// The network of one run.
pub struct Network {
    executor: Rc<Executor>,
    counts: Rc<FaultCounts>,
    random: Random,
    timing: NetworkTiming,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    endpoints: BTreeMap<NodeId, Endpoint>,
    unpowered: BTreeSet<NodeId>,
    links: BTreeMap<Pair, Link>,
    conditions: BTreeMap<Pair, Conditions>,
    places: Places,
    /// Numbers connections, so that what was meant for one does not act on its successor.
    next_number: u64,
}

/// From, to.
type Pair = (NodeId, NodeId);

struct Endpoint {
    process: ProcessId,
    incarnation: Incarnation,
    events: mpsc::UnboundedSender<LinkEvent>,
}

struct Parcel {
    pair: Pair,
    incarnation: Incarnation,
    target: ProcessId,
    link: u64,
    /// Absent on a duplicate.
    sequence: Option<u64>,
    frame: Frame,
}

/// What an attempt to connect finds.
enum Answer {
    Process(ProcessId, Incarnation),
    Refusal,
    Silence,
}

impl Network {
    pub(crate) fn new(
        executor: Rc<Executor>,
        counts: Rc<FaultCounts>,
        random: Random,
        timing: NetworkTiming,
    ) -> Rc<Self> {
        Rc::new(Self {
            executor,
            counts,
            random,
            timing,
            state: RefCell::default(),
        })
    }

    /// Changes how frames travel from one node to another.
    pub fn change(self: &Rc<Self>, from: NodeId, to: NodeId, change: impl FnOnce(&mut Conditions)) {
        change(self.state.borrow_mut().conditions(self, (from, to)));
        self.reassess((from, to));
        self.reassess((to, from));
    }

    /// Undoes every fault of the network.
    pub fn heal(self: &Rc<Self>) {
        let pairs: Vec<Pair> = {
            let mut state = self.state.borrow_mut();
            state.conditions.values_mut().for_each(Conditions::heal);
            state.conditions.keys().copied().collect()
        };
        for pair in pairs {
            self.reassess(pair);
        }
    }

    /// From its next start on a node listens at another address, and looks for others at these.
    pub fn move_to(&self, node: NodeId, address: String, sought: BTreeSet<String>) {
        self.state.borrow_mut().places.set(node, address, sought);
    }

    /// Connects a new process of `node`.
    pub(crate) fn attach(
        self: &Rc<Self>,
        node: NodeId,
        incarnation: Incarnation,
        process: ProcessId,
    ) -> Rc<dyn Links> {
        let (events, receiver) = mpsc::unbounded_channel();
        let endpoint = Endpoint {
            process,
            incarnation,
            events,
        };
        let before = self.state.borrow_mut().endpoints.insert(node, endpoint);
        assert!(before.is_none(), "node {node} has two processes");
        self.reassess_all(node);
        Rc::new(SimulatedLinks {
            network: self.clone(),
            node,
            incarnation,
            process,
            events: RefCell::new(Some(receiver)),
        })
    }

    /// The process of `node` is dead.
    pub(crate) fn detach(self: &Rc<Self>, node: NodeId) {
        {
            let mut state = self.state.borrow_mut();
            state.endpoints.remove(&node);
            state.links.retain(|(from, _), _| *from != node);
            state.places.forget(node);
        }
        self.reassess_all(node);
    }

    /// The host of `node` gained or lost its power.
    pub(crate) fn set_power(self: &Rc<Self>, node: NodeId, powered: bool) {
        {
            let unpowered = &mut self.state.borrow_mut().unpowered;
            let _ = if powered {
                unpowered.remove(&node)
            } else {
                unpowered.insert(node)
            };
        }
        self.reassess_all(node);
    }

    /// The process of `node` was paused.
    pub(crate) fn paused(self: &Rc<Self>, node: NodeId) {
        self.reassess_all(node);
    }

    /// The process of `node` goes on after a pause.
    pub(crate) fn resumed(self: &Rc<Self>, node: NodeId, pause: Duration) {
        if pause > self.timing.silence {
            // Its peers have hung up meanwhile.
            for pair in self.pairs(|(from, _)| from == node) {
                let number = self.state.borrow().links.get(&pair).map(|link| link.number);
                if let Some(number) = number {
                    self.lose(pair, number);
                }
            }
        }
        self.reassess_all(node);
    }

    fn pairs(&self, wanted: impl Fn(Pair) -> bool) -> Vec<Pair> {
        self.state
            .borrow()
            .links
            .keys()
            .copied()
            .filter(|pair| wanted(*pair))
            .collect()
    }

    fn reassess_all(self: &Rc<Self>, node: NodeId) {
        for pair in self.pairs(|(from, to)| from == node || to == node) {
            self.reassess(pair);
        }
    }

    /// Looks whether the peer of an established link still answers, and sets off what follows.
    fn reassess(self: &Rc<Self>, pair: Pair) {
        let now_ns = self.executor.now_ns();
        let answer = self.answer(pair);
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let open = state.open(pair);
        let Some(link) = state.links.get_mut(&pair) else {
            return;
        };
        let Phase::Up { process, .. } = link.phase else {
            return;
        };
        let number = link.number;
        let dead_but_reachable = match answer {
            Answer::Process(present, _) if present == process => {
                link.silent_since = None;
                false
            }
            Answer::Process(..) | Answer::Refusal => true,
            Answer::Silence => {
                if link.silent_since.is_none() {
                    link.silent_since = Some(now_ns);
                    let silence_ns = nanos(self.timing.silence);
                    // As links of the host: whole ticks are counted, so 2 s become up to 2.3 s.
                    let delay_ns = silence_ns + self.random.below(silence_ns * 3 / 20);
                    let network = self.clone();
                    self.executor.call_after(delay_ns, move || {
                        network.silence_noticed(pair, number, now_ns);
                    });
                }
                false
            }
        };
        if open && !link.stalled.is_empty() {
            let delay_ns = self.latency(state, pair) * 4;
            let network = self.clone();
            self.executor
                .call_after(delay_ns, move || network.flush(pair, number));
        } else if dead_but_reachable {
            // The host resets the connection; the dialler tries again at once.
            let delay_ns = self.latency(state, pair) * 3;
            let network = self.clone();
            self.executor
                .call_after(delay_ns, move || network.reset_noticed(pair, number));
        }
    }

    fn silence_noticed(self: &Rc<Self>, pair: Pair, number: u64, since_ns: u64) {
        let still = self
            .state
            .borrow()
            .links
            .get(&pair)
            .is_some_and(|link| link.number == number && link.silent_since == Some(since_ns));
        if still {
            self.lose(pair, number);
        }
    }

    fn reset_noticed(self: &Rc<Self>, pair: Pair, number: u64) {
        match self.answer(pair) {
            Answer::Refusal => self.take_down(pair, number, DownReason::Refused),
            Answer::Process(..) => self.take_down(pair, number, DownReason::Lost),
            // The way was cut again meanwhile: silence will be noticed.
            Answer::Silence => self.reassess(pair),
        }
    }

    fn lose(self: &Rc<Self>, pair: Pair, number: u64) {
        self.take_down(pair, number, DownReason::Lost);
    }

    fn take_down(self: &Rc<Self>, pair: Pair, number: u64, reason: DownReason) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let fresh = state.next_number();
        let Some(link) = state.links.get_mut(&pair) else {
            return;
        };
        let Phase::Up {
            process,
            incarnation,
        } = link.phase
        else {
            return;
        };
        if link.number != number {
            return;
        }
        link.go_down(fresh, reason == DownReason::Refused);
        self.tell_down(state, pair, process, incarnation, reason);
        drop(guard);
        self.dial_after(pair, fresh, Duration::ZERO);
    }

    fn tell_down(
        &self,
        state: &State,
        pair: Pair,
        process: ProcessId,
        incarnation: Incarnation,
        reason: DownReason,
    ) {
        assert!(
            reason != DownReason::Refused || !self.executor.is_alive(process),
            "a live process was reported as refused"
        );
        self.tell(
            state,
            pair,
            LinkEvent::Down {
                peer: pair.1,
                incarnation,
                reason,
            },
        );
    }

    fn tell(&self, state: &State, pair: Pair, event: LinkEvent) {
        let detail = match &event {
            LinkEvent::Up { incarnation, .. } => incarnation.0,
            LinkEvent::Down {
                incarnation,
                reason,
                ..
            } => incarnation.0 | 1 << (62 + u32::from(*reason == DownReason::Refused)),
            LinkEvent::Frame { .. } => 0,
        };
        self.executor.trace().event(
            self.executor.now_ns(),
            Step::Link,
            pair_number(pair),
            detail,
            || format!("node {} hears {event:?}", pair.0),
        );
        if let Some(endpoint) = state.endpoints.get(&pair.0) {
            // A process that does not listen to its links misses nothing.
            let _ = endpoint.events.send(event);
        }
    }

    fn dial_after(self: &Rc<Self>, pair: Pair, number: u64, pause: Duration) {
        let mut state = self.state.borrow_mut();
        let delay_ns = nanos(pause) + self.latency(&mut state, pair) * 4;
        drop(state);
        let network = self.clone();
        self.executor
            .call_after(delay_ns, move || network.dial(pair, number));
    }

    fn dial(self: &Rc<Self>, pair: Pair, number: u64) {
        let answer = self.answer(pair);
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let fresh = state.next_number();
        let Some(link) = state.links.get_mut(&pair) else {
            return;
        };
        if link.number != number || matches!(link.phase, Phase::Up { .. }) {
            return;
        }
        match answer {
            Answer::Process(process, incarnation) => {
                link.go_up(fresh, process, incarnation);
                state.places.meet(pair.0, pair.1);
                self.tell(
                    state,
                    pair,
                    LinkEvent::Up {
                        peer: pair.1,
                        incarnation,
                    },
                );
                drop(guard);
                self.reassess(pair);
            }
            Answer::Refusal => {
                let told = std::mem::replace(&mut link.refusal_told, true);
                let last_seen = link.last_seen;
                let pause = link.next_pause(self.timing.redial);
                if !told
                    && self.timing.refused_after_lost
                    && let Some((process, incarnation)) = last_seen
                {
                    self.tell_down(state, pair, process, incarnation, DownReason::Refused);
                }
                drop(guard);
                self.dial_after(pair, number, pause);
            }
            Answer::Silence => {
                let pause = link.next_pause(self.timing.redial);
                drop(guard);
                self.dial_after(pair, number, pause);
            }
        }
    }

    fn answer(&self, pair: Pair) -> Answer {
        let state = self.state.borrow();
        let (from, to) = pair;
        if state.unpowered.contains(&to) || !state.open(pair) || !state.open((to, from)) {
            return Answer::Silence;
        }
        match state.endpoints.get(&to) {
            Some(endpoint) if self.executor.is_paused(endpoint.process) => Answer::Silence,
            // Whoever is there instead is somebody else, which proves nothing.
            Some(_) | None if !state.places.finds(from, to) => Answer::Silence,
            Some(endpoint) => Answer::Process(endpoint.process, endpoint.incarnation),
            None => Answer::Refusal,
        }
    }

    fn latency(&self, state: &mut State, pair: Pair) -> u64 {
        let conditions = state.conditions(self, pair);
        let extra_ns = match conditions.extra_delay_ns {
            0 => 0,
            extra_ns => self.random.below(extra_ns),
        };
        self.random.tailed(conditions.latency_ns) + extra_ns
    }

    fn set_peers(self: &Rc<Self>, node: NodeId, process: ProcessId, peers: &BTreeSet<NodeId>) {
        if !self.executor.is_alive(process) {
            return;
        }
        for pair in self.pairs(|(from, to)| from == node && !peers.contains(&to)) {
            let number = self.state.borrow().links.get(&pair).map(|link| link.number);
            if let Some(number) = number {
                self.lose(pair, number);
            }
            self.state.borrow_mut().links.remove(&pair);
        }
        for peer in peers {
            let pair = (node, *peer);
            let mut state = self.state.borrow_mut();
            if *peer == node || state.links.contains_key(&pair) {
                continue;
            }
            let number = state.next_number();
            state.links.insert(pair, Link::new(number));
            drop(state);
            self.dial_after(pair, number, Duration::ZERO);
        }
    }
}

impl State {
    fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn open(&self, pair: Pair) -> bool {
        self.conditions
            .get(&pair)
            .is_none_or(|conditions| conditions.blocked.is_none())
    }

    fn conditions(&mut self, network: &Network, pair: Pair) -> &mut Conditions {
        self.conditions.entry(pair).or_insert_with(|| {
            let (low, high) = network.timing.latency;
            Conditions::everyday(nanos(network.random.duration(low, high)))
        })
    }
}

fn pair_number(pair: Pair) -> u64 {
    pair.0.0 << 32 | pair.1.0
}

struct SimulatedLinks {
    network: Rc<Network>,
    node: NodeId,
    incarnation: Incarnation,
    process: ProcessId,
    events: RefCell<Option<mpsc::UnboundedReceiver<LinkEvent>>>,
}

impl Links for SimulatedLinks {
    fn local_node(&self) -> NodeId {
        self.node
    }

    fn local_incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn set_peers(&self, peers: Vec<(NodeId, String)>) {
        let nodes = peers.iter().map(|(peer, _)| *peer).collect();
        let mut state = self.network.state.borrow_mut();
        for (peer, address) in peers {
            state.places.tell(self.node, peer, address);
        }
        drop(state);
        self.network.set_peers(self.node, self.process, &nodes);
    }

    fn send(&self, to: NodeId, frame: Frame) {
        // A dead process' leftovers must not speak for its successor.
        if self.network.executor.is_alive(self.process) {
            self.network.send((self.node, to), self.incarnation, frame);
        }
    }

    fn take_events(&self) -> mpsc::UnboundedReceiver<LinkEvent> {
        self.events
            .take()
            .expect("the events of a node's links are taken once")
    }
}
