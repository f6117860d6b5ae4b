//! Where the space is, counted anew, against what the manifest says.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::PAGE_BYTES;
use serde::Serialize;

use super::super::layout::Kind;
use super::super::{AREA, Home};
use super::BlockTally;
use crate::inspect::{Finding, FindingKind, Findings};

/// Where the space of a home is. The parts from `manifest_bytes` to `rest_bytes` add up to
/// `area_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// The area.
    pub area_bytes: u64,
    /// Superblocks and manifest.
    pub manifest_bytes: u64,
    /// Blocks in use.
    pub data_bytes: u64,
    /// What else segments with blocks hold: what was overwritten or unmapped, headers, and room
    /// that is not filled yet.
    pub reclaimable_bytes: u64,
    /// Pages of the block map in use.
    pub map_bytes: u64,
    /// What else segments with the map hold.
    pub map_reclaimable_bytes: u64,
    /// Free segments.
    pub free_bytes: u64,
    /// What is too little for a segment, at the end of the area, or more than the home can use.
    pub rest_bytes: u64,
    /// What the home takes from its clients; the rest is kept for maps and for collecting.
    pub capacity_bytes: u64,
    /// Segments, and of them with blocks, with the map, and free.
    pub segments: u64,
    /// Segments with blocks.
    pub data_segments: u64,
    /// Segments with the map.
    pub map_segments: u64,
    /// Free ones.
    pub free_segments: u64,
}

impl Space {
    fn sum(&self) -> u64 {
        self.manifest_bytes
            + self.data_bytes
            + self.reclaimable_bytes
            + self.map_bytes
            + self.map_reclaimable_bytes
            + self.free_bytes
            + self.rest_bytes
    }
}

impl Home {
    /// Counts anew. Counts are compared only if nothing of the map is lost (`whole_map`), blocks
    /// only if all of them were read (`tally`).
    pub(crate) async fn check_space(
        &self,
        whole_map: bool,
        tally: Option<&BlockTally>,
        findings: &Findings,
    ) -> Space {
        let geometry = self.manifest.geometry;
        let (segments, tables, deltas, counters) = self.manifest.with(|layout| {
            (
                layout.segments.clone(),
                layout.tables.clone(),
                layout.deltas.clone(),
                (layout.data_segments, layout.map_segments),
            )
        });
        let mut pages: BTreeMap<u32, u32> = BTreeMap::new();
        let runs = deltas.iter().map(|delta| &delta.pieces);
        for piece in runs
            .chain(tables.values().map(|table| &table.pieces))
            .flatten()
        {
            *pages.entry(piece.segment).or_default() += piece.pages;
        }
        let facts = match whole_map {
            true => Some(self.recount().await),
            false => None,
        };
        let whole = geometry.segment_bytes();
        let page_bytes = PAGE_BYTES as u64;
        let mut space = Space {
            area_bytes: self.disk.size_bytes(),
            manifest_bytes: geometry.segments_at,
            segments: u64::from(self.segment_count()),
            capacity_bytes: self.usage().capacity_blocks * page_bytes,
            ..Space::default()
        };
        let mut open: BTreeSet<(u8, u32)> = BTreeSet::new();
        for number in 0..self.segment_count() {
            let segment = segments.get(number);
            let counted = match segment.kind {
                None => {
                    space.free_segments += 1;
                    space.free_bytes += whole;
                    if segment.used != 0 || segment.live != 0 {
                        let what = format!("segment {number} is free and not empty");
                        findings.add(Finding::new(FindingKind::MapContradiction, AREA, what));
                    }
                    continue;
                }
                Some(Kind::Map) => {
                    let live = pages.get(&number).copied().unwrap_or(0);
                    space.map_segments += 1;
                    space.map_bytes += u64::from(live) * page_bytes;
                    space.map_reclaimable_bytes += whole - u64::from(live) * page_bytes;
                    Some(live)
                }
                Some(Kind::Data | Kind::Cold) => {
                    let live = tally.map_or(u64::from(segment.live), |tally| {
                        tally.in_use.get(&number).copied().unwrap_or(0)
                    });
                    space.data_segments += 1;
                    space.data_bytes += live * page_bytes;
                    space.reclaimable_bytes += whole - (live * page_bytes).min(whole);
                    facts
                        .as_ref()
                        .map(|facts| facts.get(&number).copied().unwrap_or(0))
                }
            };
            if !segment.sealed
                && let Some(kind) = segment.kind
                && !open.insert((kind as u8, 0))
            {
                let what = format!("segment {number} is one of two {kind:?} segments being filled");
                findings.add(Finding::new(FindingKind::MapContradiction, AREA, what));
            }
            let Some(counted) = counted else { continue };
            let kind = match segment.live.cmp(&counted) {
                std::cmp::Ordering::Equal => continue,
                std::cmp::Ordering::Less => FindingKind::LiveCountTooLow,
                std::cmp::Ordering::Greater => FindingKind::LiveCountTooHigh,
            };
            let what = format!(
                "segment {number} is said to hold {} pages in use, and holds {counted}",
                segment.live
            );
            let at = self.byte_at(number, 0);
            findings.add(Finding::new(kind, AREA, what).at(at, whole));
        }
        space.rest_bytes = space
            .area_bytes
            .saturating_sub(space.manifest_bytes + space.segments * whole);
        self.compare_sums(&space, counters, whole_map, tally, findings);
        space
    }

    fn compare_sums(
        &self,
        space: &Space,
        counters: (u64, u64),
        whole_map: bool,
        tally: Option<&BlockTally>,
        findings: &Findings,
    ) {
        let miscounted = |what: String| {
            findings.add(Finding::new(FindingKind::SpaceMiscounted, AREA, what));
        };
        if space.sum() != space.area_bytes {
            miscounted(format!(
                "the parts of the home are {} bytes together, the file has {}",
                space.sum(),
                space.area_bytes
            ));
        }
        if counters != (space.data_segments, space.map_segments) {
            miscounted(format!(
                "{counters:?} segments are said to hold blocks and maps, and {:?} do",
                (space.data_segments, space.map_segments)
            ));
        }
        let occupied = self.map.borrow().occupied_blocks();
        if let Some(tally) = tally
            && whole_map
            && tally.occupied != occupied
        {
            miscounted(format!(
                "{occupied} blocks are said to take space, and {} do",
                tally.occupied
            ));
        }
    }
}
