//! Looking at a store that no node runs on: [checking](Inspection::check) all of it,
//! [listing](Inspection::dump) its structures, [reading](Inspection::volume) what is there.
//!
//! Promises:
//!
//! * nothing is written: the areas are wrapped so that a write is an error;
//! * damage is a [`Finding`], never a panic, and never the end: what lies behind it is looked at
//!   too, also where a node would refuse to start;
//! * a store without findings above [`Severity::Notice`] opens, and every block of it can be read.
//!
//! It goes through the same code as opening a store, up to the point where that begins to write.
//!
//! Tested with the whole store: `tests/inspect.rs`.

mod check;
mod disk;
pub(crate) mod dump;
mod export;
mod finding;
mod headers;

use std::rc::Rc;

use holdfast_runtime::{Allocation, Directory, Disk, DiskOptions, Runtime};

pub use self::check::{CheckReport, JournalSummary, Progress, SliceRecords};
use self::disk::{Pace, ReadOnlyDisk};
pub use self::dump::{Cell, Filter, Listing, Structure};
pub use self::export::{ExportedBlock, SliceSummary, Trust, VolumeReader};
pub(crate) use self::finding::Findings;
pub use self::finding::{Finding, FindingKind, Severity};
use self::headers::{Headers, Page};
use crate::facts::{self, FactsState};
use crate::home::inspect::HomeImage;
pub use crate::home::inspect::Space;
use crate::journal::Header;
use crate::journal::scan::{Scanned, scan_all, scan_whole};
use crate::record::{CopyState, SliceKey};
use crate::{StoreError, home, journal};

/// How to look at a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct InspectOptions {
    /// The store's identity; what most of its structures say if it is not known.
    pub identity: Option<[u8; 16]>,
    /// Most bytes that are read each second.
    pub bytes_per_second: Option<u64>,
}

/// A store that is looked at.
pub struct Inspection {
    runtime: Runtime,
    pace: Rc<Pace>,
    identity: [u8; 16],
    journal: ReadOnlyDisk,
    facts: ReadOnlyDisk,
    home: ReadOnlyDisk,
    headers: Headers,
}

/// The journal's content, and how it was found.
struct JournalImage {
    header: Header,
    scanned: Scanned,
}

impl Inspection {
    /// Looks at the areas in a directory.
    ///
    /// # Errors
    ///
    /// `Lost` if it holds no area of a store, or none of them says whose they are; `Disk` if one
    /// that is there cannot be opened.
    pub async fn open(
        runtime: Runtime,
        directory: Rc<dyn Directory>,
        options: InspectOptions,
    ) -> Result<Self, StoreError> {
        let pace = Pace::new(runtime.clone(), options.bytes_per_second);
        let journal = area(&directory, journal::AREA, &pace).await?;
        let facts = area(&directory, facts::AREA, &pace).await?;
        let home = area(&directory, home::AREA, &pace).await?;
        let none = !journal.exists() && !facts.exists() && !home.exists();
        let identity = match options.identity {
            Some(identity) => Some(identity),
            None => headers::identity(&journal, &facts, &home).await,
        };
        let Some(identity) = identity.filter(|_| !none) else {
            return Err(StoreError::Lost {
                area: journal::AREA,
                what: "journal, facts and home: there is no store here whose identity",
            });
        };
        let headers = Headers::read(&journal, &facts, identity).await;
        Ok(Self {
            runtime,
            pace,
            identity,
            journal,
            facts,
            home,
            headers,
        })
    }

    /// Names the store on its disks.
    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// The durable facts; nothing is known if both copies are lost.
    fn state(&self) -> FactsState {
        self.headers.facts().cloned().unwrap_or_default()
    }

    /// The journal's content; read without its header pages if both are lost.
    async fn journal_image(&self) -> Option<JournalImage> {
        let disk: Rc<dyn Disk> = Rc::new(self.journal.clone());
        if let Some(header) = self.headers.journal() {
            let scanned = scan_whole(&disk, self.identity, header).await.ok()?;
            return Some(JournalImage { header, scanned });
        }
        let (header, mut scanned) = scan_all(&disk, self.identity).await?;
        // Nobody knows where the ring's used part begins. What the home has for certain must not
        // be laid over it again: it may have been taken back meanwhile.
        let state = self.state();
        for batch in &mut scanned.batches {
            batch.items.retain(|item| {
                let known = state.slice(item.slice);
                !item.kind.is_stream() || known.is_none_or(|known| item.seq > known.destaged)
            });
        }
        Some(JournalImage { header, scanned })
    }

    async fn home_image(&self) -> HomeImage {
        let edits_min = self.headers.journal().map_or(0, |header| header.home_edits);
        HomeImage::read(Rc::new(self.home.clone()), self.identity, edits_min).await
    }
}

async fn area(
    directory: &Rc<dyn Directory>,
    name: &'static str,
    pace: &Rc<Pace>,
) -> Result<ReadOnlyDisk, StoreError> {
    let disk = match directory.exists(name) {
        false => None,
        true => {
            let as_it_is = DiskOptions {
                size_bytes: 0,
                durable_writes: false,
                allocation: Allocation::Sparse,
            };
            Some(directory.open(name, as_it_is).await?)
        }
    };
    Ok(ReadOnlyDisk::new(name, disk, pace.clone()))
}

/// What stands in a page, as far as its first bytes tell.
pub(crate) fn recognise(page: &[u8]) -> String {
    if page.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    let magics: [(&[u8], usize, &str); 6] = [
        (b"HFJOURNL", 0, "a header page of a journal"),
        (b"HFBATCH\n", 0, "the beginning of a journal's batch"),
        (b"HFFACTS\n", 0, "the beginning of durable facts"),
        (b"HFHOME\r\n", 8, "an entry of a manifest"),
        (b"HFGROUP\n", 8, "the header of a group"),
        (b"HFMAPRUN", 8, "a page of a block map"),
    ];
    let found = magics
        .iter()
        .find(|(magic, at, _)| page.get(*at..*at + 8) == Some(*magic));
    match found {
        Some((_, _, words)) => format!("{words}, damaged or of another store"),
        None => "unknown bytes".into(),
    }
}

/// What a copy's state says of how complete it is.
fn is_in_sync(state: &FactsState, slice: SliceKey) -> bool {
    match state.slice(slice).map(|found| found.copy) {
        Some(CopyState::InSync) => true,
        Some(CopyState::Joining { .. } | CopyState::Absent) | None => false,
    }
}

impl<T> Page<T> {
    fn is_good(&self) -> bool {
        matches!(self, Self::Good(_))
    }
}
