//! Reading everything back, so that what a disk has lost is found before it is needed.
//!
//! A verification goes through the home extent by extent, in the order of the map. It reads the
//! leaf of the map from the disk, even if memory has it, and the bytes of every block that the
//! home holds the newest version of. What does not match is noted like damage that a client's
//! read meets: see [`Store::damaged_blocks`]. What only the journal holds is in memory too, and
//! goes home soon.
//!
//! Tested with the whole store: `tests/verify.rs`.

use std::rc::Rc;

use holdfast_runtime::planted::{self, Bug};
use serde::{Deserialize, Serialize};

use crate::home::fact::{EXTENT_BLOCKS, ExtentKey};
use crate::journal::item::Content;
use crate::record::{BLOCK_BYTES, SliceKey};
use crate::store::transfer::{home_fact, run_length};
use crate::store::{Inner, Store};

/// Where a verification is: before an extent of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VerifyPosition {
    /// The slice.
    pub slice: SliceKey,
    /// Its extent of 256 blocks.
    pub extent: u32,
}

/// What one step of a verification did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Where the next step begins; `None` if this was the last one.
    pub next: Option<VerifyPosition>,
    /// Bytes that were read and compared.
    pub bytes: u64,
    /// Blocks found damaged.
    pub damaged_blocks: u32,
}

impl Store {
    /// Verifies the first extent at or after `from` of which the home knows anything.
    pub async fn verify(&self, from: Option<VerifyPosition>) -> Verified {
        // A store that is poisoned knows less, and is about to be restarted.
        let _ = self.inner.recovered().await;
        if from.is_none() {
            // What a reader left behind before this verification began proves nothing of now.
            self.inner.home.forget_ahead();
        }
        let from = from.map_or(ExtentKey::LOWEST, |from| ExtentKey {
            slice: from.slice,
            extent: from.extent,
        });
        let Some(key) = self.inner.home.extent_from(from) else {
            return Verified {
                next: None,
                bytes: 0,
                damaged_blocks: 0,
            };
        };
        let (bytes, damaged_blocks) = self.inner.verify_extent(key).await;
        let next = self.inner.home.extent_from(ExtentKey {
            extent: key.extent + 1,
            ..key
        });
        Verified {
            next: next.map(|next| VerifyPosition {
                slice: next.slice,
                extent: next.extent,
            }),
            bytes,
            damaged_blocks,
        }
    }

    /// Blocks whose newest stable version was found to be lost: of those behind `after`, at most
    /// `limit` of one slice.
    pub fn damaged_blocks(
        &self,
        after: Option<(SliceKey, u32)>,
        limit: usize,
    ) -> Option<DamagedBlocks> {
        let (slice, blocks) = self.inner.bad.behind(after, limit)?;
        Some(DamagedBlocks { slice, blocks })
    }

    /// A verification from the first extent to the last found nothing damaged: what is known of
    /// damage to the map is over, as tables and recent facts have replaced what was lost.
    pub fn note_sound(&self) {
        if self.inner.bad.is_empty() {
            self.inner.home.note_sound();
        }
    }

    /// How many blocks are known to be damaged and not healed yet.
    pub fn damaged_block_count(&self) -> u64 {
        self.inner.bad.len() as u64
    }

    /// Resolves when a block was found damaged that was not known to be; at once, if that has
    /// happened since the last call.
    pub async fn damage_found(&self) {
        self.inner.bad.found().await;
    }
}

/// Damaged blocks of one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedBlocks {
    /// The slice.
    pub slice: SliceKey,
    /// The blocks, ascending.
    pub blocks: Vec<u32>,
}

impl Inner {
    async fn verify_extent(self: &Rc<Self>, key: ExtentKey) -> (u64, u32) {
        self.home.forget_cached(key);
        let first_block = key.extent * EXTENT_BLOCKS;
        let blocks = EXTENT_BLOCKS.min(self.options.slice_blocks - first_block);
        let found = self.newest_stable_of(key.slice, first_block, blocks).await;
        let (mut bytes, mut damaged, mut done) = (0, 0, 0);
        while done < found.len() {
            let run = run_length(&found[done..]);
            let block = first_block + done as u32;
            let part = &found[done..done + run];
            let at_home = part.iter().filter(|found| home_fact(found).is_some());
            bytes += at_home.count() as u64 * BLOCK_BYTES as u64;
            let looks = !planted::is_active(Bug::VerifyNothing);
            if looks && !matches!(self.read_run(key.slice, block, part).await, Ok(Some(_))) {
                for (found, block) in part.iter().zip(block..) {
                    let from_disk = found.as_ref().is_some_and(|found| !found.is_in_memory());
                    if from_disk && self.block(key.slice, block, found.clone()).await.is_err() {
                        damaged += 1;
                    }
                }
            }
            done += run;
        }
        (bytes, damaged)
    }

    /// After a recovery: notes blocks whose newest stable record was damaged in the journal.
    pub(crate) fn note_lost_records(&self) {
        let slices = self.slices.borrow();
        for (slice, index) in slices.iter().filter(|(_, index)| index.has_unknown) {
            let extents = index.extents_from(0).into_iter();
            let effective = extents.flat_map(|extent| index.effective_in(extent));
            for (block, _) in effective.filter(|(_, found)| found.content == Content::Unknown) {
                self.bad.note(*slice, block);
            }
        }
    }

    /// Blocks that may have been healed.
    pub(crate) async fn reconsider_bad(&self, slice: SliceKey, blocks: &[u32]) {
        for block in blocks {
            if !self.bad.contains(slice, *block) {
                continue;
            }
            let newest = self.newest_stable(slice, *block).await;
            if newest.is_none_or(|found| found.is_in_memory()) {
                self.bad.heal(slice, *block);
            }
        }
    }
}
