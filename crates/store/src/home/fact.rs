//! What the block map says of blocks: facts, and leaves of facts.
//!
//! A *fact* tells of one block (or, for zeroes, of neighbouring ones) which record wrote it last
//! and where its bytes are. A *leaf* holds the facts of one extent of 256 blocks: sorted, never
//! overlapping, zeroes of one record merged.
//!
//! On disk a fact takes 48 bytes. Fields for layers (snapshots) and for units of several blocks
//! (compression) are there and zero, so that neither needs another format.

use std::fmt;

use holdfast_runtime::planted::{self, Bug};
use holdfast_wire::{Seq, SliceKey, View};

use crate::encoding::{FieldReader, FieldWriter};

/// Blocks of one extent.
pub(crate) const EXTENT_BLOCKS: u32 = 256;
/// Bytes of one fact on disk.
pub(super) const FACT_BYTES: usize = 48;

/// Which extent: the map's key, in the order of the map.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub(crate) struct ExtentKey {
    pub(crate) slice: SliceKey,
    pub(crate) extent: u32,
}

impl ExtentKey {
    /// The extent that a block lies in.
    pub(crate) fn of(slice: SliceKey, block: u32) -> Self {
        Self {
            slice,
            extent: block / EXTENT_BLOCKS,
        }
    }

    /// The first key of a slice.
    pub(crate) fn first_of(slice: SliceKey) -> Self {
        Self { slice, extent: 0 }
    }

    /// The first key behind all of a slice; `None` if there is none.
    pub(crate) fn first_behind(slice: SliceKey) -> Option<Self> {
        slice.next().map(Self::first_of)
    }

    /// The lowest key there is.
    pub(crate) const LOWEST: Self = Self {
        slice: SliceKey {
            volume: 0,
            slice: 0,
        },
        extent: 0,
    };
}

/// What is in a block's place in the home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The fact's place holds bytes with the fact's checksum.
    Present,
    /// Reads zero.
    Zero,
    /// Damage: neither zero nor anything older may be read here.
    Unknown,
}

/// Where the bytes of a block are: a page of the area, in one life of its segment. A segment
/// that is used again gets a new epoch, so an old place is recognised.
///
/// Memory holds the page in 48 bits, so that a [`Fact`] stays as small as it is with 32.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    epoch: u32,
    page_low: u32,
    page_high: u16,
}

impl Place {
    /// Pages have numbers below this one.
    const PAGES: u64 = 1 << 48;

    /// # Panics
    ///
    /// If an area cannot have such a page.
    pub(super) fn new(page: u64, epoch: u32) -> Self {
        let page = match planted::is_active(Bug::TruncatePages) {
            true => page % (1 << 32),
            false => page,
        };
        Self::decoded(page, epoch).expect("a page within the largest area")
    }

    /// `None` if an area cannot have such a page.
    fn decoded(page: u64, epoch: u32) -> Option<Self> {
        (page < Self::PAGES).then_some(Self {
            epoch,
            page_low: page as u32,
            page_high: (page >> 32) as u16,
        })
    }

    pub(crate) fn page(self) -> u64 {
        u64::from(self.page_high) << 32 | u64::from(self.page_low)
    }

    pub(crate) fn epoch(self) -> u32 {
        self.epoch
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "page {} in life {}", self.page(), self.epoch)
    }
}

/// What is known of one block, or of neighbouring zero blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    /// Within the extent.
    pub(crate) block: u8,
    /// How many more blocks it speaks of; only zeroes have any.
    pub(crate) more: u8,
    pub(crate) state: State,
    pub(crate) seq: Seq,
    pub(crate) view: View,
    pub(crate) checksum: u64,
    pub(crate) place: Place,
}

/// A volume in use has one for each block in the cache of leaves.
const _: () = assert!(size_of::<Fact>() == 40);

impl Fact {
    /// What stood here is lost, its sequence number included.
    pub(crate) fn lost(block: u8) -> Self {
        Self {
            block,
            more: 0,
            state: State::Unknown,
            seq: Seq(0),
            view: View(0),
            checksum: 0,
            place: Place::default(),
        }
    }

    /// Whether what stood here is lost so far that not even its age is known.
    pub(crate) fn is_lost(&self) -> bool {
        self.state == State::Unknown && self.seq == Seq(0)
    }

    fn last(&self) -> u8 {
        self.block + self.more
    }

    fn covers(&self, block: u8) -> bool {
        (self.block..=self.last()).contains(&block)
    }

