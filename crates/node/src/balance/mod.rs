//! Volumes move to other owners so that the nodes bear alike.
//!
//! ```text
//!  every node: what its process and its owners do ── gossip ──► every node
//!  the leader, now and then: survey ─ plan ─ the same for a while? ─ one move ─ rest
//!  any node, asked: survey ─ plan ──► whoever asked makes the moves, one by one
//! ```
//!
//! What must always hold:
//!
//! * one move at a time, and after each and after every change of the cluster a rest: what is
//!   measured next is measured with it;
//! * a volume that somebody has placed stays there; one that is not open, lacks copies or has had
//!   another owner a moment ago is left alone;
//! * the config group judges each move by the view for which it was planned: of a move and a
//!   takeover the first in the log wins.

mod copies;
mod plan;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_config::state::{ClusterState, NodeStatus, VolumeRecord};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use holdfast_volume::Traffic;
use holdfast_wire::VolumeId;
use serde::{Deserialize, Serialize};

use crate::moves::MoveCause;
use crate::node::Node;
use plan::{Borne, Rates, Survey};

pub use copies::{Holding, PlannedCopy, plan_copies};
pub use plan::{Effort, PlannedMove};

const MOVE_LIMIT: Duration = Duration::from_secs(10);
/// How often a node measures itself.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// The weight of what was measured before, in eighths: about the last half minute counts.
const KEPT_EIGHTHS: u64 = 7;
/// Where a node's load is published.
const LOAD_KEY: &str = "load";
/// The volumes of a node that are published one by one; they fit into one value.
const PUBLISHED_MAX: usize = 50;
/// Loads are published in steps of this, so that an idle node has nothing new to say.
const STEP_US: u64 = 1_000;

/// How eagerly volumes move by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalanceOptions {
    /// How often the leader looks.
    pub look_every: Duration,
    /// So many looks in a row have to find the same node to be the one that bears too much.
    pub looks: u32,
    /// Nothing moves for so long after a node came or went.
    pub settled_for: Duration,
    /// A volume moves by itself only once in so long.
    pub again_after: Duration,
}

impl Default for BalanceOptions {
    fn default() -> Self {
        Self {
            look_every: Duration::from_secs(10),
            looks: 3,
            settled_for: Duration::from_secs(60),
            again_after: Duration::from_secs(600),
        }
    }
}

/// What a node tells of its load; its postcard form is published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct NodeLoad {
    /// CPU time of its process, in [`STEP_US`] for each second.
    cpu_steps: u64,
    /// The same for volumes that it owns, by what their I/O is reckoned to cost.
    volumes: Vec<(u64, u64)>,
}

/// How the load is spread, and what would make it more even.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalanceReport {
    /// Whether volumes move by themselves.
    pub automatic: bool,
    /// What each node bears, in microseconds of CPU time for each second.
    pub loads_us: BTreeMap<NodeId, u64>,
    /// The moves that would make it more even, in their order.
    pub moves: Vec<PlannedMove>,
    /// Volumes that stay because somebody has placed them.
    pub placed: Vec<VolumeId>,
}

/// Which volumes may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All but those that somebody has placed.
    Unplaced,
    /// Those, too.
    All,
}

/// What this node has measured.
#[derive(Default)]
pub(crate) struct Measures {
    load: RefCell<NodeLoad>,
}

/// What was counted at the last measurement.
#[derive(Default)]
struct Counted {
    at: Option<Instant>,
    cpu: Duration,
    cpu_us: u64,
    volumes: BTreeMap<VolumeId, (Traffic, u64)>,
}

