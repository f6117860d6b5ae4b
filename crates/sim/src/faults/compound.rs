//! Faults that meet at one node. One at a time, each of them is survived by accident; what holds
//! them apart in the code under test is seen only when they meet, in the order that hurts.
//!
//! | compound | what it is after |
//! |---|---|
//! | granters restart | copies that have forgotten the leases they granted, while the owner still holds them |
//! | cut and pause | an owner that wakes up, cut off, in the middle of what it did before |
//! | cut and slow disk | reads that were begun under a lease and end long after it |
//! | pause at a read | the same, with nothing noticed in between |
//! | late answers | a lease that is granted long before its owner hears of it |
//! | long cut | every time limit runs out, that of a proposal too |
//! | long pause | hosts give the portal up meanwhile, write elsewhere, and overwrite |
//! | cut, then restart | an owner that starts anew while its former office still holds leases |
//! | disk fills again | a node that ends for want of space, again and again, and is all right otherwise |
//! | former owner returns | what an owner that was cut off says when it learns that its office is over |
//!
//! A successor that waits until somebody is found to be gone comes after every lease has ended. So
//! in most compounds an operator moves volumes away from the node at once, now and then.

use std::fmt;
use std::time::Duration;

use holdfast_runtime::NodeId;

use super::FaultClass;
use super::nemesis::Nemesis;
use crate::disk::Moment;
use crate::simulation::Options;

/// See the module's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compound {
    /// The node is cut off; at once some of the others are killed and start again.
    GrantersRestart,
    /// The node is cut off and stands still for a part of the time.
    CutAndPause,
    /// The node is cut off while its disk takes long.
    CutAndSlowDisk,
    /// The node stands still from its next disk read on.
    PauseAtRead,
    /// What one node says to it takes long; the others are cut off from it.
    LateAnswers,
    /// The node is cut off for longer than any time limit, alone or with one that has just started.
    LongCut,
    /// The node stands still for longer than hosts wait.
    LongPause,
    /// The node is cut off, and killed and started again meanwhile.
    CutAndRestart,
    /// The node's disk is full, several times in a row.
    DiskFillsAgain,
    /// The node was cut off and returns; at once its successor is cut off.
    FormerOwnerReturns,
}

impl Compound {
    /// Every compound.
    pub const ALL: [Self; 10] = [
        Self::GrantersRestart,
        Self::CutAndPause,
        Self::CutAndSlowDisk,
        Self::PauseAtRead,
        Self::LateAnswers,
        Self::LongCut,
        Self::LongPause,
        Self::CutAndRestart,
        Self::DiskFillsAgain,
        Self::FormerOwnerReturns,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GrantersRestart => "compound: granters restart",
            Self::CutAndPause => "compound: cut and pause",
            Self::CutAndSlowDisk => "compound: cut and slow disk",
            Self::PauseAtRead => "compound: pause at a read",
            Self::LateAnswers => "compound: late answers",
            Self::LongCut => "compound: long cut",
            Self::LongPause => "compound: long pause",
            Self::CutAndRestart => "compound: cut and restart",
            Self::DiskFillsAgain => "compound: disk fills again",
            Self::FormerOwnerReturns => "compound: owner returns",
        }
    }
}

impl fmt::Display for Compound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How long hosts may wait for a command, and more.
const LONG_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(9));
/// Longer than the longest limit of a proposal, ten seconds.
const LONG_CUT: (Duration, Duration) = (Duration::from_secs(11), Duration::from_secs(18));

impl Nemesis {
    /// Plays a compound at `node`; the caller revives the node afterwards.
    pub(super) async fn play(&self, compound: Compound, node: NodeId) {
        let simulation = &self.simulation;
        let lease = simulation.options().lease;
        match compound {
            Compound::GrantersRestart => {
                self.cut_off(node);
                self.wait(Duration::ZERO, lease / 2).await;
                // A majority that goes on decides the move in time; few enough may be all that
                // have granted something.
                let others = self.others(node);
                let count = [1, 2, others.len()][self.random.below(3) as usize];
                self.restart_some(others, count);
                self.may_rescue(node);
                self.wait(lease, lease * 2).await;
                self.join_again(node);
            }
            Compound::CutAndPause => {
                let first = self.random.chance(500_000);
                if first {
                    self.cut_off(node);
                    self.wait(Duration::ZERO, lease).await;
                }
                simulation.pause(node);
                if !first {
                    self.wait(Duration::ZERO, lease).await;
                    self.cut_off(node);
                }
                self.may_rescue(node);
                self.wait(lease / 10, lease * 2).await;
                simulation.resume(node);
                self.wait(lease / 2, lease * 2).await;
                self.join_again(node);
            }
            Compound::CutAndSlowDisk => {
                let disks = simulation.disks(node);
                // An operation that has begun takes as long as it was to take then.
                let sync_ns = [200, 700, 2_500][self.random.below(3) as usize] * 1_000_000;
                disks.set_slow_factor(sync_ns / simulation.options().disk.sync_ns);
                self.wait(Duration::ZERO, lease / 2).await;
                self.cut_off(node);
                self.may_rescue(node);
                self.wait(lease, lease * 3).await;
                disks.set_slow_factor(1);
                self.join_again(node);
            }
            Compound::PauseAtRead => {
                let disks = simulation.disks(node);
                let world = simulation.clone();
                disks.at_next(Moment::Read, move || world.pause(node));
                let cut = self.random.chance(500_000);
                self.wait(lease / 10, lease / 2).await;
                if cut {
                    self.cut_off(node);
                }
                self.may_rescue(node);
                self.wait(lease, lease * 3).await;
                simulation.resume(node);
                self.wait(lease / 4, lease).await;
                if cut {
                    self.join_again(node);
                }
                disks.heal();
            }
            Compound::LateAnswers => {
                // What one node says, or what all say; and for a part of the time none is heard.
                let others = self.others(node);
                let one = self.random.chance(500_000);
                let late = self.random.pick(&others).copied().filter(|_| one);
                let delay = match one {
                    true => self.random.duration(lease / 3, lease * 2),
                    false => self.random.duration(lease / 8, lease / 2),
                };
                let delay_ns = crate::random::nanos(delay);
                let is_late =
                    |from, to| to == node && from != node && late.is_none_or(|late| late == from);
                self.each_pair(is_late, |conditions| conditions.extra_delay_ns = delay_ns);
                self.wait(lease / 4, lease * 2).await;
                let cut = |from: NodeId, to: NodeId| {
                    (from == node || to == node) && late != Some(from) && late != Some(to)
                };
                self.block(cut, true);
                self.may_rescue(node);
                self.wait(lease, lease * 3).await;
                self.block(cut, false);
                self.each_pair(is_late, |conditions| conditions.extra_delay_ns = 0);
            }
            Compound::LongCut => self.long_cut(node).await,
            Compound::LongPause => {
                simulation.pause(node);
                self.wait(LONG_PAUSE.0, LONG_PAUSE.1).await;
                simulation.resume(node);
            }
            Compound::CutAndRestart => {
                self.cut_off(node);
                self.wait(Duration::ZERO, lease).await;
                simulation.kill(node);
                self.revive(node);
                self.wait(Duration::ZERO, lease * 2).await;
                self.join_again(node);
            }
            Compound::DiskFillsAgain => {
                // Three failures within an hour make a failing disk.
                for _ in 0..self.random.between(3, 4) {
                    simulation.disks(node).set_full(true);
                    self.wait(lease / 4, lease * 2).await;
                    simulation.disks(node).set_full(false);
                    self.revive(node);
                    self.wait(lease / 4, lease * 2).await;
                }
            }
            Compound::FormerOwnerReturns => self.former_owner_returns(node).await,
        }
    }

