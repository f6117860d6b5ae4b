//! Reading a volume's blocks from one node's store, however damaged it is.
//!
//! Shown is what a takeover with this copy alone would find: the home, and over it every record
//! in the journal, the unstable ones included, because an acknowledged write is in the journal of
//! every copy that counts. What a block is worth:
//!
//! | copy of the slice here | the block | answer |
//! |---|---|---|
//! | in sync, nothing in doubt | intact, zeroed or never written | sound |
//! | in sync, records or map pages lost | intact or never written | doubtful |
//! | joining, absent, unknown | intact or zeroed | doubtful |
//! | joining, absent, unknown | nothing known | not here |
//! | any | damaged, and no group has it in the same or a newer version | unreadable |
//! | any | a group has a newer version than the map | doubtful, that one |
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use serde::Serialize;

use super::{Findings, Inspection, JournalImage, is_in_sync};
use crate::bounds::StoreBounds;
use crate::facts::FactsState;
use crate::home::Home;
use crate::home::fact::EXTENT_BLOCKS;
use crate::home::inspect::Salvage;
use crate::journal::Header;
use crate::journal::scan::Scanned;
use crate::record::{BLOCK_BYTES, CopyState, JournalEnd, RecoveryReport, SliceKey};
use crate::store::recovery::{Amended, Pieces, replay};
use crate::store::{Inner, StoreOptions};

/// Blocks of a slice where the facts, which say so, are lost: 1 GiB.
const SLICE_BLOCKS: u32 = 1 << 18;

/// What an exported block is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// This node has no copy that would tell.
    NotHere,
    /// There was something, and it cannot be read.
    Unreadable,
    /// The best there is here; it may be older than the newest version.
    Doubtful,
    /// What a node would have answered.
    Sound,
}

/// One block of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedBlock {
    /// What it is worth.
    pub trust: Trust,
    /// The bytes of a sound or doubtful block; `None` reads zero.
    pub data: Option<Bytes>,
}

/// What this store has of one slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SliceSummary {
    /// Its number within the volume.
    pub slice: u32,
    /// What the copy was good for, as this node knew it.
    pub copy: &'static str,
    /// The newest record here: of several nodes the one with the highest has the newest copy.
    pub last_seq: u64,
    /// What its blocks are worth at best.
    pub trust: Trust,
}

/// A volume that is read from one store.
pub struct VolumeReader {
    volume: u64,
    inner: Rc<Inner>,
    state: FactsState,
    facts_lost: bool,
    map_in_doubt: bool,
    suspect: BTreeSet<SliceKey>,
    salvage: Option<Salvage>,
}

impl Inspection {
    /// Prepares reading a volume. Where the map is damaged, all segments are looked through;
    /// `progress` is told how many were.
    pub async fn volume(&self, volume: u64, progress: &dyn Fn(u64)) -> VolumeReader {
        let journal = self.journal_image().await.unwrap_or_else(|| JournalImage {
            header: NO_JOURNAL,
            scanned: no_records(),
        });
        let image = self.home_image().await;
        let map_in_doubt = image.is_map_in_doubt();
        let mut suspect = image.scan.suspect.clone();
        let home = match image.home {
            Some(home) => home,
            None => Home::blank(Rc::new(self.home.clone()), self.identity),
        };
        let whole = home.check_map(&Findings::default()).await && !map_in_doubt;
        let salvage = match whole {
            true => None,
            false => Some(home.salvage(volume, progress).await),
        };
        let mut amended = Amended::new(self.state());
        let slice_blocks = match self.headers.slice_blocks() {
            0 => SLICE_BLOCKS,
            known => known,
        };
        let JournalImage { header, scanned } = journal;
        let pieces = Pieces {
            runtime: self.runtime.clone(),
            options: StoreOptions {
                identity: self.identity,
                journal_bytes: header.ring_bytes,
                home_bytes: 0,
                home_preallocated: false,
                slice_blocks,
                bounds: StoreBounds::SERVICE,
            },
            journal_disk: Rc::new(self.journal.clone()),
            facts_directory: None,
            facts_disk: Rc::new(self.facts.clone()),
            header,
            state: amended.state.clone(),
            home,
        };
        let inner = pieces.assembled(&scanned);
        let report = &mut RecoveryReport::default();
        replay(&inner, &mut amended, &scanned, report);
        let state = amended.state;
        for index in inner.slices.borrow_mut().values_mut() {
            index.stable = index.stable.max(index.durable);
        }
        suspect.extend(state.suspects());
        // Then what is not known of may have been lost.
        if state.hole() {
            let known = |slice: &SliceKey| state.slice(*slice).is_some();
            suspect.extend(inner.home.slices().into_iter().filter(|one| !known(one)));
        }
        VolumeReader {
            volume,
            inner,
            facts_lost: self.headers.facts().is_none(),
            map_in_doubt: map_in_doubt || self.headers.journal().is_none(),
            state,
            suspect,
            salvage,
        }
    }
}

impl VolumeReader {
    /// Bytes of a slice of this store.
    pub fn slice_bytes(&self) -> u64 {
        u64::from(self.inner.options.slice_blocks) * BLOCK_BYTES as u64
    }

    /// Every slice of the volume that anything is known of here, ascending.
    pub fn slices(&self) -> Vec<SliceSummary> {
        let mut keys: BTreeSet<SliceKey> = self.inner.home.slices();
        keys.extend(self.inner.slices.borrow().keys().copied());
        keys.extend(self.state.slices_in(..).map(|(key, _)| key));
        if let Some(salvage) = &self.salvage {
            keys.extend(salvage.slices());
        }
        keys.retain(|key| key.volume == self.volume);
        keys.into_iter().map(|key| self.summary(key)).collect()
    }

