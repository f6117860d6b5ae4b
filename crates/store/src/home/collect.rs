//! How space returns: what is still needed of a segment moves, the segment is free.
//!
//! Which segment: the one where cost and benefit promise most, (1 - u) · age / (1 + u) with u
//! the share that is needed (Rosenblum and Ousterhout, 1992). The counts are bounds: facts in
//! tables that are hidden by recent ones still count. When no segment seems worth it, a merge of
//! all tables tells.
//!
//! Tested with the whole store: `tests/home.rs`, and the crash states.

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{DiskError, PAGE_BYTES};

use super::draft::{Draft, Outgoing};
use super::fact::{ExtentKey, Fact, Place, State};
use super::group::{self, At, GroupEntry};
use super::layout::{Kind, Segment};
use super::{Home, matches};

/// Free segments that stay for what makes space.
pub(super) const FREE_MIN: u64 = 3;
/// A segment is not collected for less than this share of it, in percent,
const GAIN_PERCENT_MIN: u64 = 3;
/// nor for fewer pages: headers of new groups take some.
pub(super) const GAIN_PAGES_MIN: u64 = 3;
/// Segments collected in a row without one more being free, before that is given up.
const FRUITLESS_MAX: u32 = 32;

/// Pages of a segment that are emptied in one step: every writer of the home waits for it, and
/// memory holds them twice. Segments of homes up to 16 TiB have no more.
const STEP_PAGES: u32 = 4096;
const _: () = assert!(STEP_PAGES as usize > group::GROUP_PAGES_MAX + 3);

/// A segment that is being collected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victim {
    pub(super) number: u32,
    /// The life of the segment that was chosen.
    epoch: u32,
    /// Page at which the next step begins.
    next: u32,
}

impl Home {
    /// Collects until there is room for so many blocks, and for collecting.
    pub(super) async fn make_room(&self, blocks: u64) -> Result<(), DiskError> {
        let pages = u64::from(self.manifest.geometry.segment_pages);
        let wanted = FREE_MIN + 1 + (blocks + blocks / 64).div_ceil(pages - 2);
        let (mut most, mut fruitless) = (self.free_segments(), 0);
        while self.free_segments() < wanted && fruitless < FRUITLESS_MAX {
            if !self.collect_one().await? {
                break;
            }
            fruitless += 1;
            if self.free_segments() > most {
                (most, fruitless) = (self.free_segments(), 0);
            }
        }
        Ok(())
    }

    /// Takes one step of collecting a segment, if few are free. The caller holds the lock of the
    /// home's writers. Returns whether it did.
    pub(crate) async fn collect_some(&self) -> Result<bool, DiskError> {
        let total = self.usage().segments;
        let plenty = self.free_segments() >= (total / 10).max(FREE_MIN + 3);
        if plenty && !self.bounds.collects_always {
            return Ok(false);
        }
        let Some(victim) = self.collecting.take().or_else(|| self.victim()) else {
            return Ok(false);
        };
        let rest = self.empty_some(victim).await?;
        self.collecting.set(rest);
        Ok(true)
    }

    /// Collects the best segment; looks for hidden garbage first if there is none. Returns
    /// whether anything was gained.
    async fn collect_one(&self) -> Result<bool, DiskError> {
        let before = self.free_segments();
        if let Some(victim) = self.collecting.take().or_else(|| self.victim()) {
            self.empty(victim).await?;
            return Ok(true);
        }
        self.merge_all().await?;
        if let Some(victim) = self.victim() {
            self.empty(victim).await?;
            return Ok(true);
        }
        Ok(self.free_segments() > before)
    }

