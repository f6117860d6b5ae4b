//! Every page of the block map, and whether its parts agree with each other.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::PAGE_BYTES;

use super::super::AREA;
use super::super::Home;
use super::super::fact::{ExtentKey, Leaf};
use super::super::layout::{Delta, Kind, Piece, Table};
use super::super::map::pages_of;
use super::super::run::{self, LeafPlace};
use super::READ_PAGES;
use crate::encoding::FieldReader;
use crate::inspect::{Finding, FindingKind, Findings};

/// Runs of pages that cannot be used, and the bytes of the stream if there are none.
struct RunPages {
    bytes: Option<Vec<u8>>,
}

impl Home {
    /// Reads all of the map. Returns whether all of it can be used.
    pub(crate) async fn check_map(&self, findings: &Findings) -> bool {
        let (tables, deltas) = self
            .manifest
            .with(|layout| (layout.tables.clone(), layout.deltas.clone()));
        self.check_pieces(&tables, &deltas, findings);
        let mut whole = true;
        for delta in &deltas {
            whole &= self.check_delta(delta, findings).await;
        }
        let ends = tables.keys().skip(1).copied().map(Some).chain([None]);
        for ((start, table), end) in tables.iter().zip(ends) {
            whole &= self.check_table(*start, end, table, findings).await;
        }
        whole
    }

    /// Whether the pages of runs lie in segments of the map, and each belongs to one run.
    fn check_pieces(
        &self,
        tables: &BTreeMap<ExtentKey, Table>,
        deltas: &[Delta],
        findings: &Findings,
    ) {
        let runs = deltas.iter().map(|delta| (delta.run, &delta.pieces));
        let runs = runs.chain(tables.values().map(|table| (table.run, &table.pieces)));
        let mut taken: BTreeSet<(u32, u32)> = BTreeSet::new();
        for (run, piece) in runs.flat_map(|(run, pieces)| pieces.iter().map(move |p| (run, p))) {
            let segment = self.manifest.with(|layout| layout.segment(piece.segment));
            let pages = piece.first..piece.first + piece.pages;
            let what = if segment.kind != Some(Kind::Map) {
                format!("segment {} does not hold the map", piece.segment)
            } else if pages.end > segment.used {
                format!("segment {} is filled up to {}", piece.segment, segment.used)
            } else if !pages
                .clone()
                .all(|page| taken.insert((piece.segment, page)))
            {
                "another run has the same pages".into()
            } else {
                continue;
            };
            let what = format!("run {run} of the map has pages {pages:?}, and {what}");
            let at = self.byte_at(piece.segment, piece.first);
            findings.add(
                Finding::new(FindingKind::MapContradiction, AREA, what)
                    .at(at, u64::from(piece.pages) * PAGE_BYTES as u64),
            );
        }
    }

    async fn check_delta(&self, delta: &Delta, findings: &Findings) -> bool {
        let pages = delta.pieces.iter().map(|piece| piece.pages).sum();
        let what = format!("delta {}", delta.run);
        let kind = FindingKind::DeltaLost;
        let read = self.check_pages(
            delta.run,
            &delta.pieces,
            (0, pages),
            (kind, &what),
            findings,
        );
        let Some(stream) = read.await.bytes else {
            return false;
        };
        let mut reader = FieldReader::new(&stream);
        let leaves = (0..delta.leaves).map_while(|_| run::next_leaf(&mut reader));
        let keys: Vec<ExtentKey> = leaves.map(|(key, _)| key).collect();
        let sorted = keys.windows(2).all(|pair| pair[0] < pair[1]);
        if keys.len() == delta.leaves as usize && sorted {
            return true;
        }
        let what = format!("delta {} is intact and makes no sense", delta.run);
        findings.add(Finding::new(FindingKind::MapContradiction, AREA, what));
        false
    }

    async fn check_table(
        &self,
        start: ExtentKey,
        end: Option<ExtentKey>,
        table: &Table,
        findings: &Findings,
    ) -> bool {
        let what = format!("the leaves of table {}", table.run);
        let kind = (FindingKind::LeavesLost, what.as_str());
        let pages = (0, table.leaf_pages);
        let leaves = self.check_pages(table.run, &table.pieces, pages, kind, findings);
        let leaves = leaves.await.bytes;
        let what = format!("the directory of table {}", table.run);
        let kind = (FindingKind::TableDirectoryLost, what.as_str());
        let pages = (table.leaf_pages, run::directory_pages(table.leaves));
        let directory = self.check_pages(table.run, &table.pieces, pages, kind, findings);
        let (Some(leaves), Some(directory)) = (leaves, directory.await.bytes) else {
            return false;
        };
        let contradiction = agree(start, end, table, &leaves, &directory);
        if let Some(what) = &contradiction {
            let what = format!("table {}: {what}", table.run);
            findings.add(Finding::new(FindingKind::MapContradiction, AREA, what));
        }
        contradiction.is_none()
    }

