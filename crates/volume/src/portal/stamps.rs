//! What owners' clocks said, and what this node can vouch for by them. Pure.
//!
//! An owner judges by its own clock how old the evidence is that a host holds on to its path. The
//! portal tells it in the owner's terms: the newest *stamp* of that clock, and how long after (or
//! before) its receipt the host was known to be there. The stamp was taken before it was
//! received, so the owner never takes the evidence for newer than it is, however late the
//! message comes.
//!
//! What must always hold: evidence from before a moment at which this node's own clock may have
//! stood still is not vouched for. A machine that was suspended under its own eyes counts the
//! time; one whose hypervisor froze it, clock and all, does not. It shows when an owner's clock
//! has moved on further than this one, and before the first stamp of an owner nothing can show.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_config::state::Owner as OwnerRecord;
use holdfast_runtime::{Incarnation, Instant, NodeId};

/// An answer that took longer says too little of the moment at which it was given.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(250);
/// A stamp is used for so long. By then two clocks may differ by some 10 ms.
const USED_FOR: Duration = Duration::from_secs(60);
/// What clocks may differ by at once.
const SLACK: Duration = Duration::from_millis(5);
/// Clocks drift apart by less than this part of the time that passes.
const DRIFT_PART: u32 = 1000;

#[derive(Clone, Copy, Debug)]
struct Stamp {
    incarnation: Incarnation,
    stamp: u64,
    sent: Instant,
    received: Instant,
    /// Since this moment the own clock has not stood still.
    trusted_from: Instant,
    /// When this process last answered anything.
    heard: Instant,
}

/// What is said of a path to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vouch {
    pub(super) stamp: u64,
    pub(super) held_after_stamp: i64,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct Stamps(BTreeMap<NodeId, Stamp>);

impl Stamps {
    /// An owner's node has answered at `received` a request sent at `sent`.
    pub(super) fn take(&mut self, from: OwnerRecord, sent: Instant, received: Instant, stamp: u64) {
        let new = Stamp {
            incarnation: from.incarnation,
            stamp,
            sent,
            received,
            trusted_from: received,
            heard: received,
        };
        let known = self.0.get_mut(&from.node);
        let Some(known) = known.filter(|known| known.incarnation == from.incarnation) else {
            self.0.insert(from.node, new);
            return;
        };
        known.heard = received;
        let slow = received.saturating_since(sent) > ROUND_TRIP_MAX;
        let usable = received.saturating_since(known.received) <= USED_FOR;
        if (slow && usable) || stamp < known.stamp {
            return;
        }
        let here = received.saturating_since(known.sent);
        let there = Duration::from_nanos(stamp - known.stamp);
        let stood_still = there > here + here / DRIFT_PART + SLACK;
        *known = Stamp {
            trusted_from: if stood_still {
                received
            } else {
                known.trusted_from
            },
            ..new
        };
    }

    /// Whether there is a stamp of this process that can be used.
    pub(super) fn has(&self, owner: OwnerRecord, now: Instant) -> bool {
        self.usable(owner, now).is_some()
    }

    /// When this process of an owner's node last answered.
    pub(super) fn heard(&self, owner: OwnerRecord) -> Option<Instant> {
        let known = self.0.get(&owner.node)?;
        (known.incarnation == owner.incarnation).then_some(known.heard)
    }

    /// Evidence from before this moment is worth nothing to the owner.
    pub(super) fn trusted_from(&self, owner: OwnerRecord, now: Instant) -> Option<Instant> {
        self.usable(owner, now).map(|stamp| stamp.trusted_from)
    }

    /// How to tell the owner that a host was known to be there at `held_at`.
    pub(super) fn vouch(
        &self,
        owner: OwnerRecord,
        now: Instant,
        held_at: Instant,
    ) -> Option<Vouch> {
        let known = self.usable(owner, now)?;
        if held_at < known.trusted_from {
            return None;
        }
        let (held, received) = (held_at.as_nanos(), known.received.as_nanos());
        Some(Vouch {
            stamp: known.stamp,
            held_after_stamp: held.wrapping_sub(received).cast_signed(),
        })
    }

