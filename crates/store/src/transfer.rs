//! Reading blocks, for clients and for other copies.

use std::rc::Rc;

use bytes::Bytes;

use crate::error::StoreError;
use crate::extent::{EXTENT_BLOCKS, Entry, EntryState};
use crate::home::matches;
use crate::index::Content;
use crate::record::{BLOCK_BYTES, CopiedBlock, CopyState, Seq, SliceKey, View};
use crate::store::Inner;

/// The newest stable version of a block and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) seq: Seq,
    pub(crate) view: View,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Memory(Bytes),
    Zero,
    Unknown,
    Home { physical: u32, entry: Entry },
}

impl Found {
    pub(crate) fn is_unknown(&self) -> bool {
        self.source == Source::Unknown
    }
}

impl Inner {
    /// The newest stable version of a block; `None` if it was never written.
    pub(crate) fn newest_stable(&self, slice: SliceKey, block: u32) -> Option<Found> {
        let journaled = self
            .slices
            .borrow()
            .get(&slice)
            .and_then(|index| index.newest_effective(block));
        let home = self.home.entry(slice, block);
        let home = home.filter(|(_, entry)| entry.state() != EntryState::Never);
        let certain = home.is_none_or(|(_, entry)| !entry.is_lost());
        match (journaled, home) {
            (Some(version), home)
                if home.is_none_or(|(_, entry)| entry.seq() <= version.seq)
                    && (certain || !version.replayed) =>
            {
                let source = match version.content {
                    Content::Data(data, _) => Source::Memory(data),
                    Content::Zero => Source::Zero,
                    Content::Unknown => Source::Unknown,
                };
                Some(Found {
                    seq: version.seq,
                    view: version.view,
                    source,
                })
            }
            (_, Some((physical, entry))) => {
                let source = match entry.state() {
                    EntryState::Never | EntryState::Zero => Source::Zero,
                    EntryState::Present => Source::Home { physical, entry },
                    EntryState::Unknown => Source::Unknown,
                };
                Some(Found {
                    seq: entry.seq(),
                    view: entry.view(),
                    source,
                })
            }
            (_, None) => None,
        }
    }

    /// Whether the absence of a version says that the block reads zero.
    fn absence_is_zero(&self, slice: SliceKey, block: u32) -> bool {
        !self.home.has_unattributed() || self.home.has_extent(slice, block / EXTENT_BLOCKS)
    }

    /// Whether records of the slice may have been lost without a trace.
    fn is_suspect(&self, slice: SliceKey) -> bool {
        self.facts.with(|facts| match facts.slices.get(&slice) {
            Some(found) => found.suspect.is_some(),
            None => facts.hole,
        })
    }

    pub(crate) async fn read(
        self: &Rc<Self>,
        slice: SliceKey,
        first_block: u32,
        blocks: u32,
    ) -> Result<Bytes, StoreError> {
        self.check_range(slice, first_block, blocks)?;
        if self.is_suspect(slice) {
            return Err(StoreError::Damaged {
                slice,
                block: first_block,
            });
        }
        let found: Vec<Option<Found>> = (first_block..first_block + blocks)
            .map(|block| self.newest_stable(slice, block))
            .collect();
        if let [single] = found.as_slice() {
            let data = self.block(slice, first_block, single.clone()).await?;
            return Ok(data.unwrap_or_else(|| Bytes::from_static(&[0; BLOCK_BYTES])));
        }
        if let Some(whole) = self.read_run(slice, first_block, &found).await? {
            return Ok(whole);
        }
        let mut bytes = vec![0; blocks as usize * BLOCK_BYTES];
        let mut done = 0;
        while done < found.len() {
            let run = run_length(first_block + done as u32, &found[done..]);
            let block = first_block + done as u32;
            let place = &mut bytes[done * BLOCK_BYTES..(done + run) * BLOCK_BYTES];
            match self
                .read_run(slice, block, &found[done..done + run])
                .await?
            {
                Some(read) => place.copy_from_slice(&read),
                None => {
                    for (place, (found, block)) in place
                        .chunks_mut(BLOCK_BYTES)
                        .zip(found[done..done + run].iter().cloned().zip(block..))
                    {
                        if let Some(data) = self.block(slice, block, found).await? {
                            place.copy_from_slice(&data);
                        }
                    }
                }
            }
            done += run;
        }
        Ok(Bytes::from(bytes))
    }

    /// Reads neighbouring blocks of the home at once; `None` if they are anything else, or if
    /// one of them no longer is what it was when it was looked up.
    async fn read_run(
        &self,
        slice: SliceKey,
        first_block: u32,
        found: &[Option<Found>],
    ) -> Result<Option<Bytes>, StoreError> {
        let Some(Some(Found {
            source: Source::Home { physical, .. },
            ..
        })) = found.first()
        else {
            return Ok(None);
        };
        if found.len() < 2 || run_length(first_block, found) < found.len() {
            return Ok(None);
        }
        let within = first_block % EXTENT_BLOCKS;
        let Ok(read) = self.home.read(*physical, within, found.len() as u32).await else {
            // One bad sector must not hide its neighbours: read one by one.
            return Ok(None);
        };
        let good = found
            .iter()
            .zip(first_block..)
            .zip(read.chunks(BLOCK_BYTES))
            .all(|((found, block), bytes)| match found {
                Some(Found {
                    source: Source::Home { entry, .. },
                    ..
                }) => matches(slice, block, *entry, bytes),
                Some(_) | None => false,
            });
        Ok(good.then(|| Bytes::from(read)))
    }

