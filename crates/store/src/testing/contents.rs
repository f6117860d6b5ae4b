//! The bytes of all areas of a machine, with a digest that costs only what changed.
//!
//! A page of zeroes and one that was never written are the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use holdfast_runtime::{Buffer, PAGE_BYTES};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::{Dice, SECTOR_BYTES};

/// Pages by number.
pub(super) type Pages = BTreeMap<u64, Rc<[u8]>>;

/// One area at rest.
#[derive(Clone, Debug, Default)]
pub(super) struct AreaContents {
    pub(super) size_bytes: u64,
    pub(super) pages: Pages,
}

/// A sector somewhere, with the bytes that may come there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sector<'a> {
    pub(super) area: &'a str,
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a> Sector<'a> {
    /// The page that it is in.
    pub(super) fn page(&self) -> (&'a str, u64) {
        (self.area, self.offset / PAGE_BYTES as u64)
    }
}

/// All areas at rest.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    areas: BTreeMap<String, AreaContents>,
    digest: u128,
}

impl Contents {
    pub(super) fn new(areas: BTreeMap<String, AreaContents>) -> Self {
        let mut contents = Self { areas, digest: 0 };
        for (name, area) in &contents.areas {
            for (number, page) in &area.pages {
                contents.digest ^= page_digest(name, *number, Some(page));
            }
        }
        contents
    }

    pub(super) fn areas(&self) -> &BTreeMap<String, AreaContents> {
        &self.areas
    }

    /// A digest of all bytes of all areas.
    pub(super) fn digest(&self) -> u128 {
        self.digest
    }

    /// A page's bytes; `None` for zeroes that were never written.
    pub(super) fn page(&self, area: &str, number: u64) -> Option<&Rc<[u8]>> {
        self.areas.get(area)?.pages.get(&number)
    }

    /// Whole pages of an area.
    pub(super) fn bytes(&self, area: &str, offset: u64, len: usize) -> Vec<u8> {
        pages(&self.areas[area].pages, offset, len).to_vec()
    }

    /// Whether a sector has just these bytes.
    pub(super) fn has(&self, sector: &Sector<'_>) -> bool {
        let (area, number) = sector.page();
        let within = (sector.offset % PAGE_BYTES as u64) as usize;
        match self.page(area, number) {
            Some(page) => page[within..within + sector.bytes.len()] == *sector.bytes,
            None => sector.bytes.iter().all(|byte| *byte == 0),
        }
    }

    /// Puts bytes, which may cross pages, where they belong.
    pub(super) fn put(&mut self, area: &str, offset: u64, bytes: &[u8]) {
        let mut offset = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let number = offset / PAGE_BYTES as u64;
            let within = (offset % PAGE_BYTES as u64) as usize;
            let (part, after) = rest.split_at(rest.len().min(PAGE_BYTES - within));
            self.change_page(area, number, |page| {
                page[within..within + part.len()].copy_from_slice(part);
            });
            offset += part.len() as u64;
            rest = after;
        }
    }

    /// Gives a range back.
    pub(super) fn discard(&mut self, area: &str, offset: u64, len: u64) {
        let found = self.areas.get_mut(area).expect("a known area");
        let range = page_range(offset, len);
        let written: Vec<u64> = found
            .pages
            .range(range)
            .map(|(number, _)| *number)
            .collect();
        for number in written {
            let garbage = garbage();
            self.digest ^= page_digest(area, number, Some(&garbage));
            let before = found.pages.insert(number, garbage);
            self.digest ^= page_digest(area, number, before.as_ref());
        }
    }

    /// Puts sectors, those of one page next to each other, where they belong.
    pub(super) fn put_sectors(&mut self, sectors: &[Sector<'_>]) {
        for of_page in sectors.chunk_by(|one, next| one.page() == next.page()) {
            let (area, number) = of_page[0].page();
            self.change_page(area, number, |page| {
                for sector in of_page {
                    let within = (sector.offset % PAGE_BYTES as u64) as usize;
                    page[within..within + sector.bytes.len()].copy_from_slice(sector.bytes);
                }
            });
        }
    }

    /// Changes a page.
    pub(super) fn change_page(&mut self, area: &str, number: u64, change: impl FnOnce(&mut [u8])) {
        let found = self.areas.get_mut(area).expect("a known area");
        self.digest ^= page_digest(area, number, found.pages.get(&number));
        let page = page_of(&mut found.pages, number);
        change(page);
        self.digest ^= page_digest(area, number, found.pages.get(&number));
    }
}

/// A page, made if need be, of which nobody else has a view.
fn page_of(pages: &mut Pages, number: u64) -> &mut [u8] {
    let page = pages
        .entry(number)
        .or_insert_with(|| Rc::from([0; PAGE_BYTES]));
    Rc::make_mut(page)
}

fn page_digest(area: &str, number: u64, page: Option<&Rc<[u8]>>) -> u128 {
    let Some(page) = page.filter(|page| page.iter().any(|byte| *byte != 0)) else {
        return 0;
    };
    let seed = xxh3_64(area.as_bytes()).wrapping_add(number);
    xxh3_128_with_seed(page, seed)
}

/// Puts bytes into pages.
pub(super) fn put(pages: &mut Pages, offset: u64, bytes: &[u8]) {
    let mut offset = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let within = (offset % PAGE_BYTES as u64) as usize;
        let (part, after) = rest.split_at(rest.len().min(PAGE_BYTES - within));
        let page = page_of(pages, offset / PAGE_BYTES as u64);
        page[within..within + part.len()].copy_from_slice(part);
        offset += part.len() as u64;
        rest = after;
    }
}

/// Gives whole pages back: from now on they are filled with what nobody has written. Pages that
/// were never written stay zeroes.
pub(super) fn discard(pages: &mut Pages, offset: u64, len: u64) {
    for (_, page) in pages.range_mut(page_range(offset, len)) {
        *page = garbage();
    }
}

fn page_range(offset: u64, len: u64) -> Range<u64> {
    let first = offset / PAGE_BYTES as u64;
    first..first + len / PAGE_BYTES as u64
}

/// What a discarded page reads as.
fn garbage() -> Rc<[u8]> {
    thread_local! {
        static GARBAGE: Rc<[u8]> = {
            let dice = Dice::new(0xd15c_a2de);
            (0..PAGE_BYTES).map(|_| dice.next() as u8).collect()
        };
    }
    GARBAGE.with(Rc::clone)
}

/// Whole pages out of pages.
pub(super) fn pages(pages: &Pages, offset: u64, len: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(len);
    let first = offset / PAGE_BYTES as u64;
    let end = first + (len / PAGE_BYTES) as u64;
    for (number, page) in pages.range(first..end) {
        let at = (number - first) as usize * PAGE_BYTES;
        buffer[at..at + PAGE_BYTES].copy_from_slice(page);
    }
    buffer
}

/// The sectors of a write.
pub(super) fn sectors<'a>(
    area: &'a str,
    offset: u64,
    data: &'a [u8],
) -> impl Iterator<Item = Sector<'a>> {
    let offsets = (offset..).step_by(SECTOR_BYTES);
    let parts = data.chunks(SECTOR_BYTES);
    offsets.zip(parts).map(move |(offset, bytes)| Sector {
        area,
        offset,
        bytes,
    })
}
