//! The block map: where every block of the home is.
//!
//! ```text
//! recent facts, in memory        newest; durable as deltas, one for each destage round
//! tables, on disk                sorted, each responsible for a range of keys; at most one
//!                                  read finds the facts of an extent
//! ```
//!
//! Invariants:
//! * a fact among the recent ones is newer than what a table says of the same block;
//! * the tables' ranges follow each other without gap or overlap;
//! * `occupied` is exact: it has the blocks whose newest fact takes space.
//!
//! Memory: 32 bytes for each extent in a table and about 90 for the occupied blocks of each
//! extent, so some 120 MiB for each TiB that is wholly written; some 40 for each slice; recent
//! facts, the cache of leaves and what is read ahead are bounded by constants.
//!
//! Tested with the whole store: `tests/home.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use holdfast_wire::{Seq, SliceKey};

use super::fact::{Blocks, EXTENT_BLOCKS, ExtentKey, Fact, Leaf};
use super::layout::Table;
use super::run::{LeafPlace, PAYLOAD_BYTES};

/// A leaf in a table, as memory keeps it.
#[derive(Clone, Copy, Debug)]
struct Resident {
    key: ExtentKey,
    at: u32,
    bytes: u32,
    seq_max: Seq,
}

/// A table and where its leaves are.
pub(super) struct OpenTable {
    pub(super) table: Table,
    leaves: Vec<Resident>,
}

impl OpenTable {
    pub(super) fn new(table: Table, places: &[LeafPlace]) -> Self {
        let leaves = places.iter().map(|place| Resident {
            key: place.key,
            at: place.at,
            bytes: place.bytes,
            seq_max: place.seq_max,
        });
        Self {
            table,
            leaves: leaves.collect(),
        }
    }

    /// The number of an extent's leaf within the table, and where in the stream it begins.
    pub(super) fn leaf(&self, key: ExtentKey) -> Option<(usize, u32)> {
        let number = self.leaves.binary_search_by_key(&key, |leaf| leaf.key);
        let number = number.ok()?;
        Some((number, self.leaves.get(number)?.at))
    }

    /// Where the leaves from `first` on end that `pages` pages hold, but one at least; `None` if
    /// there is no such leaf.
    pub(super) fn end_within(&self, first: usize, pages: u32) -> Option<usize> {
        let behind = self.leaves.get(first..)?;
        let begin = behind.first()?.at / PAYLOAD_BYTES as u32 * PAYLOAD_BYTES as u32;
        let end = begin + pages * PAYLOAD_BYTES as u32;
        let within = behind.partition_point(|leaf| leaf.at + leaf.bytes <= end);
        Some(first + within.max(1))
    }

    /// The places of leaves `first..first + count`, as far as there are any.
    pub(super) fn places(
        &self,
        first: usize,
        count: usize,
    ) -> impl Iterator<Item = LeafPlace> + '_ {
        let leaves = self.leaves.iter().skip(first).take(count);
        leaves.map(|leaf| LeafPlace {
            key: leaf.key,
            at: leaf.at,
            bytes: leaf.bytes,
            seq_max: leaf.seq_max,
            occupied: Blocks::default(),
        })
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = ExtentKey> + '_ {
        self.leaves.iter().map(|leaf| leaf.key)
    }

    /// Area pages of `count` pages of its stream from `first` on, as runs that lie together.
    pub(super) fn extents_of(&self, first: u32, count: u32) -> Vec<(u32, u32, u32)> {
        pages_of(&self.table.pieces, first, count)
    }
}

/// Where pages `first..first + count` of a run lie: segment, page in it, how many.
pub(super) fn pages_of(
    pieces: &[super::layout::Piece],
    first: u32,
    count: u32,
) -> Vec<(u32, u32, u32)> {
    let mut found = Vec::new();
    let (mut skip, mut left) = (first, count);
    for piece in pieces {
        if skip >= piece.pages {
            skip -= piece.pages;
            continue;
        }
        let here = (piece.pages - skip).min(left);
        found.push((piece.segment, piece.first + skip, here));
        skip = 0;
        left -= here;
        if left == 0 {
            break;
        }
    }
    found
}

/// What memory knows of the map.
#[derive(Default)]
pub(super) struct Map {
    recent: BTreeMap<ExtentKey, Leaf>,
    recent_facts: usize,
    pub(super) tables: BTreeMap<ExtentKey, Rc<OpenTable>>,
    /// Blocks that take space in the home.
    occupied: BTreeMap<ExtentKey, Blocks>,
    /// Blocks that will take space when the journal is emptied.
    promised: BTreeMap<ExtentKey, Blocks>,
    /// How many blocks are one or the other.
    claimed: u64,
    /// The same slice by slice, of slices that have any.
    claimed_of: BTreeMap<SliceKey, u64>,
    /// How many are occupied.
    occupied_blocks: u64,
}

