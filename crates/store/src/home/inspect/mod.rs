//! Looking at a home without changing it: what a check, a dump and an export have in common.
//!
//! Promises: nothing is written; damage is reported and gone around, never a panic. What is read
//! is what a node would read, as long as nothing of the map is lost; where something is, the
//! slices it is about are in doubt.
//!
//! [The manifest, however damaged](manifest), [the map](map), [blocks](blocks) and [the groups
//! they lie in](groups), [space](space), [what the groups still tell where the map does
//! not](salvage).
//!
//! Tested with the whole store: `tests/inspect.rs`.

mod blocks;
mod groups;
mod listing;
mod manifest;
mod map;
mod salvage;
mod space;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast_runtime::Disk;

pub(crate) use self::blocks::BlockTally;
pub(crate) use self::manifest::{Flaw, ManifestImage, Superblock};
pub(crate) use self::salvage::Salvage;
pub use self::space::Space;
use super::Home;
use super::fact::{ExtentKey, Leaf, Place, State};
use super::geometry::Geometry;
use super::layout::{Kind, Layout};
use super::load::HomeScan;
use super::manifest::Manifest;
use super::run;
use crate::bounds::StoreBounds;

/// Pages of one read.
const READ_PAGES: u32 = 256;

/// A home as far as it can be read.
pub(crate) struct HomeImage {
    pub(crate) manifest: ManifestImage,
    /// `None` if nobody can tell where its parts are.
    pub(crate) home: Option<Home>,
    /// What of the map could not be read.
    pub(crate) scan: HomeScan,
}

impl HomeImage {
    /// Reads manifest and map. `edits_min` is the edit that the journal relies on.
    pub(crate) async fn read(disk: Rc<dyn Disk>, identity: [u8; 16], edits_min: u64) -> Self {
        let mut manifest = ManifestImage::read(&disk, identity, edits_min).await;
        let mut scan = HomeScan::default();
        let mut home = None;
        if let Some(geometry) = manifest.geometry {
            let layout = std::mem::take(&mut manifest.layout);
            let number = manifest.number;
            let frozen = Manifest::frozen(disk.clone(), identity, geometry, layout, number);
            let opened = Home::over(disk, identity, StoreBounds::SERVICE, frozen);
            opened.drop_runs_out_of_bounds();
            scan = opened.load_map().await;
            home = Some(opened);
        }
        Self {
            manifest,
            home,
            scan,
        }
    }

    /// Whether the newest facts about any slice may be missing.
    pub(crate) fn is_map_in_doubt(&self) -> bool {
        let harmless = |flaw: &Flaw| match flaw {
            Flaw::Superblocks { guessed } => *guessed,
            Flaw::Refused(_)
            | Flaw::NoSnapshot
            | Flaw::NewestSnapshot
            | Flaw::Gap { .. }
            | Flaw::Misfit { .. }
            | Flaw::Short { .. } => false,
        };
        !self.manifest.flaws.iter().all(harmless)
    }
}

impl Home {
    /// A home of which nothing is known but where its parts would be if it was made like this.
    pub(crate) fn blank(disk: Rc<dyn Disk>, identity: [u8; 16]) -> Self {
        let geometry = Geometry::new(disk.size_bytes(), 0);
        let layout = Layout::default();
        let manifest = Manifest::frozen(disk.clone(), identity, geometry, layout, 0);
        Self::over(disk, identity, StoreBounds::SERVICE, manifest)
    }

    /// Forgets runs of a doubtful layout that point outside the area.
    fn drop_runs_out_of_bounds(&self) {
        let segments = self.segment_count();
        let pages = self.manifest.geometry.segment_pages;
        let fits = |pieces: &[super::layout::Piece]| {
            pieces.iter().all(|piece| {
                let end = piece.first.checked_add(piece.pages);
                piece.segment < segments && end.is_some_and(|end| end <= pages)
            })
        };
        self.manifest.alter(|layout| {
            layout.deltas.retain(|delta| fits(&delta.pieces));
            layout.tables.retain(|_, table| fits(&table.pieces));
        });
    }

    /// Segments that lie within the area.
    fn segment_count(&self) -> u32 {
        self.manifest.geometry.segments_in(self.disk.size_bytes())
    }

    /// Where each part of the map that has a table of its own begins, and the part before them.
    fn parts(&self) -> BTreeSet<ExtentKey> {
        self.map.borrow().range_starts()
    }

    /// The facts of one part of the map as they count: the recent ones over the table's. Leaves
    /// that cannot be read are lost.
    async fn part(&self, start: ExtentKey) -> BTreeMap<ExtentKey, Leaf> {
        let mut leaves = self.table_leaves(start).await;
        let map = self.map.borrow();
        for (key, recent) in map.recent_in(start, map.range_end(start)) {
            let leaf = leaves.entry(*key).or_default();
            for fact in recent.facts() {
                leaf.lay(*fact, |_| {});
            }
        }
        leaves
    }

    /// Why a fact cannot be true; `None` if it can.
    fn contradiction(&self, place: Place) -> Option<String> {
        let number = self.segment_of(place.page());
        let within = place.page().checked_sub(self.page_of(number, 0));
        let Some(within) = within.filter(|_| number < self.segment_count()) else {
            return Some(format!("page {} lies in no segment", place.page()));
        };
        let segment = self.manifest.with(|layout| layout.segment(number));
        match segment.kind {
            None => Some(format!("segment {number} is free")),
            Some(Kind::Map) => Some(format!("segment {number} holds the map")),
            Some(Kind::Data | Kind::Cold) if segment.epoch != place.epoch() => Some(format!(
                "segment {number} is in life {}, the fact speaks of life {}",
                segment.epoch,
                place.epoch()
            )),
            Some(Kind::Data | Kind::Cold) if within >= u64::from(segment.used) => Some(format!(
                "segment {number} is filled up to page {}, the fact speaks of page {within}",
                segment.used
            )),
            Some(Kind::Data | Kind::Cold) => None,
        }
    }

    /// What stands in a page.
    fn page_words(&self, page: &[u8]) -> String {
        let structure = self.structure_words(page);
        structure.unwrap_or_else(|| crate::inspect::recognise(page))
    }

    /// Which page of a structure of this store it is; `None` if it is none.
    fn structure_words(&self, page: &[u8]) -> Option<String> {
        if let Some((at, entries)) = super::group::decode_any(self.identity, page) {
            return Some(format!(
                "the header of the group of {} blocks at page {} of segment {}",
                entries.len(),
                at.first,
                at.segment
            ));
        }
        let (run, number) = run::claim(self.identity, page)?;
        Some(format!("page {number} of run {run} of the map"))
    }
}

/// Present facts of a leaf, with their blocks within the slice.
fn present(key: ExtentKey, leaf: &Leaf) -> impl Iterator<Item = (u32, super::fact::Fact)> + '_ {
    let first = key.extent * super::fact::EXTENT_BLOCKS;
    leaf.facts()
        .iter()
        .filter(|fact| fact.state == State::Present)
        .map(move |fact| (first + u32::from(fact.block), *fact))
}
