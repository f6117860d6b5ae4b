//! The home: where destaged blocks live, in place, one 1 MiB extent at a time.
//!
//! Promises:
//! * entries in memory describe what is durable: they change after the sync, never before;
//! * an extent belongs to one slice or is free; a crash leaks none, because an extent whose
//!   description holds no entry is free when the store is opened;
//! * a lower sequence number never replaces a higher one (the caller compares under the lock
//!   that serialises all writers of the home).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use futures::StreamExt;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Buffer, Disk, DiskError};

use crate::encoding::block_checksum;
use crate::error::StoreError;
use crate::extent::{
    DESCRIPTION_BYTES, Description, EXTENT_BLOCKS, EXTENT_BYTES, Entry, EntryState, GROUP_EXTENTS,
    Owner, data_offset, decode, description_offset, encode, extents_in,
};
use crate::record::{BLOCK_BYTES, Seq, SliceKey, View};

/// Name of the area.
pub(crate) const AREA: &str = "home";
/// Home writes in flight at once.
const WRITES_IN_FLIGHT: usize = 16;

/// One block on its way into the home.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// Within the extent.
    pub(crate) block: u32,
    pub(crate) seq: Seq,
    pub(crate) view: View,
    pub(crate) state: EntryState,
    pub(crate) checksum: u64,
    /// The bytes of a [`EntryState::Present`] block.
    pub(crate) data: Bytes,
}

/// Blocks on their way into the home, by extent, each extent's ascending.
pub(crate) type Arrivals = BTreeMap<(SliceKey, u32), Vec<Arrival>>;

struct Extent {
    physical: u32,
    /// Empty until the first arrival: a reservation costs no memory.
    entries: Vec<Entry>,
    /// The description on disk exists and is synced.
    described: bool,
}

#[derive(Default)]
struct Map {
    extents: BTreeMap<(SliceKey, u32), Extent>,
    freed: BTreeSet<u32>,
    /// Extents from here on were never used.
    unused_from: u32,
}

/// The home and its map in memory.
pub(crate) struct Home {
    disk: Rc<dyn Disk>,
    identity: [u8; 16],
    capacity: u32,
    map: RefCell<Map>,
    unattributed: Cell<u64>,
}

/// What scanning the home found.
#[derive(Default)]
pub(crate) struct Scan {
    pub(crate) unknown_blocks: u64,
    pub(crate) unattributed_extents: u64,
}

impl Home {
    /// Reads all descriptions. Slices of `removed` volumes are kept until
    /// [`Home::clear_volume`].
    pub(crate) async fn load(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
    ) -> Result<(Self, Scan), StoreError> {
        let capacity = extents_in(disk.size_bytes());
        let mut map = Map {
            unused_from: capacity,
            ..Map::default()
        };
        let mut scan = Scan::default();
        let mut twice: BTreeSet<(SliceKey, u32)> = BTreeSet::new();
        let mut last_used = None;
        for first in (0..capacity).step_by(GROUP_EXTENTS as usize) {
            let count = GROUP_EXTENTS.min(capacity - first);
            let offset = description_offset(first);
            let group = disk
                .read(offset, count as usize * DESCRIPTION_BYTES)
                .await
                .ok();
            for physical in first..first + count {
                let within = (physical - first) as usize * DESCRIPTION_BYTES;
                let single;
                let image = match &group {
                    Some(group) => Some(&group[within..within + DESCRIPTION_BYTES]),
                    None => {
                        let offset = description_offset(physical);
                        single = disk.read(offset, DESCRIPTION_BYTES).await.ok();
                        single.as_deref()
                    }
                };
                match decode(identity, physical, image) {
                    Description::Free => {
                        map.freed.insert(physical);
                        continue;
                    }
                    Description::Owned {
                        owner,
                        entries,
                        unknown_blocks,
                    } => {
                        scan.unknown_blocks += unknown_blocks;
                        let key = (owner.slice, owner.extent);
                        let extent = Extent {
                            physical,
                            entries,
                            described: true,
                        };
                        if map.extents.insert(key, extent).is_some() {
                            twice.insert(key);
                        }
                    }
                    Description::Unattributed => scan.unattributed_extents += 1,
                }
                last_used = Some(physical);
            }
        }
        for key in twice {
            // Two extents claim one place: only damage does that, and neither can be believed.
            if let Some(extent) = map.extents.get_mut(&key) {
                extent.entries = vec![Entry::lost(); EXTENT_BLOCKS as usize];
                scan.unknown_blocks += u64::from(EXTENT_BLOCKS);
            }
        }
        map.unused_from = last_used.map_or(0, |last| last + 1);
        let unused_from = map.unused_from;
        map.freed.retain(|physical| *physical < unused_from);
        let unattributed = Cell::new(scan.unattributed_extents);
        Ok((
            Self {
                disk,
                identity,
                capacity,
                map: RefCell::new(map),
                unattributed,
            },
            scan,
        ))
    }

