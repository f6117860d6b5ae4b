//! What the journal holds of one slice, in memory: its stream and the versions of its blocks.
//!
//! Invariants:
//! * a version is *effective* when it was copied from another copy's stable state (`copied`) or
//!   its sequence number is at most the stable point; only effective versions are read or
//!   destaged;
//! * every version and every record above the last destage pins its batch in the ring; what
//!   this module drops it reports, so that the pin is taken off only after the stable point
//!   that justified it is durable;
//! * a record appended later with a sequence number not above earlier unstable ones replaces
//!   them (they were truncated).
//!
//! Tested with the whole store: `tests/basics.rs`, and against a model in `tests/crashes.rs`.

use std::collections::{BTreeMap, VecDeque};

use holdfast_runtime::planted::{self, Bug};

use crate::home::fact::{Blocks, EXTENT_BLOCKS};
use crate::journal::item::{Content, Item, Kind};
use crate::record::{BLOCK_BYTES, Body, OperationId, Record, Seq, TailEntry, View};

/// How many operations of a slice are remembered for retries.
pub(crate) const RECENT_OPERATIONS: usize = 1024;

/// One version of one block.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) seq: Seq,
    pub(crate) view: View,
    pub(crate) content: Content,
    /// Found in the journal by recovery. Such a version need not be newer than a home entry
    /// that is lost: a relocated record or a late copy outlives what replaced it in the ring.
    pub(crate) replayed: bool,
    /// Came from another copy's stable state, not from the stream.
    pub(crate) copied: bool,
    /// The batch that has it.
    pub(crate) lsn: u64,
}

/// Which version of a block is its newest effective one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Newest {
    seq: Seq,
    lsn: u64,
}

impl Newest {
    pub(crate) fn of(version: &Version) -> Self {
        let (seq, lsn) = (version.seq, version.lsn);
        Self { seq, lsn }
    }
}

/// A zeroed range within one extent; blocks counted within the slice, the end excluded.
#[derive(Clone, Copy, Debug)]
struct ZeroSpan {
    seq: Seq,
    view: View,
    first: u32,
    end: u32,
    replayed: bool,
    lsn: u64,
}

/// A stream record whose batch is still in the ring.
struct Resident {
    item: Item,
    lsn: u64,
    pinned: bool,
}

/// The journal's part of one slice.
#[derive(Default)]
pub(crate) struct SliceIndex {
    /// Highest sequence number known to be on all in-sync copies.
    pub(crate) stable: Seq,
    /// Highest sequence number accepted by `append`, durable or not.
    pub(crate) reserved: Seq,
    /// Highest sequence number durably journaled here.
    pub(crate) durable: Seq,
    /// Every stream record up to here is in the home, if the copy has been in sync since.
    pub(crate) home_through: Seq,
    /// Records up to here arrived while blocks were being copied, which may be newer.
    pub(crate) joined_through: Seq,
    /// Truncations that have begun and not ended.
    pub(crate) truncations: u32,
    /// What is inserted comes from recovery.
    pub(crate) replaying: bool,
    /// It may have versions that no stream record stands for.
    has_copies: bool,
    /// A version of which the content is not known was ever inserted.
    pub(crate) has_unknown: bool,
    stream: BTreeMap<Seq, Resident>,
    blocks: BTreeMap<u32, Vec<Version>>,
    zeroes: BTreeMap<u32, Vec<ZeroSpan>>,
    recent: VecDeque<(OperationId, View, Seq)>,
}

/// A version ready to be destaged.
pub(crate) type Effective = (u32, Version);

impl SliceIndex {
    /// Takes in a durable item of batch `lsn`. Returns how many pins it adds to its batch;
    /// `unpinned` gets the batches of what it displaced.
    pub(crate) fn insert(&mut self, item: &Item, lsn: u64, unpinned: &mut Vec<u64>) -> u32 {
        if item.relocated {
            return self.relocate(item, lsn, unpinned);
        }
        self.stable = self.stable.max(item.stable);
        let mut pins = 0;
        if item.kind.is_stream() {
            self.drop_from(item.seq, u64::MAX, unpinned);
            self.remember(item);
            self.stream.insert(
                item.seq,
                Resident {
                    item: item.clone(),
                    lsn,
                    pinned: true,
                },
            );
            pins += 1;
        }
        pins + self.insert_versions(item, lsn, unpinned)
    }

