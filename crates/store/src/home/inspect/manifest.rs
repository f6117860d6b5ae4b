//! The manifest as it can be read, however damaged: every entry for itself, then what they make.
//!
//! Where a node would refuse to start, this goes on: with the newest snapshot that is left, and
//! every later edit that is. What is missing in between is reported, and the layout is in doubt.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::rc::Rc;

use holdfast_runtime::{Disk, PAGE_BYTES};

use super::super::geometry::{Geometry, REGION_BYTES_MAX};
use super::super::layout::{Change, Layout};
use super::super::manifest::{Entry, EntryKind, is_entry};
use super::super::region::RegionBytes;
use super::super::{group, run};
use crate::error::StoreError;
use crate::inspect::recognise;

/// One entry and where it is.
pub(crate) struct FoundEntry {
    /// Byte in the area.
    pub(crate) at: u64,
    entry: Entry,
}

impl FoundEntry {
    pub(crate) fn kind(&self) -> &'static str {
        match self.entry.kind {
            EntryKind::Superblock => "superblock",
            EntryKind::Snapshot => "snapshot",
            EntryKind::Edit => "edit",
            EntryKind::Continued => "continued",
        }
    }

    /// Generation, number of the edit, bytes of the body.
    pub(crate) fn numbers(&self) -> (u64, u64, usize) {
        (
            self.entry.generation,
            self.entry.number,
            self.entry.body.len(),
        )
    }

    /// What it says, for people.
    pub(crate) fn words(&self) -> String {
        match self.entry.kind {
            EntryKind::Superblock => match geometry_of(&self.entry) {
                Some(geometry) => format!("{geometry:?}"),
                None => "unreadable".into(),
            },
            EntryKind::Snapshot => match self.entry.layout() {
                Some(layout) => format!(
                    "{} segments ever used, {} deltas, {} tables, next run {}",
                    layout.segments.ever_used().len(),
                    layout.deltas.len(),
                    layout.tables.len(),
                    layout.next_run
                ),
                None => "unreadable".into(),
            },
            EntryKind::Edit => match changes_of(&self.entry) {
                Some(changes) => {
                    let words = changes.iter().map(|change| format!("{change:?}"));
                    words.collect::<Vec<_>>().join("; ")
                }
                None => "unreadable".into(),
            },
            EntryKind::Continued => "goes on in the other region".into(),
        }
    }
}

/// What a page that should hold a superblock holds.
pub(crate) enum Superblock {
    Good,
    Bad(String),
    Refused(StoreError),
}

impl Superblock {
    /// Its state and content, for people.
    pub(crate) fn words(&self, image: &ManifestImage) -> (String, String) {
        match self {
            Self::Good => {
                let content = image.geometry.map(|geometry| format!("{geometry:?}"));
                ("good".into(), content.unwrap_or_default())
            }
            Self::Bad(words) => (words.clone(), String::new()),
            Self::Refused(error) => (error.to_string(), String::new()),
        }
    }
}

/// What is wrong with the manifest; each would keep a node from starting, unless it says
/// otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// No superblock; how the area is cut was found out otherwise, if it was.
    Superblocks { guessed: bool },
    /// An intact entry of another store or version.
    Refused(StoreError),
    /// No region begins with a snapshot.
    NoSnapshot,
    /// The newest snapshot cannot be read, and an older one is used.
    NewestSnapshot,
    /// Edits are missing behind this number, and later ones exist.
    Gap { after: u64 },
    /// An edit does not fit its layout.
    Misfit { number: u64 },
    /// It ends before the edit that the journal relies on.
    Short { number: u64, wanted: u64 },
}

/// The manifest as far as it can be read.
pub(crate) struct ManifestImage {
    pub(crate) superblocks: Vec<Superblock>,
    pub(super) geometry: Option<Geometry>,
    pub(crate) entries: Vec<FoundEntry>,
    pub(super) layout: Layout,
    pub(super) number: u64,
    pub(crate) flaws: Vec<Flaw>,
    /// Nothing was ever written to the area.
    pub(crate) is_blank: bool,
}

