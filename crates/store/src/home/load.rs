//! Opening a home.
//!
//! Tested with the whole store: `tests/home.rs`, `tests/damage.rs`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Disk, DiskError};
use tokio::sync::Notify;

use super::Home;
use super::discard::GivenBack;
use super::draft::Draft;
use super::fact::{ExtentKey, Leaf, State};
use super::layout::{Change, Delta, Kind, Table};
use super::leaves::LeafCache;
use super::manifest::Manifest;
use super::map::{Map, OpenTable, pages_of};
use super::run;
use crate::bounds::StoreBounds;
use crate::encoding::FieldReader;
use crate::error::StoreError;
use crate::record::SliceKey;

/// What opening the home found.
#[derive(Default)]
pub(crate) struct HomeScan {
    /// Runs of the map that cannot be read.
    pub(crate) lost_runs: u64,
    /// What they spoke of: nothing of these slices can be trusted to be the newest.
    pub(crate) suspect: BTreeSet<SliceKey>,
    tables: Vec<ExtentKey>,
    deltas: Vec<u64>,
}

impl HomeScan {
    fn lose(&mut self, slices: &[SliceKey]) {
        reach::note(Row::MapRunLost);
        self.lost_runs += 1;
        self.suspect.extend(slices.iter().copied());
    }

    fn lose_delta(&mut self, run: u64, slices: &[SliceKey]) {
        tracing::warn!(run, "a delta of the block map is damaged");
        self.lose(slices);
        self.deltas.push(run);
    }
}

/// What is free at the start has yet to be given back.
fn freed_at_start() -> Notify {
    let freed = Notify::new();
    freed.notify_one();
    freed
}

impl Home {
    /// Opens the home of this store; a blank area becomes one if `may_create`. A home that ends
    /// before edit `edits_min` is damaged.
    pub(crate) async fn open(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
        bounds: StoreBounds,
        may_create: bool,
        edits_min: u64,
    ) -> Result<(Self, HomeScan), StoreError> {
        let manifest = Manifest::open(
            disk.clone(),
            identity,
            may_create,
            bounds.home_segments_at,
            edits_min,
        )
        .await?;
        let home = Self::over(disk, identity, bounds, manifest);
        home.warn_of_unused_space();
        let scan = home.load_map().await;
        Ok((home, scan))
    }

    fn warn_of_unused_space(&self) {
        let area_bytes = self.disk.size_bytes();
        let unused_bytes = self.manifest.geometry.unused_in(area_bytes);
        if unused_bytes > 0 {
            let used_bytes = area_bytes - unused_bytes;
            tracing::warn!(
                used_bytes,
                unused_bytes,
                "the home uses only a part of its area: it is larger than its manifest, made for \
                 a smaller one, can describe, or than any home can be"
            );
        }
    }

    /// A home with this manifest and an empty map.
    pub(super) fn over(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
        bounds: StoreBounds,
        manifest: Manifest,
    ) -> Self {
        let in_use = manifest.with(|layout| layout.segments.in_use().clone());
        Self {
            disk,
            identity,
            bounds,
            manifest,
            map: RefCell::new(Map::default()),
            cache: RefCell::new(LeafCache::default()),
            ahead: RefCell::default(),
            merging: Cell::new(None),
            damaged: Cell::new(false),
            broken: RefCell::default(),
            collecting: Cell::new(None),
            collected: Cell::new(0),
            given_back: GivenBack::new(in_use),
            freed: freed_at_start(),
        }
    }

    /// Takes in what the manifest names of the map.
    pub(super) async fn load_map(&self) -> HomeScan {
        let mut scan = HomeScan::default();
        let (tables, deltas) = self
            .manifest
            .with(|layout| (layout.tables.clone(), layout.deltas.clone()));
        for (start, table) in tables {
            self.load_table(start, table, &mut scan).await;
        }
        let forgotten = usize::from(planted::is_active(Bug::ForgetDelta));
        for delta in &deltas[..deltas.len().saturating_sub(forgotten)] {
            self.load_delta(delta, &mut scan).await;
        }
        self.damaged.set(scan.lost_runs > 0);
        scan
    }

    /// Whether nothing was ever put into it.
    pub(crate) fn is_blank(&self) -> bool {
        self.manifest.number() == 0
    }

    /// Number of the last durable change.
    pub(crate) fn edits(&self) -> u64 {
        self.manifest.number()
    }

