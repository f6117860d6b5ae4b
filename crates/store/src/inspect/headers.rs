//! Header pages of the journal, each for itself, and the durable facts.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::BTreeMap;
use std::rc::Rc;

use holdfast_runtime::{Disk, PAGE_BYTES};

use super::disk::ReadOnlyDisk;
use super::{Finding, FindingKind, Findings, recognise};
use crate::facts::{self, COPY_BYTES, FactsState, Found, Loaded, Owner};
use crate::journal::{self, Header, decode_header};
use crate::{StoreError, home};

/// What was found where a structure should be.
pub(super) enum Page<T> {
    Good(T),
    Zero,
    /// Why it cannot be used.
    Bad(String),
    /// It is intact and must not be used.
    Refused(StoreError),
}

impl<T> Page<T> {
    fn good(&self) -> Option<&T> {
        match self {
            Self::Good(found) => Some(found),
            Self::Zero | Self::Bad(_) | Self::Refused(_) => None,
        }
    }

    /// What is there, for people.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Good(_) => "good".into(),
            Self::Zero => "zeroes".into(),
            Self::Bad(words) => words.clone(),
            Self::Refused(error) => error.to_string(),
        }
    }
}

/// Both header pages and the facts.
pub(super) struct Headers {
    pub(super) journal: [Page<Header>; 2],
    /// An error: something intact in the area must not be used.
    pub(super) facts: Result<Loaded, StoreError>,
}

impl Headers {
    pub(super) async fn read(
        journal: &ReadOnlyDisk,
        facts: &ReadOnlyDisk,
        identity: [u8; 16],
    ) -> Self {
        let mut pages = Vec::with_capacity(2);
        for number in 0..2u64 {
            let at = number * PAGE_BYTES as u64;
            let decoded = |bytes: &[u8]| decode_header(bytes, identity);
            pages.push(read(journal, at, PAGE_BYTES, decoded).await);
        }
        let disk: Rc<dyn Disk> = Rc::new(facts.clone());
        // The facts say themselves how large slices are: nobody else knows here.
        let owner = Owner {
            identity,
            slice_blocks: None,
        };
        Self {
            journal: pages.try_into().ok().expect("two were pushed"),
            facts: facts::load(&disk, owner).await,
        }
    }

    /// The newest header.
    pub(super) fn journal(&self) -> Option<Header> {
        let good = self.journal.iter().filter_map(Page::good);
        good.max_by_key(|header| header.sequence).copied()
    }

    /// The facts, if they can be read.
    pub(super) fn facts(&self) -> Option<&FactsState> {
        match &self.facts.as_ref().ok()?.found {
            Found::Log(log) => Some(&log.state),
            Found::Image(image) => Some(&image.state),
            Found::Nothing { .. } | Found::Lost => None,
        }
    }

    /// Blocks of a slice, as the facts have it; zero if nobody knows.
    pub(super) fn slice_blocks(&self) -> u32 {
        let loaded = self.facts.as_ref();
        loaded.map_or(0, |loaded| loaded.slice_blocks)
    }

    pub(super) fn report(&self, areas: [&ReadOnlyDisk; 2], findings: &Findings) {
        let kinds = (
            FindingKind::JournalHeadersLost,
            FindingKind::JournalHeaderPageLost,
        );
        report(
            journal::AREA,
            &self.journal,
            PAGE_BYTES,
            kinds,
            areas[0],
            findings,
        );
        self.report_facts(areas[1], findings);
    }

    fn report_facts(&self, disk: &ReadOnlyDisk, findings: &Findings) {
        let area = facts::AREA;
        if !disk.exists() {
            let what = "the file is not there";
            return findings.add(Finding::new(FindingKind::AreaMissing, area, what));
        }
        let loaded = match &self.facts {
            Ok(loaded) => loaded,
            Err(error) => {
                let what = error.to_string();
                return findings.add(Finding::new(FindingKind::AreaForeign, area, what));
            }
        };
        for (at, bytes) in &loaded.flaws {
            let what = "one of 2 copies cannot be used";
            let finding = Finding::new(FindingKind::FactsCopyLost, area, what);
            findings.add(finding.at(*at, *bytes as u64));
        }
        if self.facts().is_none() {
            let what = "neither of the 2 copies of a part can be used";
            let finding = Finding::new(FindingKind::FactsLost, area, what);
            findings.add(finding.at(0, disk.size_bytes()));
        }
    }

