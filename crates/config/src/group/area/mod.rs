//! The disk area under the group's log: an image and the records that follow it, twice.
//!
//! ```text
//! half:  | header | retirement | image ... | record record | record record | ... free |
//!
//! 0         H         2H                  4H
//! | half 0  | half 1  |                                as it is made
//! |      half 0       |      half 1       |            once the image needs more
//! ```
//!
//! One half is live. Records are appended to it; from time to time another half is made from a new
//! image ([`Draft`]), while records still go to the live one, and takes its place. It is twice as
//! large, or more, if less than two thirds of it would be free. It then begins behind everything
//! that was in use, so growing never touches what is live. What always holds:
//!
//! * a page that holds an acknowledged byte of the live half is never written again, so no torn
//!   write can reach it;
//! * a record is written twice, in one write: a page that rots costs one of the two, so what
//!   recovery cuts off as a torn tail is a record that was never acknowledged;
//! * no record of a generation is written before its header is durable;
//! * nothing is acknowledged in a generation before the half that it replaced says that it is
//!   retired. So a live half whose header rots is noticed, never replaced by what was true before
//!   it;
//! * every checksum covers the offset (a misdirected write is invalid) and the generation (what
//!   an earlier lap left behind is invalid);
//! * after a failed write nothing more is written: what the failed one left is unknown until the
//!   next start reads it.
//!
//! | newest valid header | the others | decision |
//! |---|---|---|
//! | not retired | anything | use it; complete the retirement of those before it |
//! | retired | no newer valid header | refuse: the live half is unreadable |
//! | none | all blank, none retired | blank: making the first half was never finished |
//! | none | anything else | refuse |

mod draft;
mod format;
mod reading;

#[cfg(test)]
mod tests;

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::{
    Allocation, Buffer, Directory, Disk, DiskError, DiskOptions, NodeId, PAGE_BYTES,
};
use thiserror::Error;

use holdfast_runtime::planted::{self, Bug};

pub(super) use draft::Draft;
pub(super) use format::record_bytes;
use format::{FORMAT, encode_record, encode_retirement};

/// Name of the disk area.
pub(super) const AREA: &str = "config";
const PAGE: u64 = PAGE_BYTES as u64;
/// Pages before the image: the header and the retirement.
const PREFIX_BYTES: u64 = 2 * PAGE;
/// One transfer: large enough to be fast, small enough not to hold up the journal's writes.
const CHUNK_BYTES: usize = 1 << 20;

/// Why the area cannot be used, or no longer. Nothing was acknowledged that is lost.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AreaError {
    /// The disk failed; after a write, what is in the affected range is unknown until restart.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The contents were there and are not readable: using what is left could forget a vote or
    /// a committed change.
    #[error(
        "the config log is damaged at byte {offset}: {what}. Restore the disk, or remove this \
         node from the cluster and let it join again with an empty data directory"
    )]
    Damaged {
        /// Byte offset in the area.
        offset: u64,
        /// What is wrong there.
        what: Damage,
    },
    /// The area belongs to another node.
    #[error("the config log is node {found}'s, not node {expected}'s")]
    WrongNode {
        /// Who it belongs to.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// The area was written by a newer version.
    #[error("the config log has format {found}; this version reads up to {FORMAT}")]
    NewerFormat {
        /// The format found.
        found: u32,
    },
    /// The area was made with halves of another size.
    #[error("the config log was made with halves of {found} bytes, not {expected}")]
    OtherSize {
        /// Bytes of a half as made.
        found: u64,
        /// Bytes of a half as configured.
        expected: u64,
    },
    /// The state does not fit. Nothing was changed.
    #[error(
        "{wanted} bytes do not fit into a config log with halves of {half} bytes. Free space where \
         the node's data directory is, or delete volumes"
    )]
    Full {
        /// Bytes to write.
        wanted: u64,
        /// Bytes of a half.
        half: u64,
    },
}

/// What is wrong with a damaged area.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Damage {
    /// Neither half has a valid header.
    #[error("no header is valid")]
    NoHeader,
    /// The only readable half was retired: the one that replaced it is unreadable.
    #[error("the newer half is unreadable, the readable one is out of date")]
    LiveHalfUnreadable,
    /// The image's checksum is wrong.
    #[error("the image is invalid")]
    Image,
    /// A record is invalid and a later one is not.
    #[error("a record is invalid in both copies, with valid ones after it")]
    Record,
    /// The file ends before the half that its header describes.
    #[error("it ends before the half that is in use")]
    Truncated,
    /// The contents do not decode, or contradict each other.
    #[error("the contents contradict themselves")]
    Contents,
}

/// What an area held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) image: Bytes,
    pub(super) records: Vec<Vec<u8>>,
}

/// How large the halves are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HalfSizes {
    /// Bytes of a half as the area is made.
    pub(super) first: u64,
    /// Bytes beyond which no half grows: the first ones, doubled some times.
    pub(super) largest: u64,
}

impl HalfSizes {
    /// All sizes that halves may have.
    fn all(self) -> impl Iterator<Item = u64> {
        let doubled = |bytes: &u64| bytes.checked_mul(2);
        std::iter::successors(Some(self.first), doubled)
            .take_while(move |half| *half <= self.largest)
    }
}