    fn remember(&mut self, item: &Item) {
        self.durable = self.durable.max(item.seq);
        if self.recent.len() == RECENT_OPERATIONS {
            self.recent.pop_front();
        }
        self.recent.push_back((item.operation, item.view, item.seq));
    }

    fn insert_versions(&mut self, item: &Item, lsn: u64, unpinned: &mut Vec<u64>) -> u32 {
        let mut pins = 0;
        match item.kind {
            Kind::Write | Kind::CopyWrite | Kind::CopyZero | Kind::CopyLost => {
                self.has_copies |= !item.kind.is_stream();
                for index in 0..item.blocks {
                    let version = Version {
                        seq: item.seq,
                        view: item.view,
                        content: item.content(index),
                        replayed: self.replaying,
                        copied: !item.kind.is_stream(),
                        lsn,
                    };
                    self.has_unknown |= version.content == Content::Unknown;
                    let versions = self.blocks.entry(item.first_block + index).or_default();
                    let place = versions.partition_point(|other| other.seq <= version.seq);
                    versions.insert(place, version);
                    pins += 1;
                    prune(versions, self.stable, unpinned);
                }
            }
            Kind::Zero => {
                let end = item.first_block + item.blocks;
                let mut first = item.first_block;
                while first < end {
                    let extent = first / EXTENT_BLOCKS;
                    let last = end.min((extent + 1) * EXTENT_BLOCKS);
                    let (seq, view) = (item.seq, item.view);
                    let replayed = self.replaying;
                    let span = ZeroSpan {
                        seq,
                        view,
                        first,
                        end: last,
                        replayed,
                        lsn,
                    };
                    self.zeroes.entry(extent).or_default().push(span);
                    pins += 1;
                    first = last;
                }
            }
            Kind::Nothing | Kind::Stable => {}
        }
        pins
    }

    /// A record that was journaled again: what there is of it moves to the new batch.
    fn relocate(&mut self, item: &Item, lsn: u64, unpinned: &mut Vec<u64>) -> u32 {
        let Some(resident) = self.stream.get_mut(&item.seq) else {
            return 0;
        };
        if resident.item.view != item.view {
            return 0;
        }
        let old = std::mem::replace(&mut resident.lsn, lsn);
        let mut pins = 0;
        if resident.pinned {
            unpinned.push(old);
            pins += 1;
        }
        for block in item.first_block..item.first_block + item.blocks {
            for version in self.blocks.get_mut(&block).into_iter().flatten() {
                if version.seq == item.seq && !version.copied {
                    unpinned.push(std::mem::replace(&mut version.lsn, lsn));
                    pins += 1;
                }
            }
            if block % EXTENT_BLOCKS != 0 && block != item.first_block {
                continue;
            }
            for span in self
                .zeroes
                .get_mut(&(block / EXTENT_BLOCKS))
                .into_iter()
                .flatten()
            {
                if span.seq == item.seq {
                    unpinned.push(std::mem::replace(&mut span.lsn, lsn));
                    pins += 1;
                }
            }
        }
        pins
    }

