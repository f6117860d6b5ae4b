//! Oracles over whole clusters: fed by a scenario, they say what is wrong and where.
//!
//! Durability needs no oracle of its own: a scenario reads every written block back at the end,
//! and [`super::linearizability`] judges what it finds.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_runtime::{Incarnation, NodeId};
use thiserror::Error;

use crate::random::nanos;
use crate::trace::Timestamp;

/// At most one start of one node may ever act as owner of a volume in a view.
#[derive(Debug, Default)]
pub struct Ownership {
    owners: BTreeMap<(u64, u64), (NodeId, Incarnation)>,
}

/// Two owners in one view.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "volume {volume} has two owners in view {view}: node {} start {} and node {} start {}",
    .first.0, .first.1.0, .second.0, .second.1.0
)]
pub struct TwoOwners {
    /// The volume.
    pub volume: u64,
    /// The view.
    pub view: u64,
    /// Who acted first.
    pub first: (NodeId, Incarnation),
    /// Who acted too.
    pub second: (NodeId, Incarnation),
}

impl Ownership {
    /// Reports that this start of `node` acted as owner.
    pub fn acted(
        &mut self,
        volume: u64,
        view: u64,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<(), TwoOwners> {
        let second = (node, incarnation);
        let first = *self.owners.entry((volume, view)).or_insert(second);
        if first == second {
            Ok(())
        } else {
            Err(TwoOwners {
                volume,
                view,
                first,
                second,
            })
        }
    }

    /// How many (volume, view) pairs had an owner.
    pub fn views(&self) -> usize {
        self.owners.len()
    }
}

/// Copies of a slice that differ although nothing is under way.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("copies of {what} differ at block {block}: {}", describe(.digests))]
pub struct CopiesDiffer {
    /// Which slice.
    pub what: String,
    /// The first block that differs.
    pub block: u64,
    /// What each node holds, as a digest; `None` says that it cannot be read.
    pub digests: Vec<(NodeId, Option<u64>)>,
}

/// Compares the copies of one slice: per node the digests of its blocks, `None` for a block that
/// cannot be read. All copies have to be of equal length.
pub fn compare_copies(
    what: &str,
    copies: &[(NodeId, Vec<Option<u64>>)],
) -> Result<(), CopiesDiffer> {
    let blocks = copies
        .iter()
        .map(|(_, digests)| digests.len())
        .max()
        .unwrap_or(0);
    for block in 0..blocks {
        let at = |digests: &Vec<Option<u64>>| digests.get(block).copied().flatten();
        let digests: Vec<_> = copies
            .iter()
            .map(|(node, digests)| (*node, at(digests)))
            .collect();
        let first = digests.first().and_then(|(_, digest)| *digest);
        if first.is_none() || digests.iter().any(|(_, digest)| *digest != first) {
            return Err(CopiesDiffer {
                what: what.to_owned(),
                block: block as u64,
                digests,
            });
        }
    }
    Ok(())
}

fn describe(digests: &[(NodeId, Option<u64>)]) -> String {
    let words: Vec<String> = digests
        .iter()
        .map(|(node, digest)| match digest {
            Some(digest) => format!("node {node} {digest:016x}"),
            None => format!("node {node} unreadable"),
        })
        .collect();
    words.join(", ")
}

/// After healing, operations have to succeed again within a bound.
#[derive(Debug)]
pub struct Progress {
    bound: Duration,
    healed_ns: Option<u64>,
    recovered_ns: BTreeMap<u64, u64>,
}

/// Nothing succeeded in time.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("volume {volume} served nothing within {bound:?} after healing at {} s",
    Timestamp(*.healed_ns))]
pub struct NoProgress {
    /// The volume without service.
    pub volume: u64,
    /// How long it was given.
    pub bound: Duration,
    /// Virtual time of the healing in nanoseconds.
    pub healed_ns: u64,
}

impl Progress {
    /// An oracle that allows `bound` from healing to the first success.
    pub const fn new(bound: Duration) -> Self {
        Self {
            bound,
            healed_ns: None,
            recovered_ns: BTreeMap::new(),
        }
    }

    /// Every fault has ended; what succeeded before does not count.
    pub fn healed(&mut self, now_ns: u64) {
        self.healed_ns = Some(now_ns);
        self.recovered_ns.clear();
    }

    /// An operation that began after the healing has succeeded.
    pub fn succeeded(&mut self, now_ns: u64, volume: u64) {
        self.recovered_ns.entry(volume).or_insert(now_ns);
    }

