//! The segments of the area, and indices that answer without a look at all of them.
//!
//! A home may have millions of segments, and a destage round asks several times which one is
//! free, being filled, or worth collecting. Invariants:
//!
//! * segments that were never in use are not among `all`: an empty home costs nothing, whatever
//!   its size;
//! * the indices say what a look at every segment would.
//!
//! What is worth collecting is kept in classes of like use, each by age, and the oldest of each
//! class competes: of two segments in one class the older one goes first, although the other one
//! may gain up to a sixty-fourth of a segment more.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::collect;
use super::layout::{Kind, Segment};

/// Classes of use.
const CLASSES: usize = 64;

/// Numbers, one bit each; those beyond the last bit that was ever set are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    words: Vec<u64>,
}

impl Numbers {
    pub(super) fn set(&mut self, number: u32, is_in: bool) {
        let index = (number / 64) as usize;
        if index >= self.words.len() {
            if !is_in {
                return;
            }
            self.words.resize(index + 1, 0);
        }
        let bit = 1 << (number % 64);
        match is_in {
            true => self.words[index] |= bit,
            false => self.words[index] &= !bit,
        }
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        let word = self.words.get((number / 64) as usize);
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// The lowest number from `from` on that is not in it.
    pub(super) fn first_absent(&self, from: u32) -> u32 {
        let index = (from / 64) as usize;
        let below = (1u64 << (from % 64)) - 1;
        let words = self.words.get(index..).unwrap_or_default();
        let mut filled = words.iter().enumerate().map(|(place, word)| match place {
            0 => word | below,
            _ => *word,
        });
        match filled.position(|word| word != u64::MAX) {
            Some(place) => {
                let word = words[place] | if place == 0 { below } else { 0 };
                (index + place) as u32 * 64 + word.trailing_ones()
            }
            None => from.max(self.words.len() as u32 * 64),
        }
    }
}

/// All segments that were ever in use; the others are free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Segments {
    all: Vec<Segment>,
    in_use: Numbers,
    /// Those that are being filled.
    open: BTreeSet<(Kind, u32)>,
    /// Those with pages of the map that are filled, by how many of these are needed.
    maps: BTreeSet<(u32, u32)>,
    /// Pages of them that are needed.
    map_pages: u64,
    /// Those with blocks that are worth collecting, by class and age; only once the size of a
    /// segment is known.
    worthwhile: Vec<BTreeSet<(u64, u32)>>,
    /// Pages of a segment; zero if that is not known yet.
    pages: u32,
}

impl Segments {
    /// Those of a manifest, which may name segments that were never in use.
    pub(super) fn new(all: Vec<Segment>) -> Self {
        let mut segments = Self::default();
        for (segment, number) in all.iter().zip(0..) {
            segments.count(number, segment, true);
        }
        segments.all = all;
        while segments.all.last() == Some(&Segment::default()) {
            segments.all.pop();
        }
        segments
    }

    /// Says how many pages a segment has: from now on [`Segments::best`] answers.
    pub(super) fn know_pages(&mut self, pages: u32) {
        self.pages = pages;
        self.worthwhile = vec![BTreeSet::new(); CLASSES];
        for (segment, number) in self.all.iter().zip(0..) {
            if let Some(class) = class(segment, pages) {
                self.worthwhile[class].insert((segment.written, number));
            }
        }
    }

    /// Segments from 0 on; those behind the last one are free and were never in use.
    pub(super) fn ever_used(&self) -> &[Segment] {
        &self.all
    }

    pub(super) fn get(&self, number: u32) -> Segment {
        let known = self.all.get(number as usize);
        known.copied().unwrap_or_default()
    }

    /// Changes a segment that is in use; `None` if it is not.
    pub(super) fn change(&mut self, number: u32, change: impl FnOnce(&mut Segment)) -> Option<()> {
        let mut segment = self.get(number);
        segment.kind?;
        change(&mut segment);
        self.put(number, segment);
        Some(())
    }

    pub(super) fn put(&mut self, number: u32, segment: Segment) {
        let index = number as usize;
        if index >= self.all.len() {
            self.all.resize(index + 1, Segment::default());
        }
        let before = std::mem::replace(&mut self.all[index], segment);
        self.count(number, &before, false);
        self.count(number, &segment, true);
    }

    /// Takes a segment into the indices, or out of them.
    fn count(&mut self, number: u32, segment: &Segment, is_in: bool) {
        let Some(kind) = segment.kind else {
            return;
        };
        self.in_use.set(number, is_in);
        if !segment.sealed {
            set(&mut self.open, (kind, number), is_in);
        } else if kind == Kind::Map {
            set(&mut self.maps, (segment.live, number), is_in);
            let live = u64::from(segment.live);
            self.map_pages = match is_in {
                true => self.map_pages + live,
                false => self.map_pages - live,
            };
        } else if let Some(class) = class(segment, self.pages) {
            let key = (segment.written, number);
            set(&mut self.worthwhile[class], key, is_in);
        }
    }

    /// The first segment that is free and for which `is_taken` does not hold.
    pub(super) fn first_free(&self, is_taken: impl Fn(u32) -> bool) -> u32 {
        let mut number = self.in_use.first_absent(0);
        while is_taken(number) {
            number = self.in_use.first_absent(number + 1);
        }
        number
    }

    pub(super) fn in_use(&self) -> &Numbers {
        &self.in_use
    }

    /// The segment of this kind that is being filled.
    pub(super) fn open(&self, kind: Kind) -> Option<u32> {
        let of_kind = (kind, 0)..=(kind, u32::MAX);
        self.open.range(of_kind).next().map(|(_, number)| *number)
    }

