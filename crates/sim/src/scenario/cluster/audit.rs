//! What is checked besides the clients' results: while the cluster runs, and once it is quiet.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures::future::try_join_all;
use holdfast_config::state::{ClusterState, CopyStatus, NodeRecord, NodeStatus, SliceRecord};
use holdfast_node::{ScrubOrder, ScrubPass};
use holdfast_runtime::{Incarnation, NodeId};
use holdfast_store::{DamagedBlocks, Store};
use holdfast_wire::{Seq, SliceKey, VolumeId};

use super::client::{Ended, Range, Workload};
use super::draining::expect_drained;
use super::redundancy::Redundancy;
use super::shape::Mood;
use super::vast::is_compared;
use crate::oracle::cluster::{MemoryBound, Ownership, Progress, compare_copies};
use crate::oracle::content::BLOCK_BYTES;
use crate::report::Failure;
use crate::trace::{Timestamp, digest};

/// Of states with thousands of slices one in so many is looked at as a whole.
const DIGEST_EVERY: u64 = 16;
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// From the end of all faults to the first served operation.
const SERVICE_BOUND: Duration = Duration::from_secs(25);
/// From the end of all faults to full redundancy.
const REDUNDANCY_BOUND: Duration = Duration::from_secs(60);
/// From then until nothing is left of deleted volumes.
const FORGETTING_BOUND: Duration = Duration::from_secs(20);
/// From then until nothing is damaged that another copy has.
const HEALING_BOUND: Duration = Duration::from_secs(90);
/// The client number of the auditor in reports.
const AUDITOR: u64 = 99;

/// Watches the cluster from outside.
pub(super) struct Audit {
    pub(super) workload: Rc<Workload>,
    ownership: RefCell<Ownership>,
    memory: RefCell<MemoryBound>,
    /// Digest of the config state by applied index: the same on every node.
    states: RefCell<BTreeMap<u64, u64>>,
    seen: RefCell<BTreeMap<NodeId, u64>>,
    /// Per volume, the first owner seen.
    first_owners: RefCell<BTreeMap<u64, Option<(NodeId, Incarnation)>>>,
    calm: Cell<bool>,
    /// Volumes whose last complete copy was damaged: honestly out of service.
    lost: RefCell<BTreeSet<usize>>,
    turn: Cell<usize>,
    pub(super) redundancy: Redundancy,
}

impl Audit {
    pub(super) fn new(workload: Rc<Workload>) -> Rc<Self> {
        let bound = workload.nodes.shape.journal_bytes;
        Rc::new(Self {
            workload,
            ownership: RefCell::default(),
            memory: RefCell::new(MemoryBound::new(bound)),
            states: RefCell::default(),
            seen: RefCell::default(),
            first_owners: RefCell::default(),
            calm: Cell::new(false),
            lost: RefCell::default(),
            turn: Cell::new(0),
            redundancy: Redundancy::default(),
        })
    }

    /// Samples all nodes for ever.
    pub(super) async fn keep_sampling(self: Rc<Self>) {
        loop {
            self.workload
                .nodes
                .simulation
                .runtime()
                .sleep(SAMPLE_EVERY)
                .await;
            for id in &self.workload.nodes.shape.nodes {
                if let Err(failure) = self.sample(*id) {
                    self.workload.object(failure);
                }
            }
        }
    }

    /// Owners seen so far.
    pub(super) fn views(&self) -> u64 {
        self.ownership.borrow().views() as u64
    }

    fn sample(&self, id: NodeId) -> Result<(), Failure> {
        let Some((incarnation, node)) = self.workload.nodes.get(id) else {
            return Ok(());
        };
        let report = node.report();
        for owner in node.owner_statuses().iter().filter(|owner| owner.open) {
            self.ownership
                .borrow_mut()
                .acted(owner.volume.0, owner.view.0, id, incarnation)
                .map_err(|error| Failure::oracle("ownership", error))?;
        }
        self.memory
            .borrow_mut()
            .holds(id, "journal", report.usage.journal_used_bytes)
            .map_err(|error| Failure::oracle("memory", error))?;
        let index = *node.watch().borrow();
        if self.seen.borrow_mut().insert(id, index) == Some(index) {
            return Ok(());
        }
        let state = node.state();
        self.expect_calm(&state)?;
        if self.workload.nodes.shape.is_vast() && !index.is_multiple_of(DIGEST_EVERY) {
            return Ok(());
        }
        state.check();
        let digest = digest(format!("{state:?}").as_bytes());
        let agreed = *self.states.borrow_mut().entry(index).or_insert(digest);
        if agreed != digest {
            let what = format!("node {id} has another state than others at index {index}");
            return Err(Failure::oracle("config agreement", what));
        }
        Ok(())
    }

