//! Leases that this node has granted to owners. Pure.
//!
//! A grant is a promise to hold back the fence of a later view until the owner can no longer
//! use the lease. It ends by time, by release, or when the owner's process is proven dead. A
//! node that restarts has forgotten its grants. Only one owner can still use one then: the one
//! that opened the volume last, as every takeover that opened since an earlier grant has waited
//! for its end. The fence names that predecessor:
//!
//! | predecessor | grants that are remembered | grants that a restart may have forgotten |
//! |---|---|---|
//! | none: never opened | there are none | there are none |
//! | its process is proven dead | waited for, unless the holder is proven dead | no wait |
//! | it has given its leases back here | the same | no wait: who closed an office serves nothing in it again |
//! | it may live | the same | held back for one grace time from the start |
//! | not known | the same | the same |

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_runtime::planted::{self, Bug};
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

/// The owner that opened a volume last before the view of a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predecessor {
    /// No owner has ever opened what is fenced.
    Nobody,
    /// This process, in this view.
    Owner(NodeId, Incarnation, View),
    /// The fence does not say.
    Unknown,
}

/// See the module's header.
#[derive(Debug)]
pub struct Grants {
    started: Instant,
    by_volume: BTreeMap<u64, Vec<Grant>>,
    /// The newest view whose owner has given its leases back, of each volume; while it matters.
    released: BTreeMap<u64, View>,
    dead: BTreeMap<NodeId, Incarnation>,
}

impl Grants {
    /// Of a process that started at `started`.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            by_volume: BTreeMap::new(),
            released: BTreeMap::new(),
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

    /// The owner of `view` gives its lease back: its office has ended.
    pub fn release(&mut self, now: Instant, volume: u64, view: View) {
        if now < self.started + LEASE_GRACE {
            let newest = self.released.entry(volume).or_insert(view);
            *newest = (*newest).max(view);
        } else {
            self.released.clear();
        }
        if let Some(grants) = self.by_volume.get_mut(&volume) {
            grants.retain(|grant| grant.view != view && !planted::is_active(Bug::ReleaseForAll));
        }
    }

    /// The process `incarnation` of `node`, and every earlier one, is gone.
    pub fn note_dead(&mut self, node: NodeId, incarnation: Incarnation) {
        let newest = self.dead.entry(node).or_insert(incarnation);
        *newest = (*newest).max(incarnation);
    }

    /// Whether a lease of an earlier view is known to be in force; else a fence that waits does so
    /// for what a start has forgotten.
    pub fn is_known(&self, now: Instant, volume: u64, view: View) -> bool {
        let grants = self.by_volume.get(&volume).into_iter().flatten();
        grants
            .into_iter()
            .any(|grant| grant.view < view && grant.ends > now)
    }

    /// Whether a lease is not waited for, because its holder is proven dead.
    pub fn is_spared(&self, now: Instant, volume: u64, view: View) -> bool {
        let grants = self.by_volume.get(&volume).into_iter().flatten();
        grants
            .filter(|grant| grant.view < view && grant.ends > now)
            .any(|grant| self.is_dead(grant.holder, grant.incarnation))
    }

    /// How long the fence of `view` has to be held back; zero: it may be answered.
    pub fn hold_back(
        &self,
        now: Instant,
        volume: u64,
        view: View,
        predecessor: Predecessor,
    ) -> Duration {
        let forgotten = match predecessor {
            Predecessor::Nobody => return Duration::ZERO,
            Predecessor::Owner(node, incarnation, _) if self.is_dead(node, incarnation) => None,
            Predecessor::Owner(_, _, opened) if self.has_released(volume, opened) => None,
            Predecessor::Owner(..) | Predecessor::Unknown
                if planted::is_active(Bug::ForgetGrantsAtRestart) =>
            {
                None
            }
            Predecessor::Owner(..) | Predecessor::Unknown => Some(self.started + LEASE_GRACE),
        };
        let grants = self.by_volume.get(&volume);
        let live = grants
            .into_iter()
            .flatten()
            .filter(|grant| grant.view < view && !self.is_dead(grant.holder, grant.incarnation));
        let ends = live.map(|grant| grant.ends).chain(forgotten).max();
        ends.map_or(Duration::ZERO, |ends| ends.saturating_since(now))
    }

    fn has_released(&self, volume: u64, opened: View) -> bool {
        self.released.get(&volume) == Some(&opened)
    }

