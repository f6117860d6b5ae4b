//! The schedule of faults: a seeded adversary with a budget.
//!
//! Faults come as episodes: something is done to one node or to the network, lasts a while and is
//! undone. Promises:
//!
//! * never more nodes are disturbed at once than [`NemesisOptions::disturbed_max`], except by a
//!   power cut of all, and by compounds that restart what granted leases, go from one owner to
//!   the next, or leave two alone;
//! * a disturbed node may be disturbed once more, by something else;
//! * when [`Nemesis::run`] returns, every fault is undone and every node's process was started.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::NodeId;
use holdfast_runtime::task::TaskGroup;

use super::FaultClass;
use super::compound::Compound;
use crate::disk::{Damage, Moment};
use crate::network::Conditions;
use crate::random::Random;
use crate::simulation::Simulation;
use crate::trace::{Step, Timestamp};

/// Starts the process of a node that has power and no process.
pub type Starter = Rc<dyn Fn(NodeId)>;

/// Names the nodes that matter most at this moment, such as owners.
pub type Favourites = Rc<dyn Fn() -> Vec<NodeId>>;

/// Tells an operator that a node is in trouble; what it owns is moved away then.
pub type Rescuer = Rc<dyn Fn(NodeId)>;

/// What the adversary knows of a scenario.
#[derive(Clone)]
pub struct Surroundings {
    /// See [`Starter`].
    pub starter: Starter,
    /// See [`Favourites`].
    pub favourites: Favourites,
    /// See [`Rescuer`].
    pub rescuer: Rescuer,
}

impl Surroundings {
    /// Of a scenario in which no node matters more than others, and nobody moves anything.
    pub fn plain(starter: Starter) -> Self {
        Self {
            starter,
            favourites: Rc::new(Vec::new),
            rescuer: Rc::new(|_| {}),
        }
    }
}

/// Long enough for a majority to give up nodes that were never heard of, and go on.
const MAJORITY_ALONE: Duration = Duration::from_secs(8);

/// How often a favourite is chosen on purpose.
const FAVOUR_PPM: u32 = 350_000;
/// The same where little is to be learned from others.
const FAVOUR_MOST_PPM: u32 = 700_000;

/// What the adversary may do.
#[derive(Clone, Debug)]
pub struct NemesisOptions {
    /// How often each class is chosen, relative to the others. Torn and lost writes are chosen
    /// as crashes in the middle of a write or sync.
    pub weights: BTreeMap<FaultClass, u32>,
    /// The same for faults that meet at one node.
    pub compounds: BTreeMap<Compound, u32>,
    /// How often a node that is disturbed is chosen once more, in parts per million.
    pub again_ppm: u32,
    /// Time between two episodes' begins.
    pub pause: (Duration, Duration),
    /// How long an episode lasts.
    pub length: (Duration, Duration),
    /// Nodes that may be disturbed at once.
    pub disturbed_max: usize,
    /// A disturbed clock's rate.
    pub drift_ppm: u32,
    /// Whether bad weather in the network stays mild: half a percent, a millisecond.
    pub mild: bool,
    /// How long a dead process that nobody killed waits for its restart.
    pub restart_after: Duration,
}

impl NemesisOptions {
    /// Every class except damage at rest, which needs a scenario's consent.
    pub fn everyday(disturbed_max: usize) -> Self {
        let weights = [
            (FaultClass::Delay, 2),
            (FaultClass::Loss, 2),
            (FaultClass::Duplication, 1),
            (FaultClass::Reordering, 1),
            (FaultClass::OneWayPartition, 2),
            (FaultClass::FullPartition, 3),
            (FaultClass::Crash, 4),
            (FaultClass::CrashAtPoll, 4),
            (FaultClass::PowerCut, 3),
            (FaultClass::PowerCutOfAll, 1),
            (FaultClass::TornWrite, 4),
            (FaultClass::LostUnsyncedWrite, 3),
            (FaultClass::DiscardedRange, 1),
            (FaultClass::DiskError, 1),
            (FaultClass::FullDisk, 1),
            (FaultClass::SlowDisk, 2),
            (FaultClass::ShortPause, 2),
            (FaultClass::PausePastLease, 2),
            (FaultClass::ClockDrift, 1),
        ];
        Self {
            weights: weights.into_iter().collect(),
            compounds: Compound::ALL.map(|compound| (compound, 2)).into(),
            again_ppm: 150_000,
            pause: (Duration::from_millis(100), Duration::from_secs(3)),
            length: (Duration::from_millis(200), Duration::from_secs(6)),
            disturbed_max,
            drift_ppm: 1_000,
            mild: false,
            restart_after: Duration::from_millis(500),
        }
    }
}