    /// While only frames get lost now and then, no copy falls out and no owner changes.
    fn expect_calm(&self, state: &ClusterState) -> Result<(), Failure> {
        if !self.calm.get() {
            return Ok(());
        }
        for (id, volume) in &state.volumes {
            let copies = volume.slices.values().flat_map(SliceRecord::copies);
            let fallen = copies
                .filter(|copy| copy.status == CopyStatus::Stale)
                .count();
            let owner = volume.owner.map(|owner| (owner.node, owner.incarnation));
            let first = *self.first_owners.borrow_mut().entry(id.0).or_insert(owner);
            if fallen > 0 || first != owner {
                let what = format!("volume {id}: {fallen} copies fell out, owner {owner:?}");
                return Err(Failure::oracle("calm", what));
            }
        }
        Ok(())
    }

    /// Once every copy is there, a calm run expects them to stay.
    pub(super) async fn begin_calm(&self) -> Result<(), Failure> {
        if self.workload.nodes.shape.mood == Mood::Calm {
            self.expect_redundancy().await?;
            self.calm.set(true);
        }
        Ok(())
    }

    /// A power cut is nothing calm.
    pub(super) fn end_calm(&self) {
        self.calm.set(false);
    }

    /// After healing: service, then full redundancy, then every written block is read back
    /// through two nodes, then all copies are compared.
    pub(super) async fn after_healing(&self) -> Result<(), Failure> {
        self.expect_service().await?;
        self.expect_members()?;
        self.expect_redundancy().await?;
        expect_drained(self, &self.workload).await?;
        self.expect_fitting().await?;
        self.expect_forgotten().await?;
        self.expect_healed().await?;
        self.read_back().await?;
        self.compare_all().await?;
        self.workload.verdict()
    }

    /// Only an operator, or a disk that fails, takes a node out for good.
    fn expect_members(&self) -> Result<(), Failure> {
        let nodes = &self.workload.nodes;
        let Some(state) = self.newest_state() else {
            return Ok(());
        };
        let mut evicted = state.nodes.keys().filter(|node| state.is_evicted(**node));
        let unjust = evicted.find(|node| {
            let has_reason = self.is_lost_machine(**node)
                || nodes.is_doomed(**node)
                || Some(**node) == nodes.shape.victim;
            !has_reason && !nodes.simulation.disks(**node).have_failed()
        });
        match unjust {
            Some(node) => {
                let what = format!("node {node} was evicted, and its disk has never failed");
                Err(Failure::oracle("membership", what))
            }
            None => Ok(()),
        }
    }

    pub(super) fn is_lost_machine(&self, node: NodeId) -> bool {
        let doom = self.workload.nodes.shape.doom.as_ref();
        doom.is_some_and(|doom| doom.node == node)
    }

    /// Volumes are asked side by side: one that is lost shall not use up the others' time.
    async fn expect_service(&self) -> Result<(), Failure> {
        let volumes = 0..self.workload.volumes.len();
        let expecting = volumes.map(|volume| self.expect_volume(volume));
        try_join_all(expecting).await.map(drop)
    }

