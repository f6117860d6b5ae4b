//! The contents of one disk area: what reads see, and what a crash may leave of it.
//!
//! A page has a durable version and, above it, volatile versions that a later sync makes durable.
//! Invariants:
//!
//! * reads outside writes in flight see the newest completed version;
//! * after a power cut each 512-byte sector holds the durable version, one of the volatile ones,
//!   or the bytes of a write in flight: each sector on its own, nothing else;
//! * after a process crash completed writes are all there; writes in flight as above;
//! * a page never written reads zero and costs no memory;
//! * a discard is a write of arbitrary bytes to the pages that were ever written: no sync keeps
//!   what they held, and a crash may.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use holdfast_runtime::{Buffer, PAGE_BYTES};

use crate::random::Random;

/// The unit that a device writes as a whole.
pub const SECTOR_BYTES: usize = 512;

type Page = Box<[u8; PAGE_BYTES]>;

/// A write that was given to the device and has not completed.
pub(crate) struct InFlight {
    pub(crate) page: u64,
    pub(crate) data: Buffer,
    pub(crate) durable: bool,
}

/// What a crash did to an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashDamage {
    /// Writes in flight of which some sectors arrived and others did not.
    pub torn_writes: u64,
    /// Pages whose completed but unsynced contents were lost, wholly or in part.
    pub lost_pages: u64,
}

/// One disk area.
pub(crate) struct Image {
    size_bytes: u64,
    pages: BTreeMap<u64, Versions>,
    /// Pages with volatile versions.
    dirty: BTreeSet<u64>,
    in_flight: BTreeMap<u64, InFlight>,
    next_write: u64,
    /// Number of completed writes: the mark that a sync takes.
    completed: u64,
    /// Writes in flight that are discards.
    discarding: BTreeSet<u64>,
    /// Pages that the device has back.
    discarded: BTreeSet<u64>,
    unreadable: BTreeSet<u64>,
    /// Pages that read as they were before, and how often still.
    stale: BTreeMap<u64, (Page, Cell<u32>)>,
}

#[derive(Default)]
struct Versions {
    durable: Option<Page>,
    volatile: Vec<Volatile>,
    /// What the last write has replaced.
    replaced: Option<Page>,
}

struct Volatile {
    completed: u64,
    /// False after a failed sync: reads see it, no later sync makes it durable.
    syncable: bool,
    page: Page,
}

impl Image {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            pages: BTreeMap::new(),
            dirty: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            next_write: 0,
            completed: 0,
            discarding: BTreeSet::new(),
            discarded: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            stale: BTreeMap::new(),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn grow(&mut self, size_bytes: u64) {
        self.size_bytes = self.size_bytes.max(size_bytes);
    }

    /// Pages that hold something, in ascending order.
    pub(crate) fn written_pages(&self) -> Vec<u64> {
        let written = self.pages.keys().copied();
        written.filter(|page| !self.is_discarded(*page)).collect()
    }

    /// Whether the device has a page back.
    pub(crate) fn is_discarded(&self, page: u64) -> bool {
        self.discarded.contains(&page)
    }

    /// How many of the pages from `page` on take no space yet.
    pub(crate) fn unwritten(&self, page: u64, count: u64) -> u64 {
        let written = self.pages.range(page..page + count).count();
        count - (written - self.discarded.range(page..page + count).count()) as u64
    }

    /// Takes a write; it is in flight until [`Image::complete`].
    pub(crate) fn begin(&mut self, write: InFlight) -> u64 {
        let number = self.next_write;
        self.next_write += 1;
        self.in_flight.insert(number, write);
        number
    }

