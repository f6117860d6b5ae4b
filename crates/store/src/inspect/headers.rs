//! Header pages of the journal and copies of the facts, each for itself.

use std::collections::BTreeMap;

use holdfast_runtime::{Disk, PAGE_BYTES};

use super::disk::ReadOnlyDisk;
use super::{Finding, FindingKind, Findings, recognise};
use crate::facts::{self, COPY_BYTES, FactsState, decode};
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

/// Both header pages and both copies of the facts.
pub(super) struct Headers {
    pub(super) journal: [Page<Header>; 2],
    pub(super) facts: [Page<(FactsState, u64)>; 2],
    /// Blocks of a slice, as the facts have it.
    pub(super) slice_blocks: u32,
}

impl Headers {
    pub(super) async fn read(
        journal: &ReadOnlyDisk,
        facts: &ReadOnlyDisk,
        identity: [u8; 16],
    ) -> Self {
        let mut slice_blocks = 0;
        let mut copies = Vec::with_capacity(2);
        let mut pages = Vec::with_capacity(2);
        for number in 0..2u64 {
            let at = number * PAGE_BYTES as u64;
            let decoded = |bytes: &[u8]| decode_header(bytes, identity);
            pages.push(read(journal, at, PAGE_BYTES, decoded).await);
            let at = number * COPY_BYTES as u64;
            let decoded = |bytes: &[u8]| {
                // The copy says itself how large slices are: nobody else knows here.
                let said = bytes.get(12..16).and_then(|said| said.try_into().ok());
                let said = said.map_or(0, u32::from_le_bytes);
                let found = decode(bytes, identity, said)?;
                if found.is_some() {
                    slice_blocks = said;
                }
                Ok(found)
            };
            copies.push(read(facts, at, COPY_BYTES, decoded).await);
        }
        let two = "two were pushed";
        Self {
            journal: pages.try_into().ok().expect(two),
            facts: copies.try_into().ok().expect(two),
            slice_blocks,
        }
    }

    /// The newest header.
    pub(super) fn journal(&self) -> Option<Header> {
        let good = self.journal.iter().filter_map(Page::good);
        good.max_by_key(|header| header.sequence).copied()
    }

    /// The newest facts and their sequence.
    pub(super) fn facts(&self) -> Option<&(FactsState, u64)> {
        let good = self.facts.iter().filter_map(Page::good);
        good.max_by_key(|(_, sequence)| *sequence)
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
        let kinds = (FindingKind::FactsLost, FindingKind::FactsCopyLost);
        report(
            facts::AREA,
            &self.facts,
            COPY_BYTES,
            kinds,
            areas[1],
            findings,
        );
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
        (facts::AREA, COPY_BYTES as u64, 0, b"HFFACTS\n", 16),
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
