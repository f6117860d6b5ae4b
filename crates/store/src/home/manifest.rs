//! The manifest: the layout on disk, as a snapshot and the edits since.
//!
//! ```text
//! home   = superblock | superblock | region | region | segment, segment, ...
//! region = snapshot | edit | edit | ...                     each of whole pages
//! entry  = checksum 8 | magic 8 | version 4 | kind 4 | identity 16 | generation 8 | number 8
//!          | length 8 | body
//! ```
//!
//! Edits have numbers without gaps. When a region is full, and whenever the home is opened, the
//! other one gets a snapshot with the next generation, and only when that is durable this one an
//! entry that says so. When it is opened, because of the last edit: if its sync failed, the edit
//! may be read until the machine loses its power, and no later sync makes it durable. The same
//! holds for a snapshot that nothing vouches for, neither an edit behind it nor the other region:
//! its process died before it was synced. It is written once more in its place, or the only
//! durable one would be overwritten while this one is not.
//!
//! | newest region with a readable snapshot | the other one | decision at open |
//! |---|---|---|
//! | ends in what is no entry | older, or nothing | the state up to there; the rest was never durable |
//! | the same, but a later entry lies behind | any | refused: an edit in the middle is damaged |
//! | says that it is continued | has no readable snapshot | refused: the snapshot is damaged |
//! | ends before the edit that the journal relies on | any | refused: the last edit is damaged |
//! | none | none | refused, unless the store is new |
//!
//! Tested with the whole store: `tests/home.rs`, `tests/damage.rs`, and the crash states.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Buffer, Disk, DiskError, PAGE_BYTES};
use serde::{Deserialize, Serialize};

use super::AREA;
use super::layout::{Change, Layout};
use crate::encoding::{FieldReader, FieldWriter, plain_checksum};
use crate::error::StoreError;
use crate::form::{Claim, Form};

const MAGIC: u64 = u64::from_le_bytes(*b"HFHOME\r\n");
/// Format 1 knew clearings of whole volumes only.
pub(crate) const VERSION: u32 = 2;
const FORM: Form = Form {
    area: AREA,
    magic: MAGIC,
    known: 0..=VERSION,
    retired: &[],
};
const HEADER_BYTES: usize = 64;
/// Numbers of runs that a start skips: those that an earlier one wrote and no edit names. Such a
/// run may lie where the next ones go, and must not show if a write of them is lost.
const RUNS_SKIPPED: u64 = 1 << 16;
/// Smallest region: a snapshot of a small home and a hundred edits.
const REGION_BYTES_MIN: u64 = 512 << 10;
/// Bytes of a region for each segment: its record, its share of tables, and edits about it.
const REGION_BYTES_PER_SEGMENT: u64 = 96;
const SEGMENT_BYTES_MIN: u64 = 128 << 10;
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// Segments that the area is cut into, if their size allows it.
const SEGMENTS_WANTED: u64 = 256;

/// Where things are; fixed when the home is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Geometry {
    pub(super) region_bytes: u64,
    pub(super) segment_pages: u32,
}

impl Geometry {
    /// For a new area of this size.
    pub(super) fn new(area_bytes: u64) -> Self {
        let wanted = (area_bytes / SEGMENTS_WANTED).max(1).next_power_of_two();
        let segment_bytes = wanted.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let segments = area_bytes / segment_bytes;
        // Room to grow to four times the size.
        let region = REGION_BYTES_MIN.max(4 * segments * REGION_BYTES_PER_SEGMENT);
        Self {
            region_bytes: region.next_multiple_of(PAGE_BYTES as u64),
            segment_pages: (segment_bytes / PAGE_BYTES as u64) as u32,
        }
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_pages) * PAGE_BYTES as u64
    }

    pub(super) fn region_at(&self, generation: u64) -> u64 {
        2 * PAGE_BYTES as u64 + (generation % 2) * self.region_bytes
    }

    /// Where the segments begin.
    pub(super) fn segments_at(&self) -> u64 {
        2 * PAGE_BYTES as u64 + 2 * self.region_bytes
    }

    /// Whole segments in an area of this size, as many as the manifest can describe.
    pub(super) fn segments_in(&self, area_bytes: u64) -> u32 {
        let fitting = area_bytes.saturating_sub(self.segments_at()) / self.segment_bytes();
        let described = self.region_bytes / (REGION_BYTES_PER_SEGMENT / 2);
        let countable = super::HOME_BYTES_MAX.min(area_bytes);
        let counted = countable.saturating_sub(self.segments_at()) / self.segment_bytes();
        fitting.min(described).min(counted) as u32
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    Superblock,
    Snapshot,
    Edit,
    /// The state goes on in the other region.
    Continued,
}