    /// Collects the segments with blocks that are being filled.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) async fn collect_open(&self) -> Result<(), DiskError> {
        for kind in [Kind::Data, Kind::Cold] {
            if let Some(number) = self.open_segment(kind) {
                let mut draft = Draft::new(self);
                draft.seal(number);
                draft.commit().await?;
                self.empty(self.begin(number)).await?;
            }
        }
        Ok(())
    }

    fn begin(&self, number: u32) -> Victim {
        let segment = self.manifest.with(|layout| layout.segment(number));
        Victim {
            number,
            epoch: segment.epoch,
            next: 0,
        }
    }

    pub(super) fn victim(&self) -> Option<Victim> {
        let whole = self.manifest.geometry.segment_pages;
        let now = self.manifest.number();
        let broken = self.broken.borrow();
        let best = self.manifest.with(|layout| {
            layout.segments.best(
                |number| !broken.contains(&number),
                |segment| benefit(segment, whole, now),
            )
        });
        best.map(|number| self.begin(number))
    }

    /// Moves what is needed of a segment, and frees it.
    async fn empty(&self, victim: Victim) -> Result<(), DiskError> {
        let mut rest = Some(victim);
        while let Some(victim) = rest {
            rest = self.empty_some(victim).await?;
        }
        Ok(())
    }

    /// Moves what is needed of the next [`STEP_PAGES`] of a segment, and frees it after the last
    /// of them. Returns what is left to do.
    async fn empty_some(&self, victim: Victim) -> Result<Option<Victim>, DiskError> {
        let number = victim.number;
        let segment = self.manifest.with(|layout| layout.segment(number));
        // Once nothing is needed of it any more, it is freed at once.
        if segment.kind.is_none() || segment.epoch != victim.epoch {
            return Ok(None);
        }
        if victim.next == 0 {
            reach::note(Row::SegmentCollected);
        }
        let Some((blocks, next)) = self.blocks_from(number, segment, victim.next).await else {
            reach::note(Row::SegmentBroken);
            // Nobody can tell what is in it: it stays as it is, for its blocks may be good.
            tracing::warn!(
                segment = number,
                "a segment cannot be collected: damaged headers"
            );
            self.broken.borrow_mut().insert(number);
            self.damaged.set(true);
            return Ok(None);
        };
        let mut draft = Draft::new(self);
        let rest = (next < segment.used).then_some(Victim { next, ..victim });
        if rest.is_none() {
            draft.free(number);
        }
        self.move_needed(draft, blocks).await?;
        Ok(rest)
    }

    /// Moves those of these blocks that are needed.
    async fn move_needed(
        &self,
        mut draft: Draft<'_>,
        blocks: Vec<(GroupEntry, Place, Bytes)>,
    ) -> Result<(), DiskError> {
        let mut outgoing = Vec::new();
        let mut facts: Vec<(ExtentKey, Fact)> = Vec::new();
        for (entry, place, data) in blocks {
            let newest = self.find(entry.slice, entry.block).await;
            let moves_all = planted::is_active(Bug::MoveReplacedBlocks);
            let is_needed = |fact: &Fact| moves_all || fact.place == place;
            let needed = newest.filter(|fact| fact.state == State::Present && is_needed(fact));
            let Some(mut fact) = needed else {
                continue;
            };
            if moves_all {
                (fact.seq, fact.checksum) = (entry.seq, entry.checksum);
            }
            let key = ExtentKey::of(entry.slice, entry.block);
            if matches(entry.slice, entry.block, fact.checksum, &data) {
                facts.push((key, fact));
                outgoing.push(Outgoing { entry, data });
            } else {
                self.damaged.set(true);
                facts.push((
                    key,
                    Fact {
                        state: State::Unknown,
                        place: Place::default(),
                        ..fact
                    },
                ));
            }
        }
        let mut places = draft.blocks(Kind::Cold, &outgoing)?.into_iter();
        for (_, fact) in facts
            .iter_mut()
            .filter(|(_, fact)| fact.state == State::Present)
        {
            fact.place = places.next().unwrap_or_default();
        }
        self.collected
            .set(self.collected.get() + outgoing.len() as u64);
        self.commit_facts(draft, facts).await
    }

    /// The blocks of the groups that begin at page `first` of a segment and end within
    /// [`STEP_PAGES`], with their places and bytes, and where the next group begins; `None` if a
    /// header is damaged.
    async fn blocks_from(
        &self,
        number: u32,
        segment: Segment,
        first: u32,
    ) -> Option<(Vec<(GroupEntry, Place, Bytes)>, u32)> {
        let end = segment.used.min(first + STEP_PAGES);
        let bytes = Bytes::from(self.read_pages(number, first, end - first).await);
        let mut blocks = Vec::new();
        let mut begin = first;
        while begin < end {
            let at = At {
                segment: number,
                epoch: segment.epoch,
                first: begin,
            };
            let group = bytes.slice((begin - first) as usize * PAGE_BYTES..);
            let Some(entries) = group::decode(self.identity, at, &group) else {
                // Perhaps it is only its end that was not read.
                break;
            };
            let headers = group::header_pages(entries.len());
            let behind = begin + (headers + entries.len()) as u32;
            if entries.is_empty() || behind > end {
                break;
            }
            let pages = group.chunks(PAGE_BYTES).skip(headers);
            let within = begin + headers as u32..behind;
            for ((entry, within), page) in entries.into_iter().zip(within).zip(pages) {
                let place = Place::new(self.page_of(number, within), segment.epoch);
                blocks.push((entry, place, group.slice_ref(page)));
            }
            begin = behind;
        }
        let is_whole = begin == segment.used;
        // A group that does not end here is the first one of the next step: no group takes more.
        let goes_on = end < segment.used && begin > first;
        (is_whole || goes_on).then_some((blocks, begin))
    }

    /// Pages of a segment; those that cannot be read match no checksum.
    async fn read_pages(&self, number: u32, first: u32, pages: u32) -> Vec<u8> {
        const UNREADABLE: u8 = 0xa5;
        let first = self.page_of(number, first);
        if let Ok(whole) = self.read(first, pages).await {
            return whole.to_vec();
        }
        let mut bytes = vec![UNREADABLE; pages as usize * PAGE_BYTES];
        for (page, place) in (first..).zip(bytes.chunks_mut(PAGE_BYTES)) {
            if let Ok(read) = self.read(page, 1).await {
                place.copy_from_slice(&read);
            }
        }
        bytes
    }
}

/// Whether collecting a segment of `whole` pages gains enough if `live` of them are needed.
pub(super) fn is_worthwhile(live: u32, whole: u32) -> bool {
    let gain = u64::from(whole - live.min(whole));
    gain > GAIN_PAGES_MIN.max(u64::from(whole) * GAIN_PERCENT_MIN / 100)
}

/// Benefit over cost, in thousandths.
fn benefit(segment: &Segment, whole: u32, now: u64) -> u64 {
    let live = u64::from(segment.live.min(whole));
    let whole = u64::from(whole);
    let age = now.saturating_sub(segment.written) + 1;
    (1000 * (whole - live)).saturating_mul(age) / (whole + live)
}
