//! The home: where destaged blocks live, in segments that are only ever filled from the front.
//!
//! ```text
//! home     = manifest | segment, segment, ...
//! segment  = group, group, ...   blocks, each group with a header that says what they are
//!          | map pages           deltas and tables of the block map
//! ```
//!
//! Promises:
//! * what memory says of the home is durable: it changes after the edit of the manifest, never
//!   before;
//! * nothing is overwritten that anything durable refers to, so a crash at any point leaves the
//!   state before or after;
//! * a lower sequence number never replaces a higher one (the caller compares, under the lock
//!   that serialises all writers of the home);
//! * what was promised room by [`Home::reserve`] finds it.
//!
//! [Where blocks are](map), [what segments are](layout), [how that is kept](manifest),
//! [how changes are made](draft), [how tables come about](merge), [how space returns](collect),
//! [and where to](discard).
//!
//! Tested with the whole store: `tests/home.rs`.

mod ahead;
#[cfg(any(test, feature = "testing"))]
mod audit;
mod collect;
mod discard;
mod draft;
pub(crate) mod fact;
mod geometry;
mod group;
pub(crate) mod inspect;
mod layout;
mod leaves;
mod load;
mod manifest;
mod map;
mod merge;
#[cfg(any(test, feature = "testing"))]
mod probe;
mod region;
mod run;
mod segments;
mod snapshot;
mod space;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Buffer, Disk, DiskError, PAGE_BYTES};
use tokio::sync::Notify;

use self::ahead::Ahead;
use self::discard::GivenBack;
use self::draft::{Draft, Outgoing};
use self::fact::{ExtentKey, Fact, Leaf, Place, State};
pub use self::geometry::HOME_BYTES_MAX;
use self::group::GroupEntry;
use self::layout::{Change, Delta, Kind, Segment};
use self::leaves::LeafCache;
use self::manifest::Manifest;
pub use self::manifest::home_owner;
use self::map::Map;
use self::run::Stream;
use crate::bounds::StoreBounds;
use crate::encoding::block_checksum;
use crate::record::{Seq, SliceKey, View};

/// Name of the area.
pub(crate) const AREA: &str = "home";
/// Smallest area that can work, in bytes.
pub const HOME_BYTES_MIN: u64 = 4 << 20;

/// Formats of manifest, groups and runs.
#[cfg(any(test, feature = "testing"))]
pub(crate) const VERSIONS: [u32; 3] = [geometry::VERSION, group::VERSION, run::VERSION];

/// Blocks that one edit brings in: 16 MiB, which are copied into groups on the way.
const ARRIVALS_AT_ONCE: usize = 4096;

/// How often a read is tried.
const READ_TRIES: u32 = 5;

/// One block on its way into the home.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) slice: SliceKey,
    pub(crate) block: u32,
    pub(crate) seq: Seq,
    pub(crate) view: View,
    pub(crate) state: State,
    pub(crate) checksum: u64,
    /// The bytes of a [`State::Present`] block.
    pub(crate) data: Bytes,
}

/// The home and its map.
pub(crate) struct Home {
    disk: Rc<dyn Disk>,
    identity: [u8; 16],
    bounds: StoreBounds,
    manifest: Manifest,
    map: RefCell<Map>,
    cache: RefCell<LeafCache>,
    ahead: RefCell<Ahead>,
    /// Where the next step of a merge begins; `None` while none is under way.
    merging: Cell<Option<merge::Pass>>,
    /// Something that should be readable was not.
    damaged: Cell<bool>,
    /// Segments that cannot be collected, because their headers are damaged.
    broken: RefCell<BTreeSet<u32>>,
    /// What is being collected.
    collecting: Cell<Option<collect::Victim>>,
    /// Blocks moved by collections since the start.
    collected: Cell<u64>,
    given_back: GivenBack,
    /// There is something to give back.
    freed: Notify,
}

impl Home {
    /// The fact about a block, for this block alone; `None` if it was never written. What cannot
    /// be told is [`Fact::lost`].
    pub(crate) async fn find(&self, slice: SliceKey, block: u32) -> Option<Fact> {
        let key = ExtentKey::of(slice, block);
        let within = (block % fact::EXTENT_BLOCKS) as u8;
        loop {
            let (start, table) = {
                let map = self.map.borrow();
                if let Some(fact) = map.recent(key, within) {
                    return Some(fact);
                }
                map.table_of(key)?
            };
            if let Some(leaf) = self.table_leaf(start, &table, key).await {
                return leaf?.get(within);
            }
        }
    }