    fn is_dead(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let dead = self.dead.get(&node);
        dead.is_some_and(|dead| *dead >= incarnation || planted::is_active(Bug::DeathOfAnyStart))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: NodeId = NodeId(3);
    const OPENED: Predecessor = Predecessor::Owner(OWNER, Incarnation(2), View(5));

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
        let wait = |ms, volume, view| granted().hold_back(at(ms), volume, View(view), OPENED);
        assert_eq!(wait(10_000, 1, 6), LEASE_GRACE);
        assert_eq!(wait(20_000, 1, 6), Duration::ZERO);
        assert_eq!(wait(10_000, 1, 5), Duration::ZERO);
        assert_eq!(wait(10_000, 2, 6), Duration::ZERO);
    }

    #[test]
    fn the_proven_death_of_exactly_that_process_ends_the_wait() {
        let mut grants = granted();
        grants.note_dead(OWNER, Incarnation(1));
        assert_eq!(
            grants.hold_back(at(10_000), 1, View(6), OPENED),
            LEASE_GRACE
        );
        grants.note_dead(OWNER, Incarnation(2));
        assert_eq!(
            grants.hold_back(at(10_000), 1, View(6), OPENED),
            Duration::ZERO
        );
    }

    #[test]
    fn the_death_of_the_predecessor_says_nothing_of_another_holder() {
        let mut grants = granted();
        grants.note_dead(NodeId(4), Incarnation(9));
        let other = Predecessor::Owner(NodeId(4), Incarnation(9), View(5));
        assert_eq!(grants.hold_back(at(10_000), 1, View(6), other), LEASE_GRACE);
    }

    #[test]
    fn a_released_lease_is_not_waited_for() {
        let mut grants = granted();
        grants.release(at(10_000), 1, View(5));
        assert_eq!(
            grants.hold_back(at(10_000), 1, View(6), OPENED),
            Duration::ZERO
        );
    }

    #[test]
    fn after_a_restart_a_fence_waits_once_because_grants_are_forgotten() {
        let grants = Grants::new(at(500));
        for predecessor in [OPENED, Predecessor::Unknown] {
            let wait = |ms| grants.hold_back(at(ms), 1, View(6), predecessor);
            assert_eq!(wait(500), LEASE_GRACE);
            assert_eq!(wait(1_000), LEASE_GRACE - Duration::from_millis(500));
            assert_eq!(wait(9_000), Duration::ZERO);
        }
    }

    #[test]
    fn after_a_restart_nothing_waits_for_a_predecessor_that_is_proven_dead() {
        let mut grants = Grants::new(at(500));
        grants.note_dead(OWNER, Incarnation(1));
        assert_eq!(grants.hold_back(at(500), 1, View(6), OPENED), LEASE_GRACE);
        grants.note_dead(OWNER, Incarnation(2));
        assert_eq!(
            grants.hold_back(at(500), 1, View(6), OPENED),
            Duration::ZERO
        );
        let unknown = grants.hold_back(at(500), 1, View(6), Predecessor::Unknown);
        assert_eq!(unknown, LEASE_GRACE);
    }

    #[test]
    fn after_a_restart_nothing_waits_for_an_office_that_gave_its_leases_back() {
        let mut grants = Grants::new(at(500));
        grants.release(at(600), 1, View(4));
        let wait =
            |grants: &Grants, predecessor| grants.hold_back(at(700), 1, View(6), predecessor);
        // An earlier office of the same process says nothing of its last one.
        let left = LEASE_GRACE - Duration::from_millis(200);
        assert_eq!(wait(&grants, OPENED), left);
        grants.release(at(600), 2, View(5));
        assert_eq!(wait(&grants, OPENED), left, "another volume");
        grants.release(at(600), 1, View(5));
        assert_eq!(wait(&grants, OPENED), Duration::ZERO);
        assert_eq!(wait(&grants, Predecessor::Unknown), left);
        // What this start has granted is waited for all the same.
        grants.grant(at(650), 1, View(3), NodeId(4), Incarnation(1));
        assert_eq!(
            wait(&grants, OPENED),
            LEASE_GRACE - Duration::from_millis(50)
        );
    }

    #[test]
    fn what_was_never_open_waits_for_nothing() {
        let grants = Grants::new(at(500));
        let wait = grants.hold_back(at(500), 1, View(6), Predecessor::Nobody);
        assert_eq!(wait, Duration::ZERO);
    }
}
