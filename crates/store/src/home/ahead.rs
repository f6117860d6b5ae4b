//! Reading ahead in the map: whoever goes through extents in order (a sequential reader, a
//! resync, the scrub) finds the leaves that come next read, or on their way.
//!
//! A reader is recognised by asking for a leaf behind those it was given last, right behind them
//! or a little further ([`GAP_BYTES_MAX`]). Each time it is, twice as much is read at once, up to
//! a whole table, and into the table that follows. From [`COMING_PAGES_MIN`] on the next read is
//! begun before this one's leaves are used, so that the disk and the reader work at the same
//! time. A reader who jumps about costs one read of one leaf, as without this.
//!
//! Memory: a read under way or not yet used for each reader, so [`READERS_MAX`] times
//! [`PAGES_MAX`] pages at most, 4.3 MiB. What is used goes into the cache of leaves.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;

use futures::FutureExt;
use futures::future::{LocalBoxFuture, MaybeDone, maybe_done};

use super::map::OpenTable;
use super::merge::TABLE_PAGES_MAX;
use super::run::{LeafPlace, PAYLOAD_BYTES};

/// Readers that are told apart.
const READERS_MAX: usize = 8;
/// What is read at once when a reader is recognised: two full leaves.
const PAGES_MIN: u32 = 8;
/// Most pages of one read: a table, whose pages lie in one piece if there was room.
const PAGES_MAX: u32 = TABLE_PAGES_MAX;
/// A reader that gets so much at once also gets the next read begun. Less would be read in vain
/// too often: for whoever only wanted a few neighbours.
const COMING_PAGES_MIN: u32 = 2 * PAGES_MIN;
/// Leaves that are passed over and read all the same, in bytes: five full ones. Reading them
/// takes less time than another read.
const GAP_BYTES_MAX: u32 = 64 << 10;
/// Most leaves of one read: a table of small ones has thousands, and taking them in holds up
/// everybody else.
const LEAVES_MAX: usize = 1024;

/// Neighbouring leaves of one table.
pub(super) struct Part {
    pub(super) table: Rc<OpenTable>,
    pub(super) leaves: Range<usize>,
}

impl Part {
    /// As many leaves from `first` on as so many pages hold; at least one. `None` at the end.
    pub(super) fn from(table: &Rc<OpenTable>, first: usize, pages: u32) -> Option<Self> {
        let end = table.end_within(first, pages)?;
        Some(Self {
            table: table.clone(),
            leaves: first..end.min(first + LEAVES_MAX),
        })
    }

    /// First page of the stream that it touches, and how many.
    pub(super) fn pages(&self) -> (u32, u32) {
        let bytes = self.bytes();
        let first = bytes.start / PAYLOAD_BYTES as u32;
        (first, bytes.end.div_ceil(PAYLOAD_BYTES as u32) - first)
    }

    fn run(&self) -> u64 {
        self.table.table.run
    }

    /// Where in the table's stream it lies.
    fn bytes(&self) -> Range<u32> {
        let mut places = self.table.places(self.leaves.start, self.leaves.len());
        let bytes = |place: LeafPlace| place.at..place.at + place.bytes;
        let first = places.next().map_or(0..0, bytes);
        let last = places.last().map_or(first.clone(), bytes);
        first.start..last.end
    }
}

/// The pages of a part, on their way.
pub(super) struct Coming {
    pub(super) part: Part,
    reading: Pin<Box<MaybeDone<Reading>>>,
}

/// Pages of a run; `None` if one of them cannot be read.
pub(super) type Reading = LocalBoxFuture<'static, Option<Vec<u8>>>;

impl Coming {
    pub(super) async fn arrived(mut self) -> (Part, Option<Vec<u8>>) {
        self.reading.as_mut().await;
        let pages = self.reading.as_mut().take_output();
        (self.part, pages.flatten())
    }
}

/// A reader, by what it is expected to ask for next.
pub(super) struct Reader {
    run: u64,
    /// Bytes of the table's stream: where what it will ask for begins, and from where on it is
    /// somebody else who asks.
    at: Range<u32>,
    /// How much it gets at once; 0 for a leaf.
    pub(super) pages: u32,
    coming: Option<Coming>,
}

