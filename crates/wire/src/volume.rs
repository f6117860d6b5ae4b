//! I/O forwarded from a portal to a volume's owner (`Service::Volume`).

use prost::Message;

/// What to do with the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum IoKind {
    /// Not known to this version.
    Unknown = 0,
    /// Read it.
    Read = 1,
    /// Write the payload to it.
    Write = 2,
    /// Make it zero.
    Zero = 3,
    /// Compare it with the first half of the payload; if equal, write the second half.
    CompareAndWrite = 4,
    /// Touches nothing, and ends well when the owner enforces the reservations of
    /// `reservation_revision` and whatever it ran under older ones is over.
    Settle = 5,
    /// Touches nothing, and ends well when the node, owner or not, knows the reservations of
    /// `reservation_revision`.
    Learn = 6,
    /// Touches nothing: brings newer evidence that the host holds on to the path, and fetches
    /// the owner's clock.
    Hold = 7,
    /// The path has ended: nothing that came by it may begin to take effect.
    Release = 8,
    /// Says which parts of the range are mapped: a `mapped::MappedBytes` in the payload.
    Map = 9,
}

/// One operation on a volume.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Io {
    /// Volume.
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    /// Which portal asks: its node and start.
    #[prost(uint64, tag = "2")]
    pub origin: u64,
    /// The portal's number for the operation; a retry has the same.
    #[prost(uint64, tag = "3")]
    pub operation: u64,
    /// The portal's lowest number that is still under way; lower ones are over.
    #[prost(uint64, tag = "4")]
    pub floor: u64,
    /// What.
    #[prost(enumeration = "IoKind", tag = "5")]
    pub kind: i32,
    /// First byte, a multiple of 512.
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    /// Bytes, a multiple of 512.
    #[prost(uint64, tag = "7")]
    pub length: u64,
    /// The owner's view as the portal knows it: a request that was meant for an earlier owner
    /// and comes late is not run by a later one.
    #[prost(uint64, tag = "8")]
    pub view: u64,
    /// The view that the operation was first sent in.
    #[prost(uint64, tag = "9")]
    pub first_view: u64,
    /// `floor` when the operation was first sent: what is below had ended before.
    #[prost(uint64, tag = "10")]
    pub first_floor: u64,
    /// What the initiator port is to the volume's reservation table: the number of its
    /// registration, zero for a stranger.
    #[prost(uint64, tag = "11")]
    pub registration: u64,
    /// Revision of the reservation table that said so: an owner with an older one waits.
    #[prost(uint64, tag = "12")]
    pub reservation_revision: u64,
    /// The portal's number for the path that the operation came by; zero if no host issued it.
    #[prost(uint64, tag = "13")]
    pub path: u64,
    /// The owner's clock as an earlier answer gave it, in nanoseconds; zero if the portal has
    /// nothing to say of the path.
    #[prost(uint64, tag = "14")]
    pub stamp: u64,
    /// When the host was last known to hold on to the path: nanoseconds after the portal
    /// received `stamp`, by the portal's clock; negative if before.
    #[prost(sint64, tag = "15")]
    pub held_after_stamp: i64,
}

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum IoStatus {
    /// Not known to this version.
    Unknown = 0,
    /// Done; for writes, durable on all in-sync copies.
    Done = 1,
    /// The node does not own the volume, or not yet; nothing was done here. Ask again.
    NotOwner = 2,
    /// The owner lost its office under way; whether the operation took effect is open. A retry
    /// with the same number finds out.
    Interrupted = 3,
    /// Some copy has no space; nothing was done.
    Full = 4,
    /// No copy could give the data intact.
    Damaged = 5,
    /// The range is outside the volume, or the operation is malformed; nothing was done.
    Invalid = 6,
    /// The comparison failed; nothing was written. `offset` says where.
    Miscompare = 7,
    /// The volume does not exist (any more).
    Gone = 8,
    /// An earlier owner may have run the operation, and nobody remembers. Nothing was done now.
    Uncertain = 10,
    /// The operation is over already: a late duplicate. Nothing was done.
    Over = 9,
    /// A reservation forbids it. Nothing was done, but in slices where it had been run before.
    Reserved = 11,
    /// The host may have given the path up by now; nothing was done, and nothing will be done
    /// for this request. Ask again with newer evidence, and the answer's stamp.
    Stale = 12,
}

/// Answer to [`Io`]; read data is in the payload.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IoReply {
    /// What came of it.
    #[prost(enumeration = "IoStatus", tag = "1")]
    pub status: i32,
    /// First differing byte after a failed comparison, from the start of the range.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// The owner's clock when it answered, in nanoseconds from an origin of its own.
    #[prost(uint64, tag = "3")]
    pub stamp: u64,
}