    fn summary(&self, key: SliceKey) -> SliceSummary {
        let copy = match self.state.slice(key).map(|facts| facts.copy) {
            Some(CopyState::InSync) => "in sync",
            Some(CopyState::Joining { .. }) => "joining",
            Some(CopyState::Absent) => "absent",
            None => "unknown",
        };
        let last_seq = {
            let slices = self.inner.slices.borrow();
            let index = slices.get(&key);
            index.map_or(0, |index| {
                index.durable.max(index.home_through).max(index.stable).0
            })
        };
        SliceSummary {
            slice: key.slice,
            copy,
            last_seq,
            trust: match self.is_sound(key) {
                true => Trust::Sound,
                false => Trust::Doubtful,
            },
        }
    }

    fn is_sound(&self, slice: SliceKey) -> bool {
        is_in_sync(&self.state, slice)
            && !self.facts_lost
            && !self.map_in_doubt
            && !self.suspect.contains(&slice)
    }

    /// First blocks of the stretches of 256 blocks that anything is known of. The others are
    /// zero if the slice is in sync here, and not here otherwise.
    pub fn stretches(&self, slice: u32) -> BTreeSet<u32> {
        let key = self.key(slice);
        let mut extents = self.inner.home.changed_extents(key, 0, crate::Seq(0));
        if let Some(index) = self.inner.slices.borrow().get(&key) {
            extents.extend(index.extents_from(0));
        }
        if let Some(salvage) = &self.salvage {
            extents.extend(salvage.blocks(key).map(|block| block / EXTENT_BLOCKS));
        }
        extents
            .into_iter()
            .map(|extent| extent * EXTENT_BLOCKS)
            .collect()
    }

    /// What a block of which nothing is known is worth.
    pub fn untouched(&self, slice: u32) -> Trust {
        let key = self.key(slice);
        match (self.is_sound(key), is_in_sync(&self.state, key)) {
            (true, _) => Trust::Sound,
            (false, true) => Trust::Doubtful,
            (false, false) => Trust::NotHere,
        }
    }

    /// The stretch of at most 256 blocks that begins at `first_block`.
    pub async fn read(&self, slice: u32, first_block: u32) -> Vec<ExportedBlock> {
        let key = self.key(slice);
        let end = self.inner.options.slice_blocks;
        let blocks = EXTENT_BLOCKS.min(end.saturating_sub(first_block));
        let sound = self.is_sound(key);
        if sound
            && self.salvage.is_none()
            && let Ok(bytes) = self.inner.read(key, first_block, blocks).await
        {
            let each = (0..bytes.len()).step_by(BLOCK_BYTES).map(|at| {
                let data = bytes.slice(at..at + BLOCK_BYTES);
                let zero = data.iter().all(|byte| *byte == 0);
                ExportedBlock {
                    trust: Trust::Sound,
                    data: Some(data).filter(|_| !zero),
                }
            });
            return each.collect();
        }
        let mut exported = Vec::with_capacity(blocks as usize);
        for block in first_block..first_block + blocks {
            exported.push(self.block(key, block, sound).await);
        }
        exported
    }

    async fn block(&self, slice: SliceKey, block: u32, sound: bool) -> ExportedBlock {
        let trust = match sound {
            true => Trust::Sound,
            false => Trust::Doubtful,
        };
        let found = self.inner.newest_stable(slice, block).await;
        let other = self.salvage.as_ref().and_then(|salvage| {
            let seq = salvage.seq(slice, block)?;
            Some((salvage, seq))
        });
        let known = found.as_ref().map(|found| found.seq);
        // The map is older than what a group has.
        if let Some((salvage, seq)) = other
            && known.is_none_or(|known| seq > known)
        {
            let data = self.inner.home.salvaged(salvage, slice, block).await;
            return exported(Trust::Doubtful, data);
        }
        if found.is_none() {
            let trust = self.untouched(slice.slice);
            return ExportedBlock { trust, data: None };
        }
        if let Ok(data) = self.inner.block(slice, block, found).await {
            return ExportedBlock { trust, data };
        }
        // Perhaps a group has the very same version elsewhere.
        match other {
            Some((salvage, seq)) if known == Some(seq) => {
                let data = self.inner.home.salvaged(salvage, slice, block).await;
                exported(trust, data)
            }
            Some(_) | None => exported(trust, None),
        }
    }

    fn key(&self, slice: u32) -> SliceKey {
        SliceKey {
            volume: self.volume,
            slice,
        }
    }
}

/// A block whose bytes were looked for.
fn exported(trust: Trust, data: Option<Bytes>) -> ExportedBlock {
    match data {
        Some(_) => ExportedBlock { trust, data },
        None => ExportedBlock {
            trust: Trust::Unreadable,
            data: None,
        },
    }
}

const NO_JOURNAL: Header = Header {
    ring_bytes: 1 << 20,
    sequence: 0,
    tail: 0,
    tail_lsn: 1,
    previous: 0,
    home_edits: 0,
};

fn no_records() -> Scanned {
    Scanned {
        batches: Vec::new(),
        holes: 0,
        ends_in_hole: false,
        end: JournalEnd::Clean,
        head: 0,
        next_lsn: 1,
        previous: 0,
    }
}
