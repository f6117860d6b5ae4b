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
/// Bytes of one write, and of one step of the sum.
const PIECE_BYTES: usize = 1 << 20;
/// Writes in flight at once.
const WRITES_IN_FLIGHT: usize = 4;

/// Appends the layout, in the encoding of [`Layout`], to these bytes.
pub(super) async fn encode(layout: &RefCell<Layout>, mut bytes: Vec<u8>) -> Vec<u8> {
    let segments = layout.borrow().segments.ever_used().len();
    bytes = put(&segments, bytes);
    let mut next = 0;
    while next < segments {
        if next > 0 {
            yield_now().await;
        }
        let end = segments.min(next + SEGMENTS_AT_ONCE);
        for segment in &layout.borrow().segments.ever_used()[next..end] {
            bytes = put(segment, bytes);
        }
        next = end;
    }
    bytes = put(&layout.borrow().deltas, bytes);
    let tables = layout.borrow().tables.len();
    bytes = put(&tables, bytes);
    let mut from = Bound::Unbounded;
    for next in (0..tables).step_by(TABLES_AT_ONCE) {
        if next > 0 {
            yield_now().await;
        }
        let layout = layout.borrow();
        let piece = layout.tables.range((from, Bound::Unbounded));
        for (key, table) in piece.take(TABLES_AT_ONCE) {
            bytes = put(&(key, table), bytes);
            from = Bound::Excluded(*key);
        }
    }
    let layout = layout.borrow();
    let counts = (layout.next_run, layout.data_segments, layout.map_segments);
    put(&(&layout.cleared, counts, &layout.cleared_slices), bytes)
}

fn put<T: Serialize>(value: &T, bytes: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(value, bytes).expect("plain data has an encoding")
}

/// [`plain_checksum`](crate::encoding::plain_checksum) of these bytes.
pub(super) async fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        if number > 0 {
            yield_now().await;
        }
        sum.update(piece);
    }
    sum.digest()
}

/// Writes these bytes, padded to whole pages.
pub(super) async fn write(disk: &Rc<dyn Disk>, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
    let offsets = (at..).step_by(PIECE_BYTES);
    let writes = offsets.zip(bytes.chunks(PIECE_BYTES));
    let writes = writes.map(|(offset, piece)| disk.write(offset, Buffer::padded_from(piece)));
    let mut writes = futures::stream::iter(writes).buffered(WRITES_IN_FLIGHT);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
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
            let edges = [0, 1, SEGMENTS_AT_ONCE, SEGMENTS_AT_ONCE + 1];
            let tables = [0, TABLES_AT_ONCE, TABLES_AT_ONCE + 1];
            for (segments, tables) in edges.into_iter().zip(tables.into_iter().cycle()) {
                let layout = layout(segments, tables);
                let whole = postcard::to_stdvec(&layout).unwrap();
                let pieces = encode(&RefCell::new(layout), b"head".to_vec()).await;
                assert_eq!(pieces[..4], *b"head");
                assert!(pieces[4..] == whole, "{segments} segments, {tables} tables");
            }
            for len in [0, 5, PIECE_BYTES, 2 * PIECE_BYTES + 3] {
                let bytes: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
                assert_eq!(checksum(&bytes).await, plain_checksum(&bytes));
            }
        });
    }
}
