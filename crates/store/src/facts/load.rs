//! Reading the facts back. Nothing is written.
//!
//! An entry counts if one of its two copies is intact. A generation is *in force* once its commit
//! is readable.
//!
//! | newest generation in force | older forms | decision at open |
//! |---|---|---|
//! | ends in what is no entry | any | the facts up to there; the rest was never durable |
//! | the same, but a later entry lies behind | any | refused: an entry in the middle is damaged |
//! | none, and entries of the first generation at most | no image | never created, if the journal agrees |
//! | none, but entries of a later generation | no image | refused: both copies of a part are damaged |
//! | none | one good image | the image with the higher sequence, converted |
//! | none | one image bad, the other never written | never created, if the journal agrees |
//! | none | both images bad | refused |
//!
//! A generation without a commit that is newer than the one in force was being written when the
//! node stopped. An older one is wiped before the newer one changes: so it is in force only where
//! the newer never was. The last entry may have one copy only, or be readable without being
//! durable: it is written again before anything rests on it.
//!
//! Tested in `facts/tests.rs`, case by case.

use std::collections::BTreeMap;
use std::rc::Rc;

use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Buffer, Disk, PAGE_BYTES};

use super::entry::{self, Entry, EntryKind, Owner};
use super::image::{Image, ImageFound, read_images};
use super::space::{CHUNK_BYTES, Chain, SLOT_BYTES, byte_at};
use super::state::{Edit, FactsState};
use crate::error::StoreError;

/// What the area held when it was opened.
pub(crate) struct Loaded {
    pub(crate) found: Found,
    /// Images of an earlier format, to be wiped once the log has what they have.
    pub(super) images: [ImageFound; 2],
    /// Where each generation has entries: its chunks' slots.
    pub(super) heads: Heads,
    /// One copy of these could not be read, and the other could: where, and how many bytes.
    pub(crate) flaws: Vec<(u64, usize)>,
    pub(crate) slice_blocks: u32,
}

/// What there is of facts.
pub(crate) enum Found {
    /// None were ever made; unless `is_bare`, that is for the journal to confirm.
    Nothing { is_bare: bool },
    /// A log in force.
    Log(Box<Log>),
    /// An image of an earlier format.
    Image(Box<Image>),
    /// They were there and cannot be read.
    Lost,
}

/// The generation in force.
pub(crate) struct Log {
    pub(crate) state: FactsState,
    pub(super) chain: Chain,
    /// Bytes of the chain with its commit.
    pub(super) committed_bytes: u64,
    /// What to write again: slot, where in it, what.
    pub(super) mends: Vec<(u32, usize, Buffer)>,
}

impl Log {
    /// Its number, and the number of its last entry.
    pub(crate) fn position(&self) -> (u64, u64) {
        (self.chain.generation, self.chain.number.saturating_sub(1))
    }

    pub(crate) fn slots(&self) -> &[u32] {
        &self.chain.slots
    }
}

/// Generations and the slots of their chunks.
#[derive(Default)]
pub(super) struct Heads(BTreeMap<u64, BTreeMap<u32, u32>>);

impl Heads {
    /// A number that no generation has had, as far as anything tells.
    pub(super) fn unused_generation(&self) -> u64 {
        self.0.last_key_value().map_or(1, |(newest, _)| newest + 1)
    }

    /// First slots of generations before this one.
    pub(super) fn first_before(&self, generation: u64) -> Vec<u32> {
        let older = self.0.range(..generation);
        older
            .filter_map(|(_, chunks)| chunks.get(&0).copied())
            .collect()
    }
}

/// Reads the area.
///
/// # Errors
///
/// `Version` and `Foreign`: something intact in it must not be used.
pub(crate) async fn load(disk: &Rc<dyn Disk>, mut owner: Owner) -> Result<Loaded, StoreError> {
    let images = read_images(disk, owner).await?;
    for image in &images {
        if let ImageFound::Good(image) = image {
            owner.slice_blocks = Some(image.slice_blocks);
        }
    }
    let (heads, mut is_bare) = read_heads(disk, &mut owner).await?;
    is_bare &= images
        .iter()
        .all(|image| *image == ImageFound::Nothing { zeroes: true });
    let mut loaded = Loaded {
        found: Found::Nothing { is_bare },
        images,
        heads,
        flaws: Vec::new(),
        slice_blocks: owner.slice_blocks.unwrap_or_default(),
    };
    let generations: Vec<u64> = loaded.heads.0.keys().rev().copied().collect();
    for generation in generations {
        let chunks = &loaded.heads.0[&generation];
        let mut reading = Reading::new(generation);
        reading.read(disk, owner, chunks).await?;
        if reading.committed_bytes.is_none() {
            reach::note(Row::FactsUncommitted);
            continue;
        }
        if reading.has_gap {
            loaded.found = Found::Lost;
            return Ok(loaded);
        }
        (loaded.found, loaded.flaws) = reading.ended();
        if !loaded.flaws.is_empty() {
            reach::note(Row::FactsOtherCopy);
        }
        return Ok(loaded);
    }
    loaded.take_image();
    let is_later = loaded.heads.unused_generation() > 2;
    match loaded.found {
        Found::Nothing { .. } if is_later => loaded.found = Found::Lost,
        Found::Nothing { .. } | Found::Log(_) | Found::Image(_) | Found::Lost => {}
    }
    Ok(loaded)
}