    /// This fact for one of its blocks.
    fn at(&self, block: u8) -> Self {
        Self {
            block,
            more: 0,
            ..*self
        }
    }

    fn continues(&self, earlier: &Self) -> bool {
        self.state == State::Zero
            && earlier.state == State::Zero
            && (self.seq, self.view) == (earlier.seq, earlier.view)
            && u16::from(earlier.last()) + 1 == u16::from(self.block)
    }

    pub(super) fn encode(&self, writer: &mut FieldWriter) {
        let state = match self.state {
            State::Present => 1,
            State::Zero => 2,
            State::Unknown => 3,
        };
        writer.raw(&[self.block, self.more, state, 0]);
        writer.u32(0); // layer
        writer.u64(self.seq.0);
        writer.u64(self.view.0);
        writer.u64(self.checksum);
        // In sectors of 512 bytes, so that compressed units can begin at any of them.
        writer.u64(self.place.page() * SECTORS_PER_PAGE);
        writer.u32(self.place.epoch());
        writer.u32(0); // length of the unit and index in it
    }

    pub(super) fn decode(reader: &mut FieldReader<'_>) -> Option<Self> {
        let [block, more, state, _flags] = reader.array()?;
        let _layer = reader.u32()?;
        let (seq, view) = (Seq(reader.u64()?), View(reader.u64()?));
        let checksum = reader.u64()?;
        let page = reader.u64()? / SECTORS_PER_PAGE;
        let place = Place::decoded(page, reader.u32()?)?;
        let _unit = reader.u32()?;
        let state = match state {
            1 => State::Present,
            2 => State::Zero,
            3 => State::Unknown,
            _ => return None,
        };
        block.checked_add(more)?;
        Some(Self {
            block,
            more,
            state,
            seq,
            view,
            checksum,
            place,
        })
    }
}

const SECTORS_PER_PAGE: u64 = 8;

/// Which blocks of an extent: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Blocks([u64; 4]);

impl Blocks {
    pub(crate) fn contains(&self, block: u8) -> bool {
        self.0[usize::from(block / 64)] & (1 << (block % 64)) != 0
    }

    pub(crate) fn set(&mut self, block: u8, is_in: bool) {
        let bit = 1 << (block % 64);
        let word = &mut self.0[usize::from(block / 64)];
        *word = if is_in { *word | bit } else { *word & !bit };
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(super) fn words(&self) -> [u64; 4] {
        self.0
    }

    pub(super) fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }
}

/// The facts of one extent, by block.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Leaf {
    facts: Vec<Fact>,
}

impl Leaf {
    /// A leaf of which nothing is known any more.
    pub(crate) fn lost() -> Self {
        let facts = (0..=u8::MAX).map(Fact::lost).collect();
        Self { facts }
    }

    /// Sorted facts that do not overlap; `None` if these are not.
    pub(super) fn from_facts(facts: Vec<Fact>) -> Option<Self> {
        let sorted = facts.windows(2).all(|pair| pair[0].last() < pair[1].block);
        let single = |fact: &Fact| fact.more == 0 || fact.state == State::Zero;
        (sorted && facts.iter().all(single)).then_some(Self { facts })
    }