    /// Takes in the data of an item that was known by its description, with its data at `at`.
    pub(crate) fn fill(&mut self, item: &Item, at: u64, unpinned: &mut Vec<u64>) {
        let forgets = item.is_damaged() && planted::is_active(Bug::DamagedIsAbsent);
        if let Some(resident) = self.stream.get_mut(&item.seq)
            && resident.item.unread == Some(at)
        {
            resident.item.data = item.data.clone();
            resident.item.lost.clone_from(&item.lost);
            resident.item.unread = None;
            if forgets {
                unpinned.extend(resident.pinned.then_some(resident.lsn));
                self.stream.remove(&item.seq);
            }
        }
        for index in 0..item.blocks {
            let Some(versions) = self.blocks.get_mut(&(item.first_block + index)) else {
                continue;
            };
            let place = at + u64::from(index) * BLOCK_BYTES as u64;
            let is_it = |version: &Version| match version.content {
                Content::Unread(in_ring) => in_ring.at == place,
                Content::Data(..) | Content::Zero | Content::Unknown => false,
            };
            if forgets {
                take(versions, unpinned, is_it);
            } else if let Some(version) = versions.iter_mut().find(|version| is_it(version)) {
                version.content = item.content(index);
                self.has_unknown |= version.content == Content::Unknown;
            }
            if versions.is_empty() {
                self.blocks.remove(&(item.first_block + index));
            }
        }
    }

    /// Whether the data of a record was not read yet.
    pub(crate) fn is_unread(&self, seq: Seq) -> bool {
        let resident = self.stream.get(&seq);
        resident.is_some_and(|resident| resident.item.unread.is_some())
    }

    /// Whether a record that has this place in the journal may be given up by a takeover.
    pub(crate) fn is_unstable(&self, item: &Item) -> bool {
        item.kind.is_stream() && item.seq > self.stable
    }

    /// Whether a relocated record found in the journal has its first place there too.
    pub(crate) fn holds(&self, seq: Seq, view: View) -> bool {
        self.stream
            .get(&seq)
            .is_some_and(|resident| resident.item.view == view)
    }

    /// Takes in a relocated record whose first place is gone, during recovery.
    pub(crate) fn insert_relocated(
        &mut self,
        item: &Item,
        lsn: u64,
        unpinned: &mut Vec<u64>,
    ) -> u32 {
        let mut original = item.clone();
        original.relocated = false;
        self.stable = self.stable.max(item.stable);
        self.remember(item);
        let pins = 1 + self.insert_versions(&original, lsn, unpinned);
        self.stream.insert(
            item.seq,
            Resident {
                item: original,
                lsn,
                pinned: true,
            },
        );
        pins
    }

    /// Voids unstable stream records from `from` on that were journaled before `before_lsn`.
    /// Returns the extents they touched. Nothing at or below the stable point is touched.
    pub(crate) fn drop_from(
        &mut self,
        from: Seq,
        before_lsn: u64,
        unpinned: &mut Vec<u64>,
    ) -> Vec<u32> {
        let from = from.max(self.stable.next());
        let mut extents = Vec::new();
        let above: Vec<Seq> = self
            .stream
            .range(from..)
            .filter(|(_, resident)| resident.lsn < before_lsn)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in &above {
            let Some(resident) = self.stream.remove(seq) else {
                continue;
            };
            if resident.pinned {
                unpinned.push(resident.lsn);
            }
            let first = resident.item.first_block;
            let mut visited = None;
            for block in first..first + resident.item.blocks {
                if let Some(versions) = self.blocks.get_mut(&block) {
                    take(versions, unpinned, |version| {
                        version.seq == *seq && !version.copied
                    });
                    if versions.is_empty() {
                        self.blocks.remove(&block);
                    }
                }
                let extent = block / EXTENT_BLOCKS;
                if visited.replace(extent) == Some(extent) {
                    continue;
                }
                extents.push(extent);
                if let Some(spans) = self.zeroes.get_mut(&extent) {
                    spans.retain(|span| {
                        let voided = span.seq == *seq;
                        if voided {
                            unpinned.push(span.lsn);
                        }
                        !voided
                    });
                    if spans.is_empty() {
                        self.zeroes.remove(&extent);
                    }
                }
            }
        }
        if !above.is_empty() {
            self.recent.retain(|(_, _, seq)| !above.contains(seq));
            let last = self.stream.last_key_value().map_or(Seq(0), |(seq, _)| *seq);
            self.durable = last.max(self.durable.min(from_below(from)));
        }
        extents
    }

