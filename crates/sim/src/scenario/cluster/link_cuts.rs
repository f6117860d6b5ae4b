//! A whole cluster of real nodes whose links are cut: single ones, in one direction, and random
//! sets of them, for longer than every time-out.
//!
//! ```text
//!  found, join, create ─▶ [ cut ─▶ 10 to 45 s ─▶ heal ─▶ redundancy ] * ─▶ audit
//! ```
//!
//! Oracles: those of the cluster scenario, and service without a gap: a node that is connected to
//! a majority, over however many others, serves every volume of which that majority holds a copy
//! of each slice. A cut costs at most the time in which silence is noticed, and nothing flaps
//! afterwards.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::NodeId;
use holdfast_runtime::task::TaskGroup;
use holdfast_wire::VolumeId;

use super::audit::Audit;
use super::client::{Ended, Range, Workload};
use super::node::Nodes;
use super::shape::Shape;
use crate::faults::FaultClass;
use crate::oracle::service::{Path, Service};
use crate::random::Random;
use crate::report::{Failure, SeedResult};
use crate::runner::{Checked, Scenario, run_seed};
use crate::simulation::Simulation;
use crate::trace::{Step, TraceText, digest};

/// The scenario.
#[derive(Clone, Copy, Debug)]
pub struct LinkCuts;

/// The longest gap that cut links, or their return, may cost.
const GAP_BOUND: Duration = Duration::from_secs(3);
/// Once a cut has been dealt with, operations are served as always.
const SETTLED_AFTER: Duration = Duration::from_secs(6);
/// What an operation may take then.
const SETTLED_BOUND: Duration = Duration::from_secs(1);
const ROUNDS: u64 = 3;
const CUT_FOR: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(45));
const BETWEEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));
/// A prober's pause between two operations.
const THINK: Duration = Duration::from_millis(150);
const PROBE_LIMIT: Duration = Duration::from_secs(40);
const JUDGE_EVERY: Duration = Duration::from_millis(100);
/// Client numbers of probers in reports.
const PROBERS_FROM: u64 = 1_000;

/// From, to.
type Direction = (NodeId, NodeId);

impl Scenario for LinkCuts {
    fn name(&self) -> &'static str {
        "link-cuts"
    }

    fn run(&self, seed: u64, trace: TraceText) -> SeedResult {
        run_seed(super::options(seed, trace), play)
    }
}

/// What the probers and the judge share.
struct Watch {
    workload: Rc<Workload>,
    service: RefCell<Service>,
    /// The same once a cut has been dealt with.
    settled: RefCell<Service>,
    stop: Cell<bool>,
    served: Cell<u64>,
}

async fn play(simulation: Simulation) -> Result<Checked, Failure> {
    let random = simulation.random("cuts");
    let shape = Shape::draw_for_cuts(&simulation.random("shape"));
    let nodes = Nodes::new(simulation.clone(), shape.clone());
    let volumes = nodes.found().await?;
    let workload = Workload::new(nodes.clone(), volumes);
    let audit = Audit::new(workload.clone());
    let runtime = simulation.runtime();
    let mut background = TaskGroup::default();
    background.add(runtime.spawn("audit", audit.clone().keep_sampling()));
    let stop = Rc::new(Cell::new(false));
    for client in 1..=shape.clients {
        background.add(runtime.spawn("client", workload.clone().client(client, stop.clone())));
    }
    audit.expect_redundancy().await?;
    let watch = Rc::new(Watch {
        workload: workload.clone(),
        service: RefCell::new(Service::new(GAP_BOUND)),
        settled: RefCell::new(Service::new(SETTLED_BOUND)),
        stop: Cell::new(false),
        served: Cell::new(0),
    });
    for (index, node) in shape.nodes.iter().enumerate() {
        for volume in 0..workload.volumes.len() {
            let probing = watch.clone().probe(index as u64, *node, volume);
            background.add(runtime.spawn("prober", probing));
        }
    }
    background.add(runtime.spawn("judge", watch.clone().keep_judging()));
    let mut cuts = 0;
    for _ in 0..ROUNDS {
        runtime.sleep(random.duration(BETWEEN.0, BETWEEN.1)).await;
        workload.verdict()?;
        cuts += watch.round(&random).await?;
        audit.expect_redundancy().await?;
    }
    watch.expect_nothing();
    watch.stop.set(true);
    stop.set(true);
    audit.after_healing().await?;
    let mut checker = workload.checker.borrow_mut();
    checker
        .finish()
        .map_err(|violation| Failure::oracle("linearizability", violation))?;
    Ok(Checked {
        operations: checker.operations(),
        figures: vec![
            ("directions cut", cuts),
            ("probes served", watch.served.get()),
            ("views with an owner", audit.views()),
        ],
    })
}