    /// Judges one volume; to be asked once the bound has passed.
    pub fn judge(&self, volume: u64) -> Result<Duration, NoProgress> {
        let healed_ns = self.healed_ns.unwrap_or(0);
        let took = self
            .recovered_ns
            .get(&volume)
            .map(|at_ns| at_ns.saturating_sub(healed_ns));
        match took {
            Some(took_ns) if took_ns <= nanos(self.bound) => Ok(Duration::from_nanos(took_ns)),
            Some(_) | None => Err(NoProgress {
                volume,
                bound: self.bound,
                healed_ns,
            }),
        }
    }
}

/// No node may hold more than a bound in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBound {
    bound_bytes: u64,
    highest_bytes: u64,
}

/// A node holds too much.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("node {node} holds {bytes} bytes of {what}; {bound_bytes} are allowed")]
pub struct TooMuchMemory {
    /// The node.
    pub node: NodeId,
    /// What it holds.
    pub what: &'static str,
    /// How much.
    pub bytes: u64,
    /// The bound.
    pub bound_bytes: u64,
}

impl MemoryBound {
    /// An oracle for one kind of memory.
    pub const fn new(bound_bytes: u64) -> Self {
        Self {
            bound_bytes,
            highest_bytes: 0,
        }
    }

    /// Reports what a node holds.
    pub fn holds(
        &mut self,
        node: NodeId,
        what: &'static str,
        bytes: u64,
    ) -> Result<(), TooMuchMemory> {
        self.highest_bytes = self.highest_bytes.max(bytes);
        if bytes <= self.bound_bytes {
            return Ok(());
        }
        Err(TooMuchMemory {
            node,
            what,
            bytes,
            bound_bytes: self.bound_bytes,
        })
    }

    /// The most that any node held.
    pub const fn highest_bytes(&self) -> u64 {
        self.highest_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_in_a_view_is_caught_and_a_later_view_is_free() {
        let mut ownership = Ownership::default();
        let (one, two) = ((NodeId(1), Incarnation(1)), (NodeId(2), Incarnation(1)));
        assert_eq!(ownership.acted(7, 1, one.0, one.1), Ok(()));
        assert_eq!(ownership.acted(7, 1, one.0, one.1), Ok(()));
        assert_eq!(ownership.acted(7, 2, two.0, two.1), Ok(()));
        let expected = TwoOwners {
            volume: 7,
            view: 1,
            first: one,
            second: two,
        };
        assert_eq!(ownership.acted(7, 1, two.0, two.1), Err(expected));
        assert!(
            ownership.acted(7, 2, two.0, Incarnation(2)).is_err(),
            "a restart is another"
        );
    }

    #[test]
    fn differing_missing_and_unreadable_blocks_are_caught() {
        let copy = |node, digests: &[u64]| {
            (
                NodeId(node),
                digests
                    .iter()
                    .map(|digest| Some(*digest))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            compare_copies("s", &[copy(1, &[1, 2]), copy(2, &[1, 2])]),
            Ok(())
        );
        let block = |copies: &[_]| compare_copies("s", copies).map_err(|differ| differ.block);
        assert_eq!(block(&[copy(1, &[1, 2]), copy(2, &[1, 3])]), Err(1));
        assert_eq!(block(&[copy(1, &[1, 2]), copy(2, &[1])]), Err(1));
        let unreadable = (NodeId(3), vec![None, Some(2)]);
        assert_eq!(block(&[unreadable.clone(), copy(1, &[1, 2])]), Err(0));
        assert_eq!(block(&[unreadable]), Err(0));
    }

    #[test]
    fn progress_counts_from_the_healing() {
        let mut progress = Progress::new(Duration::from_nanos(100));
        progress.succeeded(5, 1);
        progress.healed(1_000);
        assert!(
            progress.judge(1).is_err(),
            "a success before the healing does not count"
        );
        progress.succeeded(1_080, 1);
        progress.succeeded(2_000, 1);
        assert_eq!(progress.judge(1), Ok(Duration::from_nanos(80)));
        progress.succeeded(1_101, 2);
        assert!(progress.judge(2).is_err());
    }

    #[test]
    fn memory_above_the_bound_is_caught() {
        let mut memory = MemoryBound::new(10);
        assert_eq!(memory.holds(NodeId(1), "journal index", 10), Ok(()));
        assert!(memory.holds(NodeId(1), "journal index", 11).is_err());
        assert_eq!(memory.highest_bytes(), 11);
    }
}