    /// The facts about neighbouring blocks, as they were at one moment for each extent.
    pub(crate) async fn find_all(
        &self,
        slice: SliceKey,
        first_block: u32,
        blocks: u32,
    ) -> Vec<Option<Fact>> {
        let end = first_block + blocks;
        let mut found = Vec::with_capacity(blocks as usize);
        let mut block = first_block;
        while block < end {
            let key = ExtentKey::of(slice, block);
            let last = end.min((key.extent + 1) * fact::EXTENT_BLOCKS);
            let within = (block..last).map(|block| (block % fact::EXTENT_BLOCKS) as u8);
            loop {
                let begin = found.len();
                let table = {
                    let map = self.map.borrow();
                    let recent = map.recent_leaf(key);
                    found.extend(within.clone().map(|block| recent?.get(block)));
                    map.table_of(key)
                };
                let complete = found[begin..].iter().all(Option::is_some);
                let Some((start, table)) = table.filter(|_| !complete) else {
                    break;
                };
                let Some(leaf) = self.table_leaf(start, &table, key).await else {
                    found.truncate(begin);
                    continue;
                };
                if let Some(leaf) = leaf {
                    for (place, block) in found[begin..].iter_mut().zip(within) {
                        *place = place.or_else(|| leaf.get(block));
                    }
                }
                break;
            }
            block = last;
        }
        found
    }

    /// The first extent at or after `from` of which anything is known.
    pub(crate) fn extent_from(&self, from: ExtentKey) -> Option<ExtentKey> {
        self.map.borrow().extent_from(from)
    }

    /// Reads pages of a run; `None` if one of them cannot be read.
    async fn read_run(&self, extents: &[(u32, u32, u32)]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (segment, first, count) in extents {
            let page = self.page_of(*segment, *first);
            let read = self.read(page, *count).await.ok()?;
            bytes.extend_from_slice(&read);
        }
        Some(bytes)
    }

    /// Reads `pages` neighbouring pages of the area, unverified. What fails is tried again: an
    /// error that passes is no damage, and must not be taken for it by what reads to move.
    pub(crate) async fn read(&self, page: u64, pages: u32) -> Result<Buffer, DiskError> {
        let offset = page * PAGE_BYTES as u64;
        let mut tries = 0;
        loop {
            let read = self.disk.read(offset, pages as usize * PAGE_BYTES).await;
            tries += 1;
            if read.is_ok() || tries == READ_TRIES {
                return read;
            }
            reach::note(Row::HomeReadAgain);
        }
    }

    /// Extents of a slice from `from` on whose facts may tell of a change after `after`.
    pub(crate) fn changed_extents(&self, slice: SliceKey, from: u32, after: Seq) -> BTreeSet<u32> {
        self.map.borrow().changed_extents(slice, from, after)
    }

    /// Slices of which the home holds anything.
    pub(crate) fn slices(&self) -> BTreeSet<SliceKey> {
        self.map.borrow().slices()
    }

    /// Blocks of a slice that take space, or will once the journal is emptied.
    pub(crate) fn claimed_blocks(&self, slice: SliceKey) -> u64 {
        self.map.borrow().claimed_of(slice)
    }

