//! Leases that this node has granted to owners. Pure.
//!
//! A grant is a promise to hold back the fence of a later view until the owner can no longer
//! use the lease. It ends by time, by release, or when the owner's process is proven dead. A
//! node that restarts has forgotten its grants, so it holds back every fence for one grace time.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_runtime::{Incarnation, Instant, NodeId};
use holdfast_wire::View;

use crate::LEASE_GRACE;

#[derive(Clone, Copy, Debug)]
struct Grant {
    view: View,
    holder: NodeId,
    incarnation: Incarnation,
    ends: Instant,
}

/// See the module's header.
#[derive(Debug)]
pub struct Grants {
    started: Instant,
    by_volume: BTreeMap<u64, Vec<Grant>>,
    dead: BTreeMap<NodeId, Incarnation>,
}

impl Grants {
    /// Of a process that started at `started`.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            by_volume: BTreeMap::new(),
            dead: BTreeMap::new(),
        }
    }

    /// Grants a lease on `volume` to the owner of `view`.
    pub fn grant(
        &mut self,
        now: Instant,
        volume: u64,
        view: View,
        holder: NodeId,
        incarnation: Incarnation,
    ) {
        let grants = self.by_volume.entry(volume).or_default();
        grants.retain(|grant| grant.ends > now && grant.view != view);
        grants.push(Grant {
            view,
            holder,
            incarnation,
            ends: now + LEASE_GRACE,
        });
    }

    /// The owner of `view` gives its lease back.
    pub fn release(&mut self, volume: u64, view: View) {
        if let Some(grants) = self.by_volume.get_mut(&volume) {
            grants.retain(|grant| grant.view != view);
        }
    }

    /// The process `incarnation` of `node`, and every earlier one, is gone.
    pub fn note_dead(&mut self, node: NodeId, incarnation: Incarnation) {
        let newest = self.dead.entry(node).or_insert(incarnation);
        *newest = (*newest).max(incarnation);
    }

    /// How long the fence of `view` has to be held back; zero: it may be answered.
    pub fn hold_back(&self, now: Instant, volume: u64, view: View, fresh: bool) -> Duration {
        if fresh {
            return Duration::ZERO;
        }
        let forgotten = self.started + LEASE_GRACE;
        let live = |grant: &&Grant| {
            grant.view < view
                && self
                    .dead
                    .get(&grant.holder)
                    .is_none_or(|dead| *dead < grant.incarnation)
        };
        let ends = self
            .by_volume
            .get(&volume)
            .into_iter()
            .flatten()
            .filter(live)
            .map(|grant| grant.ends)
            .chain([forgotten])
            .max()
            .unwrap_or(forgotten);
        ends.saturating_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: NodeId = NodeId(3);

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    fn granted() -> Grants {
        let mut grants = Grants::new(Instant::default());
        grants.grant(at(10_000), 1, View(5), OWNER, Incarnation(2));
        grants
    }

    #[test]
    fn a_fence_waits_for_the_lease_of_an_earlier_view() {
        let grants = granted();
        assert_eq!(grants.hold_back(at(10_000), 1, View(6), false), LEASE_GRACE);
        assert_eq!(
            grants.hold_back(at(20_000), 1, View(6), false),
            Duration::ZERO
        );
        assert_eq!(
            grants.hold_back(at(10_000), 1, View(5), false),
            Duration::ZERO
        );
        assert_eq!(
            grants.hold_back(at(10_000), 2, View(6), false),
            Duration::ZERO
        );
    }

    #[test]
    fn the_proven_death_of_exactly_that_process_ends_the_wait() {
        let mut grants = granted();
        grants.note_dead(OWNER, Incarnation(1));
        assert_eq!(grants.hold_back(at(10_000), 1, View(6), false), LEASE_GRACE);
        grants.note_dead(OWNER, Incarnation(2));
        assert_eq!(
            grants.hold_back(at(10_000), 1, View(6), false),
            Duration::ZERO
        );
    }

    #[test]
    fn a_released_lease_is_not_waited_for() {
        let mut grants = granted();
        grants.release(1, View(5));
        assert_eq!(
            grants.hold_back(at(10_000), 1, View(6), false),
            Duration::ZERO
        );
    }

    #[test]
    fn after_a_restart_every_fence_waits_once_because_grants_are_forgotten() {
        let grants = Grants::new(at(500));
        assert_eq!(grants.hold_back(at(500), 1, View(6), false), LEASE_GRACE);
        assert_eq!(grants.hold_back(at(500), 1, View(6), true), Duration::ZERO);
    }
}
