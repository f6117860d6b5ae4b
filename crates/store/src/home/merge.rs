//! How recent facts become tables, and how deltas and map segments are given up.
//!
//! A *pass* visits every table once: its leaves and the recent facts of its range are merged
//! into new tables, which replace it in one edit. When the last range is done, no delta that was
//! there when the pass began is needed any more. A crash in between costs nothing: each table
//! says up to which delta it is complete.
//!
//! Tested with the whole store: `tests/home.rs`, `tests/removal.rs`.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{DiskError, PAGE_BYTES};

use super::draft::Draft;
use super::fact::{ExtentKey, Leaf, State};
use super::layout::{Change, Cleared, Piece, Table};
use super::map::pages_of;
use super::run::{self, LeafPlace, PAYLOAD_BYTES, Stream};
use super::{Home, forget};
use crate::bounds::StoreBounds;
use crate::encoding::FieldReader;
use crate::facts::Scope;
use crate::record::SliceKey;

/// Bytes of leaves in one table at most: what a merge reads and writes at least.
const TABLE_BYTES: usize = StoreBounds::SERVICE.table_bytes;
/// Pages of leaves in one table at most: what is full enough gets no further leaf.
pub(super) const TABLE_PAGES_MAX: u32 =
    (TABLE_BYTES + run::LEAF_BYTES_MAX).div_ceil(PAYLOAD_BYTES) as u32;
/// Recent facts that even the smallest home may have.
const RECENT_FACTS_MIN: u64 = 512;

/// A pass under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    next: ExtentKey,
    /// The newest delta when it began.
    through: u64,
}

/// What replaces a table.
struct Merged {
    start: ExtentKey,
    tables: Vec<(ExtentKey, Table, Vec<LeafPlace>)>,
}