    /// Slices from one on of which the home holds anything, ascending: one look-up for each.
    pub(crate) fn slices_from(&self, first: SliceKey) -> impl Iterator<Item = SliceKey> + '_ {
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let from = ExtentKey::first_of(next?);
            let found = self.map.borrow().extent_from(from)?.slice;
            next = found.next();
            Some(found)
        })
    }

    /// Whether reads have met something of the map that was damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.get()
    }

    /// What was damaged is not any more.
    pub(crate) fn note_sound(&self) {
        self.damaged.set(false);
    }

    /// Makes all arrivals durable, then visible. The caller holds the lock of the home's
    /// writers and passes only arrivals that are not older than what they meet, in order.
    pub(crate) async fn install(&self, arrivals: &[Arrival]) -> Result<(), DiskError> {
        for arrivals in arrivals.chunks(ARRIVALS_AT_ONCE) {
            self.install_some(arrivals).await?;
        }
        Ok(())
    }

    async fn install_some(&self, arrivals: &[Arrival]) -> Result<(), DiskError> {
        let present = arrivals.iter().filter(|one| one.state == State::Present);
        self.make_room(present.clone().count() as u64).await?;
        let outgoing: Vec<Outgoing> = present
            .map(|arrival| Outgoing {
                entry: GroupEntry {
                    slice: arrival.slice,
                    block: arrival.block,
                    seq: arrival.seq,
                    checksum: arrival.checksum,
                },
                data: arrival.data.clone(),
            })
            .collect();
        let mut draft = Draft::new(self);
        let places = draft.blocks(Kind::Data, &outgoing)?;
        let mut places = places.into_iter();
        let facts = arrivals.iter().map(|arrival| {
            let place = match arrival.state {
                State::Present => places.next().unwrap_or_default(),
                State::Zero | State::Unknown => Place::default(),
            };
            let fact = Fact {
                block: (arrival.block % fact::EXTENT_BLOCKS) as u8,
                more: 0,
                state: arrival.state,
                seq: arrival.seq,
                view: arrival.view,
                checksum: arrival.checksum,
                place,
            };
            (ExtentKey::of(arrival.slice, arrival.block), fact)
        });
        let facts = facts.collect();
        self.commit_facts(draft, facts).await
    }

    /// Commits a draft whose blocks these facts are about: a delta makes them durable.
    async fn commit_facts(
        &self,
        mut draft: Draft<'_>,
        facts: Vec<(ExtentKey, Fact)>,
    ) -> Result<(), DiskError> {
        let mut leaves: BTreeMap<ExtentKey, Leaf> = BTreeMap::new();
        for (key, fact) in &facts {
            leaves.entry(*key).or_default().lay(*fact, |_| {});
        }
        // What is displaced among the recent facts is found by laying over a copy of each leaf.
        {
            let map = self.map.borrow();
            for (key, new) in &leaves {
                let mut leaf = map.recent_leaf(*key).cloned().unwrap_or_default();
                for fact in new.facts() {
                    leaf.lay(*fact, |gone| forget(&mut draft, gone));
                }
            }
        }
        self.add_delta(&mut draft, &leaves)?;
        draft.commit().await?;
        let mut map = self.map.borrow_mut();
        for (key, leaf) in &leaves {
            for fact in leaf.facts() {
                map.lay(*key, *fact, |_| {});
            }
        }
        Ok(())
    }

    /// Adds a delta of these leaves to a draft.
    fn add_delta(
        &self,
        draft: &mut Draft<'_>,
        leaves: &BTreeMap<ExtentKey, Leaf>,
    ) -> Result<(), DiskError> {
        let mut stream = Stream::default();
        for (key, leaf) in leaves {
            stream.push(*key, leaf);
        }
        if stream.is_empty() {
            return Ok(());
        }
        let run = self.manifest.with(|layout| layout.next_run);
        let pieces = draft.run_pages(&stream.pages(self.identity, run))?;
        draft.change(Change::DeltaAdded(Delta {
            run,
            pieces,
            leaves: stream.places.len() as u32,
            slices: stream.slices(),
        }));
        Ok(())
    }

    /// Where in the area the bytes of a block lie.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) async fn byte_of(&self, slice: SliceKey, block: u32) -> Option<u64> {
        let fact = self.find(slice, block).await?;
        (fact.state == State::Present).then(|| fact.place.page() * PAGE_BYTES as u64)
    }

    /// Where in the area pages of deltas, leaves and directories lie.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn map_bytes(&self) -> [Vec<u64>; 3] {
        let pages = |pieces: &[layout::Piece], from: u32, to: u32| -> Vec<u64> {
            let runs = map::pages_of(pieces, from, to - from);
            let pages = runs.into_iter().flat_map(|(segment, first, count)| {
                (first..first + count).map(move |page| (segment, page))
            });
            pages
                .map(|(segment, page)| self.byte_at(segment, page))
                .collect()
        };
        let length = |pieces: &[layout::Piece]| pieces.iter().map(|piece| piece.pages).sum();
        self.manifest.with(|layout| {
            let deltas = layout.deltas.iter();
            let tables = layout.tables.values();
            [
                deltas
                    .flat_map(|delta| pages(&delta.pieces, 0, length(&delta.pieces)))
                    .collect(),
                tables
                    .clone()
                    .flat_map(|table| pages(&table.pieces, 0, table.leaf_pages))
                    .collect(),
                tables
                    .flat_map(|table| pages(&table.pieces, table.leaf_pages, length(&table.pieces)))
                    .collect(),
            ]
        })
    }

    /// The area's page that is page `within` of a segment.
    fn page_of(&self, segment: u32, within: u32) -> u64 {
        let geometry = self.manifest.geometry;
        let first = geometry.segments_at / PAGE_BYTES as u64;
        first + u64::from(segment) * u64::from(geometry.segment_pages) + u64::from(within)
    }

    /// Byte of the area at which page `within` of a segment begins.
    fn byte_at(&self, segment: u32, within: u32) -> u64 {
        self.page_of(segment, within) * PAGE_BYTES as u64
    }

    /// The segment that a page of the area is in. Of a page that no segment has, as a damaged
    /// fact may name it, the last number there is.
    fn segment_of(&self, page: u64) -> u32 {
        let geometry = self.manifest.geometry;
        let first = geometry.segments_at / PAGE_BYTES as u64;
        let number = page.saturating_sub(first) / u64::from(geometry.segment_pages);
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// The segment of this kind that is being filled.
    fn open_segment(&self, kind: Kind) -> Option<u32> {
        self.manifest.with(|layout| layout.segments.open(kind))
    }

    /// The first segment that is free and not in `touched`.
    fn free_segment(&self, touched: &BTreeMap<u32, Segment>) -> Option<u32> {
        let usable = self.manifest.geometry.segments_in(self.disk.size_bytes());
        let is_touched = |number| touched.contains_key(&number);
        let first = self
            .manifest
            .with(|layout| layout.segments.first_free(is_touched));
        (first < usable).then_some(first)
    }
}

/// A fact that is displaced gives up its place.
fn forget(draft: &mut Draft<'_>, fact: &Fact) {
    match fact.state {
        State::Present => draft.forget(fact.place),
        State::Zero | State::Unknown => {}
    }
}

/// Whether `bytes` are those of a block with this checksum.
pub(crate) fn matches(slice: SliceKey, block: u32, checksum: u64, bytes: &[u8]) -> bool {
    block_checksum(slice, block, bytes) == checksum || planted::is_active(Bug::TrustBytes)
}