impl ManifestImage {
    /// Reads all of it. `edits_min` is the edit that the journal relies on.
    pub(crate) async fn read(disk: &Rc<dyn Disk>, identity: [u8; 16], edits_min: u64) -> Self {
        let mut image = Self {
            superblocks: Vec::new(),
            geometry: None,
            entries: Vec::new(),
            layout: Layout::default(),
            number: 0,
            flaws: Vec::new(),
            is_blank: true,
        };
        for copy in 0..2 {
            image.read_superblock(disk, identity, copy).await;
        }
        if image.geometry.is_none() {
            image.geometry = guess(disk, identity).await;
            let guessed = image.geometry.is_some();
            image.flaws.push(Flaw::Superblocks { guessed });
        }
        let Some(geometry) = image.geometry else {
            return image;
        };
        for generation in 0..2 {
            let mut bytes = RegionBytes::new(disk, identity, geometry, generation);
            image.read_region(&mut bytes).await;
        }
        image.build();
        if image.number < edits_min {
            image.flaws.push(Flaw::Short {
                number: image.number,
                wanted: edits_min,
            });
        }
        image
    }

    async fn read_superblock(&mut self, disk: &Rc<dyn Disk>, identity: [u8; 16], copy: u64) {
        let page = match disk.read(copy * PAGE_BYTES as u64, PAGE_BYTES).await {
            Ok(page) => page,
            Err(error) => return self.superblocks.push(Superblock::Bad(error.to_string())),
        };
        self.is_blank &= page.iter().all(|byte| *byte == 0);
        let found = match Entry::decode(identity, &page) {
            Ok(entry) => entry.as_ref().and_then(geometry_of),
            Err(error) => return self.superblocks.push(Superblock::Refused(error)),
        };
        self.superblocks.push(match found {
            Some(geometry) => {
                self.geometry.get_or_insert(geometry);
                Superblock::Good
            }
            None => Superblock::Bad(recognise(&page)),
        });
    }

    /// Reads all intact entries of a region.
    async fn read_region(&mut self, bytes: &mut RegionBytes) {
        let mut refused = None;
        let mut at = 0;
        loop {
            let page = bytes.page(at).await;
            if page.is_empty() {
                break;
            }
            self.is_blank &= page.iter().all(|byte| *byte == 0);
            let mut length = PAGE_BYTES as u64;
            if is_entry(page) {
                match bytes.entry(at).await {
                    Ok(Some(entry)) => {
                        length = entry.bytes();
                        let at = bytes.area_byte(at);
                        self.entries.push(FoundEntry { at, entry });
                    }
                    Ok(None) => {}
                    Err(error) => refused = Some(error),
                }
            }
            at += length;
        }
        self.flaws.extend(refused.map(Flaw::Refused));
    }

    /// Puts the newest snapshot and all later edits together.
    fn build(&mut self) {
        let snapshot = |found: &&FoundEntry| {
            found.entry.kind == EntryKind::Snapshot && found.entry.layout().is_some()
        };
        let newest = self.entries.iter().map(|found| found.entry.generation);
        let newest = newest.max().unwrap_or(0);
        let base = self
            .entries
            .iter()
            .filter(snapshot)
            .max_by_key(|found| found.entry.generation);
        let generation = match base {
            Some(found) => {
                self.layout = found.entry.layout().unwrap_or_default();
                self.number = found.entry.number;
                found.entry.generation
            }
            None => {
                self.flaws.push(Flaw::NoSnapshot);
                0
            }
        };
        // What a region says is that the other one goes on, and that one has no snapshot.
        let continued = self.entries.iter().any(|found| {
            found.entry.kind == EntryKind::Continued && found.entry.generation == generation
        });
        if base.is_some() && (newest > generation || continued) {
            self.flaws.push(Flaw::NewestSnapshot);
        }
        let mut edits: Vec<&Entry> = self
            .entries
            .iter()
            .map(|found| &found.entry)
            .filter(|entry| entry.kind == EntryKind::Edit)
            .filter(|entry| entry.generation >= generation && entry.number > self.number)
            .collect();
        edits.sort_by_key(|entry| (entry.number, entry.generation));
        edits.dedup_by_key(|entry| entry.number);
        for edit in edits {
            if edit.number != self.number + 1 {
                self.flaws.push(Flaw::Gap { after: self.number });
            }
            self.number = edit.number;
            let Some(changes) = changes_of(edit) else {
                self.flaws.push(Flaw::Misfit {
                    number: edit.number,
                });
                continue;
            };
            let mut fits = true;
            for change in &changes {
                let one = std::slice::from_ref(change);
                fits &= self.layout.apply(edit.number, one).is_some();
            }
            if !fits {
                self.flaws.push(Flaw::Misfit {
                    number: edit.number,
                });
            }
        }
    }
}

