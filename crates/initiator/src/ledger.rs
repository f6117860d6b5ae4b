//! The memory of what was written and what was acknowledged, and the judge of what is read back.
//!
//! Every 4 KiB block that the load writes names its ledger, its place and its version, under a
//! checksum; so a block read back says by itself what it is. For each block the ledger knows
//!
//! | number | meaning |
//! |---|---|
//! | acknowledged | the newest version whose write was answered with success |
//! | observed | the newest version that a completed read has shown |
//! | issued | the newest version ever sent |
//!
//! and a read is right if it shows a version between the larger of *acknowledged* and *observed*
//! as they were when the read began, and *issued* as it is when the read ends; zeros count as
//! version 0. This is what linearizability demands of a block with one writer at a time: an
//! unacknowledged write may take effect or not, but once seen it stays.
//!
//! Invariants: acknowledged ≤ issued, observed ≤ issued, at most one write per block at a time.
//! Memory: 16 bytes a block, in chunks of 4096 blocks that exist once one of them was written.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::statistics::Findings;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

const CHUNK_BLOCKS: u64 = 4096;
const ENTRY_BYTES: usize = 16;
const BLOCK_MAGIC: u64 = u64::from_le_bytes(*b"HFLBLOCK");
/// Ends with the version of the file format.
const FILE_MAGIC: [u8; 8] = *b"HFLEDGR1";
/// Magic, seed, block number, version, and four bytes of zero.
const BLOCK_HEADER: usize = 32;
const CHECKSUM_AT: usize = BLOCK_BYTES - 8;

/// What a block read back proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An allowed version.
    Good {
        /// Which one.
        version: u32,
    },
    /// Zeros, and nothing was acknowledged.
    Unwritten,
    /// Zeros, although a version was acknowledged or seen.
    Lost {
        /// The oldest version allowed.
        expected: u32,
    },
    /// A version of this block, but an older one than was acknowledged or seen.
    Stale {
        /// The oldest version allowed.
        expected: u32,
        /// The version found.
        found: u32,
    },
    /// Bytes that were never written to this block: damaged, mixed, or another block's.
    Corrupt {
        /// The oldest version allowed.
        expected: u32,
    },
}