impl Map {
    /// The recent fact about a block.
    pub(super) fn recent(&self, key: ExtentKey, block: u8) -> Option<Fact> {
        self.recent.get(&key)?.get(block)
    }

    pub(super) fn recent_leaf(&self, key: ExtentKey) -> Option<&Leaf> {
        self.recent.get(&key)
    }

    pub(super) fn recent_leaves(&self) -> usize {
        self.recent.len()
    }

    pub(super) fn recent_facts(&self) -> usize {
        self.recent_facts
    }

    /// The recent leaves of a range of keys.
    pub(super) fn recent_in(
        &self,
        from: ExtentKey,
        to: Option<ExtentKey>,
    ) -> impl Iterator<Item = (&ExtentKey, &Leaf)> {
        self.recent.range((
            Bound::Included(from),
            to.map_or(Bound::Unbounded, Bound::Excluded),
        ))
    }

    /// Puts a fact over what is known; what it displaces among the recent facts goes to `gone`.
    pub(super) fn lay(&mut self, key: ExtentKey, fact: Fact, gone: impl FnMut(&Fact)) {
        let leaf = self.recent.entry(key).or_default();
        let before = leaf.facts().len();
        leaf.lay(fact, gone);
        self.recent_facts = self.recent_facts + leaf.facts().len() - before;
        let takes_space = fact.state != super::fact::State::Zero;
        self.change(key, |occupied, _| {
            for block in fact.block..=fact.block + fact.more {
                occupied.set(block, takes_space);
            }
        });
    }