impl Reader {
    fn expects(&self, run: u64, at: u32) -> bool {
        self.run == run && self.at.contains(&at)
    }

    /// What is on its way for it, if this leaf is in it.
    pub(super) fn take_coming(&mut self, leaf: usize) -> Option<Coming> {
        let coming = self.coming.take();
        coming.filter(|coming| coming.part.leaves.contains(&leaf))
    }
}

/// The readers of late, the last one in front.
pub(super) struct Ahead {
    readers: VecDeque<Reader>,
    pages_max: u32,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            readers: VecDeque::new(),
            pages_max: PAGES_MAX,
        }
    }
}

impl Ahead {
    /// Whoever asks for the leaf that begins here and has to wait for a read; unknown until
    /// [`Ahead::expect`].
    pub(super) fn reader(&mut self, run: u64, at: u32) -> Reader {
        let mut readers = self.readers.iter();
        let place = readers.position(|reader| reader.expects(run, at));
        if let Some(mut reader) = place.and_then(|place| self.readers.remove(place)) {
            if reader.coming.is_none() {
                reader.pages = self.more(reader.pages);
            }
            return reader;
        }
        Reader {
            run,
            at: at..at,
            pages: 0,
            coming: None,
        }
    }

    /// How much follows a read of so many pages.
    pub(super) fn more(&self, pages: u32) -> u32 {
        (2 * pages).max(PAGES_MIN).min(self.pages_max)
    }

    /// Whether a reader that was given so much gets the next read begun.
    pub(super) fn comes(pages: u32) -> bool {
        pages >= COMING_PAGES_MIN
    }

    /// The reader will ask for `next`; it is being read, if `reading` is.
    pub(super) fn expect(&mut self, mut reader: Reader, next: Part, reading: Option<Reading>) {
        let at = next.bytes();
        let passed_over = if reading.is_some() { at.end } else { at.start };
        reader.run = next.run();
        reader.at = at.start..passed_over.saturating_add(GAP_BYTES_MAX);
        reader.coming = reading.map(|reading| {
            let mut reading = Box::pin(maybe_done(reading));
            // The first poll begins it. Nobody needs to be woken yet.
            let _ = reading.as_mut().now_or_never();
            let part = next;
            Coming { part, reading }
        });
        self.readers.truncate(READERS_MAX - 1);
        self.readers.push_front(reader);
    }

    /// What was begun so far is not used any more.
    pub(super) fn forget(&mut self) {
        self.readers.clear();
    }