    /// Alone, or with somebody who has just started: what those two agree on, nobody else hears.
    async fn long_cut(&self, node: NodeId) {
        let others = self.others(node);
        let company = self.random.pick(&others).copied();
        let company = company.filter(|other| self.random.chance(600_000) && self.disturb(*other));
        if let Some(other) = company {
            self.restart_some(vec![other], 1);
            // What it gets back takes it a while.
            let Options { lease, disk, .. } = self.simulation.options();
            let sync_ns = [5, 20, 80][self.random.below(3) as usize] * 1_000_000;
            let disks = self.simulation.disks(other);
            disks.set_slow_factor((sync_ns / disk.sync_ns).max(1));
            self.wait(*lease / 4, *lease * 2).await;
        }
        let island = |other: NodeId| other == node || Some(other) == company;
        self.block(|from, to| island(from) != island(to), true);
        self.wait(LONG_CUT.0, LONG_CUT.1).await;
        self.block(|from, to| island(from) != island(to), false);
        if let Some(other) = company {
            self.simulation.disks(other).set_slow_factor(1);
            self.calm_down(other);
        }
    }

    async fn former_owner_returns(&self, former: NodeId) {
        let lease = self.simulation.options().lease;
        self.cut_off(former);
        self.may_rescue(former);
        self.wait(lease, lease * 3).await;
        let mut successors = (self.surroundings.favourites)();
        successors.retain(|node| *node != former);
        let successor = self.random.pick(&successors).copied();
        self.join_again(former);
        self.say(format!("node {former} is reached again"));
        if let Some(successor) = successor
            && self.disturb(successor)
        {
            if self.random.chance(500_000) {
                let mut others = self.others(successor);
                others.retain(|node| *node != former);
                self.restart_some(others, 2);
            }
            self.wait(Duration::ZERO, lease / 2).await;
            self.cut_off(successor);
            self.say(format!("cuts its successor off, node {successor}"));
            (self.surroundings.rescuer)(successor);
            self.wait(lease, lease * 2).await;
            self.join_again(successor);
            self.calm_down(successor);
        }
    }

    /// Kills up to `count` of the nodes, most of the time, and starts them again at once.
    fn restart_some(&self, mut nodes: Vec<NodeId>, count: usize) {
        self.random.shuffle(&mut nodes);
        for node in nodes.into_iter().take(count) {
            if self.random.chance(850_000) && self.simulation.is_powered(node) {
                self.simulation.kill(node);
                self.revive(node);
            }
        }
    }

    /// Now and then an operator sees at once what goes on.
    fn may_rescue(&self, node: NodeId) {
        if self.random.chance(600_000) {
            (self.surroundings.rescuer)(node);
        }
    }

    fn others(&self, node: NodeId) -> Vec<NodeId> {
        let mut others = self.simulation.hosts();
        others.retain(|other| *other != node);
        others
    }

    fn cut_off(&self, node: NodeId) {
        self.block(|from, to| from == node || to == node, true);
    }

    fn join_again(&self, node: NodeId) {
        self.block(|from, to| from == node || to == node, false);
    }

    fn block(&self, wanted: impl Fn(NodeId, NodeId) -> bool, blocked: bool) {
        let class = blocked.then_some(FaultClass::FullPartition);
        self.each_pair(wanted, |conditions| conditions.blocked = class);
    }

    async fn wait(&self, shortest: Duration, longest: Duration) {
        let length = self.random.duration(shortest, longest);
        self.simulation.runtime().sleep(length).await;
    }
}
