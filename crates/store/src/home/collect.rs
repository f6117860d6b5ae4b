//! How space returns: what is still needed of a segment moves, the segment is free.
//!
//! Which segment: the one where cost and benefit promise most, (1 - u) · age / (1 + u) with u
//! the share that is needed (Rosenblum and Ousterhout, 1992). The counts are bounds: facts in
//! tables that are hidden by recent ones still count. When no segment seems worth it, a merge of
//! all tables tells.
//!
//! Tested with the whole store: `tests/home.rs`, and the crash states.

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

    /// Collects a segment if few are free. The caller holds the lock of the home's writers.
    /// Returns whether it did.
    pub(crate) async fn collect_some(&self) -> Result<bool, DiskError> {
        let total = self.usage().segments;
        let plenty = self.free_segments() >= (total / 10).max(FREE_MIN + 3);
        if plenty && !self.bounds.collects_always {
            return Ok(false);
        }
        let Some(victim) = self.victim() else {
            return Ok(false);
        };
        self.empty(victim).await?;
        Ok(true)
    }

    /// Collects the best segment; looks for hidden garbage first if there is none. Returns
    /// whether anything was gained.
    async fn collect_one(&self) -> Result<bool, DiskError> {
        let before = self.free_segments();
        if let Some(victim) = self.victim() {
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
                if self
                    .manifest
                    .with(|layout| layout.segment(number).kind.is_some())
                {
                    self.empty(number).await?;
                }
            }
        }
        Ok(())
    }

    fn victim(&self) -> Option<u32> {
        let whole = self.manifest.geometry.segment_pages;
        let now = self.manifest.number();
        let broken = self.broken.borrow();
        self.manifest.with(|layout| {
            let candidates = layout
                .segments
                .iter()
                .zip(0u32..)
                .filter(|(segment, number)| {
                    let blocks = match segment.kind {
                        Some(Kind::Data | Kind::Cold) => segment.sealed,
                        Some(Kind::Map) | None => false,
                    };
                    let gain = u64::from(whole - segment.live.min(whole));
                    let least = GAIN_PAGES_MIN.max(u64::from(whole) * GAIN_PERCENT_MIN / 100);
                    blocks && !broken.contains(number) && gain > least
                });
            candidates
                .max_by_key(|(segment, number)| {
                    (benefit(segment, whole, now), std::cmp::Reverse(*number))
                })
                .map(|(_, number)| number)
        })
    }

    /// Moves what is needed of a segment, and frees it.
    async fn empty(&self, number: u32) -> Result<(), DiskError> {
        reach::note(Row::SegmentCollected);
        let segment = self.manifest.with(|layout| layout.segment(number));
        let Some(groups) = self.groups_of(number, segment).await else {
            reach::note(Row::SegmentBroken);
            // Nobody can tell what is in it: it stays as it is, for its blocks may be good.
            tracing::warn!(
                segment = number,
                "a segment cannot be collected: damaged headers"
            );
            self.broken.borrow_mut().insert(number);
            self.damaged.set(true);
            return Ok(());
        };
        let mut outgoing = Vec::new();
        let mut facts: Vec<(ExtentKey, Fact)> = Vec::new();
        for (entry, place, data) in groups {
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
        let mut draft = Draft::new(self);
        draft.free(number);
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

    /// The blocks of a segment by their groups' headers, with their places and bytes; `None` if
    /// a header is damaged.
    pub(super) async fn groups_of(
        &self,
        number: u32,
        segment: Segment,
    ) -> Option<Vec<(GroupEntry, Place, bytes::Bytes)>> {
        let bytes = bytes::Bytes::from(self.read_pages(number, segment.used).await);
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < segment.used {
            let at = At {
                segment: number,
                epoch: segment.epoch,
                first,
            };
            let entries = group::decode(self.identity, at, &bytes[first as usize * PAGE_BYTES..])?;
            let mut within = first + group::header_pages(entries.len()) as u32;
            for entry in entries {
                let start = within as usize * PAGE_BYTES;
                if start + PAGE_BYTES > bytes.len() {
                    return None;
                }
                let place = Place {
                    page: self.page_of(number, within),
                    epoch: segment.epoch,
                };
                blocks.push((entry, place, bytes.slice(start..start + PAGE_BYTES)));
                within += 1;
            }
            if within == first {
                return None;
            }
            first = within;
        }
        Some(blocks)
    }

    /// The first pages of a segment; those that cannot be read match no checksum.
    async fn read_pages(&self, number: u32, pages: u32) -> Vec<u8> {
        const UNREADABLE: u8 = 0xa5;
        let first = self.page_of(number, 0);
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

/// Benefit over cost, in thousandths.
fn benefit(segment: &Segment, whole: u32, now: u64) -> u64 {
    let live = u64::from(segment.live.min(whole));
    let whole = u64::from(whole);
    let age = now.saturating_sub(segment.written) + 1;
    (1000 * (whole - live)).saturating_mul(age) / (whole + live)
}
