//! Every block in use against the checksum that the map has of it.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::BTreeMap;

use holdfast_runtime::PAGE_BYTES;

use super::super::fact::Fact;
use super::super::group::GroupEntry;
use super::super::{AREA, Home, matches};
use super::{READ_PAGES, present};
use crate::encoding::block_checksum;
use crate::inspect::{Finding, FindingKind, Findings};
use crate::record::SliceKey;

/// Blocks that are read together, in the order of their places.
const BLOCKS_AT_ONCE: usize = 4096;
/// Damaged blocks of which more is found out than that they are damaged.
const EXAMINED_MAX: usize = 4096;
/// Of these the bytes are kept, to find out what they are.
const KEPT_MAX: usize = 256;
/// Checksums calculated to find out what damaged blocks are; some seconds.
const GUESSES_MAX: u64 = 20_000_000;

/// What is in the place of a damaged block.
enum Instead {
    Unreadable(String),
    Zeroes,
    /// Other bytes; `None` if they were too many to keep.
    Bytes(Option<Vec<u8>>),
}

struct Damaged {
    slice: SliceKey,
    block: u32,
    fact: Fact,
    instead: Instead,
    /// What it turned out to be.
    is: Option<GroupEntry>,
}

/// What reading the blocks has shown.
#[derive(Default)]
pub(crate) struct BlockTally {
    /// Blocks in use by segment.
    pub(super) in_use: BTreeMap<u32, u64>,
    /// Damaged ones among them.
    pub(super) damaged: BTreeMap<u32, u64>,
    /// Blocks that take space, lost ones included.
    pub(crate) occupied: u64,
    pub(crate) verified: u64,
    examined: Vec<Damaged>,
    kept: usize,
    guesses: u64,
}

struct Wanted {
    slice: SliceKey,
    block: u32,
    fact: Fact,
}

impl Home {
    /// Reads every block in use, or those of one slice.
    pub(crate) async fn check_blocks(
        &self,
        only: Option<SliceKey>,
        findings: &Findings,
        progress: &dyn Fn(u64),
    ) -> BlockTally {
        let mut tally = BlockTally::default();
        let mut wanted = Vec::new();
        for start in self.parts() {
            for (key, leaf) in self.part(start).await {
                if only.is_some_and(|only| only != key.slice) {
                    continue;
                }
                tally.occupied += leaf.occupied().count();
                for (block, fact) in present(key, &leaf) {
                    let slice = key.slice;
                    if let Some(why) = self.contradiction(fact.place) {
                        let kind = FindingKind::MapContradiction;
                        let what = format!("the map has a block where none can be: {why}");
                        findings.add(Finding::new(kind, AREA, what).of(slice, Some(block)));
                        continue;
                    }
                    wanted.push(Wanted { slice, block, fact });
                }
                if wanted.len() >= BLOCKS_AT_ONCE {
                    self.verify(&mut wanted, &mut tally, findings).await;
                    progress(tally.verified);
                }
            }
        }
        self.verify(&mut wanted, &mut tally, findings).await;
        progress(tally.verified);
        tally
    }

    async fn verify(&self, wanted: &mut Vec<Wanted>, tally: &mut BlockTally, findings: &Findings) {
        wanted.sort_by_key(|one| one.fact.place.page());
        let mut rest = wanted.as_slice();
        while let Some(first) = rest.first() {
            let begin = first.fact.place.page();
            let segment = self.segment_of(begin);
            let near = |one: &&Wanted| {
                one.fact.place.page() - begin < u64::from(READ_PAGES)
                    && self.segment_of(one.fact.place.page()) == segment
            };
            let count = rest.iter().take_while(near).count();
            let (now, later) = rest.split_at(count);
            rest = later;
            let end = now[count - 1].fact.place.page() + 1;
            let within = (begin - self.page_of(segment, 0)) as u32;
            let count = (end - begin) as u32;
            let pages = self.read_or_mark(segment, within, count).await;
            for one in now {
                let page = &pages[(one.fact.place.page() - begin) as usize];
                tally.verified += 1;
                *tally.in_use.entry(segment).or_default() += 1;
                let instead = match page {
                    Ok(bytes) if matches(one.slice, one.block, one.fact.checksum, bytes) => {
                        continue;
                    }
                    Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => Instead::Zeroes,
                    Ok(bytes) => Instead::Bytes(Some(bytes.clone())),
                    Err(error) => Instead::Unreadable(error.clone()),
                };
                *tally.damaged.entry(segment).or_default() += 1;
                tally.note(one, instead, |damaged| findings.add(self.finding(&damaged)));
            }
        }
        wanted.clear();
    }