    /// What the facts are, for people: their form and position, and what there is of them.
    pub(super) fn facts_words(&self) -> (String, String) {
        let loaded = match &self.facts {
            Ok(loaded) => loaded,
            Err(error) => return (error.to_string(), String::new()),
        };
        let [promises, slices, voids, removals] =
            self.facts().map(FactsState::counts).unwrap_or_default();
        let counts = format!(
            "{} blocks per slice, {promises} promises, {slices} slices, {voids} voids, {removals} \
             removals",
            loaded.slice_blocks
        );
        let state = match loaded.flaws.len() {
            0 => "good".to_owned(),
            flaws => format!("one copy of {flaws} parts is lost"),
        };
        match &loaded.found {
            Found::Log(log) => {
                let (generation, number) = log.position();
                let slots = log.slots();
                let place = format!("generation {generation}, entry {number}, slots {slots:?}");
                (state, format!("{place}, {counts}"))
            }
            Found::Image(image) => (state, format!("image {}, {counts}", image.sequence)),
            Found::Nothing { is_bare: true } => ("zeroes".into(), String::new()),
            Found::Nothing { is_bare: false } | Found::Lost => ("unreadable".into(), String::new()),
        }
    }
}

async fn read<T>(
    disk: &ReadOnlyDisk,
    at: u64,
    bytes: usize,
    decode: impl FnOnce(&[u8]) -> Result<Option<T>, StoreError>,
) -> Page<T> {
    let page = match disk.read(at, bytes).await {
        Ok(page) => page,
        Err(error) => return Page::Bad(error.to_string()),
    };
    if page.iter().all(|byte| *byte == 0) {
        return Page::Zero;
    }
    match decode(&page) {
        Ok(Some(found)) => Page::Good(found),
        Ok(None) => Page::Bad(recognise(&page[..PAGE_BYTES])),
        Err(error) => Page::Refused(error),
    }
}

fn report<T>(
    area: &'static str,
    pages: &[Page<T>; 2],
    bytes: usize,
    (both, one): (FindingKind, FindingKind),
    disk: &ReadOnlyDisk,
    findings: &Findings,
) {
    if !disk.exists() {
        let what = "the file is not there";
        return findings.add(Finding::new(FindingKind::AreaMissing, area, what));
    }
    let lost = !pages.iter().any(Page::is_good);
    for (page, number) in pages.iter().zip(0..) {
        let kind = match page {
            Page::Good(_) => continue,
            Page::Refused(_) => FindingKind::AreaForeign,
            Page::Zero | Page::Bad(_) if lost => continue,
            Page::Zero | Page::Bad(_) => one,
        };
        let what = format!("copy {number} of 2: {}", page.words());
        let at = number * bytes as u64;
        findings.add(Finding::new(kind, area, what).at(at, bytes as u64));
    }
    let refused = pages.iter().any(|page| matches!(page, Page::Refused(_)));
    if lost && !refused {
        let words: Vec<String> = pages.iter().map(Page::words).collect();
        let what = format!("neither of the 2 copies can be used: {}", words.join("; "));
        findings.add(Finding::new(both, area, what).at(0, 2 * bytes as u64));
    }
}

/// The identity that most of what is intact in its place says.
pub(super) async fn identity(
    journal: &ReadOnlyDisk,
    facts: &ReadOnlyDisk,
    home: &ReadOnlyDisk,
) -> Option<[u8; 16]> {
    const MAGICS: [(&str, u64, usize, &[u8], usize); 6] = [
        (journal::AREA, 0, 0, b"HFJOURNL", 16),
        (journal::AREA, PAGE_BYTES as u64, 0, b"HFJOURNL", 16),
        (facts::AREA, 0, 0, b"HFFACTS\n", 16),
        (facts::AREA, COPY_BYTES, 0, b"HFFACTS\n", 16),
        (home::AREA, 0, 8, b"HFHOME\r\n", 24),
        (home::AREA, PAGE_BYTES as u64, 8, b"HFHOME\r\n", 24),
    ];
    let mut votes: BTreeMap<[u8; 16], u32> = BTreeMap::new();
    for (area, offset, magic_at, magic, identity_at) in MAGICS {
        let disk = match area {
            journal::AREA => journal,
            facts::AREA => facts,
            _ => home,
        };
        let Ok(page) = disk.read(offset, PAGE_BYTES).await else {
            continue;
        };
        if page[magic_at..magic_at + 8] == *magic
            && let Ok(identity) = page[identity_at..identity_at + 16].try_into()
        {
            *votes.entry(identity).or_default() += 1;
        }
    }
    let most = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
    Some(most.0)
}
