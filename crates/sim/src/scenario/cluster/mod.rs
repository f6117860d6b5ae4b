//! A whole cluster of real nodes under every fault, with real volumes and concurrent clients.
//!
//! ```text
//!  found, join, create ─▶ clients + faults ─▶ heal ─▶ audit ─▶ power cut of all ─▶ audit
//! ```
//!
//! Oracles: every block is linearizable from begin to end (so no acknowledged write is lost and
//! nothing comes back); at most one owner per view; the same config state at the same index;
//! bounded journals; service and full redundancy again after healing; identical copies at the end.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::NodeId;
use holdfast_runtime::task::TaskGroup;

use crate::disk::DamagePolicy;
use crate::faults::nemesis::{Nemesis, Surroundings};
use crate::random::Random;
use crate::report::{Failure, SeedResult};
use crate::runner::{Checked, Scenario, run_seed};
use crate::simulation::{Options, Simulation};
use crate::trace::TraceText;

mod audit;
mod birth;
mod client;
mod deleting;
mod draining;
mod eviction;
pub mod gate;
mod growth;
mod hosts;
pub mod link_cuts;
mod mesh;
mod moving;
mod node;
mod readdress;
mod reading;
mod redundancy;
mod relocating;
mod reserving;
mod sessions;
mod shape;
mod spread;
#[cfg(test)]
mod tests;
mod vast;

use audit::Audit;
use client::Workload;
use moving::Troubles;
use node::Nodes;
use shape::{Mood, Shape};

/// The scenario.
#[derive(Clone, Copy, Debug)]
pub struct Cluster;

/// How many pages' worth of damage one run does to its victim.
const DAMAGE_BUDGET: u32 = 30;

/// The numbers of hosts and readers in reports.
const HOSTS_FROM: u64 = 20;
const READERS_FROM: u64 = 40;
const RIVALS_FROM: u64 = 60;

impl Scenario for Cluster {
    fn name(&self) -> &'static str {
        "cluster"
    }

    fn run(&self, seed: u64, trace: TraceText) -> SeedResult {
        run_seed(options(seed, trace), play)
    }
}

/// The world of a seed's cluster.
fn options(seed: u64, trace: TraceText) -> Options {
    let lease = holdfast_replica::LEASE_GRACE;
    let (network, disk) = shape::draw_world(&Random::new(seed).fork("world"));
    Options {
        trace,
        lease,
        network,
        disk,
        ..Options::new(seed)
    }
}