impl Counted {
    /// Takes new counts in; the mean of the last half minute or so.
    fn measure(
        &mut self,
        now: Instant,
        cpu: Duration,
        traffic: BTreeMap<VolumeId, Traffic>,
    ) -> NodeLoad {
        let passed_us = self
            .at
            .replace(now)
            .map(|before| now.saturating_since(before).as_micros() as u64);
        let a_second = |count: u64| match passed_us {
            Some(passed_us) if passed_us > 0 => count.saturating_mul(1_000_000) / passed_us,
            Some(_) | None => 0,
        };
        let mean = |before: u64, new: u64| (before * KEPT_EIGHTHS + new) / (KEPT_EIGHTHS + 1);
        let used = cpu.saturating_sub(std::mem::replace(&mut self.cpu, cpu));
        self.cpu_us = mean(self.cpu_us, a_second(used.as_micros() as u64));
        let mut before = std::mem::take(&mut self.volumes);
        for (volume, traffic) in traffic {
            let (earlier, work_us) = before.remove(&volume).unwrap_or((traffic, 0));
            let rates = Rates {
                reads: a_second(traffic.reads.saturating_sub(earlier.reads)),
                writes: a_second(traffic.writes.saturating_sub(earlier.writes)),
                bytes: a_second(traffic.bytes.saturating_sub(earlier.bytes)),
            };
            let work_us = mean(work_us, rates.work_us());
            self.volumes.insert(volume, (traffic, work_us));
        }
        let steps = self.volumes.iter();
        let steps = steps.map(|(volume, (_, work_us))| (volume.0, work_us / STEP_US));
        let mut volumes: Vec<(u64, u64)> = steps.filter(|(_, steps)| *steps > 0).collect();
        volumes.sort_by_key(|(volume, steps)| (std::cmp::Reverse(*steps), *volume));
        volumes.truncate(PUBLISHED_MAX);
        NodeLoad {
            cpu_steps: self.cpu_us / STEP_US / 10 * 10,
            volumes,
        }
    }
}

/// What the leader remembers between its looks.
#[derive(Default)]
struct Watch {
    /// Nodes with their starts that take part, and since when it is these.
    nodes: Vec<(NodeId, Incarnation)>,
    since: Instant,
    /// The node that bears too much, and how many looks in a row have said so.
    burdened: Option<(NodeId, u32)>,
    moved: BTreeMap<VolumeId, Instant>,
}

impl Watch {
    /// Whether the cluster has been the same for long enough to judge it.
    fn is_settled(&mut self, now: Instant, state: &ClusterState, options: &BalanceOptions) -> bool {
        let running = state
            .nodes
            .iter()
            .filter(|(_, record)| matches!(record.status, NodeStatus::Up | NodeStatus::Leaving));
        let nodes = running.map(|(node, record)| (*node, record.incarnation));
        let nodes: Vec<(NodeId, Incarnation)> = nodes.collect();
        if self.nodes != nodes {
            (self.nodes, self.since, self.burdened) = (nodes, now, None);
        }
        now.saturating_since(self.since) >= options.settled_for
    }

    /// The move to make now, if the same node has been burdened for long enough.
    fn judge(&mut self, first: Option<PlannedMove>, looks: u32) -> Option<PlannedMove> {
        let from = first.map(|planned| planned.from);
        self.burdened = match (self.burdened, from) {
            (_, None) => None,
            (Some((node, seen)), Some(from)) if node == from => Some((node, seen + 1)),
            (_, Some(from)) => Some((from, 1)),
        };
        let long_enough = self.burdened.is_some_and(|(_, seen)| seen >= looks);
        first.filter(|_| long_enough)
    }
}

impl Node {
    /// Measures what this node does, and lets the others know.
    pub(crate) async fn keep_measuring(self: Rc<Self>) {
        let runtime = self.context.runtime.clone();
        let mut counted = Counted::default();
        loop {
            let traffic: BTreeMap<VolumeId, Traffic> = (self.owners.borrow().iter())
                .map(|(volume, owner)| (*volume, owner.traffic()))
                .collect();
            let load = counted.measure(runtime.now(), runtime.cpu_time(), traffic);
            let encoded = postcard::to_stdvec(&load).expect("plain data always encodes");
            *self.measures.load.borrow_mut() = load;
            if let Err(error) = self.gossip.publish(LOAD_KEY, Bytes::from(encoded)) {
                tracing::debug!(%error, "this node's load is not published");
            }
            self.drain_meter.borrow_mut().measure(
                runtime.now(),
                &self.group.state().draining,
                &self.context.copied,
            );
            runtime.sleep_roughly(MEASURE_EVERY).await;
        }
    }