    async fn expect_volume(&self, volume: usize) -> Result<(), Failure> {
        let workload = &self.workload;
        let simulation = &workload.nodes.simulation;
        if self.lost.borrow().contains(&volume) {
            return Ok(());
        }
        let mut progress = Progress::new(SERVICE_BOUND);
        progress.healed(simulation.now_ns());
        let first = workload.nodes.shape.volumes[volume].regions[0];
        let range = Range::whole(volume, first).part(0, 1);
        let number = workload.volumes[volume].0;
        let deadline = simulation.runtime().now() + SERVICE_BOUND;
        while simulation.runtime().now() < deadline {
            workload.verdict()?;
            let node = self.any_node();
            let limit = Duration::from_secs(5);
            let written = workload.write(AUDITOR, node, range, limit, false).await;
            let read = workload.read(AUDITOR, node, range, limit).await;
            let honest = [Ended::Served, Ended::Damaged];
            if honest.contains(&written) && honest.contains(&read) {
                progress.succeeded(simulation.now_ns(), number);
                break;
            }
            simulation.runtime().sleep(Duration::from_millis(50)).await;
        }
        match progress.judge(number) {
            Ok(_) => Ok(()),
            Err(_) if self.is_lost(volume) => {
                self.lost.borrow_mut().insert(volume);
                Ok(())
            }
            Err(error) => {
                let what = format!("{error}; {}", self.explain());
                Err(Failure::oracle("progress", what))
            }
        }
    }

    /// Whether damage at rest hit the last complete copy of one of the volume's slices.
    fn is_lost(&self, volume: usize) -> bool {
        let victim = self.workload.nodes.shape.victim;
        let state = self.newest_state();
        let record = state
            .as_ref()
            .and_then(|state| state.volumes.get(&self.workload.volumes[volume]));
        let gone = |id: NodeId| {
            Some(id) == victim || state.as_ref().is_some_and(|state| state.is_evicted(id))
        };
        self.workload.damage_was_done()
            && record.is_some_and(|record| {
                record
                    .slices
                    .values()
                    .any(|slice| slice.in_sync().all(gone))
            })
    }

    /// Whether nothing is expected of the volume any more.
    pub(super) fn is_given_up(&self, volume: VolumeId) -> bool {
        let lost = self.lost.borrow();
        lost.iter()
            .any(|lost| self.workload.volumes[*lost] == volume)
    }

    /// How many volumes went out of service because of damage.
    pub(super) fn lost_volumes(&self) -> u64 {
        self.lost.borrow().len() as u64
    }

