//! Who may take how much space, and where it all is.
//!
//! Tested with the whole store: `tests/basics.rs`, `tests/home.rs`.

use std::collections::BTreeMap;

use holdfast_runtime::PAGE_BYTES;

use super::Home;
use super::fact::{Blocks, EXTENT_BLOCKS, ExtentKey};
use crate::error::StoreError;
use crate::record::SliceKey;

/// Where the home's space is. Blocks are of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct HomeUsage {
    /// Blocks that the home takes from its clients.
    pub(crate) capacity_blocks: u64,
    /// Blocks taken, those included that the journal will bring.
    pub(crate) claimed_blocks: u64,
    /// Blocks that are in the home and needed.
    pub(crate) occupied_blocks: u64,
    /// Pages of segments that hold blocks or their headers, and are needed no more.
    pub(crate) reclaimable_blocks: u64,
    /// Pages of segments that hold the map.
    pub(crate) map_blocks: u64,
    /// Pages of free segments.
    pub(crate) free_blocks: u64,
    /// All segments.
    pub(crate) segments: u64,
}

impl Home {
    /// Where the space is.
    pub(crate) fn usage(&self) -> HomeUsage {
        let whole = u64::from(self.manifest.geometry.segment_pages);
        let usable = u64::from(self.manifest.geometry.segments_in(self.disk.size_bytes()));
        let (data, maps) = self
            .manifest
            .with(|layout| (layout.data_segments, layout.map_segments));
        let map = self.map.borrow();
        // Two percent of the home are enough for a map of all of it; deltas come on top.
        let for_maps = (usable / 32 + 4).max(maps);
        let for_collection = (usable / 20).max(2 * super::collect::FREE_MIN + 3);
        let for_data = usable.saturating_sub(for_maps + for_collection);
        // Headers of groups, and what is too little to be collected for.
        let headers = whole / 32 + super::collect::GAIN_PAGES_MIN;
        HomeUsage {
            capacity_blocks: for_data * (whole - headers),
            claimed_blocks: map.claimed(),
            occupied_blocks: map.occupied_blocks(),
            reclaimable_blocks: (data * whole).saturating_sub(map.occupied_blocks()),
            map_blocks: maps * whole,
            free_blocks: usable.saturating_sub(data + maps) * whole,
            segments: usable,
        }
    }

    pub(super) fn free_segments(&self) -> u64 {
        let usage = self.usage();
        usage.free_blocks / u64::from(self.manifest.geometry.segment_pages)
    }

    /// Bytes that collecting has moved since the home was opened.
    pub(crate) fn collected_bytes(&self) -> u64 {
        self.collected.get() * PAGE_BYTES as u64
    }

    /// Whether a block takes space, or will.
    pub(crate) fn is_claimed(&self, slice: SliceKey, block: u32) -> bool {
        let within = (block % EXTENT_BLOCKS) as u8;
        let key = ExtentKey::of(slice, block);
        self.map.borrow().is_claimed(key, within)
    }

    /// Blocks of an extent that take space in the home.
    pub(crate) fn occupied(&self, slice: SliceKey, extent: u32) -> Blocks {
        self.map.borrow().occupied(ExtentKey { slice, extent })
    }

    /// The first extent of a slice from `extent` on with blocks that take space in the home.
    pub(crate) fn occupied_extent(&self, slice: SliceKey, extent: u32) -> Option<u32> {
        let found = self
            .map
            .borrow()
            .occupied_from(ExtentKey { slice, extent })?;
        (found.slice == slice).then_some(found.extent)
    }

    /// Promises room for these ranges of blocks, for all or for none.
    pub(crate) fn reserve(&self, wanted: &[(SliceKey, u32, u32)]) -> Result<(), StoreError> {
        let mut more: BTreeMap<ExtentKey, Blocks> = BTreeMap::new();
        let mut wanted_blocks = 0;
        {
            let map = self.map.borrow();
            for (slice, first, blocks) in wanted {
                for block in *first..first + blocks {
                    let key = ExtentKey::of(*slice, block);
                    let within = (block % EXTENT_BLOCKS) as u8;
                    let new = more.entry(key).or_insert_with(|| map.promised(key));
                    let is_new = !new.contains(within) && !map.is_claimed(key, within);
                    wanted_blocks += u64::from(is_new);
                    new.set(within, true);
                }
            }
        }
        if wanted_blocks > 0 {
            let usage = self.usage();
            let free_blocks = usage.capacity_blocks.saturating_sub(usage.claimed_blocks);
            if wanted_blocks > free_blocks {
                return Err(StoreError::Full {
                    wanted_blocks,
                    free_blocks,
                });
            }
        }
        let mut map = self.map.borrow_mut();
        for (key, blocks) in more {
            map.promise(key, blocks);
        }
        Ok(())
    }

    /// Promises room for blocks that are in the journal already: they had it when they came.
    pub(crate) fn claim(&self, slice: SliceKey, first_block: u32, blocks: u32) {
        let mut map = self.map.borrow_mut();
        for block in first_block..first_block + blocks {
            let key = ExtentKey::of(slice, block);
            let mut promised = map.promised(key);
            promised.set((block % EXTENT_BLOCKS) as u8, true);
            map.promise(key, promised);
        }
    }

    /// Says which blocks of an extent the journal still holds data for.
    pub(crate) fn set_promised(&self, slice: SliceKey, extent: u32, blocks: Blocks) {
        let key = ExtentKey { slice, extent };
        self.map.borrow_mut().promise(key, blocks);
    }

    /// Extents of a slice that room was promised in.
    pub(crate) fn promised_extents(&self, slice: SliceKey) -> Vec<u32> {
        self.map.borrow().promised_extents(slice)
    }
}
