//! What the groups themselves tell of a volume, for when the map cannot be trusted.
//!
//! Every group says which blocks it has, of which record, and their checksums. The newest one of
//! each block is found by looking at all segments, freed ones included: so what a lost delta
//! said of blocks that were written is found again. What it said of blocks that were unmapped is
//! not, as no group says that: such a block comes back with what it held before.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::Home;
use super::super::group;
use super::READ_PAGES;
use crate::encoding::block_checksum;
use crate::record::{Seq, SliceKey};

/// Where a version of a block lies.
#[derive(Clone, Copy)]
struct Version {
    seq: Seq,
    page: u64,
    checksum: u64,
}

/// The newest version of each block of a volume that any group has.
#[derive(Default)]
pub(crate) struct Salvage {
    newest: BTreeMap<(SliceKey, u32), Version>,
}

impl Salvage {
    /// The record that wrote the newest version.
    pub(crate) fn seq(&self, slice: SliceKey, block: u32) -> Option<Seq> {
        self.newest.get(&(slice, block)).map(|version| version.seq)
    }

    /// Slices that anything was found of.
    pub(crate) fn slices(&self) -> BTreeSet<SliceKey> {
        self.newest.keys().map(|(slice, _)| *slice).collect()
    }

    /// Blocks of a slice that anything was found of, ascending.
    pub(crate) fn blocks(&self, slice: SliceKey) -> impl Iterator<Item = u32> + '_ {
        let all = (slice, 0)..=(slice, u32::MAX);
        self.newest.range(all).map(|((_, block), _)| *block)
    }
}

impl Home {
    /// Looks through all segments for blocks of a volume.
    pub(crate) async fn salvage(&self, volume: u64, progress: &dyn Fn(u64)) -> Salvage {
        let mut salvage = Salvage::default();
        let pages = self.manifest.geometry.segment_pages;
        for number in 0..self.segment_count() {
            progress(u64::from(number));
            let mut page = 0;
            let mut chunk = (0, Vec::new());
            while page < pages {
                if page >= chunk.0 + chunk.1.len() as u32 {
                    let count = (pages - page).min(READ_PAGES);
                    chunk = (page, self.read_or_mark(number, page, count).await);
                }
                let here = &chunk.1[(page - chunk.0) as usize];
                let begins = here.as_ref().is_ok_and(|page| group::is_header(page));
                let group = match begins {
                    true => self.group_at(number, page, pages).await.ok(),
                    false => None,
                };
                // A copy of something that belongs elsewhere is passed over.
                let Some((_, entries)) =
                    group.filter(|(at, _)| (at.segment, at.first) == (number, page))
                else {
                    page += 1;
                    continue;
                };
                let data = page + group::header_pages(entries.len()) as u32;
                page = data + entries.len() as u32;
                for (entry, page) in entries.iter().zip(data..pages) {
                    if entry.slice.volume != volume {
                        continue;
                    }
                    let version = Version {
                        seq: entry.seq,
                        page: self.page_of(number, page),
                        checksum: entry.checksum,
                    };
                    let known = salvage.newest.entry((entry.slice, entry.block));
                    let known = known.or_insert(version);
                    if version.seq > known.seq {
                        *known = version;
                    }
                }
            }
        }
        salvage
    }

    /// The bytes of the newest version that was found; `None` if they are damaged.
    pub(crate) async fn salvaged(
        &self,
        salvage: &Salvage,
        slice: SliceKey,
        block: u32,
    ) -> Option<Bytes> {
        let version = salvage.newest.get(&(slice, block))?;
        let bytes = self.read(version.page, 1).await.ok()?;
        let intact = block_checksum(slice, block, &bytes) == version.checksum;
        intact.then(|| Bytes::from(bytes))
    }
}
