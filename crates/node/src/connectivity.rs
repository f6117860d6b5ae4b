//! Since when nodes are out of reach: no chain of links leads to them. Pure.
//!
//! Each node notices by itself that a link is silent, and all that share a link to a silent node
//! notice within the same moment, so several nodes that fall silent together are judged together.
//! Rumour takes longer and comes one by one.
//!
//! Invariant: a node judges others only while it reaches a majority itself. One that was cut off,
//! or stood still, finds its own links gone, which says nothing of the others.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_runtime::{Incarnation, Instant, NodeId};

/// News of links arrives one after another, and a link may be replaced: a node counts as lost
/// when nothing leads to it for so long.
pub(crate) const OUT_OF_REACH_FOR: Duration = Duration::from_millis(100);

/// Whether a start of a node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contact {
    /// It can, or was never seen: there is nothing to judge.
    Unjudged,
    /// Nothing leads to it, for less than [`OUT_OF_REACH_FOR`].
    Missing,
    /// Nothing leads to it.
    Lost,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct Reachability {
    /// The newest start of each node that was reached, and since when it is not.
    seen: BTreeMap<NodeId, (Incarnation, Option<Instant>)>,
}

impl Reachability {
    /// These nodes are reached now. `majority` says whether they are one.
    pub(crate) fn note(
        &mut self,
        now: Instant,
        reachable: &BTreeMap<NodeId, Incarnation>,
        majority: bool,
    ) {
        for (node, incarnation) in reachable {
            self.seen.insert(*node, (*incarnation, None));
        }
        for (node, (_, since)) in &mut self.seen {
            if reachable.contains_key(node) {
                continue;
            }
            if majority {
                since.get_or_insert(now);
            } else {
                *since = Some(now);
            }
        }
    }

    /// What is to be thought of a node's start, right after [`Self::note`].
    pub(crate) fn of(&self, now: Instant, node: NodeId, incarnation: Incarnation) -> Contact {
        match self.seen.get(&node) {
            Some((seen, Some(since))) if *seen == incarnation => {
                if now.saturating_since(*since) >= OUT_OF_REACH_FOR {
                    Contact::Lost
                } else {
                    Contact::Missing
                }
            }
            Some(_) | None => Contact::Unjudged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Incarnation = Incarnation(4);

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    fn nodes(numbers: &[u64]) -> BTreeMap<NodeId, Incarnation> {
        numbers.iter().map(|node| (NodeId(*node), START)).collect()
    }

    fn judged(reachability: &Reachability, ms: u64, node: u64) -> Contact {
        reachability.of(at(ms), NodeId(node), START)
    }

    #[test]
    fn nodes_that_fall_silent_together_are_lost_together() {
        let mut reachability = Reachability::default();
        reachability.note(at(0), &nodes(&[1, 2, 3, 4, 5]), true);
        assert_eq!(judged(&reachability, 900, 4), Contact::Unjudged);
        reachability.note(at(1_000), &nodes(&[1, 2, 3]), true);
        for (ms, reach) in [
            (1_000, Contact::Missing),
            (1_099, Contact::Missing),
            (1_100, Contact::Lost),
        ] {
            assert_eq!(judged(&reachability, ms, 4), reach);
            assert_eq!(judged(&reachability, ms, 5), reach);
        }
    }

    #[test]
    fn one_that_comes_back_or_starts_anew_is_not_lost() {
        let mut reachability = Reachability::default();
        reachability.note(at(0), &nodes(&[1, 2, 3]), true);
        reachability.note(at(100), &nodes(&[1, 2]), true);
        reachability.note(at(200), &nodes(&[1, 2, 3]), true);
        assert_eq!(judged(&reachability, 900, 3), Contact::Unjudged);
        let mut newer = nodes(&[1, 2]);
        newer.insert(NodeId(3), Incarnation(5));
        reachability.note(at(1_000), &newer, true);
        reachability.note(at(1_100), &nodes(&[1, 2]), true);
        assert_eq!(
            judged(&reachability, 9_000, 3),
            Contact::Unjudged,
            "of the earlier start"
        );
        assert_eq!(
            reachability.of(at(9_000), NodeId(3), Incarnation(5)),
            Contact::Lost
        );
    }

    #[test]
    fn one_without_a_majority_judges_nobody_and_starts_afresh_when_it_has_one() {
        let mut reachability = Reachability::default();
        reachability.note(at(0), &nodes(&[1, 2, 3, 4, 5]), true);
        reachability.note(at(1_000), &nodes(&[1]), false);
        reachability.note(at(9_000), &nodes(&[1, 2]), false);
        assert_eq!(judged(&reachability, 9_000, 3), Contact::Missing);
        reachability.note(at(9_010), &nodes(&[1, 2, 3]), true);
        assert_eq!(judged(&reachability, 9_090, 4), Contact::Missing);
        assert_eq!(judged(&reachability, 9_090, 3), Contact::Unjudged);
        assert_eq!(judged(&reachability, 9_110, 4), Contact::Lost);
    }

    #[test]
    fn one_that_was_never_reached_is_left_to_rumour() {
        let mut reachability = Reachability::default();
        reachability.note(at(0), &nodes(&[1, 2, 3]), true);
        assert_eq!(judged(&reachability, 60_000, 9), Contact::Unjudged);
    }
}