impl EntryKind {
    fn code(self) -> u32 {
        match self {
            Self::Superblock => 1,
            Self::Snapshot => 2,
            Self::Edit => 3,
            Self::Continued => 4,
        }
    }

    fn of(code: u32) -> Option<Self> {
        [
            Self::Superblock,
            Self::Snapshot,
            Self::Edit,
            Self::Continued,
        ]
        .into_iter()
        .find(|kind| kind.code() == code)
    }
}

pub(super) struct Entry {
    /// Format it was written in.
    pub(super) version: u32,
    pub(super) kind: EntryKind,
    pub(super) generation: u64,
    pub(super) number: u64,
    pub(super) body: Vec<u8>,
}

impl Entry {
    fn encode(&self, identity: [u8; 16]) -> Buffer {
        let mut writer = FieldWriter::default();
        writer.u64(0);
        writer.u64(MAGIC);
        writer.u32(self.version);
        writer.u32(self.kind.code());
        writer.raw(&identity);
        writer.u64(self.generation);
        writer.u64(self.number);
        writer.u64(self.body.len() as u64);
        debug_assert_eq!(writer.bytes.len(), HEADER_BYTES);
        writer.raw(&self.body);
        let checksum = plain_checksum(&writer.bytes[8..]);
        writer.bytes[..8].copy_from_slice(&checksum.to_le_bytes());
        Buffer::padded_from(&writer.bytes)
    }

    /// The entry at the beginning of these bytes; `None` if none is, or only a part of one.
    pub(super) fn decode(identity: [u8; 16], bytes: &[u8]) -> Result<Option<Self>, StoreError> {
        let mut reader = FieldReader::new(bytes);
        let fields = (|| {
            let checksum = reader.u64()?;
            let magic = reader.u64()?;
            let version = reader.u32()?;
            let kind = reader.u32()?;
            let owner = reader.array::<16>()?;
            let (generation, number) = (reader.u64()?, reader.u64()?);
            let length = usize::try_from(reader.u64()?).ok()?;
            let end = HEADER_BYTES.checked_add(length)?;
            let claim = Claim {
                magic,
                version,
                identity: owner,
                intact: plain_checksum(bytes.get(8..end)?) == checksum,
            };
            Some((claim, kind, generation, number, end))
        })();
        let Some((claim, kind, generation, number, end)) = fields else {
            return Ok(None);
        };
        if !FORM.admits(identity, claim)? {
            return Ok(None);
        }
        Ok(EntryKind::of(kind).map(|kind| Self {
            version: claim.version,
            kind,
            generation,
            number,
            body: bytes[HEADER_BYTES..end].to_vec(),
        }))
    }

    /// The same in a region. The superblock says whose home it is, so entries of another one are
    /// only what is left of it: the device was in use before.
    pub(super) fn decode_own(identity: [u8; 16], bytes: &[u8]) -> Result<Option<Self>, StoreError> {
        match Self::decode(identity, bytes) {
            Err(StoreError::Foreign { .. }) => Ok(None),
            decoded => decoded,
        }
    }

    /// The body of a snapshot.
    pub(super) fn layout(&self) -> Option<Layout> {
        Layout::decode(self.version, &self.body)
    }

