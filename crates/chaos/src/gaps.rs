//! How long volumes stood still at each portal, as a client that stays there sees it.

use std::cell::RefCell;
use std::time::Duration;

use crate::ledger::span;
use crate::register::Moment;

/// Shorter ones are not kept.
const KEPT_FROM: Moment = 20_000;

/// A time without any completion although something was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) volume: usize,
    pub(crate) portal: usize,
    pub(crate) from: Moment,
    pub(crate) to: Moment,
}

impl Gap {
    pub(crate) fn length(&self) -> Duration {
        span(self.from, self.to)
    }
}

/// See the module's header.
pub(crate) struct Gaps {
    portals: usize,
    /// Since when something is wanted, for each volume and portal.
    wanted: RefCell<Vec<Option<Moment>>>,
    /// The latest completion.
    completed: RefCell<Vec<Moment>>,
    kept: RefCell<Vec<Gap>>,
    /// The worst lateness of this process's own clockwork since the last look.
    stall: RefCell<Vec<Gap>>,
}

impl Gaps {
    pub(crate) fn new(volumes: usize, portals: usize) -> Self {
        Self {
            portals,
            wanted: RefCell::new(vec![None; volumes * portals]),
            completed: RefCell::new(vec![0; volumes * portals]),
            kept: RefCell::default(),
            stall: RefCell::default(),
        }
    }

    /// Something is wanted from now on, or still.
    pub(crate) fn want(&self, volume: usize, portal: usize, now: Moment) {
        let slot = &mut self.wanted.borrow_mut()[volume * self.portals + portal];
        slot.get_or_insert(now);
    }

    /// Something has completed.
    pub(crate) fn complete(&self, volume: usize, portal: usize, now: Moment) {
        let index = volume * self.portals + portal;
        self.completed.borrow_mut()[index] = now;
        let Some(from) = self.wanted.borrow_mut()[index].take() else {
            return;
        };
        if now.saturating_sub(from) >= KEPT_FROM {
            self.kept.borrow_mut().push(Gap {
                volume,
                portal,
                from,
                to: now,
            });
        }
    }

    /// This process itself stood still.
    pub(crate) fn stalled(&self, from: Moment, to: Moment) {
        self.stall.borrow_mut().push(Gap {
            volume: 0,
            portal: 0,
            from,
            to,
        });
    }

    /// The longest time that this process stood still in the span.
    pub(crate) fn longest_stall(&self, from: Moment, to: Moment) -> Duration {
        let stalls = self.stall.borrow();
        let within = stalls.iter().filter(|gap| overlaps(gap, from, to));
        within.map(Gap::length).max().unwrap_or_default()
    }

    /// The longest gap that touches the span, at portals that count; those that go on included.
    pub(crate) fn longest(
        &self,
        from: Moment,
        to: Moment,
        counts: impl Fn(usize) -> bool,
    ) -> Option<Gap> {
        let kept = self.kept.borrow();
        let running = self.wanted.borrow();
        let running = running.iter().enumerate().filter_map(|(index, since)| {
            let since = (*since)?;
            Some(Gap {
                volume: index / self.portals,
                portal: index % self.portals,
                from: since,
                to,
            })
        });
        let all = kept.iter().copied().chain(running);
        all.filter(|gap| counts(gap.portal) && overlaps(gap, from, to))
            .max_by_key(Gap::length)
    }

    /// Volumes and portals at which nothing has completed since `moment`.
    pub(crate) fn waiting_since(&self, moment: Moment) -> Vec<(usize, usize)> {
        let completed = self.completed.borrow();
        let late = completed.iter().enumerate().filter(|(_, at)| **at < moment);
        late.map(|(index, _)| (index / self.portals, index % self.portals))
            .collect()
    }
}

fn overlaps(gap: &Gap, from: Moment, to: Moment) -> bool {
    gap.to > from && gap.from < to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_lasts_from_the_wish_to_the_completion() {
        let gaps = Gaps::new(2, 3);
        gaps.want(1, 2, 1_000_000);
        gaps.want(1, 2, 1_500_000);
        gaps.complete(1, 2, 3_000_000);
        gaps.want(0, 0, 2_000_000);
        gaps.complete(0, 0, 2_001_000);
        let longest = gaps.longest(2_500_000, 4_000_000, |_| true).unwrap();
        assert_eq!((longest.volume, longest.portal), (1, 2));
        assert_eq!(longest.length(), Duration::from_secs(2));
        assert_eq!(
            gaps.longest(2_500_000, 4_000_000, |portal| portal != 2),
            None
        );
        assert_eq!(gaps.longest(3_000_000, 4_000_000, |_| true), None);
    }

    #[test]
    fn a_gap_that_goes_on_counts_and_a_portal_without_completions_is_named() {
        let gaps = Gaps::new(1, 2);
        gaps.want(0, 1, 10);
        gaps.complete(0, 0, 5_000_000);
        let longest = gaps.longest(0, 7_000_010, |_| true).unwrap();
        assert_eq!(longest.length(), Duration::from_secs(7));
        assert_eq!(gaps.waiting_since(4_000_000), [(0, 1)]);
    }
}
