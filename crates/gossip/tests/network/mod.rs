//! A virtual-time network of pure cores: one queue, one seed, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use holdfast_gossip::{Command, Core, Event, HealthChange, Member, Options, Status};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One-way delay of a datagram.
const DELAY_US: std::ops::Range<u64> = 50..1_000;

struct Process {
    incarnation: Incarnation,
    core: Core,
    wake_at: Option<Instant>,
}

pub(crate) struct Network {
    pub(crate) now: Instant,
    /// Datagrams lost on the way, of 100.
    pub(crate) loss_percent: u32,
    /// Every change of belief: when, by whom, what.
    pub(crate) changes: Vec<(Instant, NodeId, HealthChange)>,
    /// Datagrams sent, and their bytes.
    pub(crate) sent: (u64, u64),
    /// Ticks delivered.
    pub(crate) ticks: u64,
    /// Whose incoming datagrams to keep in `recorded`.
    pub(crate) record_to: Option<NodeId>,
    pub(crate) recorded: Vec<Vec<u8>>,
    random: ChaCha8Rng,
    processes: BTreeMap<NodeId, Process>,
    paused: BTreeSet<NodeId>,
    /// Pairs that cannot talk.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// In flight, by time of arrival and order of sending.
    in_flight: BTreeMap<(Instant, u64), (NodeId, Event)>,
}

impl Network {
    /// Nodes 1 ..= `nodes`, all started at incarnation 1 and linked.
    pub(crate) fn new(nodes: u64, seed: u64) -> Self {
        let mut network = Self {
            now: Instant::from_nanos(1_000_000_000),
            loss_percent: 0,
            changes: Vec::new(),
            sent: (0, 0),
            ticks: 0,
            record_to: None,
            recorded: Vec::new(),
            random: ChaCha8Rng::seed_from_u64(seed),
            processes: BTreeMap::new(),
            paused: BTreeSet::new(),
            cut: BTreeSet::new(),
            in_flight: BTreeMap::new(),
        };
        let all: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        for node in all.clone() {
            network.start(node, Incarnation(1), all.clone());
        }
        network
    }

    /// Starts a process and its links to those that run.
    pub(crate) fn start(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        peers: BTreeSet<NodeId>,
    ) {
        let seed = self.random.random();
        let member = Member { node, incarnation };
        let (core, commands) = Core::start(self.now, member, Options::default(), seed);
        self.processes.insert(
            node,
            Process {
                incarnation,
                core,
                wake_at: None,
            },
        );
        self.execute(node, commands);
        self.deliver(node, Event::Peers(peers));
        for other in self.others(node) {
            let others_incarnation = self.processes[&other].incarnation;
            self.send_later(other, Event::LinkUp(node, incarnation));
            self.send_later(node, Event::LinkUp(other, others_incarnation));
        }
    }

    /// Ends a process without a sound, as if its machine died.
    pub(crate) fn kill_silently(&mut self, node: NodeId) {
        self.processes.remove(&node);
        self.in_flight.retain(|_, (to, _)| *to != node);
    }

    /// Ends a process on a host that lives on and refuses connections.
    pub(crate) fn kill_process(&mut self, node: NodeId) {
        let incarnation = self.processes[&node].incarnation;
        self.kill_silently(node);
        for other in self.others(node) {
            self.send_later(other, Event::LinkRefused(node, incarnation));
        }
    }

    /// Stops a process; what is sent to it waits.
    pub(crate) fn pause(&mut self, node: NodeId) {
        self.paused.insert(node);
    }

    /// Lets a process go on: its timers first, then what waits.
    pub(crate) fn resume(&mut self, node: NodeId) {
        self.paused.remove(&node);
    }

    /// Lets no datagram pass between the two sides, without a sign of it.
    pub(crate) fn partition(&mut self, one_side: &[u64], other_side: &[u64]) {
        for (a, b) in one_side
            .iter()
            .flat_map(|a| other_side.iter().map(move |b| (*a, *b)))
        {
            self.cut
                .extend([(NodeId(a), NodeId(b)), (NodeId(b), NodeId(a))]);
        }
    }