impl Watch {
    /// Cuts something for a while, and expects service where it is possible.
    async fn round(&self, random: &Random) -> Result<u64, Failure> {
        let nodes = &self.workload.nodes;
        let simulation = &nodes.simulation;
        let runtime = simulation.runtime();
        let cut = self.draw(random);
        let one_way = cut.iter().any(|(from, to)| !cut.contains(&(*to, *from)));
        let class = match one_way {
            true => FaultClass::OneWayPartition,
            false => FaultClass::FullPartition,
        };
        let island = majority(&nodes.shape.nodes, &cut);
        let words = format!("cuts {cut:?}; {island:?} stay connected");
        simulation.note(Step::Fault, 0, digest(words.as_bytes()), || words);
        for (from, to) in &cut {
            simulation
                .network()
                .change(*from, *to, |conditions| conditions.blocked = Some(class));
        }
        let due = self.due(&island);
        self.expect(&self.service, due.clone());
        let length = random.duration(CUT_FOR.0, CUT_FOR.1);
        runtime.sleep(SETTLED_AFTER).await;
        self.expect(&self.settled, due);
        runtime.sleep(length.saturating_sub(SETTLED_AFTER)).await;
        self.expect(&self.settled, Vec::new());
        self.workload.verdict()?;
        simulation.note(Step::Fault, 0, 0, || "the links are whole again".to_owned());
        simulation.network().heal();
        Ok(cut.len() as u64)
    }

    /// Which directions to cut: never so many that no majority stays connected.
    fn draw(&self, random: &Random) -> BTreeSet<Direction> {
        let nodes = &self.workload.nodes.shape.nodes;
        loop {
            let cut = match random.below(6) {
                0 => both(self.owner_and_leader(random)),
                1 => both(self.pair(random)),
                2 => BTreeSet::from([self.pair(random)]),
                3 => isolated(random, nodes),
                4 => chain(random, nodes),
                _ => some(random, nodes),
            };
            if !cut.is_empty() && !majority(nodes, &cut).is_empty() {
                return cut;
            }
        }
    }

    fn pair(&self, random: &Random) -> Direction {
        let mut nodes = self.workload.nodes.shape.nodes.clone();
        random.shuffle(&mut nodes);
        (nodes[0], nodes[1])
    }

    /// The link that an owner's proposals take, if they are two nodes.
    fn owner_and_leader(&self, random: &Random) -> Direction {
        let nodes = &self.workload.nodes;
        let owner = random.pick(&nodes.owners()).copied();
        let leader = owner
            .and_then(|owner| nodes.get(owner))
            .and_then(|(_, node)| node.group().leader());
        match (owner, leader) {
            (Some(owner), Some(leader)) if owner != leader => (owner, leader),
            (Some(_) | None, Some(_) | None) => self.pair(random),
        }
    }

    /// The portals of connected nodes, for each volume that is probed and of which they hold a copy
    /// that counts of every slice.
    fn due(&self, island: &BTreeSet<NodeId>) -> Vec<Path> {
        let nodes = &self.workload.nodes;
        let seen = island.iter().filter_map(|id| nodes.get(*id));
        let newest = seen.max_by_key(|(_, node)| *node.watch().borrow());
        let Some(state) = newest.map(|(_, node)| node.state()) else {
            return Vec::new();
        };
        let probed = |volume: &VolumeId| self.workload.volumes.contains(volume);
        let volumes = state.volumes.iter().filter(|(id, _)| probed(id));
        let held = volumes.filter(|(_, volume)| {
            let mut slices = volume.slices.values();
            slices.all(|slice| slice.in_sync().any(|node| island.contains(&node)))
        });
        held.flat_map(|(volume, _)| island.iter().map(|portal| (*portal, volume.0)))
            .collect()
    }

    fn expect(&self, service: &RefCell<Service>, paths: Vec<Path>) {
        let now_ns = self.workload.nodes.simulation.now_ns();
        service.borrow_mut().expect(now_ns, paths);
    }

    fn expect_nothing(&self) {
        self.expect(&self.service, Vec::new());
        self.expect(&self.settled, Vec::new());
    }

    /// Reads and writes one block of a volume through one portal for ever.
    async fn probe(self: Rc<Self>, index: u64, node: NodeId, volume: usize) {
        let workload = &self.workload;
        let simulation = &workload.nodes.simulation;
        let region = workload.regions(volume)[0];
        let range = Range::whole(volume, region).part(index, 1);
        let path = (node, workload.volumes[volume].0);
        // A host that gives its session up for one volume gives up nobody else's.
        let client = PROBERS_FROM + index * workload.volumes.len() as u64 + volume as u64;
        let mut writes = true;
        while !self.stop.get() {
            let ended = match writes {
                true => {
                    workload
                        .write(client, node, range, PROBE_LIMIT, false)
                        .await
                }
                false => workload.read(client, node, range, PROBE_LIMIT).await,
            };
            if ended == Ended::Served {
                self.served.set(self.served.get() + 1);
                writes = !writes;
                let now_ns = simulation.now_ns();
                for service in [&self.service, &self.settled] {
                    self.judge(service.borrow_mut().served(now_ns, path));
                }
            }
            simulation.runtime().sleep(THINK).await;
        }
    }

