//! What a node asks a volume's owner for when its disk has lost blocks (`Service::Heal`).

use prost::Message;

/// Node to owner: my copy has lost these blocks; give them back to it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Heal {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Slice.
    #[prost(uint32, tag = "2")]
    pub slice: u32,
    /// The blocks, ascending.
    #[prost(uint32, repeated, tag = "3")]
    pub blocks: Vec<u32>,
}

/// What came of a [`Heal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum HealStatus {
    /// Not known to this version.
    Unknown = 0,
    /// The owner did what could be done.
    Done = 1,
    /// The node does not own the volume, or has no place for the copy yet. Ask again.
    NotNow = 2,
}

/// Answer to [`Heal`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HealReply {
    /// Whether the rest says anything.
    #[prost(enumeration = "HealStatus", tag = "1")]
    pub status: i32,
    /// Blocks that were sent to the copy and taken.
    #[prost(uint32, tag = "2")]
    pub healed: u32,
    /// Blocks that every other copy in sync has lost too, or that no other copy is there for.
    #[prost(uint32, repeated, tag = "3")]
    pub lost: Vec<u32>,
}
