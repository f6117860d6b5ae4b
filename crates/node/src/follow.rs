//! Follows the config state: peers, owners, deleted volumes.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join_all, select};
use holdfast_config::state::{Change, ClusterState, NodeStatus, Owner as OwnerRecord, Volumes};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::rpc::LinkChange;
use holdfast_runtime::{DownReason, Incarnation, NodeId};
use holdfast_volume::Owner;
use holdfast_wire::{SliceKey, View, VolumeId};

use crate::node::{Failure, Node};

/// Where a node publishes its address.
const ADDRESS_KEY: &str = "address";
/// How often a node that misses others looks whether somebody has heard where they are.
const LOOK_FOR_PEERS_EVERY: Duration = Duration::from_secs(1);
const PROPOSAL_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two requests for a new view of the same volume.
const RESIGN_PAUSE: Duration = Duration::from_millis(200);

impl Node {
    /// Says where this start is to be found: nodes that have moved are heard of before the config
    /// group can decide anything, and it may be without a majority until they are.
    pub(crate) fn announce_address(&self) {
        let address = Bytes::from(self.options.link_address.clone());
        if let Err(error) = self.gossip.publish(ADDRESS_KEY, address) {
            tracing::error!(%error, "this node's address is not published");
        }
    }

    pub(crate) async fn keep_following(self: Rc<Self>) {
        let mut watch = self.group.watch();
        let mut health = self.gossip.health();
        let mut peers = Vec::new();
        let mut seen: Option<Rc<ClusterState>> = None;
        // What the store held at the start, until a state says what became of it.
        let held = self.context.store.volumes().into_iter();
        let mut held: BTreeSet<VolumeId> = held.map(VolumeId).collect();
        loop {
            watch.mark_unchanged();
            health.mark_unchanged();
            let state = self.group.state();
            self.follow_peers(&state, &mut peers);
            self.note_deaths(&state);
            self.follow_volumes(seen.as_deref(), &state);
            let deleted = held.iter().filter(|volume| is_deleted(&state, **volume));
            self.forget(deleted.copied().collect());
            held.retain(|volume| volume.0 > state.last_volume);
            // One that ends is looked after until it has.
            let ends = |peer: &NodeId| {
                let record = state.nodes.get(peer);
                record.is_some_and(|record| record.status == NodeStatus::Evicted)
            };
            let unlinked = peers
                .iter()
                .any(|(peer, _)| ends(peer) || self.context.rpc.peer_up(*peer).is_none());
            seen = Some(state);
            let news = select(Box::pin(watch.changed()), Box::pin(health.changed()));
            let ended = if unlinked {
                // It may have moved, which whoever has met it tells.
                let look_again = self.context.runtime.sleep_roughly(LOOK_FOR_PEERS_EVERY);
                let news = select(news, look_again).await;
                matches!(news, Either::Left((Either::Left((Err(_), _)), _)))
            } else {
                matches!(news.await, Either::Left((Err(_), _)))
            };
            if ended {
                return;
            }
        }
    }

    fn follow_peers(&self, state: &ClusterState, known: &mut Vec<(NodeId, String)>) {
        let local = self.id();
        let announced = self.gossip.snapshot();
        let moved = |node: &NodeId, known: Option<Incarnation>| {
            let published = announced.get(node)?;
            if planted::is_active(Bug::IgnoreAnnouncedAddress) {
                return None;
            }
            let address = published.values.get(ADDRESS_KEY)?;
            // What is registered is at least as new as what was said in an earlier start.
            let newer = known.is_none_or(|known| published.incarnation > known);
            newer.then(|| String::from_utf8(address.to_vec()).ok())?
        };
        // One that was taken out while it runs keeps its links until it has heard of it, and ends;
        // it gets no new ones.
        let linked = |node: NodeId| self.context.rpc.peer_up(node).is_some();
        let ending = state
            .nodes
            .iter()
            .filter(|(node, record)| record.status == NodeStatus::Evicted && linked(**node));
        let ending = ending.map(|(node, record)| (*node, record));
        let mut peers: Vec<(NodeId, String)> = state
            .members()
            .chain(ending)
            .map(|(node, record)| {
                let moved = moved(&node, Some(record.incarnation));
                (node, moved.unwrap_or_else(|| record.link_address.clone()))
            })
            .filter(|(node, address)| *node != local && !address.is_empty())
            .collect();
        if peers.is_empty() {
            let seeds = self.options.seeds.iter();
            let seeds = seeds.map(|(node, address)| {
                let moved = moved(node, None);
                (*node, moved.unwrap_or_else(|| address.clone()))
            });
            peers = seeds.collect();
        }
        if *known == peers {
            return;
        }
        self.context.rpc.links().set_peers(peers.clone());
        self.gossip
            .set_peers(peers.iter().map(|(node, _)| *node).collect());
        *known = peers;
    }

    /// A registered start proves that every earlier one of the same directory is gone.
    fn note_deaths(&self, state: &ClusterState) {
        for (node, record) in state.nodes.iter() {
            self.note_earlier_dead(*node, record.incarnation);
        }
    }

