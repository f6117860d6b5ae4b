//! What a journal batch is made of: records of the stream, copied blocks, stable points.
//!
//! Tested with the whole store: `tests/damage.rs`, `tests/read_in.rs`.

use std::rc::Rc;

use bytes::Bytes;

use crate::encoding::block_checksum;
use crate::record::{BLOCK_BYTES, OperationId, Seq, SliceKey, View};

/// What an item in the journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stream record with data.
    Write,
    /// Stream record that zeroes.
    Zero,
    /// Stream record without effect.
    Nothing,
    /// One copied block with data.
    CopyWrite,
    /// One copied block that reads zero.
    CopyZero,
    /// One block that is lost in every copy.
    CopyLost,
    /// The slice's stable point and nothing else.
    Stable,
}

impl Kind {
    /// Whether the item is an entry of the slice's stream.
    pub(crate) fn is_stream(self) -> bool {
        match self {
            Self::Write | Self::Zero | Self::Nothing => true,
            Self::CopyWrite | Self::CopyZero | Self::CopyLost | Self::Stable => false,
        }
    }

    /// Whether the item is followed by block data.
    pub(crate) fn has_data(self) -> bool {
        match self {
            Self::Write | Self::CopyWrite => true,
            Self::Zero | Self::Nothing | Self::CopyZero | Self::CopyLost | Self::Stable => false,
        }
    }
}

/// One item of a journal batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) slice: SliceKey,
    pub(crate) view: View,
    pub(crate) seq: Seq,
    pub(crate) stable: Seq,
    pub(crate) operation: OperationId,
    pub(crate) first_block: u32,
    pub(crate) blocks: u32,
    /// Journaled a second time, so that its first place in the ring can be reused.
    pub(crate) relocated: bool,
    /// One checksum for each block of data.
    pub(crate) checksums: Rc<[u64]>,
    /// Block data, for kinds that have it.
    pub(crate) data: Bytes,
    /// Where in the journal the data begins, in bytes, if it was not read: then `data` is empty.
    pub(crate) unread: Option<u64>,
    /// Which blocks did not survive; empty when all did.
    pub(crate) lost: Vec<bool>,
}

impl Item {
    pub(crate) fn content(&self, index: u32) -> Content {
        if self.kind == Kind::CopyLost {
            return Content::Unknown;
        }
        if !self.kind.has_data() {
            return Content::Zero;
        }
        let index = index as usize;
        if self.lost.get(index).copied().unwrap_or(false) {
            return Content::Unknown;
        }
        let (first, checksum) = (index * BLOCK_BYTES, self.checksums[index]);
        match self.unread {
            Some(at) => Content::Unread(InRing {
                at: at + first as u64,
                checksum,
            }),
            None => Content::Data(self.data.slice(first..first + BLOCK_BYTES), checksum),
        }
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.lost.iter().any(|lost| *lost)
    }

    /// Takes in the data that was not read yet, and finds out which blocks of it are lost.
    pub(crate) fn take_in(&mut self, data: Bytes) {
        let blocks = self.checksums.iter().zip(self.first_block..);
        let lost = blocks.zip(data.chunks(BLOCK_BYTES));
        let lost = lost.map(|((checksum, block), bytes)| {
            block_checksum(self.slice, block, bytes) != *checksum
        });
        self.lost = lost.collect();
        if !self.is_damaged() {
            self.lost.clear();
        }
        self.data = data;
        self.unread = None;
    }
}

/// A block whose bytes are in the journal, and not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InRing {
    /// Its position in the journal, in bytes.
    pub(crate) at: u64,
    pub(crate) checksum: u64,
}

/// What a version makes of its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Bytes, u64),
    /// A recovery knows it from the description of its record.
    Unread(InRing),
    Zero,
    Unknown,
}
