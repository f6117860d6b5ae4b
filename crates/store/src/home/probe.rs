//! Homes whose manifest says that they are full, for measurements.
//!
//! Used by them only: it has no tests itself.

use holdfast_runtime::DiskError;
use holdfast_wire::SliceKey;

use super::Home;
use super::fact::ExtentKey;
use super::layout::{Kind, Piece, Segment, Table};

impl Home {
    /// Says that all segments hold blocks, but an eighth, and that there are so many tables.
    pub(crate) fn pretend_full(&self, tables: u32) -> u32 {
        let usable = self.manifest.geometry.segments_in(self.disk.size_bytes());
        let pages = self.manifest.geometry.segment_pages;
        let used = usable - usable / 8;
        let number = self.manifest.number();
        self.manifest.alter(|layout| {
            for segment in 0..used {
                let mixed = segment.wrapping_mul(0x9e37_79b9) >> 8;
                let full = Segment {
                    kind: Some(Kind::Data),
                    epoch: 1 + mixed % 200,
                    used: pages,
                    live: pages / 2 + mixed % (pages / 2),
                    sealed: true,
                    written: number.saturating_sub(u64::from(mixed)),
                };
                if layout.segment(segment).kind.is_none() {
                    layout.segments.put(segment, full);
                }
            }
            for table in 0..tables {
                let key = ExtentKey {
                    slice: SliceKey {
                        volume: 1,
                        slice: table,
                    },
                    extent: 0,
                };
                let piece = Piece {
                    segment: table,
                    first: 1000,
                    pages: 130,
                };
                let table = Table {
                    run: u64::from(table) << 8,
                    pieces: vec![piece],
                    leaf_pages: 128,
                    leaves: 42,
                    slices: vec![key.slice],
                    merged_through: u64::from(table) << 8,
                };
                layout.tables.insert(key, table);
            }
            layout.data_segments = u64::from(used);
        });
        used
    }

    /// Which segment would be collected next.
    pub(crate) fn next_collected(&self) -> Option<u32> {
        self.victim().map(|victim| victim.number)
    }

    /// Writes a snapshot of the manifest; returns its bytes.
    pub(crate) async fn turn_manifest(&self) -> Result<u64, DiskError> {
        self.manifest.turn().await
    }
}