    fn note_earlier_dead(&self, node: NodeId, incarnation: Incarnation) {
        if let Some(earlier) = incarnation.0.checked_sub(1) {
            self.context.holder.note_dead(node, Incarnation(earlier));
        }
    }

    pub(crate) async fn keep_noting_links(self: Rc<Self>) {
        let mut links = self.context.rpc.watch_links();
        while let Some(change) = links.recv().await {
            match change {
                LinkChange::Up(node, incarnation) => self.note_earlier_dead(node, incarnation),
                LinkChange::Down(node, incarnation, DownReason::Refused) => {
                    self.context.holder.note_dead(node, incarnation);
                }
                LinkChange::Down(_, _, DownReason::Lost) => {}
            }
        }
    }

    /// Acts on what has changed since the state that was seen before: what it costs follows that,
    /// not the number of volumes.
    fn follow_volumes(self: &Rc<Self>, seen: Option<&ClusterState>, state: &ClusterState) {
        let nothing = Volumes::default();
        let before = seen.map_or(&nothing, |seen| &seen.volumes);
        let changed = state.volumes.changed_since(before);
        let now = self.context.runtime.now();
        self.moves.note(now, state, &changed);
        for volume in &changed {
            self.follow_owner(*volume, state);
        }
        let nodes_changed = seen.is_none_or(|seen| seen.nodes != state.nodes);
        let owners: Vec<Rc<Owner>> = {
            let owners = self.owners.borrow();
            match nodes_changed {
                true => owners.values().cloned().collect(),
                false => changed
                    .iter()
                    .filter_map(|volume| owners.get(volume).cloned())
                    .collect(),
            }
        };
        for owner in owners {
            owner.follow();
        }
        self.sweep_moved(before, state, &changed);
        // Also what was made and deleted since: owners may have been ahead of this node.
        let known = seen.map_or(state.last_volume, |seen| seen.last_volume);
        let made = (known + 1..=state.last_volume).map(VolumeId);
        let gone = changed.into_iter().chain(made);
        self.forget(gone.filter(|volume| is_deleted(state, *volume)).collect());
    }

    /// What was placed here and is no more is given back.
    fn sweep_moved(&self, before: &Volumes, state: &ClusterState, changed: &[VolumeId]) {
        for volume in changed {
            let (Some(before), Some(now)) = (before.get(volume), state.volumes.get(volume)) else {
                continue;
            };
            let gone = now.slices.taken_from(self.id(), &before.slices);
            let gone = gone.map(|slice| SliceKey {
                volume: volume.0,
                slice,
            });
            self.sweep.add(gone);
        }
    }

    /// Starts or closes the owner of a volume so that it is that of the config state.
    fn follow_owner(self: &Rc<Self>, volume: VolumeId, state: &ClusterState) {
        let office = OwnerRecord {
            node: self.id(),
            incarnation: self.context.incarnation(),
        };
        let record = state.volumes.get(&volume);
        let record = record.filter(|record| record.owner == Some(office));
        let known = self.owners.borrow().get(&volume).cloned();
        if let Some(owner) = known {
            if record.is_some_and(|record| record.view == owner.view()) {
                return;
            }
            self.owners.borrow_mut().remove(&volume);
            owner.close();
        }
        let Some(record) = record.filter(|_| !self.leaving.get()) else {
            return;
        };
        let owner = Owner::start(self.context.clone(), volume, record);
        self.owners.borrow_mut().insert(volume, owner.clone());
        self.context
            .runtime
            .spawn("node-resign", self.clone().resign_after(owner));
    }

    /// If the owner closes although it is still in office, asks for a new view.
    async fn resign_after(self: Rc<Self>, owner: Rc<Owner>) {
        owner.closed().await;
        let (volume, view): (VolumeId, View) = (owner.volume(), owner.view());
        drop(owner);
        loop {
            let state = self.group.state();
            let in_office = state
                .volumes
                .get(&volume)
                .is_some_and(|record| record.view == view);
            if !in_office || self.leaving.get() || self.failure.borrow().is_some() {
                return;
            }
            let _ = self
                .group
                .propose(Change::Resign { volume, view }, PROPOSAL_LIMIT)
                .await;
            self.context.runtime.sleep(RESIGN_PAUSE).await;
        }
    }

    /// Removes the data of volumes that have been deleted.
    fn forget(self: &Rc<Self>, deleted: Vec<VolumeId>) {
        if deleted.is_empty() {
            return;
        }
        let node = self.clone();
        self.context.runtime.spawn("node-forget", async move {
            let (store, holder) = (&node.context.store, &node.context.holder);
            let removing = deleted.into_iter().map(|VolumeId(volume)| async move {
                holder.forget_volume(volume).await;
                store.remove_volume(volume).await
            });
            // Their durable facts are written together.
            let removed = join_all(removing).await;
            if let Some(error) = removed.into_iter().find_map(Result::err) {
                node.fail(Failure::Store(error.to_string()));
            }
        });
    }
}

/// Numbers of volumes rise and are never reused, so a lower one that is missing was deleted.
pub(crate) fn is_deleted(state: &ClusterState, volume: VolumeId) -> bool {
    volume.0 <= state.last_volume && !state.volumes.contains_key(&volume)
}