    /// Takes a discard, as writes in flight; the numbers to end them by.
    pub(crate) fn begin_discard(&mut self, page: u64, count: u64, random: &Random) -> Vec<u64> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, versions) in self.pages.range(page..page + count) {
            let bytes = versions.arbitrary(random);
            match runs.last_mut() {
                Some((first, run)) if *first + (run.len() / PAGE_BYTES) as u64 == *number => {
                    run.extend_from_slice(&bytes[..]);
                }
                Some(_) | None => runs.push((*number, bytes.to_vec())),
            }
        }
        let begun = runs.into_iter().map(|(page, bytes)| {
            self.begin(InFlight {
                page,
                data: Buffer::padded_from(&bytes),
                durable: false,
            })
        });
        let begun: Vec<u64> = begun.collect();
        self.discarding.extend(&begun);
        begun
    }

    /// Forgets a write in flight without applying it.
    pub(crate) fn drop_write(&mut self, number: u64) -> Option<InFlight> {
        self.discarding.remove(&number);
        self.in_flight.remove(&number)
    }

    /// Applies a write in flight as a whole. False if a crash has resolved it already.
    pub(crate) fn complete(&mut self, number: u64) -> bool {
        let Some(write) = self.in_flight.remove(&number) else {
            return false;
        };
        self.completed += 1;
        for (index, page) in write.data.chunks_exact(PAGE_BYTES).enumerate() {
            self.put(write.page + index as u64, page, write.durable);
        }
        if self.discarding.remove(&number) {
            let pages = (write.data.len() / PAGE_BYTES) as u64;
            self.discarded.extend(write.page..write.page + pages);
        }
        true
    }

    /// The bytes of `count` pages. Sectors under a write in flight are old or new at random.
    /// `None` if one of the pages cannot be read.
    pub(crate) fn read(&self, page: u64, count: u64, random: &Random) -> Option<Buffer> {
        if self.unreadable.range(page..page + count).next().is_some() {
            return None;
        }
        let mut buffer = Buffer::zeroed(count as usize * PAGE_BYTES);
        for (number, versions) in self.pages.range(page..page + count) {
            if let Some(newest) = versions.newest() {
                page_mut(&mut buffer, number - page).copy_from_slice(newest);
            }
        }
        for (number, (old, times)) in self.stale.range(page..page + count) {
            if times.get() > 0 {
                times.set(times.get() - 1);
                page_mut(&mut buffer, number - page).copy_from_slice(&old[..]);
            }
        }
        for write in self.in_flight.values() {
            for (index, source) in write.data.chunks_exact(PAGE_BYTES).enumerate() {
                let number = write.page + index as u64;
                if (page..page + count).contains(&number) {
                    let target = page_mut(&mut buffer, number - page);
                    mix_sectors(target, source, random.next_u64());
                }
            }
        }
        Some(buffer)
    }

    /// The mark to give to [`Image::synced`]: which writes a sync that starts now covers.
    pub(crate) fn sync_mark(&self) -> u64 {
        self.completed
    }

    /// Makes the writes up to the mark durable.
    pub(crate) fn synced(&mut self, mark: u64) {
        self.dirty.retain(|number| {
            let Some(versions) = self.pages.get_mut(number) else {
                return false;
            };
            let newest = versions
                .volatile
                .iter()
                .rposition(|version| version.completed <= mark && version.syncable);
            if let Some(newest) = newest {
                let version = versions.volatile.drain(..=newest).next_back();
                versions.durable = version.map(|version| version.page);
            }
            !versions.volatile.is_empty()
        });
    }

    /// A sync that failed: nothing up to the mark becomes durable, now or by a later sync.
    pub(crate) fn sync_failed(&mut self, mark: u64) {
        for number in &self.dirty {
            if let Some(versions) = self.pages.get_mut(number) {
                for version in &mut versions.volatile {
                    version.syncable &= version.completed > mark;
                }
            }
        }
    }

    /// The process is gone: its writes in flight arrive in part, wholly, or not at all.
    pub(crate) fn crash_process(&mut self, random: &Random) -> CrashDamage {
        let mut damage = CrashDamage::default();
        self.resolve_in_flight(random, &mut damage);
        damage
    }

    /// The power is gone: as [`Image::crash_process`], and volatile sectors are kept or lost.
    pub(crate) fn crash_power(&mut self, random: &Random) -> CrashDamage {
        let mut damage = CrashDamage::default();
        // First the device's cache, then what was on its way: either may win a sector.
        let kept_ppm = [0, 500_000, 1_000_000][random.below(3) as usize];
        for number in std::mem::take(&mut self.dirty) {
            let Some(versions) = self.pages.get_mut(&number) else {
                continue;
            };
            let Some(newest) = versions.newest().map(<[u8]>::to_vec) else {
                continue;
            };
            let mut left = versions
                .durable
                .take()
                .unwrap_or_else(|| Box::new([0_u8; PAGE_BYTES]));
            for (sector, target) in left.chunks_exact_mut(SECTOR_BYTES).enumerate() {
                if random.chance(kept_ppm)
                    && let Some(kept) = random.pick(&versions.volatile)
                {
                    target.copy_from_slice(sector_of(&kept.page[..], sector));
                }
            }
            damage.lost_pages += u64::from(left[..] != newest[..]);
            versions.durable = Some(left);
            versions.volatile.clear();
        }
        self.resolve_in_flight(random, &mut damage);
        // What reached the medium is durable now, whatever the write had asked for.
        for number in std::mem::take(&mut self.dirty) {
            if let Some(versions) = self.pages.get_mut(&number)
                && let Some(last) = versions.volatile.pop()
            {
                versions.durable = Some(last.page);
                versions.volatile.clear();
            }
        }
        damage
    }

    /// Changes bytes at rest behind everyone's back. False if the page holds nothing.
    pub(crate) fn alter(&mut self, page: u64, change: impl Fn(&mut [u8])) -> bool {
        let Some(versions) = self.pages.get_mut(&page) else {
            return false;
        };
        if let Some(durable) = &mut versions.durable {
            change(&mut durable[..]);
        }
        for version in &mut versions.volatile {
            change(&mut version.page[..]);
        }
        true
    }

    /// Makes a page fail to read until it is written again.
    pub(crate) fn make_unreadable(&mut self, page: u64) {
        self.unreadable.insert(page);
    }

    /// Lets a page read as it was before its last write, so many times or until it is written
    /// again. False if it was written only once.
    pub(crate) fn make_stale(&mut self, page: u64, times: u32) -> bool {
        let replaced = self
            .pages
            .get(&page)
            .and_then(|versions| versions.replaced.clone());
        let Some(replaced) = replaced else {
            return false;
        };
        self.stale.insert(page, (replaced, Cell::new(times)));
        true
    }

    fn put(&mut self, number: u64, bytes: &[u8], durable: bool) {
        self.unreadable.remove(&number);
        self.stale.remove(&number);
        self.discarded.remove(&number);
        let versions = self.pages.entry(number).or_default();
        versions.replaced = match (versions.volatile.last(), &versions.durable) {
            (Some(newest), _) => Some(newest.page.clone()),
            (None, newest) => newest.clone(),
        };
        let mut page: Page = Box::new([0; PAGE_BYTES]);
        page.copy_from_slice(bytes);
        if durable {
            versions.durable = Some(page);
            versions.volatile.clear();
            self.dirty.remove(&number);
        } else {
            let completed = self.completed;
            versions.volatile.push(Volatile {
                completed,
                syncable: true,
                page,
            });
            self.dirty.insert(number);
        }
    }

    fn resolve_in_flight(&mut self, random: &Random, damage: &mut CrashDamage) {
        self.discarding.clear();
        let mut writes: Vec<InFlight> = std::mem::take(&mut self.in_flight).into_values().collect();
        random.shuffle(&mut writes);
        for write in writes {
            let sectors = (write.data.len() / SECTOR_BYTES) as u64;
            // All, none, a beginning, an end, or any subset.
            let cut = random.below(sectors + 1);
            let manner = random.below(5);
            let mut arrived = 0;
            for (index, source) in write.data.chunks_exact(PAGE_BYTES).enumerate() {
                let mut mask = 0_u64;
                for sector in 0..PAGE_BYTES / SECTOR_BYTES {
                    let position = (index * (PAGE_BYTES / SECTOR_BYTES) + sector) as u64;
                    let arrives = match manner {
                        0 => true,
                        1 => false,
                        2 => position < cut,
                        3 => position >= cut,
                        _ => random.chance(500_000),
                    };
                    mask |= u64::from(arrives) << sector;
                    arrived += u64::from(arrives);
                }
                if mask != 0 {
                    let number = write.page + index as u64;
                    let mut page = [0; PAGE_BYTES];
                    if let Some(versions) = self.pages.get(&number)
                        && let Some(newest) = versions.newest()
                    {
                        page.copy_from_slice(newest);
                    }
                    mix_sectors(&mut page, source, mask);
                    self.put(number, &page, write.durable);
                }
            }
            damage.torn_writes += u64::from(arrived != 0 && arrived != sectors);
        }
    }
}

