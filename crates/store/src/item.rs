//! What a journal batch is made of: records of the stream, copied blocks, stable points.

use std::rc::Rc;

use bytes::Bytes;

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
        let data = self
            .data
            .slice(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES);
        Content::Data(data, self.checksums[index])
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.lost.iter().any(|lost| *lost)
    }
}

/// What a version makes of its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Bytes, u64),
    Zero,
    Unknown,
}