    /// Whether no stream record above `keep_through` is durable or on its way to be, and none was
    /// taken back for which that is not durable yet.
    pub(crate) fn is_nothing_above(&self, keep_through: Seq) -> bool {
        self.truncations == 0
            && self.reserved.max(self.durable) <= keep_through
            && self.stream.range(keep_through.next()..).next().is_none()
    }

    /// Drops everything, reporting the pins.
    pub(crate) fn drop_all(self, unpinned: &mut Vec<u64>) {
        for resident in self.stream.values().filter(|resident| resident.pinned) {
            unpinned.push(resident.lsn);
        }
        unpinned.extend(self.blocks.values().flatten().map(|version| version.lsn));
        unpinned.extend(self.zeroes.values().flatten().map(|span| span.lsn));
    }

    /// Whether a version zeroes and comes from the stream of a copy that was in sync: over a block
    /// that was never written such a zero changes nothing, here and in every other copy. While
    /// the copy was joining it may have missed a write that others have.
    pub(crate) fn is_plain_zero(&self, version: &Version) -> bool {
        version.content == Content::Zero
            && !version.copied
            && !version.replayed
            && version.seq > self.joined_through
    }

    /// The newest effective version of a block in the journal.
    pub(crate) fn newest_effective(&self, block: u32) -> Option<Version> {
        let versions = self
            .blocks
            .get(&block)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let written = versions
            .iter()
            .rev()
            .find(|version| effective(version, self.stable));
        let spans = self.zeroes.get(&(block / EXTENT_BLOCKS)).map(Vec::as_slice);
        let zeroed = spans
            .unwrap_or_default()
            .iter()
            .filter(|span| span.seq <= self.stable && (span.first..span.end).contains(&block))
            .max_by_key(|span| span.seq);
        match (written, zeroed) {
            (Some(written), Some(zeroed)) if zeroed.seq > written.seq => Some(zeroed.version()),
            (Some(written), _) => Some(written.clone()),
            (None, Some(zeroed)) => Some(zeroed.version()),
            (None, None) => None,
        }
    }

    /// Whether batches up to `through_lsn` tell that a block was written, here or in another copy:
    /// by a version of it, or by a zero that is not plain. Then a zero over it is no plain one
    /// either, whatever it is by itself.
    pub(crate) fn is_traced_in(&self, block: u32, through_lsn: u64) -> bool {
        let versions = self.blocks.get(&block).into_iter().flatten();
        let mut versions = versions.map(|version| version.lsn);
        let spans = self.zeroes.get(&(block / EXTENT_BLOCKS));
        let mut spans = spans.into_iter().flatten();
        versions.any(|lsn| lsn <= through_lsn)
            || spans.any(|span| {
                span.lsn <= through_lsn
                    && (span.first..span.end).contains(&block)
                    && !self.is_plain_zero(&span.version())
            })
    }

    /// Blocks of an extent that the journal holds data for.
    pub(crate) fn data_in(&self, extent: u32) -> Blocks {
        let blocks = extent * EXTENT_BLOCKS..(extent + 1) * EXTENT_BLOCKS;
        let mut found = Blocks::default();
        for (block, _) in self.blocks.range(blocks) {
            found.set((block % EXTENT_BLOCKS) as u8, true);
        }
        found
    }

    /// Extents from `from` on of which the journal holds a version, ascending.
    pub(crate) fn extents_from(&self, from: u32) -> Vec<u32> {
        let mut extents: Vec<u32> = self
            .zeroes
            .range(from..)
            .map(|(extent, _)| *extent)
            .collect();
        let mut next = from.checked_mul(EXTENT_BLOCKS);
        while let Some((block, _)) = next.and_then(|next| self.blocks.range(next..).next()) {
            let extent = block / EXTENT_BLOCKS;
            extents.push(extent);
            next = (extent + 1).checked_mul(EXTENT_BLOCKS);
        }
        extents.sort_unstable();
        extents.dedup();
        extents
    }

