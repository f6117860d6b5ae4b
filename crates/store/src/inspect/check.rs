//! Reading all of a store and saying what is wrong with it.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Finding, FindingKind, Findings, Inspection, JournalImage, Severity};
use crate::facts::Scope;
use crate::home::inspect::{Flaw, HomeImage, Space, Superblock};
use crate::home::{self};
use crate::journal;
use crate::journal::item::Item;
use crate::record::{BLOCK_BYTES, JournalEnd, SliceKey};

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: &'static str,
    /// Steps of this phase that are done.
    pub done: u64,
    /// All of them; zero if nobody knows.
    pub all: u64,
}

/// Records of one slice in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SliceRecords {
    /// The slice.
    pub slice: SliceKey,
    /// How many there are.
    pub records: u64,
    /// Sequence number of the first one.
    pub first_seq: u64,
    /// And of the last one.
    pub last_seq: u64,
}

/// What the journal holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JournalSummary {
    /// Size of the ring.
    pub ring_bytes: u64,
    /// Part of it that the next recovery reads.
    pub used_bytes: u64,
    /// Batches in it.
    pub batches: u64,
    /// Their first and last numbers.
    pub first_lsn: Option<u64>,
    /// See `first_lsn`.
    pub last_lsn: Option<u64>,
    /// Places where whole batches are missing.
    pub holes: u64,
    /// Whether the newest batch was being written when the node stopped.
    pub torn_head: bool,
    /// Stream records, slice by slice.
    pub slices: Vec<SliceRecords>,
}

/// The outcome of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// What is not as it should be, the worst first; at most 1000 of a kind.
    pub findings: Vec<Finding>,
    /// How many there are of each kind.
    pub counts: BTreeMap<FindingKind, u64>,
    /// The journal, if anything of it can be read.
    pub journal: Option<JournalSummary>,
    /// Blocks of the home that were read and compared with their checksums.
    pub blocks_verified: u64,
    /// Where the home's space is, if that can be told.
    pub space: Option<Space>,
    /// Bytes read from all areas.
    pub read_bytes: u64,
}

impl CheckReport {
    /// Whether everything is as it should be.
    pub fn is_clean(&self) -> bool {
        self.counts
            .keys()
            .all(|kind| kind.severity() == Severity::Notice)
    }
}

impl Inspection {
    /// Reads everything and compares it. With `only`, of the blocks just those of one slice.
    pub async fn check(&self, only: Option<SliceKey>, progress: &dyn Fn(Progress)) -> CheckReport {
        let findings = Findings::default();
        let phase =
            |phase: &'static str, done: u64, all: u64| progress(Progress { phase, done, all });
        phase("headers", 0, 0);
        self.headers.report([&self.journal, &self.facts], &findings);
        self.report_facts(&findings);
        phase("journal", 0, 0);
        let journal = self.journal_image().await;
        if let Some(image) = &journal {
            self.report_journal(image, &findings);
        }
        let mut blocks_verified = 0;
        let mut space = None;
        phase("block map", 0, 0);
        let image = self.home_image().await;
        self.report_manifest(&image, &findings);
        if let Some(home) = &image.home {
            let whole_map = home.check_map(&findings).await && !image.is_map_in_doubt();
            let all = home.usage().occupied_blocks;
            let mut tally = home
                .check_blocks(only, &findings, &|done| phase("blocks", done, all))
                .await;
            blocks_verified = tally.verified;
            let segments = home.usage().segments;
            let complete = whole_map && only.is_none();
            home.check_groups(&mut tally, complete, &findings, &|done| {
                phase("groups", done, segments);
            })
            .await;
            phase("space", 0, 0);
            let counted = only.is_none().then_some(&tally);
            space = Some(home.check_space(whole_map, counted, &findings).await);
        }
        let (findings, counts) = findings.into_parts();
        CheckReport {
            findings,
            counts,
            journal: journal.as_ref().map(JournalSummary::of),
            blocks_verified,
            space,
            read_bytes: self.pace.read_bytes.get(),
        }
    }

    fn report_facts(&self, findings: &Findings) {
        let Some(state) = self.headers.facts() else {
            return;
        };
        let area = crate::facts::AREA;
        for (slice, facts) in state.slices_in(..) {
            if let Some(point) = facts.suspect {
                let what = format!("records above {} may have been lost earlier", point.0);
                let finding = Finding::new(FindingKind::SliceSuspect, area, what);
                findings.add(finding.of(slice, None));
            }
        }
        for removal in state.removals_behind(None).filter(|gone| !gone.cleared) {
            let what = match removal.scope {
                Scope::Volume(volume) => format!("volume {volume} is being removed"),
                Scope::Slice(slice) => format!("slice {slice} is being removed"),
            };
            findings.add(Finding::new(FindingKind::RemovalPending, area, what));
        }
    }