    /// Objects while a gap lasts: an operation that hangs for ever is never served.
    async fn keep_judging(self: Rc<Self>) {
        let simulation = &self.workload.nodes.simulation;
        loop {
            simulation.runtime().sleep(JUDGE_EVERY).await;
            for service in [&self.service, &self.settled] {
                self.judge(service.borrow().judge(simulation.now_ns()));
            }
        }
    }

    fn judge(&self, verdict: Result<(), crate::oracle::service::Gap>) {
        if let Err(gap) = verdict {
            self.workload.object(Failure::oracle("service", gap));
        }
    }
}

fn both((one, other): Direction) -> BTreeSet<Direction> {
    BTreeSet::from([(one, other), (other, one)])
}

/// One node, or two, from all others.
fn isolated(random: &Random, nodes: &[NodeId]) -> BTreeSet<Direction> {
    let mut order = nodes.to_vec();
    random.shuffle(&mut order);
    let inside = &order[..random.between(1, 2) as usize];
    let mut cut = BTreeSet::new();
    for one in inside {
        for other in nodes.iter().filter(|node| !inside.contains(node)) {
            cut.extend(both((*one, *other)));
        }
    }
    cut
}

/// All links but those of a chain: each node reaches its neighbours only.
fn chain(random: &Random, nodes: &[NodeId]) -> BTreeSet<Direction> {
    let mut order = nodes.to_vec();
    random.shuffle(&mut order);
    let mut cut = BTreeSet::new();
    for (at, one) in order.iter().enumerate() {
        for other in order.iter().skip(at + 2) {
            cut.extend(both((*one, *other)));
        }
    }
    cut
}

/// Each direction, or each link, with some probability.
fn some(random: &Random, nodes: &[NodeId]) -> BTreeSet<Direction> {
    let ppm = [150_000, 350_000, 600_000][random.below(3) as usize];
    let one_way = random.chance(400_000);
    let mut cut = BTreeSet::new();
    for one in nodes {
        for other in nodes.iter().filter(|other| *other > one) {
            if one_way {
                cut.extend(
                    [(*one, *other), (*other, *one)]
                        .into_iter()
                        .filter(|_| random.chance(ppm)),
                );
            } else if random.chance(ppm) {
                cut.extend(both((*one, *other)));
            }
        }
    }
    cut
}

/// The nodes that stay connected over links that work in both directions, if they are more than
/// half; nobody otherwise.
fn majority(nodes: &[NodeId], cut: &BTreeSet<Direction>) -> BTreeSet<NodeId> {
    let linked = |one: NodeId, other: NodeId| {
        one != other && !cut.contains(&(one, other)) && !cut.contains(&(other, one))
    };
    for start in nodes {
        let mut reached = BTreeSet::from([*start]);
        let mut next = vec![*start];
        while let Some(node) = next.pop() {
            for other in nodes.iter().filter(|other| linked(node, **other)) {
                if reached.insert(*other) {
                    next.push(*other);
                }
            }
        }
        if reached.len() * 2 > nodes.len() {
            return reached;
        }
    }
    BTreeSet::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{Amount, Plan, run_seeds};

    const NODES: [NodeId; 5] = [NodeId(1), NodeId(2), NodeId(3), NodeId(4), NodeId(5)];

    #[test]
    fn a_majority_is_connected_over_links_that_work_both_ways() {
        let one_way = BTreeSet::from([(NodeId(1), NodeId(2))]);
        assert_eq!(majority(&NODES, &one_way), NODES.into());
        let random = Random::new(1);
        assert_eq!(majority(&NODES, &chain(&random, &NODES)), NODES.into());
        let alone = NODES[1..].iter().map(|node| (NodeId(1), *node)).collect();
        assert_eq!(
            majority(&NODES, &alone),
            NODES[1..].iter().copied().collect()
        );
        let all: BTreeSet<Direction> = NODES
            .iter()
            .flat_map(|one| NODES.iter().map(move |other| (*one, *other)))
            .collect();
        assert_eq!(majority(&NODES, &all), BTreeSet::new());
    }

    #[test]
    fn cut_links_cost_no_more_than_the_silence_bound() {
        let plan = Plan {
            start: 0,
            amount: Amount::Seeds(4),
            threads: 2,
            trace: TraceText::Off,
            repeat_every: 4,
            stop_at_failure: false,
            bug: None,
        };
        let report = run_seeds(&LinkCuts, plan, |_, _| {});
        assert!(report.passed(), "{}", report.to_table());
    }
}