    /// The first extent at or after `from` of which the journal holds more than zeroed ranges.
    pub(crate) fn data_extent_from(&self, from: u32) -> Option<u32> {
        let first = from.checked_mul(EXTENT_BLOCKS)?;
        let (block, _) = self.blocks.range(first..).next()?;
        Some(block / EXTENT_BLOCKS)
    }

    /// Whether the journal holds nothing of an extent.
    pub(crate) fn is_silent_on(&self, extent: u32) -> bool {
        let found = extent.checked_mul(EXTENT_BLOCKS);
        let found = found.and_then(|first| self.blocks.range(first..).next());
        let is_within = found.is_some_and(|(block, _)| block / EXTENT_BLOCKS == extent);
        !is_within && !self.zeroes.contains_key(&extent)
    }

    /// Whether the journal holds nothing of this slice that a destage round could move.
    pub(crate) fn is_settled(&self) -> bool {
        self.blocks.is_empty()
            && self.zeroes.is_empty()
            && self.stream.values().all(|resident| !resident.pinned)
    }

    /// The newest effective version of every block of an extent that the journal has one of,
    /// ascending.
    pub(crate) fn effective_in(&self, extent: u32) -> Vec<Effective> {
        let blocks = extent * EXTENT_BLOCKS..(extent + 1) * EXTENT_BLOCKS;
        let mut newest: BTreeMap<u32, Version> = BTreeMap::new();
        for (block, versions) in self.blocks.range(blocks) {
            if let Some(version) = versions.iter().rev().find(|v| effective(v, self.stable)) {
                newest.insert(*block, version.clone());
            }
        }
        let spans = self
            .zeroes
            .get(&extent)
            .map(Vec::as_slice)
            .unwrap_or_default();
        for span in spans.iter().filter(|span| span.seq <= self.stable) {
            for block in span.first..span.end {
                let older = newest
                    .get(&block)
                    .is_none_or(|version| version.seq < span.seq);
                if older {
                    newest.insert(block, span.version());
                }
            }
        }
        newest.into_iter().collect()
    }

    /// Forgets what a destage round made durable at home, which is what was effective in batches
    /// up to `through_lsn`, and what in these batches is replaced by a version that stays: records
    /// and zeroed ranges up to the stable point `through` of that round, and of the blocks in
    /// `newest` the versions up to that one.
    pub(crate) fn settle(
        &mut self,
        through: Seq,
        through_lsn: u64,
        newest: &BTreeMap<u32, Newest>,
        unpinned: &mut Vec<u64>,
    ) {
        for resident in self
            .stream
            .range_mut(..=through)
            .map(|(_, resident)| resident)
        {
            if resident.lsn <= through_lsn && std::mem::replace(&mut resident.pinned, false) {
                unpinned.push(resident.lsn);
            }
        }
        for (block, newest) in newest {
            let Some(versions) = self.blocks.get_mut(block) else {
                continue;
            };
            let went_home = newest.lsn <= through_lsn;
            take(versions, unpinned, |version| {
                // An older one in the part that stays (it was journaled again) is needed there: it
                // tells that a zero which replaces it must go home, or recovery would find it.
                version.seq <= newest.seq && (went_home || version.lsn <= through_lsn)
            });
            if versions.is_empty() {
                self.blocks.remove(block);
            }
        }
        self.zeroes.retain(|_, spans| {
            spans.retain(|span| {
                let settled = span.seq <= through && span.lsn <= through_lsn;
                if settled {
                    unpinned.push(span.lsn);
                }
                !settled
            });
            !spans.is_empty()
        });
        self.has_copies &= !self.is_settled();
    }

    /// Up to where every stream record is at home, or replaced by a later one, after a round for
    /// the stable point `through`.
    pub(crate) fn settled_through(&self, through: Seq) -> Seq {
        if self.has_copies {
            return Seq(0);
        }
        let mut stable = self.stream.range(..=through);
        let held = stable.find(|(_, resident)| resident.pinned);
        held.map_or(through, |(seq, _)| Seq(seq.0 - 1))
    }

