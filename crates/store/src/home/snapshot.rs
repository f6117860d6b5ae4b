//! A snapshot of the layout in the making: it may take hundreds of megabytes, and nothing else
//! runs on this thread meanwhile, so it is encoded, summed up and written in pieces.
//!
//! The caller sees to it that the layout stays as it is until the end: it holds the lock of the
//! home's writers.

use std::cell::RefCell;
use std::ops::Bound;
use std::rc::Rc;

use futures::StreamExt;
use holdfast_runtime::{Buffer, Disk, DiskError};
use serde::Serialize;
use tokio::task::yield_now;
use xxhash_rust::xxh3::Xxh3;

use super::layout::Layout;

/// Segments of one piece: half a millisecond.
const SEGMENTS_AT_ONCE: usize = 16 << 10;
/// Tables of one piece: they are larger, and each is a look-up.
const TABLES_AT_ONCE: usize = 2 << 10;
/// The checksum of an entry stands before all that it sums up.
const CHECKSUM_BYTES: usize = 8;
/// Bytes of one buffer: of one write, and of one step of the sum.
const PIECE_BYTES: usize = 1 << 20;
/// Writes in flight at once.
const WRITES_IN_FLIGHT: usize = 4;

/// The bytes of an entry, in buffers that are full but the last one.
pub(super) struct Snapshot {
    pieces: Vec<Buffer>,
    /// What does not fill a buffer yet.
    rest: Vec<u8>,
    len: usize,
}

impl Snapshot {
    /// The layout, in the encoding of [`Layout`], behind room for a header.
    pub(super) async fn of(layout: &RefCell<Layout>, header_bytes: usize) -> Self {
        let mut snapshot = Self {
            pieces: Vec::new(),
            rest: vec![0; header_bytes],
            len: header_bytes,
        };
        snapshot.put_segments(layout).await;
        snapshot.put(&layout.borrow().deltas);
        snapshot.put_tables(layout).await;
        let layout = layout.borrow();
        let counts = (layout.next_run, layout.data_segments, layout.map_segments);
        snapshot.put(&(&layout.cleared, counts, &layout.cleared_slices));
        drop(layout);
        let rest = std::mem::take(&mut snapshot.rest);
        snapshot.pieces.push(Buffer::padded_from(&rest));
        snapshot
    }

    async fn put_segments(&mut self, layout: &RefCell<Layout>) {
        let count = layout.borrow().segments.ever_used().len();
        self.put(&count);
        for next in (0..count).step_by(SEGMENTS_AT_ONCE) {
            if next > 0 {
                yield_now().await;
            }
            let end = count.min(next + SEGMENTS_AT_ONCE);
            for segment in &layout.borrow().segments.ever_used()[next..end] {
                self.put(segment);
            }
        }
    }

    async fn put_tables(&mut self, layout: &RefCell<Layout>) {
        let count = layout.borrow().tables.len();
        self.put(&count);
        let mut from = Bound::Unbounded;
        for next in (0..count).step_by(TABLES_AT_ONCE) {
            if next > 0 {
                yield_now().await;
            }
            let layout = layout.borrow();
            let piece = layout.tables.range((from, Bound::Unbounded));
            for (key, table) in piece.take(TABLES_AT_ONCE) {
                self.put(&(key, table));
                from = Bound::Excluded(*key);
            }
        }
    }

    fn put<T: Serialize>(&mut self, value: &T) {
        let rest = std::mem::take(&mut self.rest);
        let before = rest.len();
        self.rest = postcard::to_extend(value, rest).expect("plain data has an encoding");
        self.len += self.rest.len() - before;
        while self.rest.len() > PIECE_BYTES {
            let rest = self.rest.split_off(PIECE_BYTES);
            self.pieces.push(Buffer::padded_from(&self.rest));
            self.rest = rest;
        }
    }

