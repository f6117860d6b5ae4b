//! When the destage task works: what asks it to, and how much it shall do.
//!
//! | state | set by | the next round |
//! |---|---|---|
//! | nothing | a round that left nothing | none |
//! | waiting | something became destageable | a whole one, when the store is idle or that is old |
//! | urgent | the ring fills, or somebody waits | at once: the oldest part of the ring |
//! | urgent and whole | a flush, or space is needed | at once: all of it |

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{Instant, Runtime};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::poison::Poison;

/// How much of the ring a round empties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// As much as is needed.
    Part,
    /// All.
    Whole,
}

/// What is asked of the destage task.
pub(crate) struct Pressure {
    asked: Rc<Notify>,
    destageable: Cell<bool>,
    urgent: Cell<bool>,
    whole: Cell<bool>,
    /// When anything was last appended.
    appended: Cell<Instant>,
    /// The writer waits for room.
    blocked: Cell<bool>,
    /// Use of the ring, in bytes, above which a round is wanted.
    press_above: Cell<u64>,
    wholes_begun: Cell<u64>,
    wholes_ended: Cell<u64>,
    /// Signalled to all at the end of a round and when the store is poisoned.
    ended: Rc<Notify>,
}

impl Pressure {
    /// For a ring of this size.
    pub(crate) fn new(now: Instant, ring_bytes: u64, poison: &Poison) -> Self {
        let (asked, ended) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        poison.listen(asked.clone());
        poison.listen(ended.clone());
        Self {
            asked,
            destageable: Cell::new(false),
            urgent: Cell::new(false),
            whole: Cell::new(false),
            appended: Cell::new(now),
            blocked: Cell::new(false),
            press_above: Cell::new(ring_bytes / 2),
            wholes_begun: Cell::new(0),
            wholes_ended: Cell::new(0),
            ended,
        }
    }

    /// Something may go home. It can wait, unless the writer cannot.
    pub(crate) fn something_destageable(&self) {
        if !self.destageable.replace(true) {
            self.asked.notify_one();
        }
        if self.blocked.get() {
            self.press();
        }
    }

    /// Wants a round now.
    pub(crate) fn press(&self) {
        self.urgent.set(true);
        self.asked.notify_one();
    }

    /// Wants a round now that empties everything.
    pub(crate) fn press_whole(&self) {
        self.whole.set(true);
        self.press();
    }

    /// There is no room for new blocks: what can go home shall make some.
    pub(crate) fn space_wanted(&self) {
        if self.destageable.get() {
            self.press_whole();
        }
    }

    /// So many bytes of the ring are used.
    pub(crate) fn ring_used(&self, bytes: u64) {
        if bytes > self.press_above.get() {
            self.press();
        }
    }

    /// After a round: what it could not free is no reason for the next one.
    pub(crate) fn ring_emptied(&self, ring_bytes: u64, used_bytes: u64) {
        let above = (ring_bytes / 2).max(used_bytes + ring_bytes / 16);
        self.press_above.set(above);
    }

    pub(crate) fn appended(&self, now: Instant) {
        self.appended.set(now);
    }

    /// The writer waits for room, until [`Self::unblocked`].
    pub(crate) fn blocked(&self) {
        self.blocked.set(true);
        self.press();
    }