fn geometry_of(entry: &Entry) -> Option<Geometry> {
    let is_superblock = entry.kind == EntryKind::Superblock;
    let geometry = Geometry::decode(entry.version, &entry.body);
    geometry.filter(|_| is_superblock)
}

fn changes_of(entry: &Entry) -> Option<Vec<Change>> {
    postcard::from_bytes(&entry.body).ok()
}

/// How the area is cut, from what lies in it: where the second region begins, and which size of
/// segments puts the map's pages where the manifest says.
async fn guess(disk: &Rc<dyn Disk>, identity: [u8; 16]) -> Option<Geometry> {
    const PAGES_AT_ONCE: usize = 256;
    const MANIFEST_PAGES_MAX: usize = 2 * REGION_BYTES_MAX as usize / PAGE_BYTES;
    let page_bytes = PAGE_BYTES as u64;
    let pages = (disk.size_bytes() / page_bytes) as usize;
    let mut entries: Vec<(u64, Entry)> = Vec::new();
    let mut layout = None;
    // Regions are a small part of the area; where the second one begins is not known yet.
    for first in (2..(pages / 4).min(MANIFEST_PAGES_MAX)).step_by(PAGES_AT_ONCE) {
        let count = PAGES_AT_ONCE.min(pages - first);
        let Ok(bytes) = disk
            .read(first as u64 * page_bytes, count * PAGE_BYTES)
            .await
        else {
            continue;
        };
        for (page, at) in bytes.chunks(PAGE_BYTES).zip(first as u64..) {
            if !is_entry(page) {
                continue;
            }
            // A snapshot may take many pages.
            let left = (pages as u64 - at) * page_bytes;
            let claimed = Entry::claimed_bytes(page).unwrap_or(page_bytes);
            let length = claimed.min(left).min(REGION_BYTES_MAX) as usize;
            let Ok(whole) = disk.read(at * page_bytes, length).await else {
                continue;
            };
            if let Ok(Some(entry)) = Entry::decode(identity, &whole) {
                entries.push((at, entry));
            }
        }
    }
    let snapshots = entries
        .iter()
        .filter(|(_, entry)| entry.kind == EntryKind::Snapshot);
    let newest = snapshots.max_by_key(|(_, entry)| entry.generation);
    if let Some((_, entry)) = newest {
        layout = entry.layout();
    }
    let odd = entries.iter().filter(|(_, entry)| {
        entry.generation % 2 == 1 && entry.kind == EntryKind::Snapshot && entry.generation > 0
    });
    let second = odd.map(|(at, _)| *at).max();
    let default = Geometry::new(disk.size_bytes(), 0);
    let region_bytes = second.map_or(default.region_bytes, |at| (at - 2) * page_bytes);
    let layout = layout.unwrap_or_default();
    let mut best = (0, None);
    for shift in 5..=15 {
        let geometry = Geometry::behind_manifest(region_bytes, 1 << shift);
        let proofs = proofs(disk, identity, geometry, &layout).await;
        if proofs > best.0 {
            best = (proofs, Some(geometry));
        }
    }
    best.1
}

/// How much lies where it should if the area is cut like this: groups at the beginnings of
/// segments, first pages of runs.
async fn proofs(
    disk: &Rc<dyn Disk>,
    identity: [u8; 16],
    geometry: Geometry,
    layout: &Layout,
) -> u32 {
    const SEGMENTS: u32 = 64;
    let mut proofs = 0;
    for segment in 0..geometry.segments_in(disk.size_bytes()).min(SEGMENTS) {
        let at = geometry.segments_at + u64::from(segment) * geometry.segment_bytes();
        // A header may take three pages.
        let Ok(pages) = disk.read(at, 3 * PAGE_BYTES).await else {
            continue;
        };
        let group = group::decode_any(identity, &pages);
        proofs += u32::from(group.is_some_and(|(at, _)| (at.segment, at.first) == (segment, 0)));
    }
    let runs = layout.deltas.iter().map(|delta| (delta.run, &delta.pieces));
    let runs = runs.chain(
        layout
            .tables
            .values()
            .map(|table| (table.run, &table.pieces)),
    );
    for (run, piece) in runs.filter_map(|(run, pieces)| Some((run, *pieces.first()?))) {
        let at = geometry.segments_at
            + u64::from(piece.segment) * geometry.segment_bytes()
            + u64::from(piece.first) * PAGE_BYTES as u64;
        if let Ok(page) = disk.read(at, PAGE_BYTES).await {
            proofs += u32::from(run::payload(identity, run, 0, &page).is_some());
        }
    }
    proofs
}