    /// Capacity and use, in extents.
    pub(crate) fn extents(&self) -> (u64, u64) {
        (
            u64::from(self.capacity),
            self.map.borrow().extents.len() as u64,
        )
    }

    /// Whether some slice's extent can no longer be told from a free one.
    pub(crate) fn has_unattributed(&self) -> bool {
        self.unattributed.get() > 0
    }

    /// Slices that have extents.
    pub(crate) fn slices(&self) -> BTreeSet<SliceKey> {
        self.map
            .borrow()
            .extents
            .keys()
            .map(|(slice, _)| *slice)
            .collect()
    }

    /// Whether an extent is allocated.
    pub(crate) fn has_extent(&self, slice: SliceKey, extent: u32) -> bool {
        self.map.borrow().extents.contains_key(&(slice, extent))
    }

    /// Allocates those of `wanted` that are not yet, all or none.
    pub(crate) fn reserve(&self, wanted: &BTreeSet<(SliceKey, u32)>) -> Result<(), StoreError> {
        let mut map = self.map.borrow_mut();
        let missing: Vec<_> = wanted
            .iter()
            .filter(|key| !map.extents.contains_key(key))
            .copied()
            .collect();
        let free_extents = map.freed.len() as u64 + u64::from(self.capacity - map.unused_from);
        if missing.len() as u64 > free_extents {
            return Err(StoreError::Full {
                wanted_extents: missing.len() as u64,
                free_extents,
            });
        }
        for key in missing {
            let physical = match map.freed.pop_first() {
                Some(physical) => physical,
                None => {
                    map.unused_from += 1;
                    map.unused_from - 1
                }
            };
            // It may take the place of one whose description is lost.
            let lost = if self.has_unattributed() {
                EXTENT_BLOCKS as usize
            } else {
                0
            };
            let entries = vec![Entry::lost(); lost];
            map.extents.insert(
                key,
                Extent {
                    physical,
                    entries,
                    described: false,
                },
            );
        }
        Ok(())
    }

    /// Gives back a reservation that nothing was written to.
    pub(crate) fn release(&self, slice: SliceKey, extent: u32) {
        let mut map = self.map.borrow_mut();
        let Some(found) = map.extents.get(&(slice, extent)) else {
            return;
        };
        if !found.described {
            let physical = found.physical;
            map.extents.remove(&(slice, extent));
            map.freed.insert(physical);
        }
    }

    /// The durable entry of a block and the extent it lies in; `None` without an extent.
    pub(crate) fn entry(&self, slice: SliceKey, block: u32) -> Option<(u32, Entry)> {
        let map = self.map.borrow();
        let extent = map.extents.get(&(slice, block / EXTENT_BLOCKS))?;
        let within = (block % EXTENT_BLOCKS) as usize;
        Some((
            extent.physical,
            extent.entries.get(within).copied().unwrap_or_default(),
        ))
    }

    /// Extents of a slice from extent `from` on, ascending.
    pub(crate) fn extents_of(&self, slice: SliceKey, from: u32) -> Vec<u32> {
        let map = self.map.borrow();
        map.extents
            .range((slice, from)..=(slice, u32::MAX))
            .map(|((_, extent), _)| *extent)
            .collect()
    }

    /// Reads `blocks` neighbouring blocks of one extent, unverified.
    pub(crate) async fn read(
        &self,
        physical: u32,
        block: u32,
        blocks: u32,
    ) -> Result<Buffer, DiskError> {
        self.disk
            .read(data_offset(physical, block), blocks as usize * BLOCK_BYTES)
            .await
    }