    pub(super) fn bytes(&self) -> u64 {
        ((HEADER_BYTES + self.body.len()).next_multiple_of(PAGE_BYTES)) as u64
    }
}

/// The manifest of an open home.
pub(super) struct Manifest {
    disk: Rc<dyn Disk>,
    identity: [u8; 16],
    pub(super) geometry: Geometry,
    generation: Cell<u64>,
    /// Bytes of the region in use.
    filled: Cell<u64>,
    /// Number of the last durable edit.
    number: Cell<u64>,
    layout: RefCell<Layout>,
}

impl Manifest {
    /// Reads the manifest; makes a new one if the area is blank and `may_create`.
    pub(super) async fn open(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
        may_create: bool,
        edits_min: u64,
    ) -> Result<Self, StoreError> {
        let Some(geometry) = read_superblocks(&disk, identity).await? else {
            if may_create {
                return Self::create(disk, identity).await;
            }
            return Err(lost("superblocks"));
        };
        let mut regions = Vec::new();
        for generation in 0..2 {
            let bytes = read_region(&disk, geometry, generation).await?;
            regions.push(Region::read(identity, &bytes)?);
        }
        let mut regions: Vec<Region> = regions.into_iter().flatten().collect();
        regions.sort_by_key(|region| region.generation);
        let Some(newest) = regions.last() else {
            if may_create {
                return Self::create(disk, identity).await;
            }
            return Err(lost("manifest"));
        };
        if newest.is_continued {
            return Err(lost("manifest's newest snapshot"));
        }
        if newest.has_gap {
            return Err(lost("manifest's edits"));
        }
        if newest.number < edits_min {
            return Err(lost("manifest's last edit"));
        }
        let manifest = Self {
            disk,
            identity,
            geometry,
            generation: Cell::new(newest.generation),
            filled: Cell::new(newest.filled),
            number: Cell::new(newest.number),
            layout: RefCell::new(newest.layout.clone()),
        };
        if let [older, _] = regions.as_slice()
            && newest.has_no_edit()
            && !older.is_continued
        {
            manifest.write_snapshot(newest.generation).await?;
            manifest
                .end_region(older.generation, older.filled, older.number)
                .await?;
        }
        let segments = geometry.segments_in(manifest.disk.size_bytes()) as usize;
        let mut restored = newest.layout.clone();
        restored.next_run += RUNS_SKIPPED;
        let known = restored.segments.len().max(segments);
        restored
            .segments
            .resize(known, super::layout::Segment::default());
        manifest.move_on(restored, newest.number).await?;
        Ok(manifest)
    }

    async fn create(disk: Rc<dyn Disk>, identity: [u8; 16]) -> Result<Self, StoreError> {
        let geometry = Geometry::new(disk.size_bytes());
        let segments = geometry.segments_in(disk.size_bytes()) as usize;
        let layout = Layout {
            segments: vec![super::layout::Segment::default(); segments],
            next_run: 1,
            ..Layout::default()
        };
        let manifest = Self {
            disk,
            identity,
            geometry,
            generation: Cell::new(0),
            filled: Cell::new(0),
            number: Cell::new(0),
            layout: RefCell::new(layout),
        };
        manifest.write_snapshot(1).await?;
        let superblock = Entry {
            version: VERSION,
            kind: EntryKind::Superblock,
            generation: 0,
            number: 0,
            body: encoded(&geometry),
        };
        for copy in 0..2 {
            let page = superblock.encode(identity);
            manifest.disk.write(copy * PAGE_BYTES as u64, page).await?;
            manifest.disk.sync().await?;
        }
        Ok(manifest)
    }

    /// A manifest to look at: nothing is ever written through it.
    pub(super) fn frozen(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
        geometry: Geometry,
        layout: Layout,
        number: u64,
    ) -> Self {
        Self {
            disk,
            identity,
            geometry,
            generation: Cell::new(0),
            filled: Cell::new(geometry.region_bytes),
            number: Cell::new(number),
            layout: RefCell::new(layout),
        }
    }

