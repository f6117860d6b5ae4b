//! Where the slices of one volume are.
//!
//! The directory is sparse: a slice is in it once it is placed, which for all but the first one is
//! with its first write. It is persistent: a clone costs nothing, and a change of one slice
//! copies the few tree nodes above it (O(log n)), whoever else holds the directory.
//!
//! # What a slice costs
//!
//! An entry has 32 bytes: its index, and up to [`INLINE_COPIES`] copies in place. Leaves of the
//! tree are at least half full, so a slice costs 35 to 70 bytes of memory, inner nodes included;
//! 1,000,000 slices need some 50 MB. In a snapshot a slice of three copies has 5 bytes, as long as
//! node numbers are below 64.
//!
//! Always true: `held` and `alone` are what counting the copies of all slices gives.

use std::fmt;
use std::ops::{Index, RangeBounds};
use std::rc::Rc;

use holdfast_runtime::{NodeId, work};
use imbl::ordmap::DiffItem;
use imbl::shared_ptr::RcK;
use serde::{Deserialize, Serialize};

/// A persistent ordered map of one thread. Its clones share everything that is equal.
pub type SharedMap<K, V> = imbl::GenericOrdMap<K, V, RcK>;
/// A persistent ordered set of one thread.
pub(super) type SharedSet<T> = imbl::GenericOrdSet<T, RcK>;

/// Copies that an entry holds in place: three, or up to five while nodes drain. More are shared.
const INLINE_COPIES: usize = 5;

/// One copy of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// Where it is.
    pub node: NodeId,
    /// What it counts for.
    pub status: CopyStatus,
}

/// What a copy counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyStatus {
    /// Holds every acknowledged write; no write is acknowledged without it.
    InSync,
    /// Misses writes; may be joining at this moment.
    Stale,
}

/// Placement of one slice.
#[derive(Clone, PartialEq, Eq)]
pub struct SliceRecord(Copies);

/// `Inline` wherever it can be, so that equal placements are equal values.
#[derive(Clone, PartialEq, Eq)]
enum Copies {
    Inline {
        count: u8,
        /// Bit i: copy i is in sync.
        in_sync: u8,
        /// Zero from `count` on.
        nodes: [u32; INLINE_COPIES],
    },
    Shared(Rc<[CopyRecord]>),
}

const _: () = assert!(
    size_of::<(u32, SliceRecord)>() == 32,
    "see the module's header"
);

impl FromIterator<CopyRecord> for SliceRecord {
    fn from_iter<I: IntoIterator<Item = CopyRecord>>(copies: I) -> Self {
        let copies: Vec<CopyRecord> = copies.into_iter().collect();
        let (mut in_sync, mut nodes) = (0, [0; INLINE_COPIES]);
        if copies.len() > INLINE_COPIES {
            return Self(Copies::Shared(copies.into()));
        }
        for (place, copy) in copies.iter().enumerate() {
            let Ok(node) = u32::try_from(copy.node.0) else {
                return Self(Copies::Shared(copies.into()));
            };
            nodes[place] = node;
            in_sync |= u8::from(copy.status == CopyStatus::InSync) << place;
        }
        let count = copies.len() as u8;
        Self(Copies::Inline {
            count,
            in_sync,
            nodes,
        })
    }
}

impl SliceRecord {
    /// Its copies.
    pub fn copies(&self) -> impl ExactSizeIterator<Item = CopyRecord> + '_ {
        let count = match &self.0 {
            Copies::Inline { count, .. } => usize::from(*count),
            Copies::Shared(copies) => copies.len(),
        };
        (0..count).map(|place| self.copy(place))
    }

    fn copy(&self, place: usize) -> CopyRecord {
        match &self.0 {
            Copies::Inline { in_sync, nodes, .. } => CopyRecord {
                node: NodeId(nodes[place].into()),
                status: if in_sync & 1 << place == 0 {
                    CopyStatus::Stale
                } else {
                    CopyStatus::InSync
                },
            },
            Copies::Shared(copies) => copies[place],
        }
    }

    /// Nodes with an in-sync copy.
    pub fn in_sync(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.copies()
            .filter(|copy| copy.status == CopyStatus::InSync)
            .map(|copy| copy.node)
    }

    /// Whether `node` has an in-sync copy.
    pub fn is_in_sync(&self, node: NodeId) -> bool {
        self.status(node) == Some(CopyStatus::InSync)
    }

    /// What the copy on `node` counts for; `None` if it has none.
    pub fn status(&self, node: NodeId) -> Option<CopyStatus> {
        let found = self.copies().find(|copy| copy.node == node);
        found.map(|copy| copy.status)
    }

    /// The same placement, in which of the copies in sync those that `keeps` refuses are stale.
    pub(super) fn only_in_sync(&self, keeps: impl Fn(NodeId) -> bool) -> Self {
        let copies = self.copies().map(|copy| match copy.status {
            CopyStatus::InSync if !keeps(copy.node) => CopyRecord {
                status: CopyStatus::Stale,
                ..copy
            },
            CopyStatus::InSync | CopyStatus::Stale => copy,
        });
        copies.collect()
    }

    /// The same placement with another status of the copy on `node`; `None` if it has none.
    pub(super) fn with_status(&self, node: NodeId, status: CopyStatus) -> Option<Self> {
        self.status(node)?;
        let copies = self.copies().map(|copy| CopyRecord {
            status: if copy.node == node {
                status
            } else {
                copy.status
            },
            ..copy
        });
        Some(copies.collect())
    }
}