impl Versions {
    fn newest(&self) -> Option<&[u8]> {
        match self.volatile.last() {
            Some(version) => Some(&version.page[..]),
            None => self.durable.as_ref().map(|page| &page[..]),
        }
    }

    /// What a page reads as once it is discarded: zeroes, what it holds now or held before, or
    /// what nobody has ever written.
    fn arbitrary(&self, random: &Random) -> Page {
        let mut page: Page = Box::new([0; PAGE_BYTES]);
        let older = match random.below(4) {
            0 => None,
            1 => self.newest(),
            2 => self.replaced.as_ref().map(|page| &page[..]),
            _ => {
                let seed = random.next_u64() | 1;
                for (word, number) in page.chunks_exact_mut(8).zip(1_u64..) {
                    word.copy_from_slice(&seed.wrapping_mul(number).to_le_bytes());
                }
                None
            }
        };
        if let Some(older) = older {
            page.copy_from_slice(older);
        }
        page
    }
}

/// Overwrites the sectors of one page whose bits are set in `mask`.
fn mix_sectors(target: &mut [u8], source: &[u8], mask: u64) {
    for (sector, target) in target.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        if mask >> sector & 1 == 1 {
            target.copy_from_slice(sector_of(source, sector));
        }
    }
}

fn sector_of(page: &[u8], sector: usize) -> &[u8] {
    &page[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES]
}

