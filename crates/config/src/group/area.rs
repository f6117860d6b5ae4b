//! The disk area under the group's log: an image and the records that follow it, twice.
//!
//! ```text
//! half 0: | header | retirement | image ... | record record | record record | ... free |
//! half 1: | header | retirement | ...                                                  |
//! ```
//!
//! One half is live. A record is appended to it; when it is full, the other half is made from a
//! new image and becomes the live one. What always holds:
//!
//! * a page that holds an acknowledged byte of the live half is never written again, so no torn
//!   write can reach it;
//! * a record is written twice, in one write: a page that rots costs one of the two, so what
//!   recovery cuts off as a torn tail is a record that was never acknowledged;
//! * nothing is acknowledged in a generation before the other half says that it is retired. So
//!   a live half whose header rots is noticed, never replaced by what was true before it;
//! * every checksum covers the offset (a misdirected write is invalid) and the generation (what
//!   an earlier lap left behind is invalid);
//! * after a failed write nothing more is written: what the failed one left is unknown until the
//!   next start reads it.
//!
//! | newest valid header | the other half | decision |
//! |---|---|---|
//! | not retired | anything | use it; complete the other half's retirement |
//! | retired | no newer valid header | refuse: the live half is unreadable |
//! | none | blank, not retired | blank: making the first half was never finished |
//! | none | anything else | refuse |

use std::rc::Rc;

use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Buffer, Disk, DiskError, NodeId, PAGE_BYTES};
use thiserror::Error;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"HFCONFIG");
const RETIRED_MAGIC: u64 = u64::from_le_bytes(*b"HFRETIRE");
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"HFRC");
/// Version of everything in the area.
const FORMAT: u32 = 1;
const PAGE: u64 = PAGE_BYTES as u64;
/// Pages before the image: the header and the retirement.
const PREFIX_BYTES: u64 = 2 * PAGE;
const RECORD_HEADER_BYTES: usize = 32;
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
    #[error("{wanted} bytes do not fit into a config log with halves of {half} bytes")]
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
    /// The contents do not decode, or contradict each other.
    #[error("the contents contradict themselves")]
    Contents,
}

/// What an area held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) image: Vec<u8>,
    pub(super) records: Vec<Vec<u8>>,
}