    /// Ends every partition.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Hands an event to a process now.
    pub(crate) fn deliver(&mut self, node: NodeId, event: Event) {
        if let Some(process) = self.processes.get_mut(&node) {
            let commands = process.core.handle(self.now, event);
            self.execute(node, commands);
        }
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until the condition holds; `None` if it does not within the limit.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        condition: impl Fn(&Self) -> bool,
    ) -> Option<Duration> {
        let (start, end) = (self.now, self.now + limit);
        while !condition(self) {
            if !self.step(end) {
                self.now = end;
                return condition(self).then_some(limit);
            }
        }
        Some(self.now - start)
    }

    pub(crate) fn core(&self, node: u64) -> &Core {
        &self.processes[&NodeId(node)].core
    }

    pub(crate) fn core_mut(&mut self, node: u64) -> &mut Core {
        &mut self
            .processes
            .get_mut(&NodeId(node))
            .expect("the process runs")
            .core
    }

    pub(crate) fn running(&self) -> Vec<u64> {
        self.processes.keys().map(|node| node.0).collect()
    }

    /// Whether every running process but `of` itself believes this of it.
    pub(crate) fn all_believe(&self, of: u64, incarnation: u64, status: Status) -> bool {
        self.running()
            .into_iter()
            .filter(|observer| *observer != of)
            .all(|observer| {
                let health = self.core(observer).health().get(&NodeId(of));
                health.is_some_and(|health| {
                    health.incarnation == Incarnation(incarnation) && health.status == status
                })
            })
    }

    /// Whether all running processes believe all of them alive at incarnation 1.
    pub(crate) fn all_alive(&self) -> bool {
        self.running()
            .into_iter()
            .all(|node| self.all_believe(node, 1, Status::Alive))
    }

    fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.processes
            .keys()
            .copied()
            .filter(|other| *other != node)
            .collect()
    }

    /// Delivers what is next, if that is before `end`.
    fn step(&mut self, end: Instant) -> bool {
        let awake = |node: &NodeId| !self.paused.contains(node);
        let arrival = (self.in_flight.iter())
            .find(|(_, (to, _))| awake(to))
            .map(|(key, _)| (key.0.max(self.now), *key));
        let wake = (self.processes.iter())
            .filter(|(node, _)| awake(node))
            .filter_map(|(node, process)| Some((process.wake_at?.max(self.now), *node)))
            .min();
        match (arrival, wake) {
            (arrival, Some((at, node)))
                if at < end && arrival.is_none_or(|(arrives, _)| at <= arrives) =>
            {
                self.now = at;
                self.ticks += 1;
                if let Some(process) = self.processes.get_mut(&node) {
                    process.wake_at = None;
                }
                self.deliver(node, Event::Tick);
                true
            }
            (Some((at, key)), _) if at < end => {
                self.now = at;
                if let Some((to, event)) = self.in_flight.remove(&key) {
                    self.deliver(to, event);
                }
                true
            }
            _ => false,
        }
    }

    fn send_later(&mut self, to: NodeId, event: Event) {
        let delay = Duration::from_micros(self.random.random_range(DELAY_US));
        let order = self
            .in_flight
            .keys()
            .map(|(_, order)| order + 1)
            .max()
            .unwrap_or(0);
        self.in_flight
            .insert((self.now + delay, order), (to, event));
    }

    fn execute(&mut self, node: NodeId, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Send { to, bytes } => self.send(node, to, bytes),
                Command::WakeAt(deadline) => {
                    if let Some(process) = self.processes.get_mut(&node) {
                        process.wake_at = Some(deadline);
                    }
                }
                Command::Health(change) => self.changes.push((self.now, node, change)),
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, bytes: Bytes) {
        self.sent.0 += 1;
        self.sent.1 += bytes.len() as u64;
        let lost = self.random.random_range(0..100) < self.loss_percent;
        let reachable = self.processes.contains_key(&to) && !self.cut.contains(&(from, to));
        if reachable && !lost {
            if self.record_to == Some(to) {
                self.recorded.push(bytes.to_vec());
            }
            let incarnation = self.processes[&from].incarnation;
            self.send_later(
                to,
                Event::Datagram {
                    from,
                    incarnation,
                    bytes,
                },
            );
        }
    }
}
