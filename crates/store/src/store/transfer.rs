//! Reading blocks, for clients and for other copies.
//!
//! Tested with the whole store: `tests/resync.rs`.

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};

use crate::error::StoreError;
use crate::home::fact::{EXTENT_BLOCKS, Fact, State};
use crate::home::matches;
use crate::journal::index::Version;
use crate::journal::item::{Content, InRing};
use crate::record::{BLOCK_BYTES, Copied, CopiedBlock, CopyState, Seq, SliceKey, View};
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
    Journal(InRing),
    Zero,
    Unknown,
    Home(Fact),
}

impl Found {
    pub(crate) fn is_unknown(&self) -> bool {
        self.source == Source::Unknown
    }

    /// Whether nothing is kept of the block.
    pub(crate) fn is_zero(&self) -> bool {
        self.source == Source::Zero
            || matches!(&self.source, Source::Home(fact) if fact.state == State::Zero)
    }

    /// Whether the disk is not needed to tell what it is.
    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self.source, Source::Memory(_) | Source::Zero)
    }

    /// The newer one of what the journal and the home have of a block.
    fn newest(journaled: Option<Version>, home: Option<Fact>) -> Option<Self> {
        let certain = home.is_none_or(|fact| !fact.is_lost());
        match (journaled, home) {
            (Some(version), home)
                if home.is_none_or(|fact| fact.seq <= version.seq)
                    && (certain || !version.replayed) =>
            {
                let source = match version.content {
                    Content::Data(data, _) => Source::Memory(data),
                    Content::Unread(in_ring) => Source::Journal(in_ring),
                    Content::Zero => Source::Zero,
                    Content::Unknown => Source::Unknown,
                };
                Some(Self {
                    seq: version.seq,
                    view: version.view,
                    source,
                })
            }
            (_, Some(fact)) => {
                let source = match fact.state {
                    State::Zero => Source::Zero,
                    State::Present => Source::Home(fact),
                    State::Unknown => Source::Unknown,
                };
                Some(Self {
                    seq: fact.seq,
                    view: fact.view,
                    source,
                })
            }
            (_, None) => None,
        }
    }
}

impl Inner {
    fn journaled(&self, slice: SliceKey, block: u32) -> Option<Version> {
        let slices = self.slices.borrow();
        slices
            .get(&slice)
            .and_then(|index| index.newest_effective(block))
    }

    /// Whether all that the journal has of a block are zeroes that change nothing over what was
    /// never written.
    fn is_plain_zero(&self, slice: SliceKey, block: u32) -> bool {
        let slices = self.slices.borrow();
        slices.get(&slice).is_some_and(|index| {
            let newest = index.newest_effective(block);
            newest.is_some_and(|version| {
                index.is_plain_zero(&version) && !index.is_traced_in(block, u64::MAX)
            })
        })
    }

    /// The newest stable version of a block; `None` if it was never written.
    pub(crate) async fn newest_stable(&self, slice: SliceKey, block: u32) -> Option<Found> {
        // The journal first: what leaves it meanwhile is found in the home.
        let journaled = self.journaled(slice, block);
        Found::newest(journaled, self.home.find(slice, block).await)
    }

    /// The newest stable versions of neighbouring blocks.
    pub(crate) async fn newest_stable_of(
        &self,
        slice: SliceKey,
        first_block: u32,
        blocks: u32,
    ) -> Vec<Option<Found>> {
        let range = first_block..first_block + blocks;
        let journaled: Vec<Option<Version>> =
            range.map(|block| self.journaled(slice, block)).collect();
        let home = self.home.find_all(slice, first_block, blocks).await;
        let both = journaled.into_iter().zip(home);
        both.map(|(version, fact)| Found::newest(version, fact))
            .collect()
    }