/// An open area.
pub(super) struct Area {
    disk: Rc<dyn Disk>,
    node: NodeId,
    half_bytes: u64,
    live: Option<Live>,
    failed: Option<AreaError>,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    half: u64,
    generation: u64,
    /// Of the next record.
    sequence: u64,
    /// Byte offset in the area of the next record.
    end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    generation: u64,
    image_bytes: u64,
    image_checksum: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderState {
    Blank,
    Valid(Header),
    Invalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retirement {
    Blank,
    /// Replaced by this generation.
    By(u64),
    /// Written, and not readable: it must be taken for valid.
    Unreadable,
}

impl Retirement {
    fn covers(self, generation: u64) -> bool {
        match self {
            Self::Blank => false,
            Self::By(successor) => successor > generation,
            Self::Unreadable => true,
        }
    }
}

impl Area {
    /// Reads the area; `None` for the contents of one that was never used. Cuts a torn tail,
    /// refuses damage.
    pub(super) async fn open(
        disk: Rc<dyn Disk>,
        node: NodeId,
        half_bytes: u64,
    ) -> Result<(Self, Option<Contents>), AreaError> {
        assert!(half_bytes.is_multiple_of(PAGE) && half_bytes > PREFIX_BYTES);
        assert!(disk.size_bytes() >= 2 * half_bytes);
        // A write that a killed process left on its way may still vanish with the power: what is
        // read now must not.
        disk.sync().await?;
        let mut area = Self {
            disk,
            node,
            half_bytes,
            live: None,
            failed: None,
        };
        let first = area.read_prefix(0).await?;
        let second = area.read_prefix(1).await?;
        let Some((half, header)) = choose(first, second, half_bytes)? else {
            return Ok((area, None));
        };
        let contents = area.read_half(half, header).await?;
        let (_, other_retirement) = if half == 0 { second } else { first };
        if other_retirement != Retirement::By(header.generation) {
            area.write_retirement(1 - half, header.generation).await?;
        }
        Ok((area, Some(contents)))
    }

    /// Whether a record of `payload_bytes` fits behind the others.
    pub(super) fn has_room(&self, payload_bytes: usize) -> bool {
        self.live.is_some_and(|live| {
            live.end + 2 * record_bytes(payload_bytes) <= (live.half + 1) * self.half_bytes
        })
    }

    /// Appends a record; it is durable when this returns. The caller has checked
    /// [`Self::has_room`].
    pub(super) async fn append(&mut self, payload: &[u8]) -> Result<(), AreaError> {
        self.check_usable()?;
        assert!(self.has_room(payload.len()), "appending needs room");
        let live = self.live.expect("room means a live half");
        let bytes = record_bytes(payload.len());
        let mut buffer = Buffer::zeroed(2 * bytes as usize);
        for copy in 0..2 {
            let start = copy * bytes;
            let target = &mut buffer[start as usize..(start + bytes) as usize];
            encode_record(
                target,
                live.generation,
                live.sequence,
                live.end + start,
                payload,
            );
        }
        self.write(live.end, buffer).await?;
        self.live = Some(Live {
            sequence: live.sequence + 1,
            end: live.end + 2 * bytes,
            ..live
        });
        Ok(())
    }

    /// Replaces everything by `image`; it is durable when this returns. A crash before that
    /// leaves what was there, or has replaced it.
    pub(super) async fn replace(&mut self, image: &[u8]) -> Result<(), AreaError> {
        self.check_usable()?;
        let image_space = (image.len() as u64).next_multiple_of(PAGE);
        if PREFIX_BYTES + image_space > self.half_bytes {
            return Err(AreaError::Full {
                wanted: image.len() as u64,
                half: self.half_bytes,
            });
        }
        let (half, generation) = match self.live {
            None => (0, 1),
            Some(live) => (1 - live.half, live.generation + 1),
        };
        let base = half * self.half_bytes;
        // The old header goes first, so that nothing older can be taken for the live half.
        self.write(base, Buffer::zeroed(PAGE_BYTES)).await?;
        self.write(base + PAGE, Buffer::zeroed(PAGE_BYTES)).await?;
        let mut offset = base + PREFIX_BYTES;
        let mut checksum = Xxh3::with_seed(base);
        for chunk in image.chunks(CHUNK_BYTES) {
            checksum.update(chunk);
            let buffer = Buffer::padded_from(chunk);
            let len = buffer.len() as u64;
            self.write(offset, buffer).await?;
            offset += len;
        }
        let header = Header {
            generation,
            image_bytes: image.len() as u64,
            image_checksum: checksum.digest(),
        };
        self.write(base, self.encode_header(header, base)).await?;
        self.write_retirement(1 - half, generation).await?;
        self.live = Some(Live {
            half,
            generation,
            sequence: 1,
            end: offset,
        });
        Ok(())
    }

    /// Bytes of one half.
    pub(super) fn half_bytes(&self) -> u64 {
        self.half_bytes
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

    async fn write_retirement(&mut self, half: u64, generation: u64) -> Result<(), AreaError> {
        let offset = half * self.half_bytes + PAGE;
        let mut page = Buffer::zeroed(PAGE_BYTES);
        page[..8].copy_from_slice(&RETIRED_MAGIC.to_le_bytes());
        page[8..16].copy_from_slice(&generation.to_le_bytes());
        let checksum = xxh3_64_with_seed(&page[..16], offset);
        page[16..24].copy_from_slice(&checksum.to_le_bytes());
        self.write(offset, page).await
    }

    fn encode_header(&self, header: Header, base: u64) -> Buffer {
        let mut page = Buffer::zeroed(PAGE_BYTES);
        let mut fields = Vec::with_capacity(64);
        fields.extend_from_slice(&HEADER_MAGIC.to_le_bytes());
        fields.extend_from_slice(&FORMAT.to_le_bytes());
        fields.extend_from_slice(&0u32.to_le_bytes());
        for field in [
            self.node.0,
            self.half_bytes,
            header.generation,
            header.image_bytes,
            header.image_checksum,
        ] {
            fields.extend_from_slice(&field.to_le_bytes());
        }
        let checksum = xxh3_64_with_seed(&fields, base);
        fields.extend_from_slice(&checksum.to_le_bytes());
        page[..fields.len()].copy_from_slice(&fields);
        page
    }

    async fn read_prefix(&self, half: u64) -> Result<(HeaderState, Retirement), AreaError> {
        let base = half * self.half_bytes;
        let header = match self.disk.read(base, PAGE_BYTES).await {
            Ok(page) => self.decode_header(&page, base)?,
            Err(_unreadable) => HeaderState::Invalid,
        };
        let retirement = match self.disk.read(base + PAGE, PAGE_BYTES).await {
            Ok(page) => decode_retirement(&page, base + PAGE),
            Err(_unreadable) => Retirement::Unreadable,
        };
        Ok((header, retirement))
    }

    fn decode_header(&self, page: &[u8], base: u64) -> Result<HeaderState, AreaError> {
        if page.iter().all(|byte| *byte == 0) {
            return Ok(HeaderState::Blank);
        }
        let checksum_matches = xxh3_64_with_seed(&page[..56], base) == u64_at(page, 56);
        if u64_at(page, 0) != HEADER_MAGIC || !checksum_matches {
            return Ok(HeaderState::Invalid);
        }
        let format = u32_at(page, 8);
        if format > FORMAT {
            return Err(AreaError::NewerFormat { found: format });
        }
        let found = NodeId(u64_at(page, 16));
        if found != self.node {
            return Err(AreaError::WrongNode {
                found,
                expected: self.node,
            });
        }
        let half_bytes = u64_at(page, 24);
        if half_bytes != self.half_bytes {
            return Err(AreaError::OtherSize {
                found: half_bytes,
                expected: self.half_bytes,
            });
        }
        Ok(HeaderState::Valid(Header {
            generation: u64_at(page, 32),
            image_bytes: u64_at(page, 40),
            image_checksum: u64_at(page, 48),
        }))
    }

    async fn read_half(&mut self, half: u64, header: Header) -> Result<Contents, AreaError> {
        let base = half * self.half_bytes;
        let bytes = self.read_body(base).await;
        let damaged_image = AreaError::Damaged {
            offset: base + PREFIX_BYTES,
            what: Damage::Image,
        };
        let image_end = usize::try_from(header.image_bytes)
            .ok()
            .filter(|end| *end <= bytes.len());
        let Some(image_end) = image_end else {
            return Err(damaged_image);
        };
        let image = &bytes[..image_end];
        if xxh3_64_with_seed(image, base) != header.image_checksum {
            return Err(damaged_image);
        }
        let image = image.to_vec();
        let mut records = Vec::new();
        let mut live = Live {
            half,
            generation: header.generation,
            sequence: 1,
            end: base + PREFIX_BYTES + header.image_bytes.next_multiple_of(PAGE),
        };
        // Everything at `live.end` and after it up to `next` is known to be no record.
        let mut next = live.end;
        while next < base + self.half_bytes {
            let body = &bytes[(next - base - PREFIX_BYTES) as usize..];
            match decode_record(body, live.generation, next) {
                None => next += PAGE,
                Some((sequence, payload)) if sequence == live.sequence => {
                    let record_bytes = record_bytes(payload.len());
                    // Found where the first copy belongs, or where the second one does.
                    let second_copy = next == live.end + record_bytes;
                    if second_copy {
                        reach::note(Row::ConfigOtherCopy);
                    }
                    if next != live.end && !second_copy {
                        let offset = live.end;
                        return Err(AreaError::Damaged {
                            offset,
                            what: Damage::Record,
                        });
                    }
                    records.push(payload.to_vec());
                    live.sequence += 1;
                    live.end += 2 * record_bytes;
                    next = live.end;
                }
                Some(_out_of_sequence) => {
                    let offset = live.end;
                    return Err(AreaError::Damaged {
                        offset,
                        what: Damage::Record,
                    });
                }
            }
        }
        self.live = Some(live);
        Ok(Contents { image, records })
    }

    /// Everything behind a half's prefix. A page that cannot be read is left zero: whether it
    /// matters, its checksum decides.
    async fn read_body(&self, base: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity((self.half_bytes - PREFIX_BYTES) as usize);
        let mut offset = base + PREFIX_BYTES;
        let end = base + self.half_bytes;
        while offset < end {
            let len = (CHUNK_BYTES as u64).min(end - offset) as usize;
            match self.disk.read(offset, len).await {
                Ok(chunk) => body.extend_from_slice(&chunk),
                Err(_unreadable) => {
                    for page in 0..len / PAGE_BYTES {
                        let at = offset + (page * PAGE_BYTES) as u64;
                        match self.disk.read(at, PAGE_BYTES).await {
                            Ok(page) => body.extend_from_slice(&page),
                            Err(_unreadable) => body.resize(body.len() + PAGE_BYTES, 0),
                        }
                    }
                }
            }
            offset += len as u64;
        }
        body
    }
}

/// The live half, by the table in the module's header.
fn choose(
    first: (HeaderState, Retirement),
    second: (HeaderState, Retirement),
    half_bytes: u64,
) -> Result<Option<(u64, Header)>, AreaError> {
    let valid = |half: u64, state: HeaderState| match state {
        HeaderState::Valid(header) => Some((half, header)),
        HeaderState::Blank | HeaderState::Invalid => None,
    };
    let newest = [valid(0, first.0), valid(1, second.0)]
        .into_iter()
        .flatten()
        .max_by_key(|(_, header)| header.generation);
    let Some((half, header)) = newest else {
        // The first half that is ever made is half 0; half 1 is retired before it is used.
        return if second == (HeaderState::Blank, Retirement::Blank) {
            Ok(None)
        } else {
            Err(AreaError::Damaged {
                offset: 0,
                what: Damage::NoHeader,
            })
        };
    };
    let retirement = if half == 0 { first.1 } else { second.1 };
    if retirement.covers(header.generation) {
        let offset = (1 - half) * half_bytes;
        return Err(AreaError::Damaged {
            offset,
            what: Damage::LiveHalfUnreadable,
        });
    }
    Ok(Some((half, header)))
}

fn decode_retirement(page: &[u8], offset: u64) -> Retirement {
    if page.iter().all(|byte| *byte == 0) {
        return Retirement::Blank;
    }
    let checksum_matches = xxh3_64_with_seed(&page[..16], offset) == u64_at(page, 16);
    if u64_at(page, 0) == RETIRED_MAGIC && checksum_matches {
        Retirement::By(u64_at(page, 8))
    } else {
        Retirement::Unreadable
    }
}

/// Bytes of one copy of a record, a multiple of the page size.
fn record_bytes(payload_bytes: usize) -> u64 {
    ((RECORD_HEADER_BYTES + payload_bytes) as u64).next_multiple_of(PAGE)
}

/// `magic u32, payload bytes u32, generation u64, sequence u64, checksum u64, payload`.
fn encode_record(target: &mut [u8], generation: u64, sequence: u64, offset: u64, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("a record fits into a half");
    target[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
    target[4..8].copy_from_slice(&len.to_le_bytes());
    target[8..16].copy_from_slice(&generation.to_le_bytes());
    target[16..24].copy_from_slice(&sequence.to_le_bytes());
    target[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    let checksum = record_checksum(target, payload.len(), offset);
    target[24..32].copy_from_slice(&checksum.to_le_bytes());
}

fn record_checksum(record: &[u8], payload_bytes: usize, offset: u64) -> u64 {
    let header = xxh3_64_with_seed(&record[..24], offset);
    xxh3_64_with_seed(
        &record[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload_bytes],
        header,
    )
}

fn decode_record(body: &[u8], generation: u64, offset: u64) -> Option<(u64, &[u8])> {
    if u32_at(body, 0) != RECORD_MAGIC || u64_at(body, 8) != generation {
        return None;
    }
    let payload_bytes = u32_at(body, 4) as usize;
    let payload = body.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload_bytes)?;
    let valid = record_checksum(body, payload_bytes, offset) == u64_at(body, 24);
    valid.then(|| (u64_at(body, 16), payload))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