    fn finding(&self, damaged: &Damaged) -> Finding {
        let newest = damaged.fact.seq.0;
        let (kind, what) = match (&damaged.instead, damaged.is) {
            (Instead::Unreadable(error), _) => (FindingKind::BlockUnreadable, error.clone()),
            (Instead::Zeroes, _) => (
                FindingKind::BlockZeroed,
                format!("zeroes in place of record {newest}'s block"),
            ),
            (Instead::Bytes(_), Some(is))
                if (is.slice, is.block) == (damaged.slice, damaged.block) =>
            {
                (
                    FindingKind::BlockStale,
                    format!("record {}'s block in place of record {newest}'s", is.seq.0),
                )
            }
            (Instead::Bytes(_), Some(is)) => (
                FindingKind::BlockMisdirected,
                format!(
                    "block {} of volume {} slice {} (record {}) in place of record {newest}'s",
                    is.block, is.slice.volume, is.slice.slice, is.seq.0
                ),
            ),
            (Instead::Bytes(bytes), None) => {
                match bytes
                    .as_deref()
                    .and_then(|bytes| self.structure_words(bytes))
                {
                    Some(words) => (
                        FindingKind::BlockMisdirected,
                        format!("{words} in place of record {newest}'s block"),
                    ),
                    None => (
                        FindingKind::BlockDamaged,
                        format!("record {newest}'s block does not match its checksum"),
                    ),
                }
            }
        };
        let at = damaged.fact.place.page() * PAGE_BYTES as u64;
        Finding::new(kind, AREA, what)
            .at(at, PAGE_BYTES as u64)
            .of(damaged.slice, Some(damaged.block))
    }

    /// Reports damaged blocks, but those of segments that are reported as a whole.
    pub(crate) fn report_damaged(
        &self,
        tally: &mut BlockTally,
        is_lost: impl Fn(u32) -> bool,
        findings: &Findings,
    ) {
        for damaged in std::mem::take(&mut tally.examined) {
            if !is_lost(self.segment_of(damaged.fact.place.page())) {
                findings.add(self.finding(&damaged));
            }
        }
    }
}

impl BlockTally {
    fn note(&mut self, one: &Wanted, mut instead: Instead, report: impl Fn(Damaged)) {
        if let Instead::Bytes(bytes) = &mut instead {
            if self.kept >= KEPT_MAX {
                *bytes = None;
            }
            self.kept += 1;
        }
        let damaged = Damaged {
            slice: one.slice,
            block: one.block,
            fact: one.fact,
            instead,
            is: None,
        };
        if self.examined.len() < EXAMINED_MAX {
            self.examined.push(damaged);
        } else {
            report(damaged);
        }
    }

    /// Looks whether damaged blocks are what these entries of a group speak of.
    pub(super) fn compare(&mut self, entries: &[GroupEntry]) {
        for damaged in &mut self.examined {
            let Instead::Bytes(Some(bytes)) = &damaged.instead else {
                continue;
            };
            if damaged.is.is_some() {
                continue;
            }
            for entry in entries {
                if self.guesses >= GUESSES_MAX {
                    return;
                }
                self.guesses += 1;
                if block_checksum(entry.slice, entry.block, bytes) == entry.checksum {
                    damaged.is = Some(*entry);
                    break;
                }
            }
        }
    }

    /// Slices and blocks of a segment that are lost with it, for people.
    pub(super) fn words_of(&self, home: &Home, segment: u32) -> String {
        let mut slices: BTreeMap<SliceKey, u64> = BTreeMap::new();
        for damaged in &self.examined {
            if home.segment_of(damaged.fact.place.page()) == segment {
                *slices.entry(damaged.slice).or_default() += 1;
            }
        }
        let words = slices.iter().take(8).map(|(slice, blocks)| {
            format!("{blocks} of volume {} slice {}", slice.volume, slice.slice)
        });
        words.collect::<Vec<_>>().join(", ")
    }
}