    /// While this node leads, volumes move from nodes that bear too much.
    pub(crate) async fn keep_balancing(self: Rc<Self>) {
        let runtime = self.context.runtime.clone();
        let options = self.options.balance;
        let mut watch = Watch::default();
        loop {
            runtime.sleep_roughly(options.look_every).await;
            let state = self.group.state();
            let off = state.rebalancing_off || planted::is_active(Bug::NeverRebalance);
            if !self.group.is_leader() || off || self.leaving.get() {
                watch = Watch::default();
                continue;
            }
            let now = runtime.now();
            if !watch.is_settled(now, &state, &options) {
                continue;
            }
            watch
                .moved
                .retain(|_, moved| now.saturating_since(*moved) < options.again_after);
            let lately: BTreeSet<VolumeId> = watch.moved.keys().copied().collect();
            let may_move =
                |volume: VolumeId| !lately.contains(&volume) && self.moves.permits(now, volume);
            let survey = self.survey(&state, Scope::Unplaced, may_move);
            let planned = plan::plan(&survey, Effort::Gentle).first().copied();
            let Some(planned) = watch.judge(planned, options.looks) else {
                continue;
            };
            let PlannedMove {
                volume, view, to, ..
            } = planned;
            tracing::info!(%volume, from = %planned.from, %to, "moving a volume to spread load");
            watch.moved.insert(volume, now);
            watch.burdened = None;
            let moved = self.move_volume(volume, view, to, MoveCause::Balance, MOVE_LIMIT);
            if let Err(error) = moved.await {
                tracing::info!(%volume, %to, %error, "a volume was not moved to spread the load");
            }
        }
    }

    /// How the load is spread as far as this node knows, and the moves that `effort` is worth.
    pub fn balance(&self, scope: Scope, effort: Effort) -> BalanceReport {
        let state = self.group.state();
        let survey = self.survey(&state, scope, |_| true);
        BalanceReport {
            automatic: !state.rebalancing_off,
            loads_us: plan::loads(&survey),
            moves: plan::plan(&survey, effort),
            placed: match scope {
                Scope::Unplaced => state.placed.keys().copied().collect(),
                Scope::All => Vec::new(),
            },
        }
    }

    fn survey(
        &self,
        state: &ClusterState,
        scope: Scope,
        may_move: impl Fn(VolumeId) -> bool,
    ) -> Survey {
        let loads = self.loads(state);
        let work_us = |owner: NodeId, volume: VolumeId| {
            let told = loads.get(&owner);
            let told = told.and_then(|load| load.volumes.iter().find(|(id, _)| *id == volume.0));
            told.map_or(0, |(_, steps)| steps * STEP_US)
        };
        let up = state.nodes.iter();
        let up = up.filter(|(_, record)| record.status == NodeStatus::Up);
        let cpu_us = up.map(|(node, _)| {
            let told = loads.get(node);
            (*node, told.map_or(0, |load| load.cpu_steps * STEP_US))
        });
        let volumes = state.volumes.iter().filter_map(|(id, record)| {
            let owner = record.owner?.node;
            let placed = scope == Scope::Unplaced && state.placed.contains_key(id);
            let moves = !placed && is_whole(state, *id, record) && may_move(*id);
            Some(Borne {
                volume: *id,
                view: record.view,
                owner,
                work_us: work_us(owner, *id),
                targets: match moves {
                    true => state.good_owners(*id),
                    false => Vec::new(),
                },
            })
        });
        Survey {
            cpu_us: cpu_us.collect(),
            volumes: volumes.collect(),
        }
    }