fn page_mut(buffer: &mut Buffer, index: u64) -> &mut [u8] {
    let start = index as usize * PAGE_BYTES;
    &mut buffer[start..start + PAGE_BYTES]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(byte: u8, pages: usize) -> Buffer {
        Buffer::padded_from(&vec![byte; pages * PAGE_BYTES])
    }

    fn write(image: &mut Image, page: u64, byte: u8, durable: bool) {
        let number = image.begin(InFlight {
            page,
            data: filled(byte, 1),
            durable,
        });
        assert!(image.complete(number));
    }

    fn first_byte(image: &Image, page: u64) -> u8 {
        image.read(page, 1, &Random::new(0)).expect("readable")[0]
    }

    #[test]
    fn durable_and_synced_writes_survive_every_power_cut() {
        for seed in 0..50 {
            let mut image = Image::new(1 << 20);
            write(&mut image, 1, 11, true);
            write(&mut image, 2, 22, false);
            let mark = image.sync_mark();
            image.synced(mark);
            let damage = image.crash_power(&Random::new(seed));
            assert_eq!(damage, CrashDamage::default());
            assert_eq!((first_byte(&image, 1), first_byte(&image, 2)), (11, 22));
        }
    }

    #[test]
    fn a_sync_covers_only_writes_completed_before_it_began() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut image = Image::new(1 << 20);
            write(&mut image, 1, 1, false);
            let mark = image.sync_mark();
            write(&mut image, 1, 2, false);
            image.synced(mark);
            let random = Random::new(seed);
            image.crash_power(&random);
            let page = image.read(1, 1, &random).expect("readable");
            assert!(
                page.iter().all(|byte| [1, 2].contains(byte)),
                "the synced version is a floor"
            );
            lost += u32::from(page.contains(&1));
        }
        assert!(lost > 0, "no seed lost the unsynced version");
    }

    #[test]
    fn a_failed_sync_is_not_repaired_by_a_later_one() {
        let lost = (0..50).any(|seed| {
            let mut image = Image::new(1 << 20);
            write(&mut image, 1, 1, false);
            image.sync_failed(image.sync_mark());
            image.synced(image.sync_mark());
            assert_eq!(first_byte(&image, 1), 1, "reads still see it");
            image.crash_power(&Random::new(seed));
            first_byte(&image, 1) == 0
        });
        assert!(lost);
    }

    #[test]
    fn a_process_crash_keeps_completed_writes_and_tears_those_in_flight() {
        let mut torn = 0;
        for seed in 0..50 {
            let mut image = Image::new(1 << 20);
            write(&mut image, 1, 1, false);
            image.begin(InFlight {
                page: 1,
                data: filled(9, 2),
                durable: true,
            });
            let random = Random::new(seed);
            torn += image.crash_process(&random).torn_writes;
            let pages = image.read(1, 2, &random).expect("readable");
            assert!(pages[..PAGE_BYTES].iter().all(|byte| [1, 9].contains(byte)));
            assert!(pages[PAGE_BYTES..].iter().all(|byte| [0, 9].contains(byte)));
            for sector in pages.chunks_exact(SECTOR_BYTES) {
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]),
                    "a sector is never torn"
                );
            }
        }
        assert!(torn > 0, "no seed tore the write");
    }

    #[test]
    fn a_write_resolved_by_a_crash_does_not_complete_later() {
        let mut image = Image::new(1 << 20);
        let number = image.begin(InFlight {
            page: 0,
            data: filled(1, 1),
            durable: true,
        });
        image.crash_process(&Random::new(3));
        assert!(!image.complete(number));
    }

    #[test]
    fn a_stale_page_reads_as_before_its_last_write_until_the_next() {
        let mut image = Image::new(1 << 20);
        write(&mut image, 4, 1, true);
        assert!(!image.make_stale(4, 1), "it never was anything else");
        write(&mut image, 4, 2, false);
        assert!(image.make_stale(4, 1));
        assert_eq!((first_byte(&image, 4), first_byte(&image, 4)), (1, 2));
        assert!(image.make_stale(4, u32::MAX));
        assert_eq!((first_byte(&image, 4), first_byte(&image, 4)), (1, 1));
        write(&mut image, 4, 3, true);
        assert_eq!(first_byte(&image, 4), 3);
    }

    #[test]
    fn a_discarded_page_reads_as_anything_and_a_crash_may_bring_its_content_back() {
        let (mut changed, mut back, mut kept) = (0, 0, 0);
        for seed in 0..50 {
            let random = Random::new(seed);
            let mut image = Image::new(1 << 20);
            for page in [3, 4, 6] {
                write(&mut image, page, 7, true);
            }
            let begun = image.begin_discard(0, 6, &random);
            assert_eq!(begun.len(), 1, "two of the pages, next to each other");
            if seed % 2 == 0 {
                image.crash_process(&random);
                kept += u32::from(first_byte(&image, 3) == 7);
                continue;
            }
            assert!(begun.into_iter().all(|number| image.complete(number)));
            assert_eq!((image.written_pages(), image.unwritten(3, 4)), (vec![6], 3));
            let is_other = first_byte(&image, 3) != 7;
            changed += u32::from(is_other);
            image.crash_power(&random);
            back += u32::from(is_other && first_byte(&image, 3) == 7);
            assert_eq!(first_byte(&image, 6), 7);
            write(&mut image, 3, 8, true);
            assert_eq!((image.unwritten(3, 4), first_byte(&image, 3)), (2, 8));
        }
        assert!(
            changed > 0 && back > 0 && kept > 0,
            "{changed} {back} {kept}"
        );
    }

    #[test]
    fn an_unreadable_page_is_readable_again_once_written() {
        let mut image = Image::new(1 << 20);
        write(&mut image, 4, 1, true);
        image.make_unreadable(4);
        assert!(image.read(3, 2, &Random::new(0)).is_none());
        write(&mut image, 4, 2, true);
        assert_eq!(first_byte(&image, 4), 2);
    }
}