/// What an episode does.
#[derive(Clone, Copy, Debug)]
enum Episode {
    Compound(Compound),
    Weather(Weather),
    Partition { one_way: bool },
    Node(NodeFault),
    PowerCutOfAll,
    Damage(Damage),
}

/// A network that works badly.
#[derive(Clone, Copy, Debug)]
enum Weather {
    Delay,
    Loss,
    Duplication,
    Reordering,
}

#[derive(Clone, Copy, Debug)]
enum NodeFault {
    Crash,
    CrashAtPoll,
    PowerCut,
    CrashAt(Moment),
    DiskError,
    SlowDisk,
    FullDisk,
    Pause { past_lease: bool },
    ClockDrift,
}

impl Episode {
    fn of(class: FaultClass, random: &Random) -> Self {
        match class {
            FaultClass::Delay => Self::Weather(Weather::Delay),
            FaultClass::Loss => Self::Weather(Weather::Loss),
            FaultClass::Duplication => Self::Weather(Weather::Duplication),
            FaultClass::Reordering => Self::Weather(Weather::Reordering),
            FaultClass::OneWayPartition => Self::Partition { one_way: true },
            FaultClass::FullPartition => Self::Partition { one_way: false },
            FaultClass::Crash => Self::Node(NodeFault::Crash),
            FaultClass::CrashAtPoll => Self::Node(NodeFault::CrashAtPoll),
            FaultClass::PowerCut => Self::Node(NodeFault::PowerCut),
            FaultClass::TornWrite => Self::Node(NodeFault::CrashAt(Moment::Write)),
            FaultClass::LostUnsyncedWrite => Self::Node(NodeFault::CrashAt(Moment::Sync)),
            FaultClass::DiscardedRange => Self::Node(NodeFault::CrashAt(Moment::Discard)),
            FaultClass::PowerCutOfAll => Self::PowerCutOfAll,
            FaultClass::Corruption => Self::Damage(Damage::FlipBits),
            FaultClass::MisplacedWrite if random.chance(500_000) => {
                Self::Damage(Damage::LoseNextWrite)
            }
            FaultClass::MisplacedWrite => Self::Damage(Damage::MisdirectNextWrite),
            FaultClass::UnreadablePage => Self::Damage(Damage::Unreadable),
            FaultClass::StaleRead => Self::Damage(Damage::StaleRead),
            FaultClass::LyingSync => Self::Damage(Damage::LieAtNextSync),
            FaultClass::DiskError => Self::Node(NodeFault::DiskError),
            FaultClass::FullDisk => Self::Node(NodeFault::FullDisk),
            FaultClass::SlowDisk => Self::Node(NodeFault::SlowDisk),
            FaultClass::ShortPause => Self::Node(NodeFault::Pause { past_lease: false }),
            FaultClass::PausePastLease => Self::Node(NodeFault::Pause { past_lease: true }),
            FaultClass::ClockDrift => Self::Node(NodeFault::ClockDrift),
        }
    }
}

impl Weather {
    const fn set(self, conditions: &mut Conditions, ppm: u32, delay_ns: u64) {
        match self {
            Self::Delay => conditions.extra_delay_ns = delay_ns,
            Self::Loss => conditions.loss_ppm = ppm,
            Self::Duplication => conditions.duplicate_ppm = ppm,
            Self::Reordering => conditions.reorder_ppm = ppm,
        }
    }
}

/// The adversary.
pub struct Nemesis {
    pub(super) simulation: Simulation,
    options: NemesisOptions,
    pub(super) surroundings: Surroundings,
    pub(super) random: Random,
    /// By how many episodes each node is disturbed.
    disturbed: RefCell<BTreeMap<NodeId, u32>>,
    compounds: RefCell<BTreeMap<Compound, u64>>,
}

impl Nemesis {
    /// An adversary of all hosts of the simulation, who hurts favourites more often than others.
    pub fn new(
        simulation: Simulation,
        options: NemesisOptions,
        surroundings: Surroundings,
    ) -> Rc<Self> {
        let random = simulation.random("nemesis");
        let disturbed = RefCell::default();
        Rc::new(Self {
            simulation,
            options,
            surroundings,
            random,
            disturbed,
            compounds: RefCell::default(),
        })
    }