    /// Forgets recent facts of a range: tables have them now, or they are void.
    pub(super) fn forget_recent(&mut self, from: ExtentKey, to: Option<ExtentKey>) {
        let keys: Vec<ExtentKey> = self.recent_in(from, to).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(leaf) = self.recent.remove(&key) {
                self.recent_facts -= leaf.facts().len();
            }
        }
    }

    /// Puts tables in place of the one that begins at `start`.
    pub(super) fn replace(
        &mut self,
        start: ExtentKey,
        tables: Vec<(ExtentKey, Table, Vec<LeafPlace>)>,
    ) {
        self.tables.remove(&start);
        for (first, table, places) in tables {
            self.tables
                .insert(first, Rc::new(OpenTable::new(table, &places)));
        }
    }

    /// Nothing of a range takes space any more.
    pub(super) fn release(&mut self, from: ExtentKey, to: Option<ExtentKey>) {
        let range = (
            Bound::Included(from),
            to.map_or(Bound::Unbounded, Bound::Excluded),
        );
        let mut keys: BTreeSet<ExtentKey> = self.occupied.range(range).map(|(k, _)| *k).collect();
        keys.extend(self.promised.range(range).map(|(key, _)| *key));
        for key in keys {
            self.change(key, |occupied, promised| {
                *occupied = Blocks::default();
                *promised = Blocks::default();
            });
        }
    }

    /// Sets what a table's directory says is occupied.
    pub(super) fn occupy(&mut self, key: ExtentKey, blocks: Blocks) {
        self.change(key, |occupied, _| *occupied = blocks);
    }

    /// Sets which blocks the journal will bring.
    pub(super) fn promise(&mut self, key: ExtentKey, blocks: Blocks) {
        self.change(key, |_, promised| *promised = blocks);
    }

    fn change(&mut self, key: ExtentKey, change: impl FnOnce(&mut Blocks, &mut Blocks)) {
        let mut occupied = self.occupied.get(&key).copied().unwrap_or_default();
        let mut promised = self.promised.get(&key).copied().unwrap_or_default();
        let before = occupied.union(&promised).count();
        self.occupied_blocks -= occupied.count();
        change(&mut occupied, &mut promised);
        let after = occupied.union(&promised).count();
        self.occupied_blocks += occupied.count();
        put(&mut self.occupied, key, occupied);
        put(&mut self.promised, key, promised);
        self.claim(key.slice, before, after);
    }

    /// An extent of the slice claims `after` blocks in place of `before`.
    fn claim(&mut self, slice: SliceKey, before: u64, after: u64) {
        if before == after {
            return;
        }
        self.claimed = self.claimed - before + after;
        let of_slice = self.claimed_of.entry(slice).or_default();
        *of_slice = *of_slice - before + after;
        if *of_slice == 0 {
            self.claimed_of.remove(&slice);
        }
    }

    /// Blocks of an extent that take space.
    pub(super) fn occupied(&self, key: ExtentKey) -> Blocks {
        self.occupied.get(&key).copied().unwrap_or_default()
    }

    /// The first extent at or after `from` with blocks that take space.
    pub(super) fn occupied_from(&self, from: ExtentKey) -> Option<ExtentKey> {
        self.occupied.range(from..).next().map(|(key, _)| *key)
    }

    /// Blocks that take space, or will.
    pub(super) fn claimed(&self) -> u64 {
        self.claimed
    }

    /// The same of one slice.
    pub(super) fn claimed_of(&self, slice: SliceKey) -> u64 {
        self.claimed_of.get(&slice).copied().unwrap_or(0)
    }

    pub(super) fn occupied_blocks(&self) -> u64 {
        self.occupied_blocks
    }

    /// Whether a block takes space, or will.
    pub(super) fn is_claimed(&self, key: ExtentKey, block: u8) -> bool {
        let has = |blocks: &BTreeMap<ExtentKey, Blocks>| {
            blocks.get(&key).is_some_and(|found| found.contains(block))
        };
        has(&self.occupied) || has(&self.promised)
    }

    pub(super) fn promised(&self, key: ExtentKey) -> Blocks {
        self.promised.get(&key).copied().unwrap_or_default()
    }

    /// Extents of a slice with promised blocks.
    pub(super) fn promised_extents(&self, slice: SliceKey) -> Vec<u32> {
        let first = ExtentKey { slice, extent: 0 };
        let last = ExtentKey {
            slice,
            extent: u32::MAX,
        };
        self.promised
            .range(first..=last)
            .map(|(key, _)| key.extent)
            .collect()
    }

    /// The table responsible for a key, with the key at which its range begins.
    pub(super) fn table_of(&self, key: ExtentKey) -> Option<(ExtentKey, Rc<OpenTable>)> {
        let (start, table) = self.tables.range(..=key).next_back()?;
        Some((*start, table.clone()))
    }

    /// The table whose range follows the one that begins at `start`.
    pub(super) fn table_behind(&self, start: ExtentKey) -> Option<&Rc<OpenTable>> {
        let after = (Bound::Excluded(start), Bound::Unbounded);
        self.tables.range(after).next().map(|(_, table)| table)
    }

    /// Where the range of the table that begins at `start` ends.
    pub(super) fn range_end(&self, start: ExtentKey) -> Option<ExtentKey> {
        let after = (Bound::Excluded(start), Bound::Unbounded);
        self.tables.range(after).next().map(|(key, _)| *key)
    }

    /// Where ranges of tables begin; the first at the lowest key.
    pub(super) fn range_starts(&self) -> BTreeSet<ExtentKey> {
        let mut starts: BTreeSet<ExtentKey> = self.tables.keys().copied().collect();
        starts.insert(ExtentKey::LOWEST);
        starts
    }

    /// Extents of a slice from `from` on of which something is known; of those in tables only
    /// the ones with a change after `after`.
    pub(super) fn changed_extents(&self, slice: SliceKey, from: u32, after: Seq) -> BTreeSet<u32> {
        let first = ExtentKey {
            slice,
            extent: from,
        };
        let last = ExtentKey {
            slice,
            extent: u32::MAX,
        };
        let recent = self.recent.range(first..=last).map(|(key, _)| key.extent);
        let mut extents: BTreeSet<u32> = recent.collect();
        let start = self.table_of(first).map_or(first, |(start, _)| start);
        for table in self.tables.range(start..=last).map(|(_, table)| table) {
            let begin = table.leaves.partition_point(|leaf| leaf.key < first);
            let changed = table.leaves[begin..]
                .iter()
                .take_while(|leaf| leaf.key <= last)
                .filter(|leaf| leaf.seq_max > after);
            extents.extend(changed.map(|leaf| leaf.key.extent));
        }
        extents
    }

    /// The first extent at or after `from` of which anything is known.
    pub(super) fn extent_from(&self, from: ExtentKey) -> Option<ExtentKey> {
        let recent = self.recent.range(from..).next().map(|(key, _)| *key);
        let start = self.table_of(from).map_or(from, |(start, _)| start);
        let tabled = self.tables.range(start..).find_map(|(_, table)| {
            let after = table.leaves.partition_point(|leaf| leaf.key < from);
            table.leaves.get(after).map(|leaf| leaf.key)
        });
        recent.into_iter().chain(tabled).min()
    }

    /// Slices of which anything is known.
    pub(super) fn slices(&self) -> BTreeSet<SliceKey> {
        let mut slices: BTreeSet<SliceKey> = self.recent.keys().map(|key| key.slice).collect();
        for table in self.tables.values() {
            slices.extend(table.table.slices.iter().copied());
        }
        slices
    }
}

fn put(map: &mut BTreeMap<ExtentKey, Blocks>, key: ExtentKey, blocks: Blocks) {
    if blocks.is_empty() {
        map.remove(&key);
    } else {
        map.insert(key, blocks);
    }
}

const _: () = assert!(PAYLOAD_BYTES > 0 && EXTENT_BLOCKS == 256);