impl fmt::Debug for SliceRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.copies()).finish()
    }
}

/// How many copies of a volume's slices one node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The node.
    pub node: NodeId,
    /// All copies.
    pub copies: u32,
    /// Those in sync.
    pub in_sync: u32,
}

/// See the module's header.
#[derive(Clone, Default)]
pub struct Slices {
    records: SharedMap<u32, SliceRecord>,
    /// By node, ascending, of nodes with copies only: as many entries as nodes at most.
    held: Vec<Held>,
    /// Slices with exactly one copy in sync.
    alone: usize,
}

impl Slices {
    /// Placement of the slice with this index; `None` if it is not placed.
    pub fn get(&self, index: u32) -> Option<&SliceRecord> {
        self.records.get(&index)
    }

    /// Whether the slice with this index is placed.
    pub fn contains(&self, index: u32) -> bool {
        self.records.contains_key(&index)
    }

    /// Slices that are placed.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no slice is placed.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The placed slices with their indexes, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u32, &SliceRecord)> + Clone {
        let placed = self.records.iter().inspect(|_| work::note(1));
        placed.map(|(index, slice)| (*index, slice))
    }

    /// The placed slices of a range with their indexes, ascending.
    pub fn range(
        &self,
        range: impl RangeBounds<u32>,
    ) -> impl DoubleEndedIterator<Item = (u32, &SliceRecord)> + Clone {
        let found = self.records.range(range).inspect(|_| work::note(1));
        found.map(|(index, slice)| (*index, slice))
    }

    /// The placed slices, ascending by index.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &SliceRecord> + Clone {
        self.iter().map(|(_, slice)| slice)
    }

    /// The largest index that is placed.
    pub fn last_index(&self) -> Option<u32> {
        self.records.get_max().map(|(index, _)| *index)
    }

    /// The nodes with copies, ascending, and how many they have; costs nothing to know.
    pub fn holders(&self) -> &[Held] {
        &self.held
    }

    /// How many copies a node has.
    pub fn held_by(&self, node: NodeId) -> Held {
        let none = Held {
            node,
            copies: 0,
            in_sync: 0,
        };
        let found = self.held.binary_search_by_key(&node, |held| held.node);
        found.map_or(none, |place| self.held[place])
    }

    /// Slices with exactly one copy in sync; costs nothing to know.
    pub fn with_one_in_sync(&self) -> usize {
        self.alone
    }

    /// Whether both are one and the same directory: then nothing in it has changed. Two that are
    /// equal need not be.
    pub fn is_same(&self, other: &Self) -> bool {
        self.records.ptr_eq(&other.records)
    }

    /// The slices whose placement is another one than `before`, ascending. What both directories
    /// share is not looked at.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = u32> + 'a {
        let changes = before.records.diff(&self.records);
        changes.map(|change| match change {
            DiffItem::Add(index, _) | DiffItem::Remove(index, _) => *index,
            DiffItem::Update { new, .. } => *new.0,
        })
    }

    /// The slices of which `node` had a copy `before`, and has none any more, ascending. What both
    /// directories share is not looked at.
    pub fn taken_from<'a>(
        &'a self,
        node: NodeId,
        before: &'a Self,
    ) -> impl Iterator<Item = u32> + 'a {
        let has = move |slice: &SliceRecord| slice.status(node).is_some();
        let changes = before.records.diff(&self.records);
        changes.filter_map(move |change| match change {
            DiffItem::Update { old, new } if has(old.1) && !has(new.1) => Some(*new.0),
            DiffItem::Remove(index, slice) if has(slice) => Some(*index),
            DiffItem::Update { .. } | DiffItem::Remove(..) | DiffItem::Add(..) => None,
        })
    }

    /// Places a slice, or places it anew.
    pub(super) fn set(&mut self, index: u32, slice: SliceRecord) {
        self.count(&slice, 1);
        if let Some(before) = self.records.insert(index, slice) {
            self.count(&before, -1);
        }
    }

    fn count(&mut self, slice: &SliceRecord, sign: i32) {
        if slice.in_sync().count() == 1 {
            self.alone = self.alone.wrapping_add_signed(sign as isize);
        }
        for CopyRecord { node, status } in slice.copies() {
            let found = self.held.binary_search_by_key(&node, |held| held.node);
            let place = found.unwrap_or_else(|place| {
                let none = self.held_by(node);
                self.held.insert(place, none);
                place
            });
            let held = &mut self.held[place];
            held.copies = held.copies.wrapping_add_signed(sign);
            if status == CopyStatus::InSync {
                held.in_sync = held.in_sync.wrapping_add_signed(sign);
            }
            if held.copies == 0 {
                self.held.remove(place);
            }
        }
    }
}