    /// Gives up the runs that cannot be read. The caller has made it durable that their slices
    /// are in doubt.
    pub(crate) async fn discard_lost(&self, scan: &HomeScan) -> Result<(), DiskError> {
        if scan.lost_runs == 0 {
            return Ok(());
        }
        let mut draft = Draft::new(self);
        for (segment, live) in self.recount().await {
            draft.set_live(segment, live);
        }
        for start in &scan.tables {
            let table = self
                .manifest
                .with(|layout| layout.tables.get(start).cloned());
            if let Some(table) = table {
                draft.forget_run(&table.pieces);
                draft.change(Change::TableRemoved(*start));
            }
        }
        for run in &scan.deltas {
            let delta = self.manifest.with(|layout| {
                layout
                    .deltas
                    .iter()
                    .find(|delta| delta.run == *run)
                    .cloned()
            });
            if let Some(delta) = delta {
                draft.forget_run(&delta.pieces);
                draft.change(Change::DeltaLost { run: *run });
            }
        }
        draft.commit().await
    }

    /// How many of the facts that are left name each segment with blocks: what was lost took its
    /// share of the old counts with it, and what it had replaced is there again.
    pub(super) async fn recount(&self) -> BTreeMap<u32, u32> {
        let mut counts: BTreeMap<u32, u32> = self.manifest.with(|layout| {
            let numbered = layout.segments.ever_used().iter().zip(0..);
            let data = numbered.filter(|(segment, _)| match segment.kind {
                Some(Kind::Data | Kind::Cold) => true,
                Some(Kind::Map) | None => false,
            });
            data.map(|(_, number)| (number, 0)).collect()
        });
        let mut count = |leaf: &Leaf| {
            for fact in leaf.facts() {
                let number = self.segment_of(fact.place.page());
                let epoch = self.manifest.with(|layout| layout.segment(number).epoch);
                if fact.state == State::Present
                    && fact.place.epoch() == epoch
                    && let Some(live) = counts.get_mut(&number)
                {
                    *live += 1;
                }
            }
        };
        let starts: Vec<ExtentKey> = self.map.borrow().tables.keys().copied().collect();
        for start in starts {
            self.table_leaves(start).await.values().for_each(&mut count);
        }
        let map = self.map.borrow();
        map.recent_in(ExtentKey::LOWEST, None)
            .for_each(|(_, leaf)| count(leaf));
        drop(map);
        counts
    }

    async fn load_table(&self, start: ExtentKey, table: Table, scan: &mut HomeScan) {
        let pages = run::directory_pages(table.leaves);
        let extents = pages_of(&table.pieces, table.leaf_pages, pages);
        let bytes = self.read_run(&extents).await;
        let stream =
            bytes.and_then(|bytes| run::joined(self.identity, table.run, table.leaf_pages, &bytes));
        let places = stream.and_then(|stream| run::read_directory(&stream, table.leaves));
        let Some(places) = places else {
            tracing::warn!(run = table.run, "a table of the block map is damaged");
            scan.lose(&table.slices);
            scan.tables.push(start);
            return;
        };
        let mut map = self.map.borrow_mut();
        for place in &places {
            map.occupy(place.key, place.occupied);
        }
        map.tables
            .insert(start, Rc::new(OpenTable::new(table, &places)));
    }

    /// A delta cannot be read: what it says of slices that are still there is missing.
    fn lose_delta(&self, delta: &Delta, scan: &mut HomeScan) {
        let mut slices = delta.slices.clone();
        let is_void = |key| {
            self.manifest
                .with(|layout| layout.is_cleared(key, delta.run))
        };
        slices.retain(|key| !is_void(*key));
        scan.lose_delta(delta.run, &slices);
    }

    /// Lays a delta's facts over what is known, but those that a table has already, and those
    /// of what was removed since.
    async fn load_delta(&self, delta: &Delta, scan: &mut HomeScan) {
        let pages = delta.pieces.iter().map(|piece| piece.pages).sum();
        let bytes = self.read_run(&pages_of(&delta.pieces, 0, pages)).await;
        let stream = bytes.and_then(|bytes| run::joined(self.identity, delta.run, 0, &bytes));
        let Some(stream) = stream else {
            self.lose_delta(delta, scan);
            return;
        };
        let mut reader = FieldReader::new(&stream);
        let mut map = self.map.borrow_mut();
        for _ in 0..delta.leaves {
            let Some((key, leaf)) = run::next_leaf(&mut reader) else {
                self.lose_delta(delta, scan);
                return;
            };
            let merged = map
                .table_of(key)
                .is_some_and(|(_, table)| delta.run <= table.table.merged_through);
            let cleared = self
                .manifest
                .with(|layout| layout.is_cleared(key.slice, delta.run));
            if merged || cleared {
                continue;
            }
            for fact in leaf.facts() {
                map.lay(key, *fact, |_| {});
            }
        }
    }
}