    /// Bytes of header and body.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts the header in its place, and the checksum of all that follows it over its first bytes.
    pub(super) async fn seal(&mut self, header: &[u8]) {
        self.pieces[0][..header.len()].copy_from_slice(header);
        let mut sum = Xxh3::new();
        let mut left = self.len;
        for (number, piece) in self.pieces.iter().enumerate() {
            if number > 0 {
                yield_now().await;
            }
            let end = left.min(piece.len());
            let begin = if number == 0 { CHECKSUM_BYTES } else { 0 };
            sum.update(&piece[begin..end]);
            left -= end;
        }
        let sum = sum.digest().to_le_bytes();
        self.pieces[0][..CHECKSUM_BYTES].copy_from_slice(&sum);
    }

    /// Writes it, padded to whole pages.
    pub(super) async fn write(self, disk: &Rc<dyn Disk>, at: u64) -> Result<(), DiskError> {
        let count = self.pieces.len();
        let offsets = (at..).step_by(PIECE_BYTES);
        let writes = offsets.zip(self.pieces);
        let writes = writes.map(|(offset, piece)| disk.write(offset, piece));
        let mut writes = futures::stream::iter(writes).buffered(WRITES_IN_FLIGHT);
        let mut left = count;
        while let Some(written) = writes.next().await {
            written?;
            left -= 1;
            // A file in memory is written at once, and then no write waits for anything.
            if left > 0 {
                yield_now().await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::SliceKey;

    use super::super::fact::ExtentKey;
    use super::super::layout::{Cleared, Kind, Piece, Segment, Table};
    use super::*;
    use crate::encoding::plain_checksum;
    use crate::testing::run;

    fn slice(number: u32) -> SliceKey {
        SliceKey {
            volume: 3,
            slice: number,
        }
    }

    fn layout(segments: usize, tables: usize) -> Layout {
        let mut layout = Layout {
            next_run: 7,
            data_segments: segments as u64,
            map_segments: 1,
            cleared: vec![Cleared {
                volume: 1,
                through: 2,
            }],
            cleared_slices: [(slice(1), 4)].into(),
            ..Layout::default()
        };
        for number in 0..segments as u32 {
            let segment = Segment {
                kind: Some(Kind::Data),
                epoch: number,
                ..Segment::default()
            };
            layout.segments.put(number, segment);
        }
        for number in 0..tables as u32 {
            let key = ExtentKey {
                slice: slice(number),
                extent: 0,
            };
            let table = Table {
                run: u64::from(number),
                pieces: vec![Piece {
                    segment: number,
                    first: 1,
                    pages: 2,
                }],
                leaf_pages: 1,
                leaves: 3,
                slices: vec![slice(number)],
                merged_through: 9,
            };
            layout.tables.insert(key, table);
        }
        layout
    }

    #[test]
    fn pieces_are_together_what_the_whole_is() {
        run(1, |_| async {
            // The last ones take more than one buffer.
            let edges = [0, 1, SEGMENTS_AT_ONCE, 16 * SEGMENTS_AT_ONCE + 1];
            let tables = [0, TABLES_AT_ONCE, TABLES_AT_ONCE + 1, 16 * TABLES_AT_ONCE];
            for (segments, tables) in edges.into_iter().zip(tables) {
                let layout = layout(segments, tables);
                let body = postcard::to_stdvec(&layout).unwrap();
                let header = [7; 64];
                let mut snapshot = Snapshot::of(&RefCell::new(layout), header.len()).await;
                snapshot.seal(&header).await;
                let mut whole = [&header, body.as_slice()].concat();
                let sum = plain_checksum(&whole[CHECKSUM_BYTES..]);
                whole[..CHECKSUM_BYTES].copy_from_slice(&sum.to_le_bytes());
                assert_eq!(snapshot.len(), whole.len());
                let written = snapshot.pieces.iter().flat_map(|piece| piece.iter());
                let same = written.take(whole.len()).eq(&whole);
                assert!(same, "{segments} segments, {tables} tables");
            }
        });
    }
}