    /// Changes the layout of a frozen manifest, in memory.
    pub(super) fn alter(&self, change: impl FnOnce(&mut Layout)) {
        change(&mut self.layout.borrow_mut());
    }

    /// The layout as it is durable.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Layout) -> T) -> T {
        read(&self.layout.borrow())
    }

    /// Number of the last durable edit.
    pub(super) fn number(&self) -> u64 {
        self.number.get()
    }

    /// Makes an edit durable, then takes it into the layout.
    pub(super) async fn edit(&self, changes: &[Change]) -> Result<(), DiskError> {
        let number = self.number.get() + 1;
        let entry = Entry {
            version: VERSION,
            kind: EntryKind::Edit,
            generation: self.generation.get(),
            number,
            body: encoded(&changes),
        };
        // One page stays for the entry that says that it goes on elsewhere.
        let end = self.filled.get() + entry.bytes() + PAGE_BYTES as u64;
        if end > self.geometry.region_bytes {
            let mut layout = self.layout.borrow().clone();
            let applied = layout.apply(number, changes);
            assert!(applied.is_some(), "an edit that does not fit its layout");
            reach::note(Row::ManifestTurned);
            return self.move_on(layout, number).await;
        }
        let at = self.geometry.region_at(entry.generation) + self.filled.get();
        let bytes = entry.bytes();
        self.disk.write(at, entry.encode(self.identity)).await?;
        if !planted::is_active(Bug::CountUnsyncedEdit) {
            self.disk.sync().await?;
        }
        self.filled.set(self.filled.get() + bytes);
        self.number.set(number);
        let applied = self.layout.borrow_mut().apply(number, changes);
        assert!(applied.is_some(), "an edit that does not fit its layout");
        Ok(())
    }

    /// Goes on in the other region, with `layout` as its snapshot.
    async fn move_on(&self, layout: Layout, number: u64) -> Result<(), DiskError> {
        let (old, old_filled) = (self.generation.get(), self.filled.get());
        let old_number = self.number.get();
        *self.layout.borrow_mut() = layout;
        self.number.set(number);
        self.write_snapshot(old + 1).await?;
        self.end_region(old, old_filled, old_number).await
    }

    /// Says behind a region's last edit that the state goes on in the other one.
    async fn end_region(&self, generation: u64, filled: u64, number: u64) -> Result<(), DiskError> {
        let continued = Entry {
            version: VERSION,
            kind: EntryKind::Continued,
            generation,
            number: number + 1,
            body: Vec::new(),
        };
        let at = self.geometry.region_at(generation) + filled;
        self.disk.write(at, continued.encode(self.identity)).await?;
        self.disk.sync().await
    }

    async fn write_snapshot(&self, generation: u64) -> Result<(), DiskError> {
        let snapshot = Entry {
            version: VERSION,
            kind: EntryKind::Snapshot,
            generation,
            number: self.number.get(),
            body: encoded(&*self.layout.borrow()),
        };
        let bytes = snapshot.bytes();
        if bytes + 2 * PAGE_BYTES as u64 > self.geometry.region_bytes {
            return Err(DiskError::Full {
                name: AREA.to_owned(),
                wanted_bytes: bytes,
            });
        }
        let at = self.geometry.region_at(generation);
        self.disk.write(at, snapshot.encode(self.identity)).await?;
        self.disk.sync().await?;
        self.generation.set(generation);
        self.filled.set(bytes);
        Ok(())
    }
}

/// What one region holds.
struct Region {
    generation: u64,
    layout: Layout,
    snapshot_number: u64,
    number: u64,
    filled: u64,
    is_continued: bool,
    has_gap: bool,
}

