//! The on-disk form of the home: where extents lie and how they describe themselves.
//!
//! ```text
//! home  = group, group, ...
//! group = 128 descriptions of 8 KiB, then the data of 128 extents of 1 MiB
//! description = 16 sectors of 512 bytes, each for 16 blocks:
//!   checksum 8 | magic 8 | identity 16 | volume 8 | slice 4 | extent 4 | sector 4 | physical 4
//!   | version 4 | reserved 4 | 16 entries { seq 8, view 8, checksum 8, state 4 }
//! ```
//!
//! A sector is the unit a disk writes whole, so a crash leaves each sector old or new. Every
//! sector names the extent it describes and its own place, so a misdirected write is a bad
//! sector. All 16 sectors are written and synced before the first entry is: from then on a zero
//! sector is damage, not absence.

use holdfast_runtime::Buffer;

use crate::encoding::{FieldReader, FieldWriter, plain_checksum};
use crate::record::{BLOCK_BYTES, Seq, SliceKey, View};

/// Blocks of one extent.
pub(crate) const EXTENT_BLOCKS: u32 = 256;
/// Bytes of data of one extent.
pub(crate) const EXTENT_BYTES: u64 = EXTENT_BLOCKS as u64 * BLOCK_BYTES as u64;
/// Bytes of one extent's description.
pub(crate) const DESCRIPTION_BYTES: usize = SECTORS * SECTOR_BYTES;
/// Extents of one group.
pub(crate) const GROUP_EXTENTS: u32 = 128;

const GROUP_DESCRIPTION_BYTES: u64 = GROUP_EXTENTS as u64 * DESCRIPTION_BYTES as u64;
const GROUP_BYTES: u64 = GROUP_DESCRIPTION_BYTES + GROUP_EXTENTS as u64 * EXTENT_BYTES;
const SECTOR_BYTES: usize = 512;
const SECTORS: usize = 16;
const SECTOR_ENTRIES: usize = 16;
const SECTOR_HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 28;
const MAGIC: u64 = u64::from_le_bytes(*b"HFEXTENT");
const VERSION: u32 = 1;

const _: () = assert!(SECTORS * SECTOR_ENTRIES == EXTENT_BLOCKS as usize);
const _: () = assert!(SECTOR_HEADER_BYTES + SECTOR_ENTRIES * ENTRY_BYTES == SECTOR_BYTES);

/// What is in a block's place in the home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum EntryState {
    /// Never written.
    #[default]
    Never,
    /// The data block holds bytes with the entry's checksum.
    Present,
    /// Reads zero.
    Zero,
    /// Damage: neither zero nor anything older may be read here.
    Unknown,
}

/// One block's description: 24 bytes of memory for each 4 KiB of capacity used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// The sequence number; its two top bits hold the state.
    tagged_seq: u64,
    view: u64,
    checksum: u64,
}

const _: () = assert!(size_of::<Entry>() == 24);

const SEQ_MASK: u64 = (1 << 62) - 1;

impl Entry {
    pub(crate) fn new(state: EntryState, seq: Seq, view: View, checksum: u64) -> Self {
        assert!(
            seq.0 <= SEQ_MASK,
            "a slice's stream never reaches 2^62 records"
        );
        let tag = match state {
            EntryState::Never => 0,
            EntryState::Present => 1,
            EntryState::Zero => 2,
            EntryState::Unknown => 3,
        };
        Self {
            tagged_seq: seq.0 | (tag << 62),
            view: view.0,
            checksum,
        }
    }

    /// What stood here is lost, its sequence number included.
    pub(crate) fn lost() -> Self {
        Self::new(EntryState::Unknown, Seq(0), View(0), 0)
    }

    /// Whether what stood here is lost so far that not even its age is known.
    pub(crate) fn is_lost(self) -> bool {
        self.state() == EntryState::Unknown && self.seq() == Seq(0)
    }

    pub(crate) fn state(self) -> EntryState {
        match self.tagged_seq >> 62 {
            0 => EntryState::Never,
            1 => EntryState::Present,
            2 => EntryState::Zero,
            _ => EntryState::Unknown,
        }
    }

    pub(crate) fn seq(self) -> Seq {
        Seq(self.tagged_seq & SEQ_MASK)
    }

    pub(crate) fn view(self) -> View {
        View(self.view)
    }

    pub(crate) fn checksum(self) -> u64 {
        self.checksum
    }
}

/// Whole extents that fit into an area of `bytes`.
pub(crate) fn extents_in(bytes: u64) -> u32 {
    let groups = bytes / GROUP_BYTES;
    let rest = (bytes % GROUP_BYTES).saturating_sub(GROUP_DESCRIPTION_BYTES) / EXTENT_BYTES;
    u32::try_from(groups * u64::from(GROUP_EXTENTS) + rest).unwrap_or(u32::MAX)
}

/// Where the description of extent `physical` lies.
pub(crate) fn description_offset(physical: u32) -> u64 {
    let group = u64::from(physical / GROUP_EXTENTS) * GROUP_BYTES;
    group + u64::from(physical % GROUP_EXTENTS) * DESCRIPTION_BYTES as u64
}

/// Where the data of a block (counted within the extent) lies.
pub(crate) fn data_offset(physical: u32, block: u32) -> u64 {
    let group = u64::from(physical / GROUP_EXTENTS) * GROUP_BYTES + GROUP_DESCRIPTION_BYTES;
    let extent = group + u64::from(physical % GROUP_EXTENTS) * EXTENT_BYTES;
    extent + u64::from(block) * BLOCK_BYTES as u64
}