    /// The bytes of one block; `None` reads zero. A mismatch is damage only if the block still
    /// is where it was looked up: else it was destaged meanwhile, and is looked up again.
    async fn block(
        &self,
        slice: SliceKey,
        block: u32,
        mut found: Option<Found>,
    ) -> Result<Option<Bytes>, StoreError> {
        loop {
            let Some(version) = &found else {
                let zero = self.absence_is_zero(slice, block);
                return if zero {
                    Ok(None)
                } else {
                    Err(StoreError::Damaged { slice, block })
                };
            };
            match &version.source {
                Source::Memory(data) => return Ok(Some(data.clone())),
                Source::Zero => return Ok(None),
                Source::Unknown => return Err(StoreError::Damaged { slice, block }),
                Source::Home { physical, entry } => {
                    let read = self.home.read(*physical, block % EXTENT_BLOCKS, 1).await;
                    let cause = match read {
                        Ok(bytes) if matches(slice, block, *entry, &bytes) => {
                            return Ok(Some(Bytes::from(bytes)));
                        }
                        Ok(_) => None,
                        Err(error) => Some(error),
                    };
                    let now = self.newest_stable(slice, block);
                    if now == found {
                        self.damaged.set(true);
                        tracing::warn!(?slice, block, ?cause, "a block of the home is damaged");
                        return Err(StoreError::Damaged { slice, block });
                    }
                    found = now;
                }
            }
        }
    }

    pub(crate) fn changed_since(
        &self,
        slice: SliceKey,
        after: Seq,
        from_block: u32,
        limit: usize,
    ) -> Vec<(u32, View, Seq)> {
        let from_extent = from_block / EXTENT_BLOCKS;
        let mut extents = self.home.extents_of(slice, from_extent);
        if let Some(index) = self.slices.borrow().get(&slice) {
            extents.extend(index.extents_from(from_extent));
        }
        extents.sort_unstable();
        extents.dedup();
        let in_sync = match self.copy_state(slice) {
            CopyState::InSync => true,
            CopyState::Absent | CopyState::Joining { .. } => false,
        };
        let mut changed = Vec::new();
        for extent in extents {
            // A zeroed range without an extent covers only blocks that were never written.
            let listed = !in_sync || self.home.has_extent(slice, extent);
            let first = from_block.max(extent * EXTENT_BLOCKS);
            for block in first..(extent + 1) * EXTENT_BLOCKS {
                if changed.len() == limit {
                    return changed;
                }
                if let Some(found) = self.newest_stable(slice, block).filter(|_| listed)
                    && (found.seq > after || found.is_unknown())
                {
                    changed.push((block, found.view, found.seq));
                }
            }
        }
        changed
    }

    pub(crate) async fn read_versions(
        &self,
        slice: SliceKey,
        blocks: &[u32],
    ) -> Result<Vec<CopiedBlock>, StoreError> {
        let mut copied = Vec::with_capacity(blocks.len());
        for block in blocks.iter().copied() {
            self.check_range(slice, block, 1)?;
            if self.is_suspect(slice) {
                return Err(StoreError::Damaged { slice, block });
            }
            copied.push(self.version(slice, block).await?);
        }
        Ok(copied)
    }

    /// Sequence number and bytes of one version: both of the same one.
    async fn version(&self, slice: SliceKey, block: u32) -> Result<CopiedBlock, StoreError> {
        loop {
            let found = self.newest_stable(slice, block);
            let (view, seq) = version_of(found.as_ref());
            let data = self.block(slice, block, found.clone()).await?;
            let now = self.newest_stable(slice, block);
            if version_of(now.as_ref()) == (view, seq) {
                return Ok(CopiedBlock {
                    block,
                    view,
                    seq,
                    data,
                });
            }
        }
    }
}

fn version_of(found: Option<&Found>) -> (View, Seq) {
    found.map_or((View(0), Seq(0)), |found| (found.view, found.seq))
}

/// How many of the leading blocks lie side by side in one extent of the home; at least 1.
fn run_length(first_block: u32, found: &[Option<Found>]) -> usize {
    let to_extent_end = (EXTENT_BLOCKS - first_block % EXTENT_BLOCKS) as usize;
    let in_home = found
        .iter()
        .take(to_extent_end)
        .take_while(|found| {
            matches!(
                found,
                Some(Found {
                    source: Source::Home { .. },
                    ..
                })
            )
        })
        .count();
    in_home.max(1)
}
