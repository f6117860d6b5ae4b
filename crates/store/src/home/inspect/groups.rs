//! The groups that blocks lie in: what collecting a segment relies on.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::collections::BTreeSet;

use holdfast_runtime::PAGE_BYTES;

use super::super::fact::{Place, State};
use super::super::group::{self, At, GroupEntry};
use super::super::layout::{Kind, Segment};
use super::super::{AREA, Home};
use super::BlockTally;
use crate::inspect::{Finding, FindingKind, Findings};

/// Pages of the longest header.
const HEADER_PAGES_MAX: u32 = 3;
const _: () = assert!(64 + 32 * group::GROUP_PAGES_MAX <= HEADER_PAGES_MAX as usize * PAGE_BYTES);

/// What walking through a segment meets.
pub(super) enum Step {
    Group(At, Vec<GroupEntry>),
    /// Pages from here on that are no group, as many as follow each other, and what the first is.
    Lost {
        first: u32,
        pages: u32,
        words: String,
    },
}

impl Home {
    /// Every group header of every segment in use. Reports segments of which nothing is left,
    /// and damaged blocks.
    pub(crate) async fn check_groups(
        &self,
        tally: &mut BlockTally,
        whole_map: bool,
        findings: &Findings,
        progress: &dyn Fn(u64),
    ) {
        let segments = self
            .manifest
            .with(|layout| layout.segments.ever_used().to_vec());
        let mut lost = BTreeSet::new();
        for (segment, number) in segments.iter().zip(0..self.segment_count()) {
            match segment.kind {
                Some(Kind::Data | Kind::Cold) => {}
                Some(Kind::Map) | None => continue,
            }
            progress(u64::from(number));
            if self
                .check_segment(number, segment, tally, whole_map, findings)
                .await
            {
                lost.insert(number);
            }
        }
        self.report_damaged(tally, |number| lost.contains(&number), findings);
    }

    /// Returns whether nothing of the segment can be used.
    async fn check_segment(
        &self,
        number: u32,
        segment: &Segment,
        tally: &mut BlockTally,
        whole_map: bool,
        findings: &Findings,
    ) -> bool {
        let mut groups = 0;
        let mut described = 0;
        let mut headers = Vec::new();
        let mut first = 0;
        while let Some((step, next)) = self.step(number, segment, first).await {
            first = next;
            match step {
                Step::Group(at, entries) => {
                    groups += 1;
                    tally.compare(&entries);
                    described += self.described(at, &entries).await;
                }
                Step::Lost {
                    first,
                    pages,
                    words,
                } => headers.push((first, pages, words)),
            }
        }
        let in_use = tally.in_use.get(&number).copied().unwrap_or(0);
        let damaged = tally.damaged.get(&number).copied().unwrap_or(0);
        let at = self.byte_at(number, 0);
        if groups == 0 && !headers.is_empty() && in_use > 0 && damaged == in_use {
            let blocks = tally.words_of(self, number);
            let what = format!("nothing of segment {number} is left: {damaged} blocks ({blocks})");
            let length = self.manifest.geometry.segment_bytes();
            findings.add(Finding::new(FindingKind::SegmentLost, AREA, what).at(at, length));
            return true;
        }
        let any_lost = !headers.is_empty();
        for (first, pages, words) in headers {
            let what = format!("the header at page {first} of segment {number}: there is {words}");
            let at = self.byte_at(number, first);
            let length = u64::from(pages) * PAGE_BYTES as u64;
            findings.add(Finding::new(FindingKind::GroupHeaderLost, AREA, what).at(at, length));
        }
        if !any_lost && whole_map && described < in_use {
            let what = format!("{} blocks of segment {number}", in_use - described);
            let length = self.manifest.geometry.segment_bytes();
            findings.add(Finding::new(FindingKind::BlocksUndescribed, AREA, what).at(at, length));
        }
        false
    }

    /// How many entries of a group the map has at just this place.
    async fn described(&self, at: At, entries: &[GroupEntry]) -> u64 {
        let mut described = 0;
        let data = at.first + group::header_pages(entries.len()) as u32;
        for (entry, page) in entries.iter().zip(data..) {
            let place = Place::new(self.page_of(at.segment, page), at.epoch);
            let fact = self.find(entry.slice, entry.block).await;
            let here = fact.is_some_and(|fact| {
                fact.state == State::Present && fact.place == place && fact.seq == entry.seq
            });
            described += u64::from(here);
        }
        described
    }

    /// What is at page `first` of a segment, and where to go on.
    pub(super) async fn step(
        &self,
        number: u32,
        segment: &Segment,
        first: u32,
    ) -> Option<(Step, u32)> {
        if first >= segment.used {
            return None;
        }
        let epoch = segment.epoch;
        let here = self.group_at(number, first, segment.used).await;
        if let Ok((at, entries)) = here
            && (at.segment, at.epoch, at.first) == (number, epoch, first)
        {
            let length = group::header_pages(entries.len()) as u32 + entries.len() as u32;
            if !entries.is_empty() {
                return Some((Step::Group(at, entries), first + length));
            }
        }
        let words = match self.read(self.page_of(number, first), 1).await {
            Ok(page) => self.page_words(&page),
            Err(error) => error.to_string(),
        };
        // The next page that is the group that should be there.
        let mut next = first + 1;
        while next < segment.used {
            if let Ok((at, _)) = self.group_at(number, next, segment.used).await
                && (at.segment, at.epoch, at.first) == (number, epoch, next)
            {
                break;
            }
            next += 1;
        }
        let lost = Step::Lost {
            first,
            pages: next - first,
            words,
        };
        Some((lost, next))
    }

    /// The group whose header begins at a page, wherever it says that it belongs.
    pub(super) async fn group_at(
        &self,
        number: u32,
        page: u32,
        end: u32,
    ) -> Result<(At, Vec<GroupEntry>), ()> {
        let start = self.page_of(number, page);
        let first = self.read(start, 1).await.map_err(drop)?;
        if !group::is_header(&first) {
            return Err(());
        }
        if let Some(found) = group::decode_any(self.identity, &first) {
            return Ok(found);
        }
        let pages = (end - page).min(HEADER_PAGES_MAX);
        let header = self.read(start, pages).await.map_err(drop)?;
        group::decode_any(self.identity, &header).ok_or(())
    }
}
