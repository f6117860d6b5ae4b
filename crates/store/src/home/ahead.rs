//! Reading ahead in the map: whoever goes through neighbouring extents (a sequential reader, a
//! resync, the scrub) gets the leaves that come next with one read instead of one each.
//!
//! A reader is recognised by asking for the leaf behind those it was given last. Each time it is,
//! twice as many leaves are read at once, up to [`LEAVES_MAX`]: some 400 KiB, which go into the
//! cache of leaves. A reader who jumps about costs one read of one leaf, as without this.

use std::collections::VecDeque;

/// Most leaves of one read.
const LEAVES_MAX: usize = 32;
/// Readers that are told apart.
const READERS_MAX: usize = 8;

/// A reader, by what it is expected to ask for next.
struct Reader {
    run: u64,
    leaf: usize,
    leaves: usize,
}

/// The readers of late, the last one in front.
#[derive(Default)]
pub(super) struct Ahead {
    readers: VecDeque<Reader>,
}

impl Ahead {
    /// How many leaves to read for somebody who asks for this one and has to wait for a read.
    pub(super) fn leaves(&mut self, run: u64, leaf: usize) -> usize {
        let known = self.readers.iter();
        let mut known = known.map(|reader| (reader.run, reader.leaf));
        let leaves = match known.position(|expected| expected == (run, leaf)) {
            Some(place) => {
                let reader = self.readers.remove(place);
                reader.map_or(1, |reader| (reader.leaves * 2).min(LEAVES_MAX))
            }
            None => 1,
        };
        self.readers.truncate(READERS_MAX - 1);
        let leaf = leaf + leaves;
        self.readers.push_front(Reader { run, leaf, leaves });
        leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_on_gets_more_and_more_and_one_that_jumps_gets_one() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.leaves(7, 0), 1);
        assert_eq!(ahead.leaves(7, 1), 2);
        // Somebody else, in between.
        assert_eq!(ahead.leaves(9, 5), 1);
        assert_eq!(ahead.leaves(7, 3), 4);
        assert_eq!(ahead.leaves(9, 6), 2);
        assert_eq!(ahead.leaves(7, 100), 1);
        let mut next = 7;
        for leaves in [8, 16, 32, 32] {
            assert_eq!(ahead.leaves(7, next), leaves);
            next += leaves;
        }
        for stranger in 0..10 {
            assert_eq!(ahead.leaves(20 + stranger, 0), 1);
        }
        assert_eq!(ahead.leaves(7, next), 1, "forgotten meanwhile");
    }
}