    /// How many filled segments hold the map, and how many of their pages are needed.
    pub(super) fn filled_maps(&self) -> (u64, u64) {
        (self.maps.len() as u64, self.map_pages)
    }

    /// The filled one of them of which the fewest pages are needed.
    pub(super) fn sparsest_map(&self) -> Option<u32> {
        self.maps.first().map(|(_, number)| *number)
    }

    /// Of the oldest segments of each class that are worth collecting and in `admits`, the one
    /// with the highest score.
    pub(super) fn best(
        &self,
        admits: impl Fn(u32) -> bool,
        score: impl Fn(&Segment) -> u64,
    ) -> Option<u32> {
        let oldest = |class: &BTreeSet<(u64, u32)>| {
            let mut numbers = class.iter().map(|(_, number)| *number);
            numbers.find(|number| admits(*number))
        };
        let candidates = self.worthwhile.iter().filter_map(oldest);
        candidates.max_by_key(|number| (score(&self.get(*number)), std::cmp::Reverse(*number)))
    }
}

/// Which class a segment that is worth collecting is in.
fn class(segment: &Segment, pages: u32) -> Option<usize> {
    let has_blocks = match segment.kind {
        Some(Kind::Data | Kind::Cold) => segment.sealed,
        Some(Kind::Map) | None => false,
    };
    let is_in = pages > 0 && has_blocks && collect::is_worthwhile(segment.live, pages);
    is_in.then(|| segment.live as usize * CLASSES / pages as usize)
}

fn set<T: Ord>(index: &mut BTreeSet<T>, key: T, is_in: bool) {
    match is_in {
        true => index.insert(key),
        false => index.remove(&key),
    };
}

impl Serialize for Segments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.all.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Segments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    const PAGES: u32 = 128;

    #[test]
    fn numbers_that_are_absent_are_found_from_any_place_on() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.first_absent(0), 0);
        for number in 0..130 {
            numbers.set(number, true);
        }
        assert_eq!(numbers.first_absent(0), 130);
        assert_eq!(numbers.first_absent(191), 191);
        assert_eq!(numbers.first_absent(1000), 1000);
        numbers.set(63, false);
        numbers.set(64, false);
        assert_eq!(numbers.first_absent(3), 63);
        assert_eq!(numbers.first_absent(64), 64);
        assert_eq!(numbers.first_absent(65), 130);
        assert!(!numbers.contains(63) && numbers.contains(65) && !numbers.contains(5000));
    }

    /// Any segment.
    fn random(dice: &Dice) -> Segment {
        let kinds = [None, Some(Kind::Data), Some(Kind::Cold), Some(Kind::Map)];
        let kind = kinds[dice.below(4) as usize];
        Segment {
            kind,
            epoch: 1,
            used: PAGES,
            live: dice.below(u64::from(PAGES) + 1) as u32,
            sealed: kind.is_some() && dice.below(2) == 0,
            written: dice.below(50),
        }
    }

    #[test]
    fn the_indices_say_what_a_look_at_every_segment_says() {
        let dice = Dice::new(7);
        let mut segments = Segments::default();
        segments.know_pages(PAGES);
        for step in 0..4000 {
            let number = dice.below(200) as u32;
            let segment = random(&dice);
            segments.put(number, segment);
            if step % 20 != 0 {
                continue;
            }
            let all = segments.all.clone();
            let numbered = || all.iter().zip(0u32..);
            let free = numbered().find(|(segment, _)| segment.kind.is_none());
            let free = free.map_or(all.len() as u32, |(_, number)| number);
            assert_eq!(segments.first_free(|_| false), free);
            for kind in [Kind::Data, Kind::Cold, Kind::Map] {
                let open = |segment: &Segment| segment.kind == Some(kind) && !segment.sealed;
                let open = numbered().find(|(segment, _)| open(segment));
                assert_eq!(segments.open(kind), open.map(|(_, number)| number));
            }
            let maps =
                numbered().filter(|(segment, _)| segment.kind == Some(Kind::Map) && segment.sealed);
            let live = maps.clone().map(|(segment, _)| u64::from(segment.live));
            assert_eq!(
                segments.filled_maps(),
                (maps.clone().count() as u64, live.sum())
            );
            let sparsest = maps.min_by_key(|(segment, _)| segment.live);
            assert_eq!(segments.sparsest_map(), sparsest.map(|(_, number)| number));
            let is_candidate = |segment: &Segment| class(segment, PAGES).is_some();
            let best = numbered()
                .filter(|(segment, _)| is_candidate(segment))
                .min_by_key(|(segment, number)| (segment.written, *number));
            // By age alone the choice of a class does not matter.
            let by_age = segments.best(|_| true, |segment| 1000 - segment.written);
            let age = |number: Option<u32>| number.map(|number| segments.get(number).written);
            assert_eq!(age(by_age), best.map(|(segment, _)| segment.written));
            let mut read_back = Segments::new(all);
            read_back.know_pages(PAGES);
            assert_eq!(read_back, segments);
        }
    }

    #[test]
    fn what_cannot_be_collected_is_passed_over() {
        let mut segments = Segments::default();
        segments.know_pages(PAGES);
        let sealed = |live, written| Segment {
            kind: Some(Kind::Data),
            epoch: 1,
            used: PAGES,
            live,
            sealed: true,
            written,
        };
        segments.put(0, sealed(1, 5));
        segments.put(1, sealed(1, 6));
        segments.put(2, sealed(PAGES, 1));
        let by_age = |segment: &Segment| 100 - segment.written;
        assert_eq!(segments.best(|_| true, by_age), Some(0));
        assert_eq!(segments.best(|number| number != 0, by_age), Some(1));
        assert_eq!(segments.best(|number| number > 1, by_age), None);
    }
}