    /// Fires episodes for `duration`, then heals everything.
    pub async fn run(self: &Rc<Self>, duration: Duration) {
        let runtime = self.simulation.runtime();
        let end = runtime.now() + duration;
        let mut episodes = TaskGroup::default();
        let keeper = self.clone();
        episodes.add(runtime.spawn(
            "nemesis-restarts",
            async move { keeper.restart_dead().await },
        ));
        loop {
            let (shortest, longest) = self.options.pause;
            let pause = self.random.duration(shortest, longest);
            if runtime.now() + pause >= end {
                runtime.sleep_until(end).await;
                break;
            }
            runtime.sleep(pause).await;
            if let Some(episode) = self.choose() {
                let nemesis = self.clone();
                let playing = async move { nemesis.episode(episode).await };
                episodes.add(runtime.spawn("nemesis", playing));
            }
        }
        drop(episodes);
        self.heal();
    }

    /// Undoes every fault at once and starts what is not running.
    pub fn heal(&self) {
        self.say("heals everything".to_owned());
        self.simulation.network().heal();
        for node in self.simulation.hosts() {
            self.simulation.disks(node).heal();
            self.simulation.disarm_kill(node);
            self.simulation.reset_drift(node);
            self.revive(node);
        }
        self.disturbed.borrow_mut().clear();
    }