async fn play(simulation: Simulation) -> Result<Checked, Failure> {
    let shape = Shape::draw(&simulation.random("shape"));
    let nodes = Nodes::new(simulation.clone(), shape.clone());
    let volumes = nodes.found().await?;
    let workload = Workload::new(nodes.clone(), volumes);
    workload.allow_resets();
    let audit = Audit::new(workload.clone());
    let runtime = simulation.runtime();
    let mut background = TaskGroup::default();
    background.add(runtime.spawn("audit", audit.clone().keep_sampling()));
    let is_hostile = shape.mood == Mood::Hostile;
    for node in shape.nodes.iter().filter(|_| is_hostile) {
        let watching = audit.clone().keep_watching(*node);
        background.add(runtime.spawn("audit", watching));
    }
    vast::fill(&workload).await?;
    audit.begin_calm().await?;
    let stop = Rc::new(Cell::new(false));
    for (index, volume) in shape.volumes.iter().enumerate() {
        if let Some(growth) = volume.growth.clone() {
            let growing = growth::grow(workload.clone(), index, growth);
            background.add(runtime.spawn("grower", growing));
        }
    }
    if let Some(doom) = shape.doom.clone() {
        let evicting = eviction::evict(workload.clone(), doom);
        background.add(runtime.spawn("evictor", evicting));
    }
    for client in 1..=shape.clients {
        background.add(runtime.spawn("client", workload.clone().client(client, stop.clone())));
    }
    for host in 1..=shape.hosts {
        let writing = hosts::keep_writing(workload.clone(), HOSTS_FROM + host, stop.clone());
        background.add(runtime.spawn("host", writing));
    }
    for reader in 1..=shape.readers {
        let reading = reading::keep_reading(workload.clone(), READERS_FROM + reader, stop.clone());
        background.add(runtime.spawn("reader", reading));
    }
    if let Some(victim) = shape.victim {
        // Named twice, the journal is hit twice as often.
        let areas = ["journal", "journal", "home"].map(str::to_owned).to_vec();
        simulation.disks(victim).set_policy(DamagePolicy {
            areas,
            at_rest: shape.damaged_at_rest.clone(),
            budget: DAMAGE_BUDGET,
        });
    }
    let sharing = shape
        .reserves
        .then(|| reserving::Sharing::new(workload.clone()));
    if let Some(sharing) = &sharing {
        background.add(runtime.spawn("rivals", sharing.clone().play(stop.clone())));
    }
    let starter = {
        let nodes = nodes.clone();
        Rc::new(move |node| nodes.start(node))
    };
    let favourites = {
        let (nodes, victim) = (nodes.clone(), shape.victim);
        Rc::new(move || nodes.owners().into_iter().chain(victim).collect())
    };
    let troubles = Rc::new(Troubles::default());
    let rescuer = {
        let troubles = troubles.clone();
        Rc::new(move |node| troubles.tell(node))
    };
    let surroundings = Surroundings {
        starter,
        favourites,
        rescuer,
    };
    let nemesis = Nemesis::new(simulation.clone(), shape.nemesis.clone(), surroundings);
    if shape.mood == Mood::Hostile {
        let rescuing = moving::keep_rescuing(workload.clone(), troubles, stop.clone());
        background.add(runtime.spawn("rescuer", rescuing));
        background.add(runtime.spawn("operator", operate(nodes.clone(), stop.clone())));
        let moving = moving::keep_moving(workload.clone(), stop.clone());
        background.add(runtime.spawn("mover", moving));
        let relocating = relocating::keep_relocating(workload.clone(), stop.clone());
        background.add(runtime.spawn("relocater", relocating));
        if shape.drains {
            let draining = draining::keep_draining(workload.clone(), stop.clone());
            background.add(runtime.spawn("drainer", draining));
        }
        if shape.deletes {
            let deleting = deleting::keep_deleting(workload.clone(), stop.clone());
            background.add(runtime.spawn("deleter", deleting));
        }
    }
    nemesis.run(shape.disturbed_for).await;
    workload.verdict()?;
    let keeper = keep_running(nodes.clone());
    background.add(runtime.spawn("service manager", keeper));
    runtime.sleep(Duration::from_secs(2)).await;
    stop.set(true);
    audit.after_healing().await?;
    spread::expect(&audit, &nodes).await?;
    audit.end_calm();
    let all = simulation.hosts();
    let running = nodes.with_process();
    simulation.cut_power(&all);
    runtime.sleep(Duration::from_millis(300)).await;
    readdress::move_all(&nodes, &running);
    for node in &all {
        simulation.restore_power(*node);
    }
    audit.after_healing().await?;
    mesh::expect_whole(&audit, &nodes).await?;
    let reservations = match &sharing {
        Some(sharing) => sharing.finish().await?,
        None => reserving::Figures::default(),
    };
    let mut checker = workload.checker.borrow_mut();
    checker
        .finish()
        .map_err(|violation| Failure::oracle("linearizability", violation))?;
    let counts = &workload.counts;
    let compounds = nemesis.compounds().into_iter();
    let compounds = compounds.map(|(compound, times)| (compound.name(), times));
    Ok(Checked {
        operations: checker.operations() + reservations.operations,
        figures: compounds
            .chain([
                ("reads served", counts.reads.get()),
                ("writes acknowledged", counts.writes.get()),
                ("writes of unknown outcome", counts.unknown.get()),
                ("operations failed", counts.failed.get()),
                ("errors because of damage", counts.damaged.get()),
                ("volumes grown", counts.grown.get()),
                ("nodes evicted", counts.evicted.get()),
                ("nodes drained", counts.drained.get()),
                ("nodes removed", counts.removed.get()),
                ("copies relocated", counts.relocated.get()),
                ("volumes moved", counts.moved.get()),
                ("volumes deleted", counts.deleted.get()),
                ("blocks compared and written", counts.swapped.get()),
                ("comparisons failed", counts.not_swapped.get()),
                ("long writes", counts.long_writes.get()),
                ("reservations taken away", reservations.taken),
                ("writes refused as reserved", reservations.refused),
                ("paths given up", workload.sessions.given_up.get()),
                ("volumes of thousands of slices", u64::from(shape.is_vast())),
                ("changes compared with the one before", audit.judged()),
                ("volumes lost to damage", audit.lost_volumes()),
                ("views with an owner", audit.views()),
                ("node starts refused", nodes.starts_refused.get()),
            ])
            .collect(),
    })
}

/// Now and then an operator stops a node in good order; the service manager starts it again.
async fn operate(nodes: Rc<Nodes>, stop: Rc<Cell<bool>>) {
    let simulation = nodes.simulation.clone();
    let random = simulation.random("operator");
    loop {
        let pause = random.duration(Duration::from_secs(2), Duration::from_secs(15));
        simulation.runtime().sleep(pause).await;
        let Some(id) = random.pick(&nodes.shape.nodes).copied() else {
            return;
        };
        if stop.get() {
            return;
        }
        stop_in_good_order(&nodes, id).await;
    }
}

async fn stop_in_good_order(nodes: &Rc<Nodes>, id: NodeId) {
    let simulation = &nodes.simulation;
    let Some((incarnation, node)) = nodes.get(id) else {
        return;
    };
    nodes.say(id, || "is stopped in good order".to_owned());
    let weak = Rc::downgrade(&node);
    drop(node);
    let stopping = simulation.call(id, "shutdown", async move {
        if let Some(node) = weak.upgrade() {
            node.shutdown().await;
        }
    });
    // An operator's patience ends too.
    let _ = simulation
        .runtime()
        .timeout(Duration::from_secs(12), stopping)
        .await;
    if simulation.incarnation(id) == Some(incarnation) {
        simulation.end(id);
    }
}

/// Starts every process that has ended.
async fn keep_running(nodes: Rc<Nodes>) {
    let simulation = nodes.simulation.clone();
    loop {
        for id in &nodes.shape.nodes {
            if simulation.is_powered(*id) && simulation.incarnation(*id).is_none() {
                nodes.start(*id);
            }
        }
        simulation.runtime().sleep(Duration::from_millis(200)).await;
    }
}