    pub(crate) fn facts(&self) -> &[Fact] {
        &self.facts
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// The fact about a block, for this block alone.
    ///
    /// A volume that is in use has leaves with a fact for each block, and these are too many for
    /// the processor's cache: one look at the right place is several times cheaper than a search.
    pub(crate) fn get(&self, block: u8) -> Option<Fact> {
        let dense = self.facts.get(usize::from(block));
        if let Some(fact) = dense.filter(|fact| fact.block == block) {
            return Some(fact.at(block));
        }
        let after = self.facts.partition_point(|fact| fact.block <= block);
        let fact = self.facts.get(after.checked_sub(1)?)?;
        fact.covers(block).then(|| fact.at(block))
    }

    /// Puts a fact over whatever the leaf says of its blocks; what is displaced goes to `gone`.
    pub(crate) fn lay(&mut self, new: Fact, mut gone: impl FnMut(&Fact)) {
        let from = self.facts.partition_point(|fact| fact.last() < new.block);
        let to = self.facts.partition_point(|fact| fact.block <= new.last());
        let mut put = Vec::with_capacity(3);
        for old in &self.facts[from..to.max(from)] {
            if old.block < new.block {
                put.push(Fact {
                    more: new.block - 1 - old.block,
                    ..*old
                });
            }
            gone(old);
        }
        put.push(new);
        if let Some(old) = self.facts[from..to.max(from)].last()
            && old.last() > new.last()
        {
            put.push(Fact {
                block: new.last() + 1,
                more: old.last() - new.last() - 1,
                ..*old
            });
        }
        let end = from + put.len();
        self.facts.splice(from..to.max(from), put);
        for place in (from.max(1)..(end + 1).min(self.facts.len())).rev() {
            if self.facts[place].continues(&self.facts[place - 1]) {
                self.facts[place - 1].more += 1 + self.facts[place].more;
                self.facts.remove(place);
            }
        }
    }

    /// Blocks that take space: present ones, and those of which nobody knows.
    pub(crate) fn occupied(&self) -> Blocks {
        let mut blocks = Blocks::default();
        for fact in &self.facts {
            match fact.state {
                State::Present | State::Unknown => blocks.set(fact.block, true),
                State::Zero => {}
            }
        }
        blocks
    }

    /// The highest sequence number; the highest of all if some fact is lost, so that a question
    /// for changes always looks here.
    pub(super) fn seq_max(&self) -> Seq {
        let seq = |fact: &Fact| match fact.state {
            State::Unknown => Seq(u64::MAX),
            State::Present | State::Zero => fact.seq,
        };
        self.facts.iter().map(seq).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zero(block: u8, more: u8, seq: u64) -> Fact {
        Fact {
            block,
            more,
            state: State::Zero,
            seq: Seq(seq),
            ..Fact::lost(0)
        }
    }

    fn present(block: u8, seq: u64) -> Fact {
        Fact {
            more: 0,
            state: State::Present,
            ..zero(block, 0, seq)
        }
    }

    #[test]
    fn a_leaf_is_what_its_last_facts_say() {
        // Every pair and many triples of overlapping spans against an array of 256 answers.
        let spans = [
            (0, 255),
            (0, 0),
            (3, 10),
            (5, 0),
            (10, 5),
            (200, 55),
            (255, 0),
        ];
        for (number, first) in spans.iter().enumerate() {
            for second in &spans {
                for third in &spans[number..] {
                    let mut leaf = Leaf::default();
                    let mut plain = [None; 256];
                    for (seq, (block, more)) in [*first, *second, *third].into_iter().enumerate() {
                        let fact = if more == 0 {
                            present(block, seq as u64)
                        } else {
                            zero(block, more, seq as u64)
                        };
                        leaf.lay(fact, |_| {});
                        for slot in block..=block + more {
                            plain[usize::from(slot)] = Some(fact.at(slot));
                        }
                    }
                    for block in 0..=255 {
                        assert_eq!(leaf.get(block), plain[usize::from(block)]);
                    }
                    assert_eq!(Leaf::from_facts(leaf.facts.clone()), Some(leaf));
                }
            }
        }
    }

    #[test]
    fn zeroes_of_one_record_become_one_fact() {
        let mut leaf = Leaf::default();
        for block in [3, 5, 4, 2] {
            leaf.lay(zero(block, 0, 1), |_| {});
        }
        assert_eq!(leaf.facts(), [zero(2, 3, 1)]);
    }

    #[test]
    fn a_place_beyond_16_tib_is_the_same_behind_its_encoding() {
        for page in [
            0,
            u64::from(u32::MAX),
            1 << 32,
            (5 << 32) + 7,
            Place::PAGES - 1,
        ] {
            let fact = Fact {
                place: Place::new(page, 3),
                ..present(9, 4)
            };
            let mut writer = FieldWriter::default();
            fact.encode(&mut writer);
            let decoded = Fact::decode(&mut FieldReader::new(&writer.bytes));
            assert_eq!(decoded, Some(fact));
            assert_eq!(fact.place.page(), page);
        }
    }

    #[test]
    fn a_place_that_no_area_has_is_no_fact() {
        let mut writer = FieldWriter::default();
        present(9, 4).encode(&mut writer);
        let sector = Place::PAGES * SECTORS_PER_PAGE;
        writer.bytes[32..40].copy_from_slice(&sector.to_le_bytes());
        assert_eq!(Fact::decode(&mut FieldReader::new(&writer.bytes)), None);
    }

    #[test]
    fn displaced_facts_are_reported_once() {
        let mut leaf = Leaf::default();
        for block in 0..4 {
            leaf.lay(present(block, 1), |_| panic!("nothing was here"));
        }
        let mut gone = Vec::new();
        leaf.lay(zero(1, 1, 2), |fact| gone.push(fact.block));
        assert_eq!(gone, [1, 2]);
    }
}