    fn report_journal(&self, image: &JournalImage, findings: &Findings) {
        let area = journal::AREA;
        let JournalImage { header, scanned } = image;
        let file_at = |position: u64| journal::RING_AT + position % header.ring_bytes.max(1);
        let file_bytes = holdfast_runtime::Disk::size_bytes(&self.journal);
        if header.ring_bytes + journal::RING_AT > file_bytes {
            let what = format!(
                "the ring has {} bytes, and the file ends after {file_bytes}",
                header.ring_bytes
            );
            findings.add(Finding::new(FindingKind::AreaForeign, area, what));
        }
        for pair in scanned.batches.windows(2) {
            if pair[1].after_hole {
                let what = format!(
                    "batches {} to {} cannot be read",
                    pair[0].lsn + 1,
                    pair[1].lsn.saturating_sub(1)
                );
                let from = pair[0].end();
                let hole = Finding::new(FindingKind::JournalHole, area, what);
                findings.add(hole.at(file_at(from), pair[1].position.saturating_sub(from)));
            }
        }
        if let Some(first) = scanned.batches.first().filter(|first| first.after_hole) {
            let what = format!("the batches before {} cannot be read", first.lsn);
            let hole = Finding::new(FindingKind::JournalHole, area, what);
            let from = header.tail;
            findings.add(hole.at(file_at(from), first.position.saturating_sub(from)));
        }
        for batch in &scanned.batches {
            for item in batch.items.iter().filter(|item| !item.lost.is_empty()) {
                let what = format!(
                    "record {} in batch {}: {} of its {} blocks",
                    item.seq.0,
                    batch.lsn,
                    item.lost.iter().filter(|lost| **lost).count(),
                    item.blocks
                );
                let finding = Finding::new(FindingKind::JournalRecordDamaged, area, what);
                let first = item.lost.iter().position(|lost| *lost).unwrap_or(0) as u32;
                findings.add(
                    finding
                        .at(file_at(batch.position), batch.end() - batch.position)
                        .of(item.slice, Some(item.first_block + first)),
                );
            }
        }
        if scanned.end == JournalEnd::TornHead {
            let what = format!("batch {} was being written", scanned.next_lsn);
            let torn = Finding::new(FindingKind::JournalTornHead, area, what);
            findings.add(torn.at(file_at(scanned.head), 0));
        }
    }

    fn report_manifest(&self, image: &HomeImage, findings: &Findings) {
        let area = home::AREA;
        if !self.home.exists() {
            let what = "the file is not there";
            return findings.add(Finding::new(FindingKind::AreaMissing, area, what));
        }
        let good = |one: &Superblock| matches!(one, Superblock::Good);
        let any_good = image.manifest.superblocks.iter().any(good);
        for (superblock, number) in image.manifest.superblocks.iter().zip(0..) {
            let (kind, what) = match superblock {
                Superblock::Good => continue,
                Superblock::Bad(_) if !any_good => continue,
                Superblock::Bad(words) => (FindingKind::SuperblockLost, words.clone()),
                Superblock::Refused(error) => (FindingKind::AreaForeign, error.to_string()),
            };
            let what = format!("copy {number} of 2: {what}");
            let at = number * BLOCK_BYTES as u64;
            findings.add(Finding::new(kind, area, what).at(at, BLOCK_BYTES as u64));
        }
        for flaw in &image.manifest.flaws {
            let (kind, what) = words_of(flaw);
            findings.add(Finding::new(kind, area, what));
        }
    }
}

fn words_of(flaw: &Flaw) -> (FindingKind, String) {
    match flaw {
        Flaw::Superblocks { guessed } => {
            let more = match guessed {
                true => "where its parts are was found out otherwise",
                false => "nobody can tell where its parts are",
            };
            let what = format!("neither of the 2 superblocks can be used; {more}");
            (FindingKind::SuperblocksLost, what)
        }
        Flaw::Refused(error) => (FindingKind::AreaForeign, error.to_string()),
        Flaw::NoSnapshot => (
            FindingKind::ManifestSnapshotLost,
            "no snapshot of the manifest can be used".into(),
        ),
        Flaw::NewestSnapshot => (
            FindingKind::ManifestSnapshotLost,
            "the manifest's newest snapshot cannot be used; an older one and the edits since are"
                .into(),
        ),
        Flaw::Gap { after } => (
            FindingKind::ManifestEditsLost,
            format!("edits of the manifest behind number {after} are damaged, later ones follow"),
        ),
        Flaw::Misfit { number } => (
            FindingKind::ManifestEditsLost,
            format!("edit {number} of the manifest does not fit what was before it"),
        ),
        Flaw::Short { number, wanted } => (
            FindingKind::ManifestEditsLost,
            format!("the manifest ends with edit {number}, the journal relies on {wanted}"),
        ),
    }
}

impl JournalSummary {
    fn of(image: &JournalImage) -> Self {
        let JournalImage { header, scanned } = image;
        let mut slices: BTreeMap<SliceKey, SliceRecords> = BTreeMap::new();
        let items = scanned.batches.iter().flat_map(|batch| &batch.items);
        for item in items.filter(|item: &&Item| item.kind.is_stream()) {
            let found = slices.entry(item.slice).or_insert(SliceRecords {
                slice: item.slice,
                records: 0,
                first_seq: item.seq.0,
                last_seq: item.seq.0,
            });
            found.records += 1;
            found.first_seq = found.first_seq.min(item.seq.0);
            found.last_seq = item.seq.0;
        }
        Self {
            ring_bytes: header.ring_bytes,
            used_bytes: scanned.head.saturating_sub(header.tail),
            batches: scanned.batches.len() as u64,
            first_lsn: scanned.batches.first().map(|batch| batch.lsn),
            last_lsn: scanned.batches.last().map(|batch| batch.lsn),
            holes: scanned.holes,
            torn_head: scanned.end == JournalEnd::TornHead,
            slices: slices.into_values().collect(),
        }
    }
}