    /// Makes all arrivals durable, then visible. The caller holds the lock of the home's
    /// writers, has reserved the extents, and passes only arrivals that are not older than the
    /// entry they meet.
    pub(crate) async fn install(&self, arrivals: &Arrivals) -> Result<(), DiskError> {
        let mut first = Vec::new();
        let mut writes = Vec::new();
        for ((slice, extent), blocks) in arrivals {
            let owner = Owner {
                slice: *slice,
                extent: *extent,
            };
            let map = self.map.borrow();
            let Some(found) = map.extents.get(&(*slice, *extent)) else {
                unreachable!("an arrival without a reserved extent")
            };
            let offset = description_offset(found.physical);
            if !found.described {
                first.push((
                    offset,
                    encode(
                        self.identity,
                        found.physical,
                        owner,
                        &merged(&found.entries, &[]),
                    ),
                ));
            }
            let entries = merged(&found.entries, blocks);
            writes.push((
                offset,
                encode(self.identity, found.physical, owner, &entries),
            ));
            for run in runs(blocks) {
                let mut data = Buffer::zeroed(run.len() * BLOCK_BYTES);
                for (place, arrival) in data.chunks_mut(BLOCK_BYTES).zip(run) {
                    place.copy_from_slice(&arrival.data);
                }
                writes.push((data_offset(found.physical, run[0].block), data));
            }
        }
        if !first.is_empty() {
            self.write_all(first).await?;
            self.disk.sync().await?;
        }
        self.write_all(writes).await?;
        if !planted::is_active(Bug::SkipHomeSync) {
            self.disk.sync().await?;
        }
        let mut map = self.map.borrow_mut();
        for (key, blocks) in arrivals {
            if let Some(extent) = map.extents.get_mut(key) {
                extent.entries = merged(&extent.entries, blocks);
                extent.described = true;
            }
        }
        Ok(())
    }

    /// Forgets all extents of a volume, durably, then frees them.
    pub(crate) async fn clear_volume(&self, volume: u64) -> Result<(), DiskError> {
        let first = (SliceKey { volume, slice: 0 }, 0);
        let last = (
            SliceKey {
                volume,
                slice: u32::MAX,
            },
            u32::MAX,
        );
        let owned: Vec<_> = {
            let map = self.map.borrow();
            map.extents
                .range(first..=last)
                .map(|(key, found)| (*key, found.physical))
                .collect()
        };
        let blank = Buffer::zeroed(DESCRIPTION_BYTES);
        let writes = owned
            .iter()
            .map(|(_, physical)| (description_offset(*physical), blank.clone()))
            .collect();
        self.write_all(writes).await?;
        self.disk.sync().await?;
        let mut map = self.map.borrow_mut();
        for (key, physical) in owned {
            map.extents.remove(&key);
            map.freed.insert(physical);
        }
        Ok(())
    }

    async fn write_all(&self, writes: Vec<(u64, Buffer)>) -> Result<(), DiskError> {
        let pending = writes
            .into_iter()
            .map(|(offset, data)| self.disk.write(offset, data));
        let mut pending = futures::stream::iter(pending).buffered(WRITES_IN_FLIGHT);
        while let Some(outcome) = pending.next().await {
            outcome?;
        }
        Ok(())
    }
}

/// Whether `bytes` are what `entry` describes.
pub(crate) fn matches(slice: SliceKey, block: u32, entry: Entry, bytes: &[u8]) -> bool {
    block_checksum(slice, block, bytes) == entry.checksum()
}

/// Bytes of block data the area can hold.
pub(crate) fn data_bytes(extents: u64) -> u64 {
    extents * EXTENT_BYTES
}

fn merged(entries: &[Entry], arrivals: &[Arrival]) -> Vec<Entry> {
    let mut merged = entries.to_vec();
    merged.resize(EXTENT_BLOCKS as usize, Entry::default());
    for arrival in arrivals {
        let entry = Entry::new(arrival.state, arrival.seq, arrival.view, arrival.checksum);
        merged[arrival.block as usize] = entry;
    }
    merged
}

/// Neighbouring blocks with data; `arrivals` ascend by block.
fn runs(arrivals: &[Arrival]) -> Vec<&[Arrival]> {
    arrivals
        .chunk_by(|left, right| {
            left.state == EntryState::Present
                && right.state == EntryState::Present
                && left.block + 1 == right.block
        })
        .filter(|run| run[0].state == EntryState::Present)
        .collect()
}
