//! Follows the config state: peers, owners, deleted volumes.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use holdfast_config::state::{Change, ClusterState, Owner as OwnerRecord};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::rpc::LinkChange;
use holdfast_runtime::{DownReason, Incarnation, NodeId};
use holdfast_volume::Owner;
use holdfast_wire::{View, VolumeId};

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
        loop {
            watch.mark_unchanged();
            health.mark_unchanged();
            let state = self.group.state();
            self.follow_peers(&state, &mut peers);
            self.note_deaths(&state);
            self.moves.note(self.context.runtime.now(), &state);
            self.follow_owners(&state);
            self.forget_deleted(&state).await;
            let unlinked = peers
                .iter()
                .any(|(peer, _)| self.context.rpc.peer_up(*peer).is_none());
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
        let mut peers: Vec<(NodeId, String)> = state
            .members()
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

    /// Starts and closes owners so that they are those of the config state.
    fn follow_owners(self: &Rc<Self>, state: &ClusterState) {
        let office = OwnerRecord {
            node: self.id(),
            incarnation: self.context.incarnation(),
        };
        let mut owners = self.owners.borrow_mut();
        let mut closed = Vec::new();
        owners.retain(|volume, owner| {
            let keep = state
                .volumes
                .get(volume)
                .is_some_and(|record| record.owner == Some(office) && record.view == owner.view());
            if !keep {
                closed.push(owner.clone());
            }
            keep
        });
        for (volume, record) in &state.volumes {
            if record.owner != Some(office) || owners.contains_key(volume) || self.leaving.get() {
                continue;
            }
            let owner = Owner::start(self.context.clone(), *volume, record);
            owners.insert(*volume, owner.clone());
            self.context
                .runtime
                .spawn("node-resign", self.clone().resign_after(owner));
        }
        drop(owners);
        for owner in closed {
            owner.close();
        }
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
    async fn forget_deleted(&self, state: &ClusterState) {
        // Numbers rise and are never reused, so a lower one that is missing was deleted.
        for volume in self.context.store.volumes() {
            let deleted =
                volume <= state.last_volume && !state.volumes.contains_key(&VolumeId(volume));
            if !deleted {
                continue;
            }
            self.context.holder.forget_volume(volume);
            if let Err(error) = self.context.store.remove_volume(volume).await {
                return self.fail(Failure::Store(error.to_string()));
            }
        }
    }
}
