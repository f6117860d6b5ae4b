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
use serde::Serialize;

use super::AREA;
use super::geometry::{Geometry, LARGE_VERSION};
use super::layout::{Change, Layout};
use super::region::{Region, RegionBytes};
use super::snapshot::Snapshot;
use crate::encoding::{FieldReader, FieldWriter, plain_checksum};
use crate::error::StoreError;
use crate::form::{Claim, Form};

const MAGIC: u64 = u64::from_le_bytes(*b"HFHOME\r\n");
const FORM: Form = Form {
    area: AREA,
    magic: MAGIC,
    // 1 knew clearings of whole volumes only; 3 is that of homes beyond 16 TiB.
    known: 0..=LARGE_VERSION,
    retired: &[],
};
const HEADER_BYTES: usize = 64;
/// Where the header says how long the body is.
const LENGTH_AT: usize = HEADER_BYTES - 8;
/// Numbers of runs that a start skips: those that an earlier one wrote and no edit names. Such a
/// run may lie where the next ones go, and must not show if a write of them is lost.
const RUNS_SKIPPED: u64 = 1 << 16;
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
        let mut bytes = self.header(identity, self.body.len());
        bytes.extend_from_slice(&self.body);
        let checksum = plain_checksum(&bytes[8..]);
        bytes[..8].copy_from_slice(&checksum.to_le_bytes());
        Buffer::padded_from(&bytes)
    }

    /// What comes before a body of this length, with room for the checksum.
    fn header(&self, identity: [u8; 16], length: usize) -> Vec<u8> {
        let mut writer = FieldWriter::default();
        writer.u64(0);
        writer.u64(MAGIC);
        writer.u32(self.version);
        writer.u32(self.kind.code());
        writer.raw(&identity);
        writer.u64(self.generation);
        writer.u64(self.number);
        writer.u64(length as u64);
        debug_assert_eq!(writer.bytes.len(), HEADER_BYTES);
        writer.bytes
    }

    /// How many bytes the entry takes that a page begins with, by what it says itself; `None` if
    /// none begins there.
    pub(super) fn claimed_bytes(page: &[u8]) -> Option<u64> {
        let length = page
            .get(LENGTH_AT..HEADER_BYTES)
            .filter(|_| is_entry(page))?;
        let length = u64::from_le_bytes(length.try_into().ok()?);
        let page_bytes = PAGE_BYTES as u64;
        let whole = (HEADER_BYTES as u64).checked_add(length)?;
        whole.checked_next_multiple_of(page_bytes)
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
    /// Reads the manifest; makes a new one if the area is blank and `may_create`, of which the
    /// segments begin at `segments_at_min` at least.
    pub(super) async fn open(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
        may_create: bool,
        segments_at_min: u64,
        edits_min: u64,
    ) -> Result<Self, StoreError> {
        let Some(geometry) = read_superblocks(&disk, identity).await? else {
            if may_create {
                return Self::create(disk, identity, segments_at_min).await;
            }
            return Err(lost("superblocks"));
        };
        let mut regions = Vec::new();
        for generation in 0..2 {
            let mut bytes = RegionBytes::new(&disk, identity, geometry, generation);
            regions.extend(Region::read(&mut bytes).await?);
        }
        regions.sort_by_key(|region| region.generation);
        let Some(newest) = regions.pop() else {
            if may_create {
                return Self::create(disk, identity, segments_at_min).await;
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
        let has_no_edit = newest.has_no_edit();
        let manifest = Self {
            disk,
            identity,
            geometry,
            generation: Cell::new(newest.generation),
            filled: Cell::new(newest.filled),
            number: Cell::new(newest.number),
            layout: RefCell::new(newest.layout),
        };
        if let Some(older) = regions.pop()
            && has_no_edit
            && !older.is_continued
        {
            manifest.write_snapshot(newest.generation).await?;
            manifest
                .end_region(older.generation, older.filled, older.number)
                .await?;
        }
        manifest.alter(|layout| {
            layout.next_run += RUNS_SKIPPED;
            layout.segments.know_pages(geometry.segment_pages);
        });
        manifest.move_on(newest.number).await?;
        Ok(manifest)
    }

    async fn create(
        disk: Rc<dyn Disk>,
        identity: [u8; 16],
        segments_at_min: u64,
    ) -> Result<Self, StoreError> {
        let geometry = Geometry::new(disk.size_bytes(), segments_at_min);
        let mut layout = Layout {
            next_run: 1,
            ..Layout::default()
        };
        layout.segments.know_pages(geometry.segment_pages);
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
        let version = manifest.version();
        let superblock = Entry {
            version,
            kind: EntryKind::Superblock,
            generation: 0,
            number: 0,
            body: geometry.encoded(version),
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

    /// The format of what is written.
    fn version(&self) -> u32 {
        self.geometry.version(self.disk.size_bytes())
    }

    /// Changes the layout in memory: that of a frozen manifest, or ahead of a snapshot.
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
            version: self.version(),
            kind: EntryKind::Edit,
            generation: self.generation.get(),
            number,
            body: encoded(&changes),
        };
        // One page stays for the entry that says that it goes on elsewhere.
        let end = self.filled.get() + entry.bytes() + PAGE_BYTES as u64;
        if end > self.geometry.region_bytes {
            let applied = self.layout.borrow_mut().apply(number, changes);
            assert!(applied.is_some(), "an edit that does not fit its layout");
            reach::note(Row::ManifestTurned);
            return self.move_on(number).await;
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

    /// Goes on in the other region, with a snapshot of the layout as edit `number` left it.
    async fn move_on(&self, number: u64) -> Result<(), DiskError> {
        let (old, old_filled) = (self.generation.get(), self.filled.get());
        let old_number = self.number.get();
        self.number.set(number);
        self.write_snapshot(old + 1).await?;
        self.end_region(old, old_filled, old_number).await
    }

    /// Writes a snapshot, although the region has room for further edits, for measurements.
    #[cfg(any(test, feature = "testing"))]
    pub(super) async fn turn(&self) -> Result<u64, DiskError> {
        self.move_on(self.number.get()).await?;
        Ok(self.filled.get())
    }

    /// Says behind a region's last edit that the state goes on in the other one.
    async fn end_region(&self, generation: u64, filled: u64, number: u64) -> Result<(), DiskError> {
        let continued = Entry {
            version: self.version(),
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
            version: self.version(),
            kind: EntryKind::Snapshot,
            generation,
            number: self.number.get(),
            body: Vec::new(),
        };
        let mut encoded = Snapshot::of(&self.layout, HEADER_BYTES).await;
        let bytes = encoded.len().next_multiple_of(PAGE_BYTES) as u64;
        if bytes + 2 * PAGE_BYTES as u64 > self.geometry.region_bytes {
            return Err(DiskError::Full {
                name: AREA.to_owned(),
                wanted_bytes: bytes,
            });
        }
        let at = self.geometry.region_at(generation);
        let header = snapshot.header(self.identity, encoded.len() - HEADER_BYTES);
        encoded.seal(&header).await;
        encoded.write(&self.disk, at).await?;
        self.disk.sync().await?;
        self.generation.set(generation);
        self.filled.set(bytes);
        Ok(())
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
        let geometry = superblock.and_then(|entry| Geometry::decode(entry.version, &entry.body));
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

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data has an encoding")
}

pub(super) fn lost(what: &'static str) -> StoreError {
    StoreError::Lost { area: AREA, what }
}