impl Loaded {
    /// Slots that begin with an image of an earlier format. What lies in the log in force is none,
    /// whatever damage makes of its first bytes.
    pub(super) fn image_slots(&self) -> Vec<u32> {
        let in_force = match &self.found {
            Found::Log(log) => log.slots(),
            Found::Nothing { .. } | Found::Image(_) | Found::Lost => &[],
        };
        let mut slots = Vec::new();
        for (image, copy) in self.images.iter().zip(0..) {
            let slot = (super::image::image_at(copy) / SLOT_BYTES) as u32;
            match image {
                ImageFound::Good(_) | ImageFound::Bad if !in_force.contains(&slot) => {
                    slots.push(slot);
                }
                ImageFound::Good(_) | ImageFound::Bad | ImageFound::Nothing { .. } => {}
            }
        }
        slots
    }

    /// Without a generation in force: the facts are in an image, if anywhere.
    fn take_image(&mut self) {
        let mut best: Option<&Image> = None;
        let mut flaws = Vec::new();
        let mut bad = 0;
        for (image, copy) in self.images.iter().zip(0..) {
            match image {
                ImageFound::Good(image) => {
                    if best.is_none_or(|best| image.sequence > best.sequence) {
                        best = Some(image.as_ref());
                    }
                }
                ImageFound::Bad => {
                    bad += 1;
                    flaws.push((super::image::image_at(copy), PAGE_BYTES));
                }
                ImageFound::Nothing { .. } => {
                    flaws.push((super::image::image_at(copy), PAGE_BYTES));
                }
            }
        }
        match best {
            Some(image) => {
                if !flaws.is_empty() {
                    reach::note(Row::FactsOtherCopy);
                }
                self.found = Found::Image(Box::new(image.clone()));
                self.flaws = flaws;
            }
            None if bad == 2 => self.found = Found::Lost,
            None => {}
        }
    }
}

/// Which slots begin with an entry, and of what; and whether the first slot is blank.
async fn read_heads(disk: &Rc<dyn Disk>, owner: &mut Owner) -> Result<(Heads, bool), StoreError> {
    let mut heads = Heads::default();
    let mut is_bare = true;
    let slots = (disk.size_bytes() / SLOT_BYTES) as u32;
    for slot in 0..slots {
        for copy in 0..2 {
            let at = byte_at(slot, copy, 0);
            // A read error is damage like any other.
            let Ok(page) = disk.read(at, PAGE_BYTES).await else {
                is_bare = false;
                continue;
            };
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            is_bare = false;
            let entry = match entry::length(&page) {
                None => None,
                Some(PAGE_BYTES) => entry::decode(*owner, &page)?,
                Some(length) => match disk.read(at, length).await {
                    Ok(bytes) => entry::decode(*owner, &bytes)?,
                    Err(_) => None,
                },
            };
            if let Some(entry) = entry {
                owner.slice_blocks = Some(entry.slice_blocks);
                let chunks = heads.0.entry(entry.place.generation).or_default();
                chunks.insert(entry.place.chunk, slot);
            }
        }
    }
    Ok((heads, is_bare))
}

/// A generation that is being read.
struct Reading {
    chain: Chain,
    state: FactsState,
    /// Parts of a change whose last one was not read yet.
    parts: Vec<Edit>,
    committed_bytes: Option<u64>,
    /// A later entry lies behind what cannot be read.
    has_gap: bool,
    mends: Vec<(u32, usize, Buffer)>,
    flaws: Vec<(u64, usize)>,
    /// The last entry, and which copy of it is missing.
    last: Option<(u32, usize, Buffer, Option<usize>)>,
}

impl Reading {
    fn new(generation: u64) -> Self {
        Self {
            chain: Chain::new(generation),
            state: FactsState::default(),
            parts: Vec::new(),
            committed_bytes: None,
            has_gap: false,
            mends: Vec::new(),
            flaws: Vec::new(),
            last: None,
        }
    }