    /// At most this much is read at once; 0 for a leaf.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn limit(&mut self, pages_max: u32) {
        self.pages_max = pages_max;
    }

    /// Pages on their way or not used yet, and most of them.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn pages(&self) -> (u32, u32) {
        let coming = self.readers.iter().filter(|it| it.coming.is_some());
        let pages = coming.map(|reader| reader.pages).sum();
        (pages, READERS_MAX as u32 * self.pages_max)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::super::fact::{Blocks, ExtentKey};
    use super::super::layout::Table;
    use super::super::run::LEAF_BYTES_MAX;
    use super::*;
    use crate::record::{Seq, SliceKey};

    fn table(run: u64, leaves: u32, bytes: usize) -> Rc<OpenTable> {
        let bytes = bytes as u32;
        let places: Vec<LeafPlace> = (0..leaves)
            .map(|extent| LeafPlace {
                key: ExtentKey {
                    slice: SliceKey {
                        volume: 1,
                        slice: 1,
                    },
                    extent,
                },
                at: extent * bytes,
                bytes,
                seq_max: Seq(1),
                occupied: Blocks::default(),
            })
            .collect();
        let table = Table {
            run,
            pieces: Vec::new(),
            leaf_pages: 0,
            leaves,
            slices: Vec::new(),
            merged_through: 0,
        };
        Rc::new(OpenTable::new(table, &places))
    }

    /// Asks for a leaf as somebody who has to wait for it; the leaves that are read for that.
    fn ask(ahead: &mut Ahead, table: &Rc<OpenTable>, leaf: usize) -> Range<usize> {
        let at = table.places(leaf, 1).next().unwrap().at;
        let mut reader = ahead.reader(table.table.run, at);
        let part = match reader.take_coming(leaf) {
            Some(coming) => coming.part,
            None => Part::from(table, leaf, reader.pages).unwrap(),
        };
        let pages = ahead.more(reader.pages);
        if let Some(next) = Part::from(table, part.leaves.end, pages) {
            let reading = Ahead::comes(reader.pages).then(|| {
                reader.pages = pages;
                std::future::pending().boxed_local()
            });
            ahead.expect(reader, next, reading);
        }
        part.leaves
    }

    #[test]
    fn who_goes_on_gets_more_and_more_and_who_jumps_gets_one_leaf() {
        let (mine, other) = (table(7, 200, LEAF_BYTES_MAX), table(9, 200, LEAF_BYTES_MAX));
        let mut ahead = Ahead::default();
        assert_eq!(ask(&mut ahead, &mine, 0), 0..1);
        assert_eq!(ask(&mut ahead, &mine, 1), 1..3);
        // Somebody else, in between.
        assert_eq!(ask(&mut ahead, &other, 5), 5..6);
        assert_eq!(ask(&mut ahead, &mine, 3), 3..8);
        assert_eq!(ahead.pages().0, 32, "the next are on their way");
        assert_eq!(ask(&mut ahead, &other, 6), 6..8);
        assert_eq!(ask(&mut ahead, &mine, 100), 100..101);
        let mut next = 8;
        for leaves in [10, 21, 42, 43, 43] {
            let found = ask(&mut ahead, &mine, next);
            assert!(found.start == next && found.len().abs_diff(leaves) <= 1);
            next = found.end;
        }
        for stranger in 0..10 {
            let theirs = table(20 + stranger, 2, LEAF_BYTES_MAX);
            assert_eq!(ask(&mut ahead, &theirs, 0), 0..1);
        }
        assert_eq!(ask(&mut ahead, &mine, next).len(), 1, "forgotten meanwhile");
    }

    #[test]
    fn who_passes_over_a_few_leaves_goes_on_and_who_passes_over_more_does_not() {
        let table = table(7, 400, LEAF_BYTES_MAX);
        let mut ahead = Ahead::default();
        assert_eq!(ask(&mut ahead, &table, 0), 0..1);
        assert_eq!(ask(&mut ahead, &table, 3), 3..5);
        assert_eq!(ask(&mut ahead, &table, 7), 7..12);
        // In what is on its way.
        assert_eq!(ask(&mut ahead, &table, 15), 12..22);
        // Not far behind it.
        let behind = ask(&mut ahead, &table, 46);
        assert_eq!((behind.start, behind.len() > 15), (46, true));
        assert_eq!(ask(&mut ahead, &table, 300), 300..301);
    }

    #[test]
    fn many_small_leaves_are_read_in_parts() {
        let table = table(7, 5000, 72);
        let mut ahead = Ahead::default();
        let (mut next, mut parts) = (0, Vec::new());
        while next < 5000 {
            let found = ask(&mut ahead, &table, next);
            parts.push(found.len());
            next = found.end;
        }
        assert!(
            parts.iter().all(|leaves| *leaves <= LEAVES_MAX),
            "{parts:?}"
        );
        assert!(parts.len() < 10, "{parts:?}");
    }

    #[test]
    fn what_is_on_its_way_is_begun_at_once_and_bounded() {
        let mut ahead = Ahead::default();
        let begun = Rc::new(std::cell::Cell::new(0));
        for run in 0..20 {
            let table = table(run, 43, LEAF_BYTES_MAX);
            let counted = begun.clone();
            let reading = std::future::poll_fn(move |_| {
                counted.set(counted.get() + 1);
                Poll::Pending
            });
            let mut reader = ahead.reader(run, 0);
            reader.pages = PAGES_MAX;
            let whole = Part::from(&table, 0, PAGES_MAX).unwrap();
            assert_eq!(whole.leaves, 0..43, "a table");
            ahead.expect(reader, whole, Some(reading.boxed_local()));
            let (pages, bound) = ahead.pages();
            assert!(pages <= bound && bound == 8 * PAGES_MAX, "{pages}");
        }
        assert_eq!(begun.get(), 20);
    }
}