    /// What the present starts of all nodes have published.
    fn loads(&self, state: &ClusterState) -> BTreeMap<NodeId, NodeLoad> {
        let mut loads = BTreeMap::new();
        for (node, published) in self.gossip.snapshot() {
            let record = state.nodes.get(&node);
            let present = record.is_some_and(|record| record.incarnation == published.incarnation);
            let value = published.values.get(LOAD_KEY).filter(|_| present);
            if let Some(load) = value.and_then(|bytes| postcard::from_bytes(bytes).ok()) {
                loads.insert(node, load);
            }
        }
        loads.insert(self.id(), self.measures.load.borrow().clone());
        loads
    }
}

/// Whether a volume serves with every copy that its running nodes can have.
fn is_whole(state: &ClusterState, id: VolumeId, record: &VolumeRecord) -> bool {
    let missing = record.slices.holders().iter();
    let mut missing = missing.filter(|held| held.in_sync < held.copies);
    record.open
        && !state.growing.contains_key(&id)
        && missing.all(|held| state.running_incarnation(held.node).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::default() + Duration::from_secs(s)
    }

    fn traffic(reads: u64, writes: u64, bytes: u64) -> Traffic {
        Traffic {
            reads,
            writes,
            bytes,
        }
    }

    #[test]
    fn load_is_measured_by_rates_and_forgotten_within_a_minute_or_two() {
        let mut counted = Counted::default();
        let mut cpu = Duration::ZERO;
        let mut load = NodeLoad::default();
        for second in (0..=120).step_by(5) {
            let writes = second * 1_000;
            let volumes = BTreeMap::from([
                (VolumeId(1), traffic(0, 0, 0)),
                (VolumeId(2), traffic(0, writes, writes * 4096)),
            ]);
            load = counted.measure(at(second), cpu, volumes);
            cpu += Duration::from_millis(1_500);
        }
        // 1,000 writes of 4 KiB a second.
        let (volume, steps) = load.volumes[0];
        assert_eq!((volume, load.volumes.len()), (2, 1));
        assert!((90..=101).contains(&steps), "{steps}");
        assert!((270..=300).contains(&load.cpu_steps), "{}", load.cpu_steps);
        for second in (125..=400).step_by(5) {
            let volumes = BTreeMap::from([(VolumeId(2), traffic(0, 120_000, 120_000 * 4096))]);
            load = counted.measure(at(second), cpu, volumes);
        }
        assert_eq!(
            load,
            NodeLoad::default(),
            "an idle node has nothing new to say"
        );
    }

    #[test]
    fn the_load_of_many_busy_volumes_fits_into_what_can_be_published() {
        let mut counted = Counted::default();
        let volumes = |count: u64| {
            (1..=500).map(move |id| (VolumeId(id << 40), traffic(count, count, count)))
        };
        counted.measure(at(0), Duration::ZERO, volumes(0).collect());
        let load = counted.measure(at(5), Duration::MAX, volumes(u64::MAX >> 20).collect());
        let encoded = postcard::to_stdvec(&load).expect("plain data");
        assert!(
            encoded.len() <= holdfast_gossip::VALUE_BYTES_MAX,
            "{}",
            encoded.len()
        );
    }

    #[test]
    fn a_node_has_to_be_burdened_for_a_while_before_anything_moves() {
        let planned = |from| {
            Some(PlannedMove {
                volume: VolumeId(1),
                view: holdfast_wire::View(1),
                from: NodeId(from),
                to: NodeId(9),
                weight_us: 1,
            })
        };
        let mut watch = Watch::default();
        for first in [
            planned(1),
            planned(1),
            planned(2),
            planned(2),
            None,
            planned(2),
        ] {
            assert_eq!(watch.judge(first, 3), None);
        }
        assert_eq!(watch.judge(planned(2), 3), None);
        assert_eq!(watch.judge(planned(2), 3), planned(2));
    }
}