impl Region {
    /// `None` if it does not begin with a snapshot.
    fn read(identity: [u8; 16], bytes: &[u8]) -> Result<Option<Self>, StoreError> {
        let Some(first) = Entry::decode_own(identity, bytes)? else {
            return Ok(None);
        };
        if first.kind != EntryKind::Snapshot {
            return Ok(None);
        }
        let Some(layout) = first.layout() else {
            return Ok(None);
        };
        let mut region = Self {
            generation: first.generation,
            layout,
            snapshot_number: first.number,
            number: first.number,
            filled: first.bytes(),
            is_continued: false,
            has_gap: false,
        };
        loop {
            let rest = bytes.get(region.filled as usize..).unwrap_or_default();
            let next = Entry::decode_own(identity, rest)?.filter(|entry| region.is_next(entry));
            let Some(entry) = next else {
                region.has_gap = region.has_later(identity, rest)?;
                return Ok(Some(region));
            };
            match entry.kind {
                EntryKind::Continued => {
                    region.is_continued = true;
                    return Ok(Some(region));
                }
                EntryKind::Edit => {
                    let changes: Result<Vec<Change>, _> = postcard::from_bytes(&entry.body);
                    let applied = changes
                        .is_ok_and(|changes| region.layout.apply(entry.number, &changes).is_some());
                    if !applied {
                        return Err(lost("manifest's edits"));
                    }
                    region.number = entry.number;
                    region.filled += entry.bytes();
                }
                EntryKind::Superblock | EntryKind::Snapshot => {
                    return Err(lost("manifest's edits"));
                }
            }
        }
    }

    fn has_no_edit(&self) -> bool {
        self.number == self.snapshot_number
    }

    fn is_next(&self, entry: &Entry) -> bool {
        (entry.generation, entry.number) == (self.generation, self.number + 1)
    }

    /// Whether a later entry of this generation lies behind what cannot be read: edits are
    /// written one at a time, so that one had been durable.
    fn has_later(&self, identity: [u8; 16], rest: &[u8]) -> Result<bool, StoreError> {
        for at in (PAGE_BYTES..rest.len()).step_by(PAGE_BYTES) {
            if let Some(entry) = Entry::decode_own(identity, &rest[at..])?
                && entry.generation == self.generation
                && entry.number > self.number
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

async fn read_superblocks(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
) -> Result<Option<Geometry>, StoreError> {
    for copy in 0..2 {
        let Ok(page) = disk.read(copy * PAGE_BYTES as u64, PAGE_BYTES).await else {
            continue;
        };
        let entry = Entry::decode(identity, &page)?;
        let superblock = entry.filter(|entry| entry.kind == EntryKind::Superblock);
        let geometry = superblock.and_then(|entry| postcard::from_bytes(&entry.body).ok());
        if geometry.is_some() {
            return Ok(geometry);
        }
    }
    Ok(None)
}

/// The identity of the store that a page names as its owner; `None` if it does not begin like a
/// home's superblock. Nothing else of the page is verified.
pub fn home_owner(page: &[u8]) -> Option<[u8; 16]> {
    let identity = page.get(24..40)?.try_into().ok()?;
    is_entry(page).then_some(identity)
}

/// Whether a page begins like an entry, intact or not.
pub(super) fn is_entry(page: &[u8]) -> bool {
    page.get(8..16) == Some(&MAGIC.to_le_bytes())
}

/// A region's bytes; pages that cannot be read match no checksum.
pub(super) async fn read_region(
    disk: &Rc<dyn Disk>,
    geometry: Geometry,
    generation: u64,
) -> Result<Vec<u8>, StoreError> {
    const UNREADABLE: u8 = 0xa5;
    let at = geometry.region_at(generation);
    let len = geometry.region_bytes as usize;
    if let Ok(whole) = disk.read(at, len).await {
        return Ok(whole.to_vec());
    }
    let mut bytes = vec![UNREADABLE; len];
    for (page, number) in bytes.chunks_mut(PAGE_BYTES).zip(0..) {
        if let Ok(read) = disk.read(at + number * PAGE_BYTES as u64, PAGE_BYTES).await {
            page.copy_from_slice(&read);
        }
    }
    Ok(bytes)
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data has an encoding")
}

fn lost(what: &'static str) -> StoreError {
    StoreError::Lost { area: AREA, what }
}
