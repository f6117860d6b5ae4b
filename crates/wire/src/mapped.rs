//! Which blocks of a volume take space: asked by a portal of the owner (`IoKind::Map`), and by the
//! owner of copies (`replica_request::Body::MapBlocks`).

use prost::Message;

/// Answer to an `Io` of the kind `Map`, in its payload: runs from the offset on, which are mapped
/// and not mapped in turn. They may end before the range does.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MappedBytes {
    /// Whether the first run is mapped.
    #[prost(bool, tag = "1")]
    pub first_mapped: bool,
    /// Their lengths in bytes.
    #[prost(uint64, repeated, tag = "2")]
    pub lengths: Vec<u64>,
}

/// Owner to holder: which blocks of these ranges are mapped, as of the owner's stable positions?
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MapBlocks {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// The owner's view.
    #[prost(uint64, tag = "2")]
    pub view: u64,
    /// The ranges, each of another slice.
    #[prost(message, repeated, tag = "3")]
    pub ranges: Vec<SliceRange>,
    /// Most runs wanted of each range.
    #[prost(uint32, tag = "4")]
    pub runs_max: u32,
}

/// A range of one slice.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SliceRange {
    /// Slice.
    #[prost(uint32, tag = "1")]
    pub slice: u32,
    /// The owner's stable position.
    #[prost(uint64, tag = "2")]
    pub stable: u64,
    /// First block.
    #[prost(uint32, tag = "3")]
    pub first_block: u32,
    /// Number of blocks.
    #[prost(uint32, tag = "4")]
    pub blocks: u32,
}

/// Answer to [`MapBlocks`], in its payload.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MappedBlocks {
    /// One for each range, in their order.
    #[prost(message, repeated, tag = "1")]
    pub ranges: Vec<MappedRange>,
}

/// The runs of one range, which are mapped and not mapped in turn.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MappedRange {
    /// Whether the first run is mapped.
    #[prost(bool, tag = "1")]
    pub first_mapped: bool,
    /// Their lengths in blocks; none if this copy cannot tell.
    #[prost(uint32, repeated, tag = "2")]
    pub lengths: Vec<u32>,
}