/// Which extent a description belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) slice: SliceKey,
    pub(crate) extent: u32,
}

/// The bytes of a description.
pub(crate) fn encode(identity: [u8; 16], physical: u32, owner: Owner, entries: &[Entry]) -> Buffer {
    let mut image = Buffer::zeroed(DESCRIPTION_BYTES);
    for (number, (sector, entries)) in image
        .chunks_mut(SECTOR_BYTES)
        .zip(entries.chunks(SECTOR_ENTRIES))
        .enumerate()
    {
        let mut writer = FieldWriter::default();
        writer.u64(0);
        writer.u64(MAGIC);
        writer.raw(&identity);
        writer.slice(owner.slice);
        writer.u32(owner.extent);
        writer.u32(number as u32);
        writer.u32(physical);
        writer.u32(VERSION);
        writer.u32(0);
        debug_assert_eq!(writer.bytes.len(), SECTOR_HEADER_BYTES);
        for entry in entries {
            writer.u64(entry.seq().0);
            writer.u64(entry.view);
            writer.u64(entry.checksum);
            writer.u32((entry.tagged_seq >> 62) as u32);
        }
        let checksum = plain_checksum(&writer.bytes[8..]);
        writer.bytes[..8].copy_from_slice(&checksum.to_le_bytes());
        sector.copy_from_slice(&writer.bytes);
    }
    image
}

/// What a description says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Description {
    /// The extent is free, or was never filled.
    Free,
    /// The extent of `owner`; blocks of damaged sectors are [`EntryState::Unknown`].
    Owned {
        owner: Owner,
        entries: Vec<Entry>,
        unknown_blocks: u64,
    },
    /// No sector is readable: somebody's extent, nobody can tell whose.
    Unattributed,
}

/// Reads a description; `None` stands for bytes the disk could not deliver.
pub(crate) fn decode(identity: [u8; 16], physical: u32, image: Option<&[u8]>) -> Description {
    let Some(image) = image else {
        return Description::Unattributed;
    };
    let mut entries = vec![Entry::default(); EXTENT_BLOCKS as usize];
    let mut damaged = Vec::new();
    let mut zero = Vec::new();
    let mut found_sectors = Vec::new();
    for (number, sector) in image.chunks(SECTOR_BYTES).enumerate() {
        let place = number * SECTOR_ENTRIES..(number + 1) * SECTOR_ENTRIES;
        if sector.iter().all(|byte| *byte == 0) {
            zero.push(place);
            continue;
        }
        match decode_sector(identity, physical, number as u32, sector) {
            Some((of, found)) => found_sectors.push((place, of, found)),
            None => damaged.push(place),
        }
    }
    let filled = |found: &[Entry]| found.iter().any(|entry| entry.state() != EntryState::Never);
    let all_empty = !found_sectors.iter().any(|(_, _, found)| filled(found));
    if all_empty && damaged.is_empty() {
        // Free, or being made when the node stopped: then some sectors may still name an owner
        // of whom the same is true.
        return Description::Free;
    }
    let Some(owner) = owner_of(&found_sectors, filled) else {
        return Description::Unattributed;
    };
    for (place, of, found) in found_sectors {
        if of == owner {
            entries[place].copy_from_slice(&found);
        } else {
            damaged.push(place);
        }
    }
    let mut unknown_blocks = 0;
    for place in damaged.into_iter().chain(zero) {
        unknown_blocks += place.len() as u64;
        entries[place].fill(Entry::lost());
    }
    Description::Owned {
        owner,
        entries,
        unknown_blocks,
    }
}

/// Whom the filled sectors name, else whom any names.
fn owner_of(
    sectors: &[(std::ops::Range<usize>, Owner, Vec<Entry>)],
    filled: impl Fn(&[Entry]) -> bool,
) -> Option<Owner> {
    let first_filled = sectors.iter().find(|(_, _, found)| filled(found));
    first_filled.or(sectors.first()).map(|(_, owner, _)| *owner)
}

fn decode_sector(
    identity: [u8; 16],
    physical: u32,
    number: u32,
    sector: &[u8],
) -> Option<(Owner, Vec<Entry>)> {
    let mut reader = FieldReader::new(sector);
    let checksum = reader.u64()?;
    if checksum != plain_checksum(&sector[8..]) || reader.u64()? != MAGIC {
        return None;
    }
    let foreign = reader.array::<16>()? != identity;
    let owner = Owner {
        slice: reader.slice()?,
        extent: reader.u32()?,
    };
    let misplaced = reader.u32()? != number || reader.u32()? != physical;
    let unsupported = reader.u32()? != VERSION;
    let _reserved = reader.u32()?;
    if foreign || misplaced || unsupported {
        return None;
    }
    let mut entries = Vec::with_capacity(SECTOR_ENTRIES);
    for _ in 0..SECTOR_ENTRIES {
        let seq = Seq(reader.u64()? & SEQ_MASK);
        let view = View(reader.u64()?);
        let checksum = reader.u64()?;
        let state = match reader.u32()? {
            0 => EntryState::Never,
            1 => EntryState::Present,
            2 => EntryState::Zero,
            _ => EntryState::Unknown,
        };
        entries.push(Entry::new(state, seq, view, checksum));
    }
    Some((owner, entries))
}