    pub(crate) fn unblocked(&self) {
        self.blocked.set(false);
    }

    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent.get()
    }

    /// Waits until a round may be due. One that can wait begins when nothing was appended for
    /// `idle`, or `age_max` after it was asked for.
    pub(crate) async fn due(&self, runtime: &Runtime, idle: Duration, age_max: Duration) {
        self.asked.notified().await;
        if self.urgent.get() || !self.destageable.get() {
            return;
        }
        let latest = runtime.now() + age_max;
        while !self.urgent.get() {
            let deadline = latest.min(self.appended.get() + idle);
            let left = deadline.saturating_since(runtime.now());
            if left.is_zero() {
                return;
            }
            runtime.timeout(left, self.asked.notified()).await;
        }
    }

    /// Begins the round that is asked for, if one is.
    pub(crate) fn begin(&self) -> Option<Round> {
        if !self.urgent.get() && !self.destageable.get() {
            return None;
        }
        let whole = !self.urgent.get() || self.whole.get();
        self.urgent.set(false);
        if whole {
            self.whole.set(false);
            self.destageable.set(false);
            self.wholes_begun.set(self.wholes_begun.get() + 1);
            return Some(Round::Whole);
        }
        // What stays waits for its own round.
        self.destageable.set(true);
        Some(Round::Part)
    }

    /// A round has done what it was to do.
    pub(crate) fn done(&self, round: Round) {
        match round {
            Round::Whole => self.wholes_ended.set(self.wholes_begun.get()),
            Round::Part => {}
        }
    }

    /// No round is under way; whoever waits for one looks again.
    pub(crate) fn ended(&self) {
        self.ended.notify_waiters();
    }

    /// Asks for a round again if there is something left for one.
    pub(crate) fn ask_again(&self) {
        if self.destageable.get() {
            self.asked.notify_one();
        }
    }

    /// Which whole round has everything of now: the next one that begins.
    pub(crate) fn next_whole(&self) -> u64 {
        self.wholes_begun.get() + 1
    }

    pub(crate) fn is_ended(&self, whole: u64) -> bool {
        self.wholes_ended.get() >= whole
    }

    /// Resolves at the next end of a round, or when the store is poisoned.
    pub(crate) fn next_end(&self) -> Notified<'_> {
        self.ended.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run;

    const RING: u64 = 1 << 20;
    const IDLE: Duration = Duration::from_secs(1);
    const AGE: Duration = Duration::from_secs(30);

    fn pressure(runtime: &Runtime) -> Pressure {
        Pressure::new(runtime.now(), RING, &Poison::default())
    }

    #[test]
    fn what_can_wait_waits_until_the_store_is_idle_and_goes_home_as_a_whole() {
        run(1, |runtime| async move {
            let pressure = pressure(&runtime);
            assert_eq!(pressure.begin(), None);
            pressure.something_destageable();
            let begun = runtime.now();
            pressure.due(&runtime, IDLE, AGE).await;
            assert_eq!(runtime.now().saturating_since(begun), IDLE);
            assert_eq!(pressure.begin(), Some(Round::Whole));
            assert_eq!(pressure.begin(), None);
        });
    }

    #[test]
    fn what_is_old_goes_home_while_writes_go_on() {
        run(1, |runtime| async move {
            let pressure = Rc::new(pressure(&runtime));
            pressure.something_destageable();
            let writes = {
                let (pressure, runtime) = (pressure.clone(), runtime.clone());
                async move {
                    loop {
                        pressure.appended(runtime.now());
                        runtime.sleep(IDLE / 2).await;
                    }
                }
            };
            let begun = runtime.now();
            let due = pressure.due(&runtime, IDLE, AGE);
            futures::future::select(std::pin::pin!(due), std::pin::pin!(writes)).await;
            assert_eq!(runtime.now().saturating_since(begun), AGE);
        });
    }

    #[test]
    fn a_ring_that_fills_has_a_part_emptied_at_once_and_the_rest_stays_due() {
        run(1, |runtime| async move {
            let pressure = pressure(&runtime);
            pressure.something_destageable();
            pressure.ring_used(RING / 2);
            assert!(!pressure.is_urgent());
            pressure.ring_used(RING / 2 + 1);
            let begun = runtime.now();
            pressure.due(&runtime, IDLE, AGE).await;
            assert_eq!(runtime.now(), begun);
            assert_eq!(pressure.begin(), Some(Round::Part));
            assert_eq!(pressure.begin(), Some(Round::Whole), "what stayed");
            // What could not be freed is no reason to try again.
            pressure.ring_emptied(RING, RING / 4 * 3);
            pressure.ring_used(RING / 4 * 3 + 1);
            assert!(!pressure.is_urgent());
        });
    }

    #[test]
    fn a_writer_without_room_makes_everything_urgent_until_it_has_some() {
        run(1, |runtime| async move {
            let pressure = pressure(&runtime);
            pressure.blocked();
            assert!(pressure.is_urgent());
            pressure.begin();
            pressure.something_destageable();
            assert!(pressure.is_urgent());
            pressure.begin();
            pressure.unblocked();
            pressure.something_destageable();
            assert!(!pressure.is_urgent());
        });
    }

    #[test]
    fn a_flush_is_done_by_a_whole_round_that_began_after_it() {
        run(1, |runtime| async move {
            let pressure = pressure(&runtime);
            pressure.press_whole();
            assert_eq!(pressure.begin(), Some(Round::Whole));
            let wanted = pressure.next_whole();
            pressure.done(Round::Whole);
            assert!(!pressure.is_ended(wanted), "it had begun before");
            pressure.press();
            pressure.something_destageable();
            pressure.begin();
            pressure.done(Round::Part);
            assert!(!pressure.is_ended(wanted), "a part is not enough");
            pressure.press_whole();
            pressure.begin();
            pressure.done(Round::Whole);
            assert!(pressure.is_ended(wanted));
        });
    }

    #[test]
    fn want_of_space_asks_for_a_round_only_if_one_can_give_some() {
        run(1, |runtime| async move {
            let pressure = pressure(&runtime);
            pressure.space_wanted();
            assert_eq!(pressure.begin(), None);
            pressure.something_destageable();
            pressure.space_wanted();
            assert_eq!(pressure.begin(), Some(Round::Whole));
        });
    }
}
