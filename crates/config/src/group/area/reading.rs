//! What an area holds, found out when it is opened.

use std::rc::Rc;

use bytes::Bytes;
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Disk, PAGE_BYTES};
use xxhash_rust::xxh3::Xxh3;

use super::format::{
    Header, HeaderState, RECORD_HEADER_BYTES, Retirement, claimed_bytes, decode_header,
    decode_record, decode_retirement, record_bytes,
};
use super::{Area, AreaError, CHUNK_BYTES, Contents, Damage, Half, Live, PAGE, PREFIX_BYTES};

/// What the first two pages of a place say in which a half begins, or has begun when halves were
/// smaller.
pub(super) struct Prefix {
    pub(super) base: u64,
    header: HeaderState,
    retirement: Retirement,
}

impl Prefix {
    /// Whether it has to say yet that it is retired, once this half is live: as the one that was
    /// replaced, or as the first one's neighbour, which shows that the first one was in use.
    pub(super) fn lacks_retirement(&self, live: Half, generation: u64) -> bool {
        let beside = self.base == live.bytes || (self.base == 0 && live.base == live.bytes);
        let replaced = match self.header {
            HeaderState::Valid(header) => !self.retirement.covers(header.generation),
            HeaderState::Blank | HeaderState::Invalid => false,
        };
        replaced || (beside && self.retirement != Retirement::By(generation))
    }
}

/// The live half, by the table in the parent's header.
pub(super) fn choose(prefixes: &[Prefix]) -> Result<Option<(Half, Header)>, AreaError> {
    let valid = prefixes.iter().filter_map(|prefix| match prefix.header {
        HeaderState::Valid(header) => Some((prefix, header)),
        HeaderState::Blank | HeaderState::Invalid => None,
    });
    let newest = valid.max_by_key(|(_, header)| header.generation);
    let Some((prefix, header)) = newest else {
        // The first half that is ever made begins the area; the second one is retired before it is
        // used, and larger ones come after both.
        let blank = |prefix: &Prefix| {
            (prefix.header, prefix.retirement) == (HeaderState::Blank, Retirement::Blank)
        };
        return if prefixes[1..].iter().all(blank) {
            Ok(None)
        } else {
            Err(AreaError::Damaged {
                offset: 0,
                what: Damage::NoHeader,
            })
        };
    };
    let half = Half {
        base: prefix.base,
        bytes: header.half_bytes,
    };
    if prefix.retirement.covers(header.generation) {
        return Err(AreaError::Damaged {
            offset: if half.base == 0 { half.bytes } else { 0 },
            what: Damage::LiveHalfUnreadable,
        });
    }
    Ok(Some((half, header)))
}

impl Area {
    /// All places where a half may begin, ascending.
    pub(super) async fn read_prefixes(&self) -> Result<Vec<Prefix>, AreaError> {
        let size = self.disk.size_bytes();
        let mut prefixes = vec![self.read_prefix(0).await?];
        for base in self.sizes.all().take_while(|half| 2 * half <= size) {
            prefixes.push(self.read_prefix(base).await?);
        }
        Ok(prefixes)
    }

    async fn read_prefix(&self, base: u64) -> Result<Prefix, AreaError> {
        let header = match self.disk.read(base, PAGE_BYTES).await {
            Ok(page) => decode_header(&page, base, self.node)?,
            Err(_unreadable) => HeaderState::Invalid,
        };
        if let HeaderState::Valid(header) = header {
            self.check_size(base, header.half_bytes)?;
        }
        let retirement = match self.disk.read(base + PAGE, PAGE_BYTES).await {
            Ok(page) => decode_retirement(&page, base + PAGE),
            Err(_unreadable) => Retirement::Unreadable,
        };
        Ok(Prefix {
            base,
            header,
            retirement,
        })
    }

    fn check_size(&self, base: u64, half_bytes: u64) -> Result<(), AreaError> {
        let known = self.sizes.all().any(|half| half == half_bytes);
        if !known || (base != 0 && base != half_bytes) {
            return Err(AreaError::OtherSize {
                found: half_bytes,
                expected: self.sizes.first,
            });
        }
        if 2 * half_bytes > self.disk.size_bytes() {
            return Err(AreaError::Damaged {
                offset: self.disk.size_bytes(),
                what: Damage::Truncated,
            });
        }
        Ok(())
    }