impl FromIterator<(u32, SliceRecord)> for Slices {
    fn from_iter<I: IntoIterator<Item = (u32, SliceRecord)>>(placed: I) -> Self {
        let mut slices = Self::default();
        for (index, slice) in placed {
            slices.set(index, slice);
        }
        slices
    }
}

impl Index<u32> for Slices {
    type Output = SliceRecord;

    fn index(&self, index: u32) -> &SliceRecord {
        self.get(index).expect("a slice that is placed")
    }
}

impl PartialEq for Slices {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.records == other.records
    }
}

impl Eq for Slices {}

impl fmt::Debug for Slices {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(nodes: &[u64], in_sync: usize) -> SliceRecord {
        let copies = nodes.iter().enumerate();
        let copies = copies.map(|(place, node)| CopyRecord {
            node: NodeId(*node),
            status: if place < in_sync {
                CopyStatus::InSync
            } else {
                CopyStatus::Stale
            },
        });
        copies.collect()
    }

    #[test]
    fn a_placement_is_what_it_was_made_of_inline_or_shared() {
        for nodes in [
            &[][..],
            &[7],
            &[3, 1, 2],
            &[1, 2, 3, 4, 5],
            &[1, 2, 3, 4, 5, 6, 7],
            &[1, u64::MAX],
        ] {
            let slice = slice(nodes, 2);
            let read: Vec<u64> = slice.copies().map(|copy| copy.node.0).collect();
            assert_eq!(read, nodes);
            assert_eq!(slice.in_sync().count(), nodes.len().min(2));
            let again: SliceRecord = slice.copies().collect();
            assert_eq!(again, slice);
            for node in nodes {
                let stale = slice.with_status(NodeId(*node), CopyStatus::Stale);
                let stale = stale.expect("a copy");
                assert_eq!(stale.status(NodeId(*node)), Some(CopyStatus::Stale));
                assert_eq!(stale.copies().len(), nodes.len());
            }
            assert_eq!(slice.with_status(NodeId(99), CopyStatus::InSync), None);
        }
    }

    #[test]
    fn what_each_node_holds_is_counted_through_every_change() {
        let mut slices = Slices::default();
        for step in 0..2_000_u64 {
            let index = (step * 7919 % 97) as u32 * 1_000;
            let first = step % 5;
            let nodes = [first, (first + 1 + step % 3) % 5 + 10, 20 + step % 2];
            slices.set(index, slice(&nodes, (step % 4) as usize));
        }
        let fresh: Slices = slices.iter().map(|(index, s)| (index, s.clone())).collect();
        assert_eq!(fresh.holders(), slices.holders());
        assert_eq!(fresh, slices);
        let alone = slices.values().filter(|slice| slice.in_sync().count() == 1);
        assert_eq!(slices.with_one_in_sync(), alone.count());
        for held in slices.holders() {
            let with = |status: &dyn Fn(CopyStatus) -> bool| {
                let on_node = slices.values().filter_map(|slice| slice.status(held.node));
                on_node.filter(|found| status(*found)).count() as u32
            };
            assert_eq!(held.copies, with(&|_| true));
            assert_eq!(held.in_sync, with(&|status| status == CopyStatus::InSync));
            assert_eq!(slices.held_by(held.node), *held);
        }
        assert_eq!(slices.held_by(NodeId(77)).copies, 0);
    }

    #[test]
    fn a_clone_keeps_what_it_was_while_the_other_changes() {
        let mut slices: Slices = (0..10_000)
            .map(|index| (index, slice(&[1, 2], 2)))
            .collect();
        let before = slices.clone();
        assert!(before.is_same(&slices));
        slices.set(5_000, slice(&[1, 2], 1));
        slices.set(1 << 30, slice(&[3], 1));
        assert!(!before.is_same(&slices) && before != slices);
        assert_eq!((before.len(), slices.len()), (10_000, 10_001));
        assert!(before[5_000].is_in_sync(NodeId(2)) && !slices[5_000].is_in_sync(NodeId(2)));
        let taken = |node| -> Vec<u32> { slices.taken_from(NodeId(node), &before).collect() };
        assert!(taken(1).is_empty() && taken(2).is_empty());
        slices.set(7, slice(&[2, 3], 2));
        slices.set(9_000, slice(&[2], 1));
        slices.set(9_001, slice(&[1], 1));
        let taken = |node| -> Vec<u32> { slices.taken_from(NodeId(node), &before).collect() };
        assert_eq!(
            (taken(1), taken(2), taken(3)),
            (vec![7, 9_000], vec![9_001], vec![])
        );
        let changed: Vec<u32> = slices.changed_since(&before).collect();
        assert_eq!(changed, [7, 5_000, 9_000, 9_001, 1 << 30]);
        assert_eq!(slices.last_index(), Some(1 << 30));
        let range: Vec<u32> = slices.range(9_998..).map(|(index, _)| index).collect();
        assert_eq!(range, [9_998, 9_999, 1 << 30]);
    }
}