    /// Whether records of the slice may have been lost without a trace.
    pub(crate) fn is_suspect(&self, slice: SliceKey) -> bool {
        if planted::is_active(Bug::ServeSuspect) {
            return false;
        }
        self.facts.with(|facts| match facts.slice(slice) {
            Some(found) => found.suspect.is_some(),
            None => facts.hole(),
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
        if blocks == 1 {
            let found = self.newest_stable(slice, first_block).await;
            let data = self.block(slice, first_block, found).await?;
            return Ok(data.unwrap_or_else(|| Bytes::from_static(&[0; BLOCK_BYTES])));
        }
        let found = self.newest_stable_of(slice, first_block, blocks).await;
        if let Some(whole) = self.read_run(slice, first_block, &found).await? {
            return Ok(whole);
        }
        let mut bytes = vec![0; blocks as usize * BLOCK_BYTES];
        let mut done = 0;
        while done < found.len() {
            let run = run_length(&found[done..]);
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
    pub(crate) async fn read_run(
        &self,
        slice: SliceKey,
        first_block: u32,
        found: &[Option<Found>],
    ) -> Result<Option<Bytes>, StoreError> {
        let Some(first) = found.first().and_then(home_fact) else {
            return Ok(None);
        };
        if found.len() < 2 || run_length(found) < found.len() {
            return Ok(None);
        }
        let Ok(read) = self.home.read(first.place.page(), found.len() as u32).await else {
            // One bad sector must not hide its neighbours: read one by one.
            return Ok(None);
        };
        let good = found
            .iter()
            .zip(first_block..)
            .zip(read.chunks(BLOCK_BYTES))
            .all(|((found, block), bytes)| {
                home_fact(found).is_some_and(|fact| matches(slice, block, fact.checksum, bytes))
            });
        Ok(good.then(|| Bytes::from(read)))
    }

    /// The bytes of one block; `None` reads zero. A mismatch is damage only if the block still
    /// is where it was looked up: else it was destaged meanwhile, and is looked up again.
    pub(crate) async fn block(
        &self,
        slice: SliceKey,
        block: u32,
        mut found: Option<Found>,
    ) -> Result<Option<Bytes>, StoreError> {
        loop {
            let Some(version) = &found else {
                return Ok(None);
            };
            match &version.source {
                Source::Memory(data) => return Ok(Some(data.clone())),
                Source::Zero => return Ok(None),
                Source::Unknown => {
                    self.bad.note(slice, block);
                    return Err(StoreError::Damaged { slice, block });
                }
                Source::Journal(place) => {
                    if let Ok(bytes) = self.journal.read_block(place.at).await
                        && matches(slice, block, place.checksum, &bytes)
                    {
                        return Ok(Some(Bytes::from(bytes)));
                    }
                    // Whoever reads all of it in decides whether it is lost.
                    self.recovered().await?;
                    found = self.newest_stable(slice, block).await;
                }
                Source::Home(fact) => {
                    let read = self.home.read(fact.place.page(), 1).await;
                    let cause = match read {
                        Ok(bytes) if matches(slice, block, fact.checksum, &bytes) => {
                            return Ok(Some(Bytes::from(bytes)));
                        }
                        Ok(_) => None,
                        Err(error) => Some(error),
                    };
                    let now = self.newest_stable(slice, block).await;
                    if now == found {
                        if self.bad.note(slice, block) {
                            tracing::warn!(%slice, block, ?cause, "a block of the home is damaged");
                        }
                        return Err(StoreError::Damaged { slice, block });
                    }
                    found = now;
                }
            }
        }
    }

    pub(crate) async fn changed_since(
        &self,
        slice: SliceKey,
        after: Seq,
        from_block: u32,
        limit: usize,
    ) -> Vec<(u32, View, Seq)> {
        let from_extent = from_block / EXTENT_BLOCKS;
        let mut extents = self.home.changed_extents(slice, from_extent, after);
        if let Some(index) = self.slices.borrow().get(&slice) {
            extents.extend(index.extents_from(from_extent));
        }
        let in_sync = match self.copy_state(slice) {
            CopyState::InSync => true,
            CopyState::Absent | CopyState::Joining { .. } => false,
        };
        let mut changed = Vec::new();
        for extent in extents {
            let first = from_block.max(extent * EXTENT_BLOCKS);
            let end = self.options.slice_blocks.min((extent + 1) * EXTENT_BLOCKS);
            if first >= end {
                continue;
            }
            let known = self.newest_stable_of(slice, first, end - first).await;
            for (found, block) in known.into_iter().zip(first..) {
                if changed.len() == limit {
                    return changed;
                }
                let Some(found) = found.filter(|f| f.seq > after || f.is_unknown()) else {
                    continue;
                };
                // A zero in the journal alone, over what was never written, is no change.
                let nothing = in_sync
                    && self.is_plain_zero(slice, block)
                    && !self.home.is_claimed(slice, block)
                    && self.home.find(slice, block).await.is_none();
                if !nothing {
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
            let found = self.newest_stable(slice, block).await;
            let (view, seq) = version_of(found.as_ref());
            let content = match self.block(slice, block, found.clone()).await {
                Ok(Some(bytes)) => Copied::Bytes(bytes),
                Ok(None) => Copied::Zero,
                Err(StoreError::Damaged { .. }) => Copied::Lost,
                Err(other) => return Err(other),
            };
            let now = self.newest_stable(slice, block).await;
            if version_of(now.as_ref()) == (view, seq) {
                return Ok(CopiedBlock {
                    block,
                    view,
                    seq,
                    content,
                });
            }
        }
    }
}

pub(crate) fn version_of(found: Option<&Found>) -> (View, Seq) {
    found.map_or((View(0), Seq(0)), |found| (found.view, found.seq))
}

/// The fact about a block whose newest version is in the home.
pub(crate) fn home_fact(found: &Option<Found>) -> Option<&Fact> {
    match found {
        Some(Found {
            source: Source::Home(fact),
            ..
        }) => Some(fact),
        Some(_) | None => None,
    }
}

/// How many of the leading blocks lie side by side in the home; at least 1.
pub(crate) fn run_length(found: &[Option<Found>]) -> usize {
    let Some(first) = found.first().and_then(home_fact) else {
        return 1;
    };
    let pages = first.place.page()..;
    let in_line = found.iter().zip(pages).take_while(|(found, page)| {
        home_fact(found).is_some_and(|fact| fact.place.page() == *page)
    });
    in_line.count()
}
