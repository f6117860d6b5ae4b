//! Which blocks take space: told by the journal's index and the home's map of what is occupied,
//! which are in memory. No data is read.
//!
//! A block is *mapped* from the write of any data, zeroes too, until it is zeroed as a whole: then
//! nothing is kept of it. What is lost counts as mapped: it does not read as zeroes. So a block
//! that is not mapped reads as zeroes.
//!
//! Tested with the whole store: `tests/mapped.rs`.

use std::rc::Rc;

use crate::error::StoreError;
use crate::home::fact::{Blocks, EXTENT_BLOCKS};
use crate::journal::item::Content;
use crate::record::SliceKey;
use crate::store::{Inner, Store};

/// Neighbouring blocks that are all mapped, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// Whether they take space.
    pub mapped: bool,
    /// How many.
    pub blocks: u32,
}

impl Store {
    /// Which blocks of a range are mapped, in runs from its beginning on: of each extent as of the
    /// slice's stable point at one moment. At most `runs_max` runs, which may not reach the end of
    /// the range then. Two neighbouring runs differ.
    ///
    /// # Errors
    ///
    /// `Damaged` when records of the slice may have been lost without a trace.
    pub async fn mapped(
        &self,
        slice: SliceKey,
        first_block: u32,
        blocks: u32,
        runs_max: usize,
    ) -> Result<Vec<MappedRun>, StoreError> {
        self.inner
            .mapped(slice, first_block, blocks, runs_max)
            .await
    }
}

/// What memory alone tells of an extent.
#[derive(Default)]
struct Extent {
    mapped: Blocks,
    /// Occupied in the home, and zeroed by the journal in a way that does not tell which is newer.
    uncertain: Blocks,
}

impl Inner {
    async fn mapped(
        self: &Rc<Self>,
        slice: SliceKey,
        first_block: u32,
        blocks: u32,
        runs_max: usize,
    ) -> Result<Vec<MappedRun>, StoreError> {
        self.check_range(slice, first_block, blocks)?;
        if self.is_suspect(slice) {
            return Err(StoreError::Damaged {
                slice,
                block: first_block,
            });
        }
        let end = first_block + blocks;
        let mut runs = Runs::new(first_block, runs_max);
        let mut from = first_block / EXTENT_BLOCKS;
        while let Some(extent) = self.known_extent(slice, from) {
            let begin = extent.saturating_mul(EXTENT_BLOCKS).max(first_block);
            if begin >= end || runs.is_full() {
                break;
            }
            runs.extend_to(begin, false);
            let last = end.min((extent + 1).saturating_mul(EXTENT_BLOCKS));
            let state = self.extent(slice, extent).await;
            if state.is_empty() || state.count() == u64::from(EXTENT_BLOCKS) {
                runs.extend_to(last, !state.is_empty());
            } else {
                for block in begin..last {
                    let within = (block % EXTENT_BLOCKS) as u8;
                    runs.extend_to(block + 1, state.contains(within));
                }
            }
            from = extent + 1;
        }
        runs.extend_to(end, false);
        Ok(runs.finish())
    }

    /// The first extent from `from` on of which a block may be mapped.
    fn known_extent(&self, slice: SliceKey, from: u32) -> Option<u32> {
        let journaled = {
            let slices = self.slices.borrow();
            let index = slices.get(&slice);
            index.and_then(|index| index.data_extent_from(from))
        };
        let occupied = self.home.occupied_extent(slice, from);
        journaled.into_iter().chain(occupied).min()
    }

    async fn extent(self: &Rc<Self>, slice: SliceKey, extent: u32) -> Blocks {
        let Extent {
            mut mapped,
            uncertain,
        } = self.extent_in_memory(slice, extent);
        if uncertain.is_empty() {
            return mapped;
        }
        let first = extent * EXTENT_BLOCKS;
        let found = self.newest_stable_of(slice, first, EXTENT_BLOCKS).await;
        for (within, found) in (0..=u8::MAX).zip(found) {
            if uncertain.contains(within) {
                mapped.set(within, found.is_some_and(|found| !found.is_zero()));
            }
        }
        mapped
    }

    fn extent_in_memory(&self, slice: SliceKey, extent: u32) -> Extent {
        let occupied = self.home.occupied(slice, extent);
        let mut state = Extent {
            mapped: occupied,
            uncertain: Blocks::default(),
        };
        let slices = self.slices.borrow();
        let Some(index) = slices.get(&slice) else {
            return state;
        };
        if index.is_silent_on(extent) {
            return state;
        }
        // What is neither occupied nor in the journal's data is not mapped, zeroed or not.
        let candidates = occupied.union(&index.data_in(extent));
        for within in (0..=u8::MAX).filter(|within| candidates.contains(*within)) {
            let block = extent * EXTENT_BLOCKS + u32::from(within);
            let Some(version) = index.newest_effective(block) else {
                continue;
            };
            match version.content {
                // A version from before a restart, or a copied one, may be older than the home's.
                // Then the home may have zeroed the block, and mapped is the safe thing to say.
                Content::Data(..) | Content::Unread(_) | Content::Unknown => {
                    state.mapped.set(within, true);
                }
                Content::Zero if occupied.contains(within) && !index.is_plain_zero(&version) => {
                    state.uncertain.set(within, true);
                }
                Content::Zero => state.mapped.set(within, false),
            }
        }
        state
    }
}

/// Collects runs.
struct Runs {
    at: u32,
    runs: Vec<MappedRun>,
    runs_max: usize,
}

impl Runs {
    fn new(at: u32, runs_max: usize) -> Self {
        Self {
            at,
            runs: Vec::new(),
            runs_max,
        }
    }

    /// Whether a run has begun that is not wanted any more.
    fn is_full(&self) -> bool {
        self.runs.len() > self.runs_max
    }

    fn extend_to(&mut self, end: u32, mapped: bool) {
        let blocks = end - self.at;
        if blocks == 0 || self.is_full() {
            return;
        }
        self.at = end;
        match self.runs.last_mut() {
            Some(last) if last.mapped == mapped => last.blocks += blocks,
            Some(_) | None => self.runs.push(MappedRun { mapped, blocks }),
        }
    }

    fn finish(mut self) -> Vec<MappedRun> {
        self.runs.truncate(self.runs_max);
        self.runs
    }
}
