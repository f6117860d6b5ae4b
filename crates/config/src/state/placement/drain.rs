//! Taking a node out of service without ever having fewer copies.
//!
//! | a drained node | |
//! |---|---|
//! | its copies | serve on until enough others are in sync |
//! | its offices | go to other nodes at once, in new views |
//! | new copies, new offices | none |
//!
//! | a slice with a copy on it | what happens |
//! |---|---|
//! | fewer other copies than the volume wants | a stale one is added elsewhere, and the owner brings it up to date |
//! | as many others in sync as the volume wants | the copy is taken out, in sync or not, in the change that promoted the last of them |
//! | fewer others in sync, and the copy itself is stale | it stays: when its node is back, it is in sync sooner than a new one |
//! | no node to add one on | it stays, until a node comes up |
//!
//! `Drain` only marks the node, and the slices are seen to in bounded parts ([`super::mending`]).

use std::rc::Rc;

use holdfast_runtime::NodeId;
use holdfast_runtime::planted::{self, Bug};
use holdfast_wire::VolumeId;

use crate::state::change::{Outcome, Refusal};
use crate::state::records::{ClusterState, NodeRecord, NodeStatus, VolumeRecord};
use crate::state::slices::{CopyStatus, SliceRecord};

impl ClusterState {
    /// Copies that a node has of all volumes, whatever they count for: what is left of a drain.
    pub fn copies_on(&self, node: NodeId) -> u64 {
        let volumes = self.volumes.held_by(node).map(|id| &self.volumes[&id]);
        let copies = volumes.map(|volume| u64::from(volume.slices.held_by(node).copies));
        copies.sum()
    }

    /// Whether a drained node can be removed: it has no copy and owns nothing.
    pub fn is_drained(&self, node: NodeId) -> bool {
        self.draining.contains_key(&node)
            && self.volumes.held_by(node).next().is_none()
            && self.volumes.offices(node) == 0
    }

    pub(in crate::state) fn drain(
        &mut self,
        node: NodeId,
        now_unix_ms: u64,
    ) -> Result<Outcome, Refusal> {
        let record = self.nodes.get(&node).ok_or(Refusal::NodeUnknown(node))?;
        if record.status == NodeStatus::Evicted {
            return Err(Refusal::Evicted(node));
        }
        if self.draining.contains_key(&node) {
            return Ok(Outcome::Done);
        }
        self.check_nodes_without(node)?;
        self.draining.insert(node, now_unix_ms);
        self.settle_leaving(node);
        Ok(Outcome::Done)
    }

    /// Refuses a drain that could never end. Nodes that are down may come back.
    fn check_nodes_without(&self, node: NodeId) -> Result<(), Refusal> {
        let stays = |other: NodeId, record: &NodeRecord| {
            other != node
                && !self.draining.contains_key(&other)
                && record.status != NodeStatus::Admitted
        };
        let nodes = self
            .members()
            .filter(|(other, record)| stays(*other, record));
        let nodes = nodes.count() as u32;
        if nodes == 0 {
            return Err(Refusal::LastNode(node));
        }
        let mut volumes = self.volumes.values();
        match volumes.find(|volume| volume.copies > nodes) {
            None => Ok(()),
            Some(volume) => Err(Refusal::DrainLeavesTooFew {
                node,
                nodes,
                volume: volume.name.clone(),
                copies: volume.copies,
            }),
        }
    }

    /// The slice without the copies on drained nodes that are not needed any more; `None` if all
    /// are.
    pub(super) fn without_drained(
        &self,
        record: &VolumeRecord,
        slice: &SliceRecord,
    ) -> Option<SliceRecord> {
        let stays = slice
            .copies()
            .filter(|copy| !self.draining.contains_key(&copy.node));
        let left: SliceRecord = stays.collect();
        let counts = match planted::is_active(Bug::DrainDropsEarly) {
            true => left.copies().len(),
            false => left
                .in_sync()
                .filter(|node| !self.is_evicted(*node))
                .count(),
        };
        let counts = match planted::is_active(Bug::DrainsCountOneAnother) {
            true => counts.max(slice.in_sync().count().saturating_sub(1)),
            false => counts,
        };
        // A stale copy, too, may be in sync again long before a new one is.
        let is_needed = counts < record.copies as usize;
        let fewer = left.copies().len() < slice.copies().len();
        (fewer && !is_needed).then_some(left)
    }

    /// The node serves on as if nothing had been, and copies that were added for it and are not in
    /// sync yet go again.
    pub(in crate::state) fn cancel_drain(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::NodeUnknown(node));
        }
        if self.draining.remove(&node).is_none() {
            return Ok(Outcome::Done);
        }
        let volumes: Vec<VolumeId> = self.volumes.held_by(node).collect();
        for volume in volumes {
            let record = &self.volumes[&volume];
            let slices = record.slices.iter();
            let slices = slices.filter(|(_, slice)| slice.status(node).is_some());
            let fewer = slices.filter_map(|(index, slice)| {
                let fewer = self.without_added(record, slice)?;
                Some((index, fewer))
            });
            let fewer: Vec<(u32, SliceRecord)> = fewer.collect();
            if !fewer.is_empty() {
                self.set_slices(volume, fewer);
            }
        }
        Ok(Outcome::Done)
    }

    /// The slice without stale copies that are more than the volume wants, the newest first.
    fn without_added(&self, record: &VolumeRecord, slice: &SliceRecord) -> Option<SliceRecord> {
        let mut copies: Vec<_> = slice.copies().collect();
        loop {
            let drained = |node: NodeId| self.draining.contains_key(&node);
            let stays = copies.iter().filter(|copy| !drained(copy.node)).count();
            let any = planted::is_active(Bug::CancelDropsInSync);
            let added = copies
                .iter()
                .rposition(|copy| (any || copy.status == CopyStatus::Stale) && !drained(copy.node));
            match added.filter(|_| stays > record.copies as usize) {
                Some(place) => copies.remove(place),
                None => break,
            };
        }
        (copies.len() < slice.copies().len()).then(|| copies.into_iter().collect())
    }

    /// Takes a drained node out for good. It may run: it has nothing that anybody needs.
    pub(in crate::state) fn remove_node(&mut self, node: NodeId) -> Result<Outcome, Refusal> {
        let record = self.nodes.get(&node).ok_or(Refusal::NodeUnknown(node))?;
        if record.status == NodeStatus::Evicted {
            return Ok(Outcome::Done);
        }
        if !self.is_drained(node) && !planted::is_active(Bug::RemoveUndrained) {
            let copies = self.copies_on(node);
            return Err(Refusal::NotDrained { node, copies });
        }
        // Those that were there when the drain began may have been evicted since.
        if self.placeable().is_empty() {
            return Err(Refusal::LastNode(node));
        }
        self.draining.remove(&node);
        self.disk_failures.remove(&node);
        if let Some(record) = Rc::make_mut(&mut self.nodes).get_mut(&node) {
            record.status = NodeStatus::Evicted;
        }
        self.settle_down(node);
        Ok(Outcome::Done)
    }
}