    async fn read(
        &mut self,
        disk: &Rc<dyn Disk>,
        owner: Owner,
        chunks: &BTreeMap<u32, u32>,
    ) -> Result<(), StoreError> {
        for (chunk, expected) in chunks.iter().zip(0..) {
            let (number, slot) = chunk;
            if *number != expected {
                self.has_gap = true;
                return Ok(());
            }
            let copies = [
                read_chunk(disk, *slot, 0).await,
                read_chunk(disk, *slot, 1).await,
            ];
            let before = self.chain.number;
            self.read_entries(owner, *slot, &copies)?;
            if self.has_gap || self.chain.number == before {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads a chunk's entries, up to what is none.
    fn read_entries(
        &mut self,
        owner: Owner,
        slot: u32,
        copies: &[Vec<u8>; 2],
    ) -> Result<(), StoreError> {
        let (mut at, chunk) = (0, self.chain.slots.len() as u32);
        loop {
            let mut entries = Vec::with_capacity(2);
            for bytes in copies {
                let rest = bytes.get(at..).unwrap_or_default();
                let entry = entry::decode(owner, rest)?;
                entries.push(entry.filter(|entry| {
                    let place = entry.place;
                    (place.generation, place.chunk, place.number)
                        == (self.chain.generation, chunk, self.chain.number)
                }));
            }
            let (entry, whole, missing) = match (entries.remove(0), entries.pop().flatten()) {
                (Some(entry), Some(_)) => (entry, 0, None),
                (Some(entry), None) => (entry, 0, Some(1)),
                (None, Some(entry)) => (entry, 1, Some(0)),
                (None, None) => {
                    self.has_gap = self.has_later(owner, copies, at)?;
                    return Ok(());
                }
            };
            if at == 0 {
                self.chain.slots.push(slot);
            }
            let bytes = Buffer::padded_from(&copies[whole][at..at + entry.bytes]);
            self.take(entry, (slot, at, bytes), missing);
            at = self.chain.filled;
        }
    }

    fn take(&mut self, entry: Entry, place: (u32, usize, Buffer), missing: Option<usize>) {
        // What a later entry follows was complete: a copy of it that is missing is damage.
        self.settle_last();
        let (slot, at, bytes) = place;
        self.chain.filled = at + entry.bytes;
        self.chain.number += 1;
        self.chain.bytes += entry.bytes as u64;
        self.last = Some((slot, at, bytes, missing));
        match entry.kind {
            EntryKind::Snapshot => entry.edits.iter().for_each(|edit| self.state.apply(edit)),
            EntryKind::Commit => self.committed_bytes = Some(self.chain.bytes),
            EntryKind::First => self.parts = entry.edits,
            EntryKind::Further => self.parts.extend(entry.edits),
            EntryKind::Last => {
                self.parts.extend(entry.edits);
                let parts = std::mem::take(&mut self.parts);
                parts.iter().for_each(|edit| self.state.apply(edit));
            }
            EntryKind::Whole => {
                self.parts.clear();
                entry.edits.iter().for_each(|edit| self.state.apply(edit));
            }
        }
    }

    fn settle_last(&mut self) {
        if let Some((slot, at, bytes, Some(missing))) = self.last.take() {
            self.flaws.push((byte_at(slot, missing, at), bytes.len()));
            self.mends.push((slot, at, bytes));
        }
    }

    /// Whether an entry of this generation that was written later lies in the chunk from `at` on.
    fn has_later(
        &self,
        owner: Owner,
        copies: &[Vec<u8>; 2],
        at: usize,
    ) -> Result<bool, StoreError> {
        for bytes in copies {
            for at in (at..bytes.len()).step_by(PAGE_BYTES) {
                if let Some(entry) = entry::decode(owner, &bytes[at..])?
                    && entry.place.generation == self.chain.generation
                    && entry.place.number >= self.chain.number
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The facts, and of which parts one copy was missing.
    fn ended(mut self) -> (Found, Vec<(u64, usize)>) {
        // The last one may be without its other copy, or not durable, after a crash.
        if let Some((slot, at, bytes, missing)) = self.last.take() {
            if missing.is_some() {
                reach::note(Row::FactsTailMended);
            }
            self.mends.push((slot, at, bytes));
        }
        let log = Log {
            state: self.state,
            chain: self.chain,
            committed_bytes: self.committed_bytes.unwrap_or_default(),
            mends: self.mends,
        };
        (Found::Log(Box::new(log)), self.flaws)
    }
}

/// A chunk's bytes; pages that cannot be read match no checksum.
async fn read_chunk(disk: &Rc<dyn Disk>, slot: u32, copy: usize) -> Vec<u8> {
    const UNREADABLE: u8 = 0xa5;
    let at = byte_at(slot, copy, 0);
    if let Ok(whole) = disk.read(at, CHUNK_BYTES).await {
        return whole.to_vec();
    }
    let mut bytes = vec![UNREADABLE; CHUNK_BYTES];
    for (page, number) in bytes.chunks_mut(PAGE_BYTES).zip(0..) {
        if let Ok(read) = disk.read(at + number * PAGE_BYTES as u64, PAGE_BYTES).await {
            page.copy_from_slice(&read);
        }
    }
    bytes
}