    /// The batch holding record `seq` has left the ring.
    pub(crate) fn evict(&mut self, seq: Seq, lsn: u64) {
        if self
            .stream
            .get(&seq)
            .is_some_and(|resident| resident.lsn == lsn)
        {
            self.stream.remove(&seq);
        }
    }

    /// Unstable records of batches up to `through_lsn`, to be journaled again.
    pub(crate) fn pinned_tail(&self, through_lsn: u64) -> Vec<(u64, Item)> {
        self.stream
            .range(self.stable.next()..)
            .filter(|(_, resident)| resident.lsn <= through_lsn && !resident.item.is_damaged())
            .map(|(_, resident)| {
                (
                    resident.lsn,
                    Item {
                        relocated: true,
                        ..resident.item.clone()
                    },
                )
            })
            .collect()
    }

    /// Durable records above the stable point, in order.
    pub(crate) fn tail(&self) -> Vec<TailEntry> {
        self.stream
            .range(self.stable.next()..)
            .map(|(seq, resident)| TailEntry {
                view: resident.item.view,
                seq: *seq,
                operation: resident.item.operation,
                first_block: resident.item.first_block,
                blocks: resident.item.blocks,
                zero: resident.item.kind == Kind::Zero,
                damaged: resident.item.is_damaged(),
            })
            .collect()
    }

    /// A record still in the ring: `Err` with a block of it if its data is lost.
    pub(crate) fn record(&self, view: View, seq: Seq) -> Result<Option<Record>, u32> {
        let Some(resident) = self.stream.get(&seq) else {
            return Ok(None);
        };
        let item = &resident.item;
        if item.view != view {
            return Ok(None);
        }
        if let Some(index) = item.lost.iter().position(|lost| *lost) {
            return Err(item.first_block + index as u32);
        }
        let first_block = item.first_block;
        let body = match item.kind {
            Kind::Write | Kind::CopyWrite => Body::Write {
                first_block,
                data: item.data.clone(),
            },
            Kind::Zero | Kind::CopyZero => Body::Zero {
                first_block,
                blocks: item.blocks,
            },
            Kind::Nothing | Kind::CopyLost | Kind::Stable => Body::Nothing,
        };
        let (slice, stable, operation) = (item.slice, item.stable, item.operation);
        Ok(Some(Record {
            slice,
            view,
            seq,
            stable,
            operation,
            body,
        }))
    }

    /// The last operations, oldest first.
    pub(crate) fn recent(&self) -> Vec<(OperationId, View, Seq)> {
        self.recent.iter().copied().collect()
    }
}

impl ZeroSpan {
    fn version(&self) -> Version {
        Version {
            seq: self.seq,
            view: self.view,
            content: Content::Zero,
            replayed: self.replayed,
            copied: false,
            lsn: self.lsn,
        }
    }
}

fn from_below(from: Seq) -> Seq {
    Seq(from.0.saturating_sub(1))
}

fn effective(version: &Version, stable: Seq) -> bool {
    version.copied || version.seq <= stable
}

/// Drops effective versions that a newer effective one hides.
fn prune(versions: &mut Vec<Version>, stable: Seq, unpinned: &mut Vec<u64>) {
    let Some(newest) = versions
        .iter()
        .rposition(|version| effective(version, stable))
    else {
        return;
    };
    let newest_seq = versions[newest].seq;
    take(versions, unpinned, |version| {
        effective(version, stable) && version.seq < newest_seq
    });
}

/// Removes what `is_gone` accepts, reporting the pins.
fn take(versions: &mut Vec<Version>, unpinned: &mut Vec<u64>, is_gone: impl Fn(&Version) -> bool) {
    versions.retain(|version| {
        let gone = is_gone(version);
        if gone {
            unpinned.push(version.lsn);
        }
        !gone
    });
}
