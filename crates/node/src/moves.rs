//! Moving a volume's office to another node, and how often hosts may ask for it.
//!
//! The config group decides (`Change::MoveVolume`); the owner so far closes as soon as it knows,
//! gives its leases back, and what was under way is repeated at the new one by its portals.
//!
//! Operators move volumes as they like. Hosts ask through SET TARGET PORT GROUPS, often all paths
//! of a group at once, each for its own node, and after every failure: a volume whose owner has
//! changed within [`HOST_PAUSE`] stays where it is. What operators and hosts wish is remembered
//! (`Change::PlaceVolume`): no rebalancing takes it back by itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_config::state::{Change, ClusterState, Outcome, Refusal};
use holdfast_runtime::{Instant, NodeId};
use holdfast_wire::{View, VolumeId};
use thiserror::Error;

use crate::node::Node;

/// Below the 30 s or more that initiators give a command.
const HOST_LIMIT: Duration = Duration::from_secs(12);
/// How long a node that is asked by a host tries to find out what the cluster knows: one that has
/// just started knows of nothing yet.
const BARRIER_LIMIT: Duration = Duration::from_secs(3);
/// Longer than hosts take to give up the paths to a node that is gone: what they ask for
/// because of a takeover comes later than that.
pub const HOST_PAUSE: Duration = Duration::from_secs(60);

/// Why a volume was not moved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MoveError {
    /// The config group refuses; nothing was changed.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The config group did not decide in time; the move may still come.
    #[error("the cluster did not decide in time")]
    Undecided,
    /// The owner has changed only a moment ago; nothing was changed.
    #[error("the owner has changed less than {} s ago", HOST_PAUSE.as_secs())]
    TooSoon,
    /// The new owner was named, and either does not serve yet or has been replaced.
    #[error("the new owner does not serve yet")]
    NotServing,
}

/// Whose wish a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveCause {
    /// An operator's or a host's: the volume stays there as long as it can.
    Wish,
    /// The load's: the next look may find another place better.
    Balance,
}

/// When each volume's owner last became another node, as this one saw it.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    seen: RefCell<BTreeMap<VolumeId, Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    owner: NodeId,
    /// `None`: not since this node started, or the volume was made.
    changed: Option<Instant>,
}

impl Moves {
    /// Another config state has been applied, in which these volumes are not what they were.
    pub(crate) fn note(&self, now: Instant, state: &ClusterState, changed: &[VolumeId]) {
        let mut seen = self.seen.borrow_mut();
        for volume in changed {
            let Some(record) = state.volumes.get(volume) else {
                seen.remove(volume);
                continue;
            };
            let Some(owner) = record.owner.map(|owner| owner.node) else {
                continue;
            };
            let first = Seen {
                owner,
                changed: None,
            };
            seen.entry(*volume).or_insert(first).note(now, owner);
        }
    }

    /// Whether the volume's owner has been the same for [`HOST_PAUSE`], as far as this node knows.
    pub(crate) fn permits(&self, now: Instant, volume: VolumeId) -> bool {
        let seen = self.seen.borrow();
        seen.get(&volume).is_none_or(|seen| seen.permits(now))
    }
}

impl Seen {
    fn note(&mut self, now: Instant, owner: NodeId) {
        if self.owner != owner {
            *self = Self {
                owner,
                changed: Some(now),
            };
        }
    }

    fn permits(&self, now: Instant) -> bool {
        let pause = |changed| now.saturating_since(changed);
        self.changed
            .is_none_or(|changed| pause(changed) >= HOST_PAUSE)
    }
}

impl Node {
    /// Makes `to` the owner of a volume and resolves when it serves. `view` is that of the owner
    /// to be replaced: of two callers who saw the same one, the first wins.
    ///
    /// # Errors
    /// Nothing was changed, unless it is [`MoveError::Undecided`] or [`MoveError::NotServing`].
    pub async fn move_volume(
        &self,
        volume: VolumeId,
        view: View,
        to: NodeId,
        cause: MoveCause,
        limit: Duration,
    ) -> Result<(), MoveError> {
        let runtime = &self.context.runtime;
        let give_up = runtime.now() + limit;
        let change = match cause {
            MoveCause::Wish => Change::PlaceVolume { volume, view, to },
            MoveCause::Balance => Change::MoveVolume { volume, view, to },
        };
        match self.group.propose(change, limit).await {
            Ok(Outcome::Refused(refusal)) => return Err(refusal.into()),
            Ok(
                Outcome::Done
                | Outcome::Admitted(_)
                | Outcome::Created(_)
                | Outcome::Reserved(_)
                | Outcome::Placed { .. },
            ) => {}
            Err(error) => {
                tracing::warn!(%volume, %to, %error, "a move was not decided");
                return Err(MoveError::Undecided);
            }
        }
        let left = give_up.saturating_since(runtime.now());
        match runtime.timeout(left, self.serves(volume, to)).await {
            Some(true) => Ok(()),
            Some(false) | None => Err(MoveError::NotServing),
        }
    }

    /// The same on a host's wish, for the view that the cluster is in.
    ///
    /// # Errors
    /// Those of [`Node::move_volume`], and [`MoveError::TooSoon`].
    pub async fn move_for_host(&self, volume: VolumeId, to: NodeId) -> Result<(), MoveError> {
        let confirmed = self.group.read_barrier(BARRIER_LIMIT).await;
        let state = self.state();
        let record = match (state.volumes.get(&volume), confirmed) {
            (Some(record), Ok(()) | Err(_)) => record,
            (None, Ok(())) => return Err(Refusal::VolumeUnknown(volume).into()),
            // What this node does not know may exist.
            (None, Err(_)) => return Err(MoveError::Undecided),
        };
        let there = record.owner.is_some_and(|owner| owner.node == to);
        if !there && !self.moves.permits(self.context.runtime.now(), volume) {
            return Err(MoveError::TooSoon);
        }
        let cause = MoveCause::Wish;
        let moved = self.move_volume(volume, record.view, to, cause, HOST_LIMIT);
        let moved = moved.await;
        if let Err(error) = &moved {
            tracing::warn!(%volume, %to, %error, "a host's wish for another owner is not met");
        }
        moved
    }

    /// Resolves with true when `to` serves the volume, with false when another node is to.
    async fn serves(&self, volume: VolumeId, to: NodeId) -> bool {
        let mut watch = self.group.watch();
        loop {
            watch.mark_unchanged();
            let state = self.state();
            let record = state.volumes.get(&volume);
            let Some(record) = record.filter(|r| r.owner.is_some_and(|o| o.node == to)) else {
                return false;
            };
            if record.open {
                return true;
            }
            if watch.changed().await.is_err() {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_change_of_owner_hosts_wait_and_a_new_volume_is_free_to_move() {
        let at = |s| Instant::default() + Duration::from_secs(s);
        let mut volume = Seen {
            owner: NodeId(1),
            changed: None,
        };
        assert!(volume.permits(at(0)));
        volume.note(at(10), NodeId(2));
        assert!(!volume.permits(at(11)));
        assert!(!volume.permits(at(69)));
        assert!(volume.permits(at(70)));
        volume.note(at(80), NodeId(2));
        assert!(volume.permits(at(81)), "it did not move");
    }
}