    /// Reads the half and makes it the live one.
    pub(super) async fn read_half(
        &mut self,
        half: Half,
        header: Header,
    ) -> Result<Contents, AreaError> {
        let begin = half.base + PREFIX_BYTES;
        let end = half.base + half.bytes;
        let damaged_image = AreaError::Damaged {
            offset: begin,
            what: Damage::Image,
        };
        if header.image_bytes > half.bytes - PREFIX_BYTES {
            return Err(damaged_image);
        }
        let image = self.read_image(begin, header.image_bytes).await;
        let mut checksum = Xxh3::with_seed(half.base);
        checksum.update(&image);
        if checksum.digest() != header.image_checksum {
            return Err(damaged_image);
        }
        let mut records = Vec::new();
        let mut live = Live {
            half,
            generation: header.generation,
            sequence: 1,
            end: begin + header.image_bytes.next_multiple_of(PAGE),
        };
        let mut window = Window::new(self.disk.clone(), live.end, end);
        // Everything at `live.end` and after it up to `next` is known to be no record.
        let mut next = live.end;
        while next < end {
            let Some((sequence, payload)) = window.record(live.generation, next).await else {
                next += PAGE;
                continue;
            };
            let record_bytes = record_bytes(payload.len());
            // Found where the first copy belongs, or where the second one does.
            let second_copy = next == live.end + record_bytes;
            if sequence != live.sequence || (next != live.end && !second_copy) {
                return Err(AreaError::Damaged {
                    offset: live.end,
                    what: Damage::Record,
                });
            }
            if second_copy {
                reach::note(Row::ConfigOtherCopy);
            }
            records.push(payload);
            live.sequence += 1;
            live.end += 2 * record_bytes;
            next = live.end;
        }
        self.live = Some(live);
        Ok(Contents { image, records })
    }

    async fn read_image(&self, begin: u64, image_bytes: u64) -> Bytes {
        let mut image = Vec::with_capacity(image_bytes as usize);
        while (image.len() as u64) < image_bytes {
            let left = image_bytes - image.len() as u64;
            let wanted = left.next_multiple_of(PAGE).min(CHUNK_BYTES as u64);
            let chunk = read_pages(&*self.disk, begin + image.len() as u64, wanted as usize).await;
            image.extend_from_slice(&chunk[..chunk.len().min(left as usize)]);
        }
        Bytes::from(image)
    }
}

/// What lies at `offset`. A page that cannot be read is left zero: whether it matters, its checksum
/// decides.
async fn read_pages(disk: &dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    if let Ok(chunk) = disk.read(offset, len).await {
        return chunk.to_vec();
    }
    let mut pages = Vec::with_capacity(len);
    for at in (offset..offset + len as u64).step_by(PAGE_BYTES) {
        match disk.read(at, PAGE_BYTES).await {
            Ok(page) => pages.extend_from_slice(&page),
            Err(_unreadable) => pages.resize(pages.len() + PAGE_BYTES, 0),
        }
    }
    pages
}

/// A part of the area that moves on as it is read.
struct Window {
    disk: Rc<dyn Disk>,
    /// Where `bytes` begins.
    begin: u64,
    bytes: Vec<u8>,
    end: u64,
}

impl Window {
    fn new(disk: Rc<dyn Disk>, begin: u64, end: u64) -> Self {
        Self {
            disk,
            begin,
            bytes: Vec::new(),
            end,
        }
    }

    /// The number and the payload of a valid record of this generation that begins here.
    async fn record(&mut self, generation: u64, at: u64) -> Option<(u64, Vec<u8>)> {
        self.load(at, PAGE_BYTES).await;
        let page = &self.bytes[(at - self.begin) as usize..];
        let payload_bytes = claimed_bytes(page, generation)?;
        let record_bytes = record_bytes(payload_bytes);
        if at + record_bytes > self.end {
            return None;
        }
        self.load(at, record_bytes as usize).await;
        let record = &self.bytes[(at - self.begin) as usize..][..record_bytes as usize];
        let used = &record[..RECORD_HEADER_BYTES + payload_bytes];
        decode_record(used, at).map(|(sequence, payload)| (sequence, payload.to_vec()))
    }

    /// Has these bytes loaded, and nothing before them.
    async fn load(&mut self, at: u64, len: usize) {
        if at + len as u64 <= self.begin + self.bytes.len() as u64 {
            return;
        }
        self.bytes.drain(..(at - self.begin) as usize);
        self.begin = at;
        while self.bytes.len() < len {
            let from = self.begin + self.bytes.len() as u64;
            let chunk = (self.end - from).min(CHUNK_BYTES as u64);
            let chunk = read_pages(&*self.disk, from, chunk as usize).await;
            self.bytes.extend_from_slice(&chunk);
        }
    }
}