impl Home {
    /// Does one step of what keeps the map small, if one is due. The caller holds the lock of
    /// the home's writers. Returns whether there is more to do.
    pub(crate) async fn tidy_map(&self) -> Result<bool, DiskError> {
        if let Some(pass) = self.merging.get() {
            self.continue_pass(pass).await?;
            return Ok(true);
        }
        let capacity = self.usage().capacity_blocks;
        let limit = (capacity / 8).max(RECENT_FACTS_MIN);
        let limit = limit.min(self.bounds.recent_facts);
        if self.map.borrow().recent_facts() as u64 > limit {
            self.begin_pass().await?;
            return Ok(true);
        }
        if self.manifest.with(|layout| layout.deltas.len()) > self.bounds.deltas {
            self.join_deltas().await?;
            return Ok(true);
        }
        if let Some(segment) = self.sparse_map_segment() {
            self.empty_map_segment(segment).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Runs a whole pass: afterwards every segment's count says what is really needed.
    pub(super) async fn merge_all(&self) -> Result<(), DiskError> {
        while let Some(pass) = self.merging.get() {
            self.continue_pass(pass).await?;
        }
        self.begin_pass().await?;
        while let Some(pass) = self.merging.get() {
            self.continue_pass(pass).await?;
        }
        Ok(())
    }

    /// Runs a whole pass.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) async fn compact(&self) -> Result<(), DiskError> {
        self.merge_all().await
    }

    async fn begin_pass(&self) -> Result<(), DiskError> {
        let newest = self.newest_delta();
        self.continue_pass(Pass {
            next: ExtentKey::LOWEST,
            through: newest,
        })
        .await
    }

    fn newest_delta(&self) -> u64 {
        self.manifest
            .with(|layout| layout.deltas.last().map_or(0, |delta| delta.run))
    }

    async fn continue_pass(&self, pass: Pass) -> Result<(), DiskError> {
        let (start, end, any) = {
            let map = self.map.borrow();
            let start = map.range_starts().range(..=pass.next).next_back().copied();
            let start = start.unwrap_or(ExtentKey::LOWEST);
            let end = map.range_end(start);
            (start, end, map.recent_in(start, end).next().is_some())
        };
        if any {
            self.merge_range(start, end).await?;
        }
        if planted::is_active(Bug::DropDeltasAtOnce) && end.is_some() {
            let mut draft = Draft::new(self);
            self.drop_deltas(&mut draft, pass.through);
            draft.commit().await?;
        }
        match end {
            Some(next) => self.merging.set(Some(Pass { next, ..pass })),
            None => {
                let mut draft = Draft::new(self);
                self.drop_deltas(&mut draft, pass.through);
                draft.commit().await?;
                self.merging.set(None);
            }
        }
        Ok(())
    }

    fn drop_deltas(&self, draft: &mut Draft<'_>, through: u64) {
        let dropped = self.manifest.with(|layout| {
            let gone = layout.deltas.iter().filter(|delta| delta.run <= through);
            gone.map(|delta| delta.pieces.clone()).collect::<Vec<_>>()
        });
        if dropped.is_empty() {
            return;
        }
        for pieces in dropped {
            draft.forget_run(&pieces);
        }
        draft.change(Change::DeltasDropped { through });
    }

    /// Replaces the table of a range by tables with what is known now.
    async fn merge_range(&self, start: ExtentKey, end: Option<ExtentKey>) -> Result<(), DiskError> {
        reach::note(Row::MapMerged);
        let mut draft = Draft::new(self);
        let mut leaves = self.table_leaves(start).await;
        let recent: Vec<(ExtentKey, Leaf)> = {
            let map = self.map.borrow();
            map.recent_in(start, end)
                .map(|(key, leaf)| (*key, leaf.clone()))
                .collect()
        };
        for (key, new) in recent {
            let leaf = leaves.entry(key).or_default();
            for fact in new.facts() {
                if fact.state == State::Zero && planted::is_active(Bug::DropZeroFacts) {
                    continue;
                }
                leaf.lay(*fact, |gone| {
                    // The same fact may stand in both after a restart in the middle of a pass.
                    if gone.place != fact.place {
                        forget(&mut draft, gone);
                    }
                });
            }
        }
        let merged = self.write_tables(&mut draft, start, &leaves, self.newest_delta())?;
        draft.commit().await?;
        let mut map = self.map.borrow_mut();
        map.replace(merged.start, merged.tables);
        if planted::is_active(Bug::MergeForgetsAll) {
            map.forget_recent(ExtentKey::LOWEST, None);
        }
        map.forget_recent(start, end);
        Ok(())
    }

    /// The leaves of the table that begins at `start`; those that cannot be read are lost.
    pub(super) async fn table_leaves(&self, start: ExtentKey) -> BTreeMap<ExtentKey, Leaf> {
        let table = self.map.borrow().tables.get(&start).cloned();
        let Some(table) = table else {
            return BTreeMap::new();
        };
        let run = table.table.run;
        let pages = pages_of(&table.table.pieces, 0, table.table.leaf_pages);
        if let Some(bytes) = self.read_run(&pages).await
            && let Some(stream) = run::joined(self.identity, run, 0, &bytes)
        {
            let mut reader = FieldReader::new(&stream);
            let leaves: BTreeMap<_, _> =
                std::iter::from_fn(|| run::next_leaf(&mut reader)).collect();
            if leaves.keys().copied().eq(table.keys()) {
                return leaves;
            }
        }
        let mut leaves = BTreeMap::new();
        for key in table.keys() {
            let found = self.table_leaf(start, &table, key).await.flatten();
            let leaf = found.map_or_else(Leaf::lost, |leaf| (*leaf).clone());
            leaves.insert(key, leaf);
        }
        leaves
    }

    /// Adds tables of these leaves to a draft, the first of them at `start`.
    fn write_tables(
        &self,
        draft: &mut Draft<'_>,
        start: ExtentKey,
        leaves: &BTreeMap<ExtentKey, Leaf>,
        merged_through: u64,
    ) -> Result<Merged, DiskError> {
        let mut tables = Vec::new();
        let mut stream = Stream::default();
        for (key, leaf) in leaves {
            if stream.bytes() >= self.bounds.table_bytes.min(TABLE_BYTES) {
                let first = if tables.is_empty() {
                    start
                } else {
                    stream.places[0].key
                };
                tables.push((first, std::mem::take(&mut stream)));
            }
            if !leaf.is_empty() {
                stream.push(*key, leaf);
            }
        }
        if !stream.is_empty() {
            let first = if tables.is_empty() {
                start
            } else {
                stream.places[0].key
            };
            tables.push((first, stream));
        }
        if tables.len() > 1 {
            reach::note(Row::MapTableSplit);
        }
        let old = self.map.borrow().tables.get(&start).cloned();
        if let Some(old) = old {
            draft.forget_run(&old.table.pieces);
            draft.change(Change::TableRemoved(start));
        }
        let next_run = self.manifest.with(|layout| layout.next_run);
        let mut written = Vec::new();
        for ((first, stream), run) in tables.into_iter().zip(next_run..) {
            let mut pages = stream.pages(self.identity, run).to_vec();
            let leaf_pages = (pages.len() / PAGE_BYTES) as u32;
            pages.extend_from_slice(&stream.directory(self.identity, run));
            let table = Table {
                run,
                pieces: draft.run_pages(&pages)?,
                leaf_pages,
                leaves: stream.places.len() as u32,
                slices: stream.slices(),
                merged_through,
            };
            draft.change(Change::TableAdded(first, table.clone()));
            written.push((first, table, stream.places));
        }
        Ok(Merged {
            start,
            tables: written,
        })
    }

    /// Writes all recent facts as one delta in place of all deltas.
    async fn join_deltas(&self) -> Result<(), DiskError> {
        reach::note(Row::MapDeltasJoined);
        let through = self.newest_delta();
        let leaves: BTreeMap<ExtentKey, Leaf> = {
            let map = self.map.borrow();
            let recent = map.recent_in(ExtentKey::LOWEST, None);
            let left_out = usize::from(planted::is_active(Bug::JoinDropsNewest));
            let kept = map.recent_leaves().saturating_sub(left_out);
            let recent = recent.take(kept);
            recent.map(|(key, leaf)| (*key, leaf.clone())).collect()
        };
        let mut draft = Draft::new(self);
        self.drop_deltas(&mut draft, through);
        self.add_delta(&mut draft, &leaves)?;
        draft.commit().await
    }

    /// A map segment that is mostly unused, if map segments take much more than they should.
    fn sparse_map_segment(&self) -> Option<u32> {
        let whole = u64::from(self.manifest.geometry.segment_pages);
        self.manifest.with(|layout| {
            let (count, live) = layout.segments.filled_maps();
            let sparsest = layout.segments.sparsest_map();
            sparsest.filter(|_| count > 2 * live.div_ceil(whole) + 4)
        })
    }

    /// Moves what is needed of a map segment elsewhere.
    async fn empty_map_segment(&self, segment: u32) -> Result<(), DiskError> {
        reach::note(Row::MapSegmentEmptied);
        let inside = |pieces: &[Piece]| pieces.iter().any(|piece| piece.segment == segment);
        let (tables, delta) = self.manifest.with(|layout| {
            let tables = layout
                .tables
                .iter()
                .filter(|(_, table)| inside(&table.pieces));
            let keys: Vec<ExtentKey> = tables.map(|(key, _)| *key).collect();
            (
                keys,
                layout.deltas.iter().any(|delta| inside(&delta.pieces)),
            )
        });
        if delta {
            self.join_deltas().await?;
        }
        for start in tables {
            let end = self.map.borrow().range_end(start);
            self.merge_range(start, end).await?;
        }
        Ok(())
    }

    /// Forgets all facts of volumes and slices, durably, and frees their space. The caller holds
    /// the lock of the home's writers.
    pub(crate) async fn clear(&self, scopes: &[Scope]) -> Result<(), DiskError> {
        let gone = Gone::of(scopes);
        reach::note(match gone.volumes.is_empty() {
            true => Row::SlicesCleared,
            false => Row::VolumeCleared,
        });
        // A pass would go on at keys that may be gone.
        while let Some(pass) = self.merging.get() {
            self.continue_pass(pass).await?;
        }
        let starts: Vec<ExtentKey> = {
            let map = self.map.borrow();
            let tables = map.tables.iter();
            tables
                .filter(|(_, table)| table.table.slices.iter().any(|key| gone.has(*key)))
                .map(|(key, _)| *key)
                .collect()
        };
        for start in starts {
            let mut draft = Draft::new(self);
            let mut leaves = self.table_leaves(start).await;
            leaves.retain(|key, leaf| {
                let stays = !gone.has(key.slice);
                if !stays {
                    leaf.facts()
                        .iter()
                        .for_each(|fact| forget(&mut draft, fact));
                }
                stays
            });
            // What stays of this range's recent facts is not merged: it stays recent.
            let merged_through = self.map.borrow().tables[&start].table.merged_through;
            let merged = self.write_tables(&mut draft, start, &leaves, merged_through)?;
            draft.commit().await?;
            self.map.borrow_mut().replace(merged.start, merged.tables);
        }
        let mut draft = Draft::new(self);
        {
            let map = self.map.borrow();
            for (first, end) in scopes.iter().map(|scope| range_of(*scope)) {
                for (_, leaf) in map.recent_in(first, end) {
                    leaf.facts()
                        .iter()
                        .for_each(|fact| forget(&mut draft, fact));
                }
            }
        }
        self.void_in_deltas(&mut draft, &gone);
        draft.commit().await?;
        let mut map = self.map.borrow_mut();
        for (first, end) in scopes.iter().map(|scope| range_of(*scope)) {
            map.forget_recent(first, end);
            map.release(first, end);
        }
        Ok(())
    }

    /// Says that what deltas have of these is void, if any of them has something.
    fn void_in_deltas(&self, draft: &mut Draft<'_>, gone: &Gone) {
        let through = self.newest_delta();
        let named: BTreeSet<SliceKey> = self.manifest.with(|layout| {
            let named = layout.deltas.iter().flat_map(|delta| &delta.slices);
            named.copied().filter(|key| gone.has(*key)).collect()
        });
        let volumes: BTreeSet<u64> = named.iter().map(|key| key.volume).collect();
        for volume in volumes.intersection(&gone.volumes).copied() {
            draft.change(Change::VolumeCleared(Cleared { volume, through }));
        }
        let slices: Vec<SliceKey> = named.intersection(&gone.slices).copied().collect();
        if !slices.is_empty() {
            draft.change(Change::SlicesCleared { slices, through });
        }
    }
}

/// What is removed, for asking about single slices.
struct Gone {
    volumes: BTreeSet<u64>,
    slices: BTreeSet<SliceKey>,
}

impl Gone {
    fn of(scopes: &[Scope]) -> Self {
        let mut gone = Self {
            volumes: BTreeSet::new(),
            slices: BTreeSet::new(),
        };
        for scope in scopes {
            match scope {
                Scope::Volume(volume) => _ = gone.volumes.insert(*volume),
                Scope::Slice(key) => _ = gone.slices.insert(*key),
            }
        }
        gone
    }

    fn has(&self, slice: SliceKey) -> bool {
        self.volumes.contains(&slice.volume) || self.slices.contains(&slice)
    }
}

/// The keys of a scope: the first one, and the first behind it.
fn range_of(scope: Scope) -> (ExtentKey, Option<ExtentKey>) {
    let first = ExtentKey {
        slice: *scope.bounds().start(),
        extent: 0,
    };
    (first, ExtentKey::first_behind(*scope.bounds().end()))
}

const _: () = assert!(TABLE_BYTES + 64 * 1024 < u32::MAX as usize && PAYLOAD_BYTES < PAGE_BYTES);