    /// Verifies `count` pages of a run from `first` on.
    async fn check_pages(
        &self,
        run: u64,
        pieces: &[Piece],
        (first, count): (u32, u32),
        (kind, name): (FindingKind, &str),
        findings: &Findings,
    ) -> RunPages {
        let mut bytes = Vec::new();
        let mut number = first;
        let mut bad: Vec<(u64, u64, String)> = Vec::new();
        for (segment, from, pages) in pages_of(pieces, first, count) {
            let mut page = from;
            while page < from + pages {
                let now = (from + pages - page).min(READ_PAGES);
                let read = self.read_or_mark(segment, page, now).await;
                for (page, at) in read.into_iter().zip(page..) {
                    let problem = match &page {
                        Ok(page) => match run::payload(self.identity, run, number, page) {
                            Some(payload) => {
                                bytes.extend_from_slice(payload);
                                None
                            }
                            None => Some(self.page_words(page)),
                        },
                        Err(error) => Some(error.clone()),
                    };
                    number += 1;
                    let Some(problem) = problem else { continue };
                    let at = self.byte_at(segment, at);
                    match bad.last_mut() {
                        Some((begin, length, words)) if *begin + *length == at => {
                            *length += PAGE_BYTES as u64;
                            if *words != problem {
                                *words = "several things".into();
                            }
                        }
                        Some(_) | None => bad.push((at, PAGE_BYTES as u64, problem)),
                    }
                }
                page += now;
            }
        }
        let complete = bad.is_empty() && number == first + count;
        for (at, length, words) in bad {
            let what = format!("{name}: in its place is {words}");
            findings.add(Finding::new(kind, AREA, what).at(at, length));
        }
        RunPages {
            bytes: complete.then_some(bytes),
        }
    }

    /// Pages of a segment, each with its own error if it cannot be read.
    pub(super) async fn read_or_mark(
        &self,
        segment: u32,
        page: u32,
        count: u32,
    ) -> Vec<Result<Vec<u8>, String>> {
        let first = self.page_of(segment, page);
        if let Ok(bytes) = self.read(first, count).await {
            return bytes
                .chunks(PAGE_BYTES)
                .map(|page| Ok(page.to_vec()))
                .collect();
        }
        let mut pages = Vec::with_capacity(count as usize);
        for page in (first..).take(count as usize) {
            let read = self.read(page, 1).await;
            pages.push(
                read.map(|bytes| bytes.to_vec())
                    .map_err(|error| error.to_string()),
            );
        }
        pages
    }
}

/// Whether a table's directory tells the truth about its leaves.
fn agree(
    start: ExtentKey,
    end: Option<ExtentKey>,
    table: &Table,
    leaves: &[u8],
    directory: &[u8],
) -> Option<String> {
    let Some(places) = run::read_directory(directory, table.leaves) else {
        return Some("its directory is intact and makes no sense".into());
    };
    let sorted = places.windows(2).all(|pair| pair[0].key < pair[1].key);
    let inside = places
        .iter()
        .all(|place| place.key >= start && end.is_none_or(|end| place.key < end));
    if !sorted || !inside {
        return Some("it has leaves outside its range".into());
    }
    let wrong = |place: &&LeafPlace| {
        let from = place.at as usize;
        let bytes = leaves.get(from..from.saturating_add(place.bytes as usize));
        let leaf = bytes.and_then(|bytes| run::next_leaf(&mut FieldReader::new(bytes)));
        !leaf.is_some_and(|(key, leaf): (ExtentKey, Leaf)| {
            key == place.key && leaf.seq_max() == place.seq_max && leaf.occupied() == place.occupied
        })
    };
    let wrong = places.iter().find(wrong)?;
    Some(format!(
        "its directory and its leaf differ about extent {} of {:?}",
        wrong.key.extent, wrong.key.slice
    ))
}
