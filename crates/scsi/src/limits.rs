//! The limits advertised in the Block Limits page (SBC-3 6.6.4) and enforced on every command.

/// Longest READ, WRITE, COMPARE AND WRITE or byte-comparing VERIFY, in bytes.
///
/// One command holds its data in memory as a whole; with a window of 128 commands this bounds
/// what one session can make the target hold.
pub const TRANSFER_BYTES_MAX: u64 = 4 << 20;

/// Transfer length that costs the least, in bytes: one stripe of replication traffic.
pub const TRANSFER_BYTES_OPTIMAL: u64 = 1 << 20;

/// Longest VERIFY without a byte comparison, in bytes: it reads, but transfers nothing.
pub const VERIFY_BYTES_MAX: u64 = 64 << 20;

/// Longest WRITE SAME, in bytes. Bounded so that a non-zero pattern ends within a host's timeout;
/// larger ranges are given back by UNMAP.
pub const WRITE_SAME_BYTES_MAX: u64 = 16 << 20;

/// Most bytes that one UNMAP command may name: 2^20 blocks of 512 bytes, the most that the
/// libiscsi conformance tests take for sensible.
pub const UNMAP_BYTES_MAX: u64 = 512 << 20;

/// Most block descriptors in one UNMAP command.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// Longest COMPARE AND WRITE, in bytes (the CDB counts blocks in one byte).
pub const COMPARE_AND_WRITE_BYTES_MAX: u64 = 32 << 10;

/// Longest WRITE ATOMIC, in bytes. One that lies in one slice is one record of its stream and of
/// every journal: it is on the medium whole or not at all, and read whole or not at all.
pub const ATOMIC_BYTES_MAX: u64 = 128 << 10;

/// What a WRITE ATOMIC has to be aligned to and a multiple of, in bytes: a block inside a volume.
pub const ATOMIC_GRANULARITY_BYTES: u64 = PHYSICAL_BLOCK_BYTES as u64;

/// A WRITE ATOMIC may not cross a multiple of this, in bytes: the smallest slice. The Block Limits
/// page cannot say so, but a write that is aligned to its own length never does.
pub const ATOMIC_BORDER_BYTES: u64 = 1 << 20;

/// Size of the blocks inside a volume: the physical block a host should align to.
pub const PHYSICAL_BLOCK_BYTES: u32 = 4096;

/// Piece in which a command that transfers nothing reads or fills the medium, in bytes.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Longest parameter list of MODE SELECT or PERSISTENT RESERVE OUT, in bytes.
pub const PARAMETER_LIST_BYTES_MAX: u64 = 4096;

/// Piece that ORWRITE changes at once, in bytes; pieces are aligned to it, so that none crosses
/// the border of a slice.
pub const OR_WRITE_BYTES: u64 = COMPARE_AND_WRITE_BYTES_MAX;

const _: () = assert!(OR_WRITE_BYTES.is_power_of_two());
const _: () = assert!(COMPARE_AND_WRITE_BYTES_MAX * 2 <= TRANSFER_BYTES_MAX);
const _: () = assert!(TRANSFER_BYTES_MAX <= u32::MAX as u64);