/// An open area.
pub(super) struct Area {
    directory: Rc<dyn Directory>,
    disk: Rc<dyn Disk>,
    node: NodeId,
    sizes: HalfSizes,
    live: Option<Live>,
    failed: Option<AreaError>,
}

/// Where a half is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    base: u64,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    half: Half,
    generation: u64,
    /// Of the next record.
    sequence: u64,
    /// Byte offset in the area of the next record.
    end: u64,
}

fn options(half_bytes: u64) -> DiskOptions {
    DiskOptions {
        size_bytes: 2 * half_bytes,
        durable_writes: !planted::is_active(Bug::VoteUnsynced),
        allocation: Allocation::Written,
    }
}

impl Area {
    /// Reads the area; `None` for the contents of one that was never used. Cuts a torn tail,
    /// refuses damage.
    pub(super) async fn open(
        directory: Rc<dyn Directory>,
        node: NodeId,
        sizes: HalfSizes,
    ) -> Result<(Self, Option<Contents>), AreaError> {
        assert!(sizes.first.is_multiple_of(PAGE) && sizes.first > PREFIX_BYTES);
        let disk = directory.open(AREA, options(sizes.first)).await?;
        assert!(disk.size_bytes() >= 2 * sizes.first);
        // A write that a killed process left on its way may still vanish with the power: what is
        // read now must not.
        disk.sync().await?;
        let mut area = Self {
            directory,
            disk,
            node,
            sizes,
            live: None,
            failed: None,
        };
        let prefixes = area.read_prefixes().await?;
        let Some((half, header)) = reading::choose(&prefixes)? else {
            return Ok((area, None));
        };
        let contents = area.read_half(half, header).await?;
        for other in prefixes.iter().filter(|other| other.base != half.base) {
            if other.lacks_retirement(half, header.generation) {
                area.write_retirement(other.base, header.generation).await?;
            }
        }
        Ok((area, Some(contents)))
    }

    /// Whether a record of `payload_bytes` fits behind the others.
    pub(super) fn has_room(&self, payload_bytes: usize) -> bool {
        self.live.is_some_and(|live| {
            live.end + 2 * record_bytes(payload_bytes) <= live.half.base + live.half.bytes
        })
    }

    /// Appends a record; it is durable when this returns. The caller has checked
    /// [`Self::has_room`].
    pub(super) async fn append(&mut self, payload: &[u8]) -> Result<(), AreaError> {
        self.check_usable()?;
        assert!(self.has_room(payload.len()), "appending needs room");
        let live = self.live.expect("room means a live half");
        let buffer = record(live.generation, live.sequence, live.end, payload);
        let bytes = buffer.len() as u64;
        self.write(live.end, buffer).await?;
        self.live = Some(Live {
            sequence: live.sequence + 1,
            end: live.end + bytes,
            ..live
        });
        Ok(())
    }

    /// Begins what is to replace everything: an image of about `image_bytes`, and room for
    /// `records_bytes` behind it. At most one draft exists at a time.
    pub(super) fn draft(&self, image_bytes: u64, records_bytes: u64) -> Result<Draft, AreaError> {
        self.check_usable()?;
        Draft::new(self, image_bytes, records_bytes)
    }

    /// Puts the draft in the place of everything; that is durable when this returns. A crash before
    /// that leaves what was there, or has replaced it.
    pub(super) async fn commit(&mut self, mut draft: Draft) -> Result<(), AreaError> {
        self.check_usable()?;
        draft.end().await?;
        self.disk = draft.disk();
        let live = draft.live();
        let replaced = self.live.map(|replaced| replaced.half.base);
        // The first one has replaced nothing; its neighbour shows that it was in use.
        let replaced = replaced.unwrap_or(live.half.bytes);
        self.write(live.half.base, draft.header(self.node)).await?;
        self.write_retirement(replaced, live.generation).await?;
        self.live = Some(live);
        Ok(())
    }

    /// After a write of a draft failed, nothing is written any more.
    pub(super) fn fail(&mut self, error: &AreaError) {
        self.failed.get_or_insert_with(|| error.clone());
    }

    /// Bytes of the live half.
    pub(super) fn half_bytes(&self) -> u64 {
        self.live.map_or(self.sizes.first, |live| live.half.bytes)
    }

    fn check_usable(&self) -> Result<(), AreaError> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    async fn write(&mut self, offset: u64, buffer: Buffer) -> Result<(), AreaError> {
        let result = self.disk.write(offset, buffer).await;
        result.map_err(|error| {
            let error = AreaError::Disk(error);
            self.failed = Some(error.clone());
            error
        })
    }

    async fn write_retirement(&mut self, base: u64, generation: u64) -> Result<(), AreaError> {
        let offset = base + PAGE;
        self.write(offset, encode_retirement(generation, offset))
            .await
    }
}

/// Both copies of a record.
fn record(generation: u64, sequence: u64, offset: u64, payload: &[u8]) -> Buffer {
    let bytes = record_bytes(payload.len());
    let mut buffer = Buffer::zeroed(2 * bytes as usize);
    for copy in 0..2 {
        let start = copy * bytes;
        let target = &mut buffer[start as usize..(start + bytes) as usize];
        encode_record(target, generation, sequence, offset + start, payload);
    }
    buffer
}