/// Why a ledger file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerFileError {
    /// Reading or writing failed. An older file of that name is still whole.
    #[error("ledger file: {0}")]
    Io(#[from] io::Error),
    /// Not a ledger, or of a version that this program does not know.
    #[error("not a ledger file of a known version")]
    Unknown,
    /// The checksum does not match: the file is damaged or cut short.
    #[error("the ledger file is damaged")]
    Damaged,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Entry {
    acknowledged: u32,
    observed: u32,
    issued: u32,
    /// 1 while a write is outstanding.
    busy: u32,
}

impl Entry {
    fn floor(&self) -> u32 {
        self.acknowledged.max(self.observed)
    }
}

type Chunk = Box<[Entry]>;

/// See the module's description.
#[derive(Debug, PartialEq, Eq)]
pub struct Ledger {
    seed: u64,
    first_block: u64,
    blocks: u64,
    chunks: Vec<Option<Chunk>>,
}

/// A read under way: what each of its blocks must at least show.
#[derive(Debug)]
pub struct ReadTicket {
    first: u64,
    floors: Vec<u32>,
}

impl Ledger {
    /// An empty ledger for `blocks` blocks from `first_block` on. `seed` tells its blocks from
    /// those of every other ledger; the region must read as zeros before the first write.
    pub fn new(seed: u64, first_block: u64, blocks: u64) -> Self {
        let chunks = (0..blocks.div_ceil(CHUNK_BLOCKS)).map(|_| None).collect();
        Self {
            seed,
            first_block,
            blocks,
            chunks,
        }
    }

    /// The first block of the region.
    pub fn first_block(&self) -> u64 {
        self.first_block
    }

    /// Blocks in the region.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks with at least one acknowledged write.
    pub fn acknowledged_blocks(&self) -> u64 {
        let entries = self.chunks.iter().flatten().flat_map(|chunk| chunk.iter());
        entries.filter(|entry| entry.acknowledged > 0).count() as u64
    }

    /// Whether any of these blocks was ever written. May say so of neighbours too.
    pub fn may_be_touched(&self, first: u64, count: u64) -> bool {
        let start = (first - self.first_block) / CHUNK_BLOCKS;
        let end = (first + count - self.first_block).div_ceil(CHUNK_BLOCKS);
        self.chunks[start as usize..end as usize]
            .iter()
            .any(Option::is_some)
    }

    /// Begins a write of `count` blocks and gives its data; `None` if one of them is being
    /// written. Must be ended by [`Self::end_write`].
    ///
    /// # Panics
    /// If the blocks are outside the region, or a block is written for the 2^32nd time.
    pub fn begin_write(&mut self, first: u64, count: u32) -> Option<Vec<u8>> {
        let blocks = first..first + u64::from(count);
        if blocks.clone().any(|block| self.entry(block).busy != 0) {
            return None;
        }
        let mut data = vec![0; count as usize * BLOCK_BYTES];
        for (block, out) in blocks.zip(data.chunks_exact_mut(BLOCK_BYTES)) {
            let seed = self.seed;
            let entry = self.entry_mut(block);
            entry.issued = entry
                .issued
                .checked_add(1)
                .expect("versions of a block last");
            entry.busy = 1;
            fill_block(out, seed, block, entry.issued);
        }
        Some(data)
    }

    /// Ends a write. Without an acknowledgement its outcome stays open for ever.
    pub fn end_write(&mut self, first: u64, count: u32, is_acknowledged: bool) {
        for block in first..first + u64::from(count) {
            let entry = self.entry_mut(block);
            assert_eq!(entry.busy, 1, "a write ends once");
            entry.busy = 0;
            if is_acknowledged {
                entry.acknowledged = entry.issued;
            }
        }
    }

    /// Begins a read of `count` blocks.
    pub fn begin_read(&self, first: u64, count: u32) -> ReadTicket {
        let blocks = first..first + u64::from(count);
        ReadTicket {
            first,
            floors: blocks.map(|block| self.entry(block).floor()).collect(),
        }
    }

    /// Judges what a read brought, adds faults to `findings`, and remembers what was seen.
    pub fn end_read(&mut self, ticket: ReadTicket, data: &[u8], findings: &mut Findings) {
        assert_eq!(
            data.len(),
            ticket.floors.len() * BLOCK_BYTES,
            "a read brings whole blocks"
        );
        let blocks = ticket.first..;
        let pieces = data.chunks_exact(BLOCK_BYTES);
        for ((block, floor), piece) in blocks.zip(ticket.floors).zip(pieces) {
            let issued = self.entry(block).issued;
            let verdict = judge(piece, self.seed, block, floor, issued);
            if let Verdict::Good { version } = verdict {
                let entry = self.entry_mut(block);
                entry.observed = entry.observed.max(version);
            }
            findings.add(block, verdict);
        }
    }

    /// Writes the ledger to a file, replacing it as a whole. No load may be running: what is
    /// issued later would look corrupt to a ledger loaded from the file. Blocks the thread.
    pub fn save(&self, path: &Path) -> Result<(), LedgerFileError> {
        let temporary = path.with_extension("partial");
        let mut out = Summed {
            inner: BufWriter::new(File::create(&temporary)?),
            sum: Xxh3::new(),
        };
        out.write_all(&FILE_MAGIC)?;
        let touched = self.chunks.iter().flatten().count() as u64;
        for number in [self.seed, self.first_block, self.blocks, touched] {
            out.write_all(&number.to_le_bytes())?;
        }
        for (index, chunk) in self.chunks.iter().enumerate() {
            let Some(chunk) = chunk else { continue };
            out.write_all(&(index as u64).to_le_bytes())?;
            for entry in chunk {
                for number in [entry.acknowledged, entry.observed, entry.issued, 0] {
                    out.write_all(&number.to_le_bytes())?;
                }
            }
        }
        let sum = out.sum.digest();
        out.inner.write_all(&sum.to_le_bytes())?;
        out.inner
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        std::fs::rename(temporary, path)?;
        Ok(())
    }

    /// Reads a saved ledger. Writes that were outstanding when it was saved count as not
    /// acknowledged. Blocks the thread.
    pub fn load(path: &Path) -> Result<Self, LedgerFileError> {
        let mut input = Summed {
            inner: BufReader::new(File::open(path)?),
            sum: Xxh3::new(),
        };
        if input.array::<8>()? != FILE_MAGIC {
            return Err(LedgerFileError::Unknown);
        }
        let seed = input.number()?;
        let first_block = input.number()?;
        let blocks = input.number()?;
        let touched = input.number()?;
        // 2^52 blocks are 2^64 bytes; more cannot be a disk, and must not become an allocation.
        let table = blocks.div_ceil(CHUNK_BLOCKS);
        if touched > table || table > 1 << 32 || first_block.checked_add(blocks).is_none() {
            return Err(LedgerFileError::Damaged);
        }
        let mut chunks = Vec::new();
        for _ in 0..touched {
            let index = input.number()?;
            if index >= table {
                return Err(LedgerFileError::Damaged);
            }
            let mut chunk = empty_chunk();
            for entry in &mut chunk {
                let bytes = input.array::<ENTRY_BYTES>()?;
                let at = |from: usize| {
                    let mut four = [0; 4];
                    four.copy_from_slice(&bytes[from..from + 4]);
                    u32::from_le_bytes(four)
                };
                *entry = Entry {
                    acknowledged: at(0),
                    observed: at(4),
                    issued: at(8),
                    busy: 0,
                };
            }
            chunks.push((index, chunk));
        }
        let sum = input.sum.digest();
        if input.number()? != sum {
            return Err(LedgerFileError::Damaged);
        }
        let mut ledger = Self::new(seed, first_block, blocks);
        for (index, chunk) in chunks {
            ledger.chunks[index as usize] = Some(chunk);
        }
        Ok(ledger)
    }

    fn entry(&self, block: u64) -> Entry {
        let (chunk, within) = self.place(block);
        self.chunks[chunk]
            .as_ref()
            .map_or(Entry::default(), |chunk| chunk[within])
    }

    fn entry_mut(&mut self, block: u64) -> &mut Entry {
        let (chunk, within) = self.place(block);
        &mut self.chunks[chunk].get_or_insert_with(empty_chunk)[within]
    }

    fn place(&self, block: u64) -> (usize, usize) {
        let index = block
            .checked_sub(self.first_block)
            .filter(|index| *index < self.blocks);
        let index = index.expect("the block is inside the ledger's region");
        (
            (index / CHUNK_BLOCKS) as usize,
            (index % CHUNK_BLOCKS) as usize,
        )
    }
}

/// Fills a block with its description, bytes that no compression shortens, and its checksum.
///
/// # Panics
/// If `out` is not [`BLOCK_BYTES`] long.
pub fn fill_block(out: &mut [u8], seed: u64, block: u64, version: u32) {
    assert_eq!(out.len(), BLOCK_BYTES, "a block has one size");
    out[..8].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&seed.to_le_bytes());
    out[16..24].copy_from_slice(&block.to_le_bytes());
    out[24..28].copy_from_slice(&version.to_le_bytes());
    out[28..BLOCK_HEADER].fill(0);
    // A Weyl sequence through a finaliser: fast, and different for every block and version.
    let start = seed ^ block.rotate_left(32) ^ u64::from(version);
    let mut state = start.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in out[BLOCK_HEADER..CHECKSUM_AT].chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word.copy_from_slice(&(mixed ^ mixed >> 32).to_le_bytes());
    }
    let sum = xxh3_64(&out[..CHECKSUM_AT]);
    out[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
}