    fn usable(&self, owner: OwnerRecord, now: Instant) -> Option<&Stamp> {
        self.0.get(&owner.node).filter(|known| {
            known.incarnation == owner.incarnation
                && now.saturating_since(known.received) <= USED_FOR
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: OwnerRecord = OwnerRecord {
        node: NodeId(3),
        incarnation: Incarnation(5),
    };

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    const fn ns(ms: u64) -> u64 {
        ms * 1_000_000
    }

    /// The owner's clock is an hour ahead.
    fn take(stamps: &mut Stamps, sent_ms: u64, received_ms: u64, owner_ms: u64) {
        let owner_ms = owner_ms + 3_600_000;
        stamps.take(OWNER, at(sent_ms), at(received_ms), ns(owner_ms));
    }

    #[test]
    fn evidence_is_told_in_the_owners_terms() {
        let mut stamps = Stamps::default();
        assert_eq!(stamps.vouch(OWNER, at(0), at(0)), None);
        take(&mut stamps, 1_000, 1_010, 1_005);
        let vouch = stamps.vouch(OWNER, at(1_500), at(1_400)).expect("a stamp");
        assert_eq!(vouch.stamp, ns(3_601_005));
        assert_eq!(vouch.held_after_stamp, 390_000_000);
    }

    #[test]
    fn the_first_stamp_vouches_for_nothing_before_it() {
        let mut stamps = Stamps::default();
        take(&mut stamps, 1_000, 1_010, 1_005);
        assert_eq!(stamps.vouch(OWNER, at(1_020), at(1_009)), None);
        take(&mut stamps, 2_000, 2_010, 2_005);
        let vouch = stamps.vouch(OWNER, at(2_020), at(1_910)).expect("trusted");
        assert_eq!(vouch.held_after_stamp, -100_000_000);
    }

    #[test]
    fn a_clock_that_stood_still_is_found_out() {
        let mut stamps = Stamps::default();
        take(&mut stamps, 1_000, 1_010, 1_005);
        // Frozen for 8 s between 1.2 and 1.3 s of its own time.
        take(&mut stamps, 1_300, 1_310, 9_305);
        assert_eq!(stamps.vouch(OWNER, at(1_310), at(1_250)), None);
        assert_eq!(stamps.trusted_from(OWNER, at(1_310)), Some(at(1_310)));
        assert!(stamps.vouch(OWNER, at(1_330), at(1_320)).is_some());
    }

    #[test]
    fn drift_and_slow_answers_are_no_standstill() {
        let mut stamps = Stamps::default();
        take(&mut stamps, 1_000, 1_010, 1_005);
        take(&mut stamps, 51_000, 51_010, 51_015);
        assert_eq!(stamps.trusted_from(OWNER, at(51_010)), Some(at(1_010)));
        take(&mut stamps, 51_100, 55_100, 55_050);
        let vouch = stamps
            .vouch(OWNER, at(55_100), at(55_000))
            .expect("a stamp");
        assert_eq!(vouch.stamp, ns(3_651_015), "the slow answer is not taken");
        take(&mut stamps, 120_000, 121_000, 120_500);
        let vouch = stamps
            .vouch(OWNER, at(121_000), at(120_900))
            .expect("a stamp");
        assert_eq!(
            vouch.stamp,
            ns(3_720_500),
            "better than one of a minute ago"
        );
    }

    #[test]
    fn another_process_of_the_owner_begins_anew_and_an_old_stamp_is_not_used() {
        let mut stamps = Stamps::default();
        take(&mut stamps, 1_000, 1_010, 1_005);
        assert!(!stamps.has(OWNER, at(61_011)));
        let restarted = OwnerRecord {
            incarnation: Incarnation(6),
            ..OWNER
        };
        assert!(!stamps.has(restarted, at(1_020)));
        stamps.take(restarted, at(1_100), at(1_110), ns(5));
        assert_eq!(stamps.vouch(restarted, at(1_120), at(1_100)), None);
    }
}