    fn choose(&self) -> Option<Episode> {
        let NemesisOptions {
            weights, compounds, ..
        } = &self.options;
        let all = weights.values().chain(compounds.values());
        let total: u64 = all.map(|weight| u64::from(*weight)).sum();
        if total == 0 {
            return None;
        }
        let mut left = self.random.below(total);
        for (class, weight) in weights {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return Some(Episode::of(*class, &self.random)),
            }
        }
        for (compound, weight) in compounds {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return Some(Episode::Compound(*compound)),
            }
        }
        None
    }

    /// How often each compound was played.
    pub fn compounds(&self) -> BTreeMap<Compound, u64> {
        self.compounds.borrow().clone()
    }

    async fn episode(&self, episode: Episode) {
        match episode {
            Episode::Compound(compound) => {
                if let Some(node) = self.disturb_one(FAVOUR_MOST_PPM) {
                    self.say(format!("{compound} at node {node}"));
                    *self.compounds.borrow_mut().entry(compound).or_default() += 1;
                    self.play(compound, node).await;
                    self.revive(node);
                    self.calm_down(node);
                }
            }
            Episode::Weather(weather) => self.bad_weather(weather).await,
            Episode::Partition { one_way } => self.partition(one_way).await,
            Episode::PowerCutOfAll => self.power_cut_of_all().await,
            Episode::Damage(damage) => self.damage(damage),
            Episode::Node(fault) => {
                if let Some(node) = self.disturb_one(FAVOUR_PPM) {
                    self.say(format!("{fault:?} of node {node}"));
                    self.bad_node(fault, node).await;
                    self.revive(node);
                    self.calm_down(node);
                }
            }
        }
    }

    async fn bad_weather(&self, weather: Weather) {
        let hosts = self.simulation.hosts();
        // One node's paths, or everyone's.
        let victim = self
            .random
            .pick(&hosts)
            .copied()
            .filter(|_| self.random.chance(600_000));
        let grades = if self.options.mild { 1 } else { 3 };
        let ppm = [5_000, 50_000, 250_000][self.random.below(grades) as usize];
        let delay_ns = [1_000_000, 20_000_000, 400_000_000][self.random.below(grades) as usize];
        let wanted = |from, to| victim.is_none_or(|victim| victim == from || victim == to);
        self.say(format!(
            "{weather:?} of {victim:?}: {ppm} ppm, {delay_ns} ns"
        ));
        self.each_pair(wanted, |conditions| weather.set(conditions, ppm, delay_ns));
        self.last().await;
        self.each_pair(wanted, |conditions| weather.set(conditions, 0, 0));
    }

    async fn partition(&self, one_way: bool) {
        let Some(first) = self.disturb_one(FAVOUR_PPM) else {
            return;
        };
        let mut island: BTreeSet<NodeId> = [first].into_iter().collect();
        while self.random.chance(300_000)
            && let Some(more) = self.disturb_one(FAVOUR_PPM)
        {
            island.insert(more);
        }
        let hosts = self.simulation.hosts();
        // The island against all others, or against some of them only.
        let partial = self.random.chance(400_000);
        let others: BTreeSet<NodeId> = hosts
            .iter()
            .copied()
            .filter(|_| !partial || self.random.chance(500_000))
            .collect();
        let outbound = self.random.chance(500_000);
        let cut = |from: NodeId, to: NodeId| {
            let outside = |node: &NodeId| !island.contains(node) && others.contains(node);
            let leaves = island.contains(&from) && outside(&to);
            let enters = island.contains(&to) && outside(&from);
            match one_way {
                true => (leaves && outbound) || (enters && !outbound),
                false => leaves || enters,
            }
        };
        let class = if one_way {
            FaultClass::OneWayPartition
        } else {
            FaultClass::FullPartition
        };
        self.say(format!(
            "{class} around {island:?}, other side {others:?}, outbound {outbound}"
        ));
        self.each_pair(cut, |conditions| conditions.blocked = Some(class));
        self.last().await;
        self.each_pair(cut, |conditions| conditions.blocked = None);
        for node in &island {
            self.calm_down(*node);
        }
    }

    async fn power_cut_of_all(&self) {
        let hosts = self.simulation.hosts();
        self.say("cuts the power of all".to_owned());
        for node in &hosts {
            *self.disturbed.borrow_mut().entry(*node).or_default() += 1;
        }
        let victim = hosts
            .iter()
            .copied()
            .find(|node| self.simulation.disks(*node).may_be_damaged());
        self.simulation.cut_power(&hosts);
        self.last().await;
        // Together, or far enough apart for the first to go ahead without the last.
        let apart = [Duration::from_millis(300), Duration::from_secs(4)];
        let apart = apart[self.random.below(2) as usize];
        let mut order = hosts;
        self.random.shuffle(&mut order);
        // Damage matters most to whoever comes back before the undamaged copies do.
        let alone = victim.filter(|_| self.random.chance(500_000));
        if let Some(victim) = alone {
            order.retain(|node| *node != victim);
            order.insert(0, victim);
        }
        let majority = order.len() / 2 + 1;
        for (already, node) in order.into_iter().enumerate() {
            let runtime = self.simulation.runtime();
            if alone.is_some() && already == majority {
                runtime.sleep(MAJORITY_ALONE).await;
            }
            runtime
                .sleep(self.random.duration(Duration::ZERO, apart))
                .await;
            self.revive(node);
            self.calm_down(node);
        }
    }

    async fn bad_node(&self, fault: NodeFault, node: NodeId) {
        let simulation = &self.simulation;
        let disks = simulation.disks(node);
        match fault {
            NodeFault::Crash => {
                simulation.kill(node);
                self.last().await;
            }
            NodeFault::CrashAtPoll => {
                // Early polls hit the start, later ones the traffic.
                let bound = [50, 1_000, 20_000][self.random.below(3) as usize];
                if self.random.chance(300_000) {
                    simulation.kill(node);
                    self.revive(node);
                }
                simulation.kill_after_polls(node, self.random.below(bound));
                self.last().await;
                simulation.disarm_kill(node);
            }
            NodeFault::PowerCut => {
                simulation.cut_power(&[node]);
                self.last().await;
            }
            NodeFault::CrashAt(moment) => {
                let (world, kill) = (simulation.clone(), self.random.chance(300_000));
                disks.at_next(moment, move || {
                    if kill {
                        world.kill(node);
                    } else {
                        world.cut_power(&[node]);
                    }
                });
                self.last().await;
                disks.heal();
            }
            NodeFault::DiskError => {
                disks.set_error_ppm([2_000, 50_000][self.random.below(2) as usize]);
                self.last().await;
                disks.set_error_ppm(0);
                // A poisoned store recovers only by a restart.
                simulation.kill(node);
            }
            NodeFault::SlowDisk => {
                disks.set_slow_factor([10, 100, 1_000][self.random.below(3) as usize]);
                self.last().await;
                disks.set_slow_factor(1);
            }
            NodeFault::FullDisk => {
                disks.set_full(true);
                self.last().await;
                disks.set_full(false);
            }
            NodeFault::Pause { past_lease } => {
                let lease = simulation.options().lease;
                let (shortest, longest) = match past_lease {
                    false => (lease / 100, lease * 9 / 10),
                    true => (lease * 11 / 10, lease * 3),
                };
                simulation.pause(node);
                simulation
                    .runtime()
                    .sleep(self.random.duration(shortest, longest))
                    .await;
            }
            NodeFault::ClockDrift => {
                let bound = self.options.drift_ppm as i32;
                let drift_ppm = if self.random.chance(500_000) {
                    bound
                } else {
                    -bound
                };
                simulation.set_drift(node, drift_ppm);
                self.last().await;
                simulation.reset_drift(node);
            }
        }
    }

    /// What was damaged before a start is met by the recovery.
    fn damage_while_down(&self, node: NodeId) {
        let wanted = self.options.weights.contains_key(&FaultClass::Corruption);
        let disks = self.simulation.disks(node);
        if wanted && self.random.chance(750_000) && disks.may_be_damaged() {
            let pages = self.random.between(1, 6);
            self.say(format!(
                "FlipBits on node {node} while it is down, {pages} times"
            ));
            for _ in 0..pages {
                disks.damage(Damage::FlipBits);
            }
        }
    }

    fn damage(&self, damage: Damage) {
        let mut candidates = self.simulation.hosts();
        candidates.retain(|node| self.simulation.disks(*node).may_be_damaged());
        let Some(node) = self.random.pick(&candidates) else {
            return;
        };
        self.say(format!("{damage:?} on node {node}"));
        self.simulation.disks(*node).damage(damage);
    }

    /// Takes an undisturbed node into the budget, or one that is in it already.
    fn disturb_one(&self, favour_ppm: u32) -> Option<NodeId> {
        let mut disturbed = self.disturbed.borrow_mut();
        if !disturbed.is_empty() && self.random.chance(self.options.again_ppm) {
            let nodes: Vec<NodeId> = disturbed.keys().copied().collect();
            let node = self.random.pick(&nodes).copied()?;
            *disturbed.entry(node).or_default() += 1;
            return Some(node);
        }
        if disturbed.len() >= self.options.disturbed_max {
            return None;
        }
        let mut calm = self.simulation.hosts();
        calm.retain(|node| !disturbed.contains_key(node));
        if self.random.chance(favour_ppm) {
            let favourites = (self.surroundings.favourites)();
            if calm.iter().any(|node| favourites.contains(node)) {
                calm.retain(|node| favourites.contains(node));
            }
        }
        let node = self.random.pick(&calm).copied()?;
        disturbed.insert(node, 1);
        Some(node)
    }

    /// Takes this very node into the budget, whether there is room or not, if it is calm.
    pub(super) fn disturb(&self, node: NodeId) -> bool {
        let mut disturbed = self.disturbed.borrow_mut();
        let calm = !disturbed.contains_key(&node);
        if calm {
            disturbed.insert(node, 1);
        }
        calm
    }

    /// An episode at this node is over.
    pub(super) fn calm_down(&self, node: NodeId) {
        let mut disturbed = self.disturbed.borrow_mut();
        if let Some(episodes) = disturbed.get_mut(&node) {
            *episodes -= 1;
            if *episodes == 0 {
                disturbed.remove(&node);
            }
        }
    }

    pub(super) fn revive(&self, node: NodeId) {
        self.simulation.restore_power(node);
        self.simulation.resume(node);
        if self.simulation.incarnation(node).is_none() {
            self.damage_while_down(node);
            (self.surroundings.starter)(node);
        }
    }

    /// Restarts processes that ended on their own, as a service manager would.
    async fn restart_dead(&self) {
        loop {
            self.simulation
                .runtime()
                .sleep(self.options.restart_after)
                .await;
            for node in self.simulation.hosts() {
                let calm = !self.disturbed.borrow().contains_key(&node);
                if calm && self.simulation.incarnation(node).is_none() {
                    self.say(format!("restarts node {node}, which ended"));
                    self.revive(node);
                }
            }
        }
    }

    async fn last(&self) {
        let (shortest, longest) = self.options.length;
        let length = self.random.duration(shortest, longest);
        self.simulation.runtime().sleep(length).await;
    }

    pub(super) fn each_pair(
        &self,
        wanted: impl Fn(NodeId, NodeId) -> bool,
        change: impl Fn(&mut Conditions),
    ) {
        let hosts = self.simulation.hosts();
        for from in &hosts {
            for to in &hosts {
                if from != to && wanted(*from, *to) {
                    self.simulation.network().change(*from, *to, &change);
                }
            }
        }
    }

    pub(super) fn say(&self, words: String) {
        let at = Timestamp(self.simulation.now_ns());
        self.simulation.note(
            Step::Fault,
            0,
            crate::trace::digest(words.as_bytes()),
            || format!("nemesis at {at}: {words}"),
        );
    }
}