fn judge(data: &[u8], seed: u64, block: u64, floor: u32, issued: u32) -> Verdict {
    match identify(data, seed, block) {
        Content::Zeros if floor == 0 => Verdict::Unwritten,
        Content::Zeros => Verdict::Lost { expected: floor },
        Content::Version(found) if found < floor => Verdict::Stale {
            expected: floor,
            found,
        },
        Content::Version(found) if found <= issued => Verdict::Good { version: found },
        Content::Version(_) | Content::Foreign => Verdict::Corrupt { expected: floor },
    }
}

enum Content {
    Zeros,
    Version(u32),
    Foreign,
}

fn identify(data: &[u8], seed: u64, block: u64) -> Content {
    let word = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&data[at..at + 8]);
        u64::from_le_bytes(eight)
    };
    if word(0) != BLOCK_MAGIC {
        let is_zero = data.iter().all(|byte| *byte == 0);
        return if is_zero {
            Content::Zeros
        } else {
            Content::Foreign
        };
    }
    // The word behind the block number is the version below four bytes of zero.
    match u32::try_from(word(24)) {
        Ok(version)
            if version > 0
                && word(8) == seed
                && word(16) == block
                && word(CHECKSUM_AT) == xxh3_64(&data[..CHECKSUM_AT]) =>
        {
            Content::Version(version)
        }
        Ok(_) | Err(_) => Content::Foreign,
    }
}

fn empty_chunk() -> Chunk {
    vec![Entry::default(); CHUNK_BLOCKS as usize].into()
}

/// A stream with a running checksum.
struct Summed<S> {
    inner: S,
    sum: Xxh3,
}

impl<S: Write> Summed<S> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<S: Read> Summed<S> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], LedgerFileError> {
        let mut bytes = [0; N];
        match self.inner.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(LedgerFileError::Damaged);
            }
            Err(error) => return Err(error.into()),
        }
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, LedgerFileError> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