    /// Nothing is kept of a volume that was deleted, nor of a slice that is elsewhere: but empty
    /// copies, which an owner may be about to place.
    async fn expect_forgotten(&self) -> Result<(), Failure> {
        let nodes = &self.workload.nodes;
        let runtime = nodes.simulation.runtime();
        let deadline = runtime.now() + FORGETTING_BOUND;
        loop {
            let state = self.newest_state();
            let of_no_use = |(id, store): &(NodeId, Rc<Store>)| {
                let state = state.as_ref()?;
                let slices = store.slices().into_iter();
                let mut kept = slices.filter(|slice| is_of_no_use(state, *id, store, *slice));
                kept.next().map(|slice| (*id, slice))
            };
            let running = nodes.shape.nodes.iter().filter_map(|id| nodes.get(*id));
            let stores = running.map(|(_, node)| (node.id(), node.context().store.clone()));
            let kept = stores.filter(|(id, _)| !nodes.is_doomed(*id));
            let Some((node, slice)) = kept.into_iter().find_map(|one| of_no_use(&one)) else {
                return Ok(());
            };
            if runtime.now() >= deadline {
                let what = format!("node {node} keeps slice {slice}, which is not there any more");
                return Err(Failure::oracle("deletion", what));
            }
            runtime.sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) async fn expect_redundancy(&self) -> Result<(), Failure> {
        let simulation = &self.workload.nodes.simulation;
        let begin_ns = simulation.now_ns();
        let deadline = simulation.runtime().now() + REDUNDANCY_BOUND;
        while !self.is_redundant() {
            self.workload.verdict()?;
            if simulation.runtime().now() >= deadline {
                let since = Timestamp(begin_ns);
                let what = format!("copies missing since {since} s; {}", self.explain());
                return Err(Failure::oracle("redundancy", what));
            }
            simulation.runtime().sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    fn is_redundant(&self) -> bool {
        let Some(state) = self.newest_state() else {
            return false;
        };
        let nodes = &self.workload.nodes;
        let evicted = |id: NodeId| state.is_evicted(id);
        let present = |id: NodeId| !evicted(id) && !nodes.is_doomed(id);
        let healthy = |id: NodeId| Some(id) != nodes.shape.victim;
        let damaged = self.workload.damage_was_done();
        nodes
            .shape
            .nodes
            .iter()
            .all(|id| !healthy(*id) || !present(*id) || nodes.is_registered(*id))
            && state.volumes.iter().all(|(id, volume)| {
                if self.is_given_up(*id) {
                    return true;
                }
                let complete = |(index, slice): (u32, &SliceRecord)| {
                    let key = SliceKey {
                        volume: id.0,
                        slice: index,
                    };
                    // If nothing can be told of the last copy, the others cannot be made from it.
                    let left_alone =
                        damaged && !slice.in_sync().any(healthy) && self.is_suspect(key);
                    // A copy that was evicted stays missing while no node is there to have it.
                    let placed = |node: NodeId| slice.status(node).is_some();
                    let takes = |node: NodeId, record: &NodeRecord| {
                        record.status == NodeStatus::Up && !state.draining.contains_key(&node)
                    };
                    let mut members = state.members();
                    let nowhere =
                        members.all(|(node, record)| !takes(node, record) || placed(node));
                    left_alone
                        || slice.copies().all(|copy| {
                            copy.status == CopyStatus::InSync
                                || !healthy(copy.node)
                                || evicted(copy.node) && nowhere
                        })
                };
                let grows = state.growing.contains_key(id);
                volume.open && !grows && volume.slices.iter().all(complete)
            })
    }

    /// Whether the victim does not run, or may have lost records of the slice without a trace.
    fn is_suspect(&self, slice: SliceKey) -> bool {
        let nodes = &self.workload.nodes;
        let victim = nodes.shape.victim.and_then(|victim| nodes.get(victim));
        victim.is_none_or(|(_, node)| node.context().store.suspect_slices().contains(&slice))
    }

    /// What the victim's disk has lost comes back, if another copy in sync has it: at the victim,
    /// and at copies that were made from it.
    async fn expect_healed(&self) -> Result<(), Failure> {
        let simulation = &self.workload.nodes.simulation;
        let deadline = simulation.runtime().now() + HEALING_BOUND;
        let mut pass = None;
        loop {
            self.workload.verdict()?;
            let scrubbed = self.is_scrubbed(&mut pass);
            let unhealed = self.unhealed();
            if scrubbed && unhealed.is_empty() {
                return Ok(());
            }
            if simulation.runtime().now() >= deadline {
                let what = format!(
                    "scrubbed {scrubbed}, damaged and curable {unhealed:?}; {}",
                    self.explain()
                );
                return Err(Failure::oracle("healing", what));
            }
            simulation.runtime().sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether the victim's disk was read back since the first call, if the victim runs. What
    /// keeps it from running may be its own damage.
    fn is_scrubbed(&self, pass: &mut Option<(Incarnation, Option<ScrubPass>)>) -> bool {
        let victim = self.workload.nodes.shape.victim;
        let running = victim.and_then(|victim| self.workload.nodes.get(victim));
        let Some((incarnation, node)) = running else {
            return true;
        };
        let last = node.report().scrub.last;
        match pass {
            Some((seen, before)) if *seen == incarnation => *before != last,
            Some(_) | None => {
                node.order_scrub(ScrubOrder::Start);
                *pass = Some((incarnation, last));
                false
            }
        }
    }

    /// Damaged blocks of copies in sync of which another copy in sync is intact.
    fn unhealed(&self) -> Vec<(NodeId, DamagedBlocks)> {
        let Some(state) = self.newest_state() else {
            return Vec::new();
        };
        let mut damaged: BTreeMap<(SliceKey, u32), Vec<NodeId>> = BTreeMap::new();
        for id in &self.workload.nodes.shape.nodes {
            let Some((_, node)) = self.workload.nodes.get(*id) else {
                continue;
            };
            let mut after = None;
            while let Some(found) = node.context().store.damaged_blocks(after, usize::MAX) {
                after = found.blocks.last().map(|block| (found.slice, *block));
                for block in found.blocks {
                    damaged.entry((found.slice, block)).or_default().push(*id);
                }
            }
        }
        let mut unhealed = Vec::new();
        for ((slice, block), nodes) in damaged {
            let volume = state.volumes.get(&VolumeId(slice.volume));
            let placed = volume.and_then(|volume| volume.slices.get(slice.slice));
            let Some(placed) = placed.filter(|_| volume.is_some_and(|volume| volume.open)) else {
                continue;
            };
            if placed.in_sync().all(|id| nodes.contains(&id)) {
                continue;
            }
            let blocks = vec![block];
            for id in nodes.into_iter().filter(|id| placed.is_in_sync(*id)) {
                let blocks = blocks.clone();
                unhealed.push((id, DamagedBlocks { slice, blocks }));
            }
        }
        unhealed
    }

    async fn read_back(&self) -> Result<(), Failure> {
        let workload = &self.workload;
        for volume in 0..workload.volumes.len() {
            if self.lost.borrow().contains(&volume) {
                continue;
            }
            if workload.nodes.shape.long_writes {
                self.read_all(volume).await?;
            }
            for region in workload.regions(volume) {
                for _ in 0..2 {
                    self.read_region(Range::whole(volume, region)).await?;
                }
            }
        }
        Ok(())
    }

    /// Everything that a volume had at first, but what is checked sector by sector.
    async fn read_all(&self, volume: usize) -> Result<(), Failure> {
        let shape = &self.workload.nodes.shape.volumes[volume];
        let blocks = shape.size_bytes / BLOCK_BYTES as u64;
        let mut first = 0;
        while first < blocks {
            let most = blocks.min(first + 64);
            let end = (first..most).find(|block| shape.in_sectors(*block));
            let end = end.unwrap_or(most);
            if end > first {
                let range = Range {
                    volume,
                    first,
                    units: end - first,
                    unit_bytes: BLOCK_BYTES as u64,
                };
                self.read_region(range).await?;
            }
            first = end.max(first + 1);
        }
        Ok(())
    }

    async fn read_region(&self, range: Range) -> Result<(), Failure> {
        let workload = &self.workload;
        let simulation = &workload.nodes.simulation;
        for _ in 0..40 {
            let node = self.any_node();
            let limit = Duration::from_secs(5);
            let ended = workload.read(AUDITOR, node, range, limit).await;
            workload.verdict()?;
            match ended {
                Ended::Served => return Ok(()),
                Ended::Damaged if range.units > 1 => {
                    // One damaged block must not hide the others.
                    for unit in 0..range.units {
                        Box::pin(self.read_region(range.part(unit, 1))).await?;
                    }
                    return Ok(());
                }
                Ended::Damaged => return Ok(()),
                Ended::NotServed => {
                    simulation.runtime().sleep(Duration::from_millis(250)).await;
                }
            }
        }
        let what = format!("{range:?} cannot be read back; {}", self.explain());
        Err(Failure::oracle("durability", what))
    }

    async fn compare_all(&self) -> Result<(), Failure> {
        let simulation = &self.workload.nodes.simulation;
        let mut last = Ok(());
        // The newest stable points reach the copies a little after the acknowledgements.
        for _ in 0..40 {
            last = self.compare_now().await;
            if last.is_ok() {
                break;
            }
            simulation.runtime().sleep(Duration::from_millis(250)).await;
        }
        last
    }

    async fn compare_now(&self) -> Result<(), Failure> {
        let nodes = &self.workload.nodes;
        let Some(state) = self.newest_state() else {
            return Ok(());
        };
        for (volume, record) in &state.volumes {
            // Nobody owns a lost volume: no takeover made the copies of its other slices alike.
            if self.is_given_up(*volume) {
                continue;
            }
            let blocks = (record.slice_bytes / BLOCK_BYTES as u64) as u32;
            let slices = record.size_bytes / record.slice_bytes;
            let compared = record.slices.iter();
            for (index, slice) in compared.filter(|(index, _)| is_compared(slices, *index)) {
                let key = SliceKey {
                    volume: volume.0,
                    slice: index,
                };
                let mut copies = Vec::new();
                for id in slice.in_sync() {
                    let Some((_, node)) = nodes.get(id) else {
                        continue;
                    };
                    let store = node.context().store.clone();
                    drop(node);
                    let digests = nodes.simulation.call(id, "auditor", async move {
                        if let Ok(data) = store.read(key, 0, blocks).await {
                            let whole = data.chunks_exact(BLOCK_BYTES);
                            return whole.map(|block| Some(digest(block))).collect();
                        }
                        // One block that is lost must not hide the others.
                        let mut digests = Vec::with_capacity(blocks as usize);
                        for block in 0..blocks {
                            let read = store.read(key, block, 1).await;
                            digests.push(read.ok().map(|data| digest(&data)));
                        }
                        digests
                    });
                    let digests: Option<Vec<Option<u64>>> = digests.await.ok();
                    copies.push((id, digests.unwrap_or_else(|| vec![None; blocks as usize])));
                }
                if self.workload.damage_was_done() {
                    forgive_lost(&mut copies);
                }
                let what = format!("slice {index} of volume {volume}");
                compare_copies(&what, &copies)
                    .map_err(|error| Failure::oracle("identical replicas", error))?;
            }
        }
        Ok(())
    }

    /// A node to ask: another one each turn.
    fn any_node(&self) -> NodeId {
        let nodes = &self.workload.nodes.shape.nodes;
        self.turn.set(self.turn.get() + 1);
        nodes[self.turn.get() % nodes.len()]
    }

    pub(super) fn newest_state(&self) -> Option<Rc<ClusterState>> {
        let nodes = &self.workload.nodes;
        let started = nodes.shape.nodes.iter().filter_map(|id| nodes.get(*id));
        let newest = started.max_by_key(|(_, node)| *node.watch().borrow());
        newest.map(|(_, node)| node.state())
    }

    /// Who waits for what, for the report of a failure.
    pub(super) fn explain(&self) -> String {
        let nodes = &self.workload.nodes;
        let mut words = Vec::new();
        for id in &nodes.shape.nodes {
            let Some((_, node)) = nodes.get(*id) else {
                words.push(format!("node {id} has not started"));
                continue;
            };
            let report = node.report();
            let index = *node.watch().borrow();
            let (registered, leader) = (report.registered, report.leader);
            words.push(format!(
                "node {id}: {registered}, leader {leader:?}, applied {index}"
            ));
            for owner in &node.owner_statuses() {
                let resyncs: Vec<String> = owner
                    .resyncs
                    .iter()
                    .map(|resync| format!("{}@{} {}", resync.slice, resync.node, resync.blocks))
                    .collect();
                words.push(format!(
                    "owns {} in view {}, open {}, waits for {:?}, resyncs {resyncs:?}",
                    owner.volume, owner.view, owner.open, owner.waits_for
                ));
            }
        }
        if let Some(state) = self.newest_state() {
            for (id, volume) in &state.volumes {
                let stale: Vec<String> = volume
                    .slices
                    .iter()
                    .flat_map(|(index, slice)| slice.copies().map(move |copy| (index, copy)))
                    .filter(|(_, copy)| copy.status == CopyStatus::Stale)
                    .map(|(index, copy)| format!("{index}@{}", copy.node))
                    .collect();
                words.push(format!(
                    "volume {id}: owner {:?}, view {}, open {}, stale {stale:?}",
                    volume.owner.map(|owner| owner.node),
                    volume.view,
                    volume.open
                ));
            }
        }
        words.join("; ")
    }
}

fn is_of_no_use(state: &ClusterState, node: NodeId, store: &Store, slice: SliceKey) -> bool {
    let Some(volume) = state.volumes.get(&VolumeId(slice.volume)) else {
        return true;
    };
    let placed = volume.slices.get(slice.slice);
    let is_here = placed.is_some_and(|placed| placed.status(node).is_some());
    let is_empty = store.last_seq(slice) == Seq(0) && store.base(slice) == Seq(0);
    !is_here && !is_empty
}

/// A block that damage has taken from every copy is the same in all of them: lost.
fn forgive_lost(copies: &mut [(NodeId, Vec<Option<u64>>)]) {
    let blocks = copies.first().map_or(0, |(_, digests)| digests.len());
    for block in 0..blocks {
        let lost = |(_, digests): &(NodeId, Vec<Option<u64>>)| digests[block].is_none();
        if copies.iter().all(lost) {
            for (_, digests) in copies.iter_mut() {
                digests[block] = Some(0);
            }
        }
    }
}
