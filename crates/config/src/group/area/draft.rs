//! What is to replace everything in the area, while it is written.

use std::rc::Rc;

use holdfast_runtime::{Buffer, Directory, Disk, DiskError, NodeId, PAGE_BYTES};
use xxhash_rust::xxh3::Xxh3;

use super::format::{Header, encode_header};
use super::{AREA, Area, AreaError, CHUNK_BYTES, Half, HalfSizes, Live, PAGE, PREFIX_BYTES};

/// An image in a half that is not in use. Nothing of it counts before [`Area::commit`]; records may
/// be appended to the live half meanwhile.
///
/// No record is written behind the image before its header is durable: a draft that a crash cut off
/// is begun again with the same generation, and would find it.
pub(in crate::group) struct Draft {
    directory: Rc<dyn Directory>,
    disk: Rc<dyn Disk>,
    sizes: HalfSizes,
    replaced: Option<Half>,
    /// If no space for a larger half can be had, one of the present size will do.
    may_stay: bool,
    live: Live,
    /// Of what is written.
    image_bytes: u64,
    checksum: Xxh3,
    chunk: Vec<u8>,
}

impl Draft {
    pub(super) fn new(
        area: &Area,
        image_bytes: u64,
        records_bytes: u64,
    ) -> Result<Self, AreaError> {
        let image = PREFIX_BYTES + image_bytes.next_multiple_of(PAGE);
        let least = image + records_bytes;
        let now = area.half_bytes();
        // A third each for the image, for records until the next one is due, and for those that
        // come while that is written.
        let wanted = (3 * image).min(area.sizes.largest).max(least);
        let grown = area.sizes.all().find(|half| *half >= wanted.max(now));
        let bytes = grown.ok_or(AreaError::Full {
            wanted: least,
            half: area.sizes.all().last().unwrap_or(now),
        })?;
        let replaced = area.live.map(|live| live.half);
        let half = place(replaced, bytes);
        Ok(Self {
            directory: area.directory.clone(),
            disk: area.disk.clone(),
            sizes: area.sizes,
            replaced,
            image_bytes: 0,
            may_stay: least <= now,
            live: Live {
                half,
                generation: area.live.map_or(1, |live| live.generation + 1),
                sequence: 1,
                end: half.base + PREFIX_BYTES,
            },
            checksum: Xxh3::with_seed(half.base),
            chunk: Vec::new(),
        })
    }

    /// Makes the area large enough, and what was in the half before unreadable.
    pub(in crate::group) async fn begin(&mut self) -> Result<(), AreaError> {
        let wanted = 2 * self.live.half.bytes;
        if self.disk.size_bytes() < wanted {
            match self.grow(wanted).await {
                Ok(disk) => self.disk = disk,
                Err(error) if self.may_stay => {
                    tracing::warn!(%error, wanted, "the config log cannot grow");
                    let bytes = self.replaced.map_or(self.sizes.first, |half| half.bytes);
                    self.live.half = place(self.replaced, bytes);
                    self.live.end = self.live.half.base + PREFIX_BYTES;
                    self.checksum = Xxh3::with_seed(self.live.half.base);
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Old headers go first, so that nothing older can be taken for the live half.
        let Half { base, bytes } = self.live.half;
        let inside = self
            .sizes
            .all()
            .filter(|at| base < *at && *at < base + bytes);
        for prefix in std::iter::once(base).chain(inside) {
            for page in [prefix, prefix + PAGE] {
                self.write(page, Buffer::zeroed(PAGE_BYTES)).await?;
            }
        }
        Ok(())
    }

    async fn grow(&self, wanted: u64) -> Result<Rc<dyn Disk>, DiskError> {
        let options = super::options(wanted / 2);
        let disk = self.directory.open(AREA, options).await?;
        if disk.size_bytes() < wanted {
            return Err(DiskError::Full {
                name: AREA.to_owned(),
                wanted_bytes: wanted,
            });
        }
        Ok(disk)
    }

    /// Writes the next part of the image.
    pub(in crate::group) async fn image(&mut self, mut part: &[u8]) -> Result<(), AreaError> {
        while !part.is_empty() {
            let (some, rest) = part.split_at(part.len().min(CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(some);
            part = rest;
            if self.chunk.len() == CHUNK_BYTES {
                self.write_chunk().await?;
            }
        }
        Ok(())
    }

    async fn write_chunk(&mut self) -> Result<(), AreaError> {
        self.checksum.update(&self.chunk);
        let buffer = Buffer::padded_from(&self.chunk);
        let end = self.live.end + buffer.len() as u64;
        if end > self.live.half.base + self.live.half.bytes {
            return Err(AreaError::Full {
                wanted: end - self.live.half.base,
                half: self.live.half.bytes,
            });
        }
        self.write(self.live.end, buffer).await?;
        self.live.end = end;
        self.image_bytes += self.chunk.len() as u64;
        self.chunk.clear();
        Ok(())
    }

    /// Writes what is left of the image.
    pub(super) async fn end(&mut self) -> Result<(), AreaError> {
        if !self.chunk.is_empty() {
            self.write_chunk().await?;
        }
        Ok(())
    }

    async fn write(&self, offset: u64, buffer: Buffer) -> Result<(), AreaError> {
        Ok(self.disk.write(offset, buffer).await?)
    }

    pub(super) fn disk(&self) -> Rc<dyn Disk> {
        self.disk.clone()
    }

    pub(super) fn live(&self) -> Live {
        self.live
    }

    pub(super) fn header(&self, node: NodeId) -> Buffer {
        let header = Header {
            half_bytes: self.live.half.bytes,
            generation: self.live.generation,
            image_bytes: self.image_bytes,
            image_checksum: self.checksum.digest(),
        };
        encode_header(node, header, self.live.half.base)
    }
}

/// Where a half goes that replaces another one: beside it, or behind everything if it is larger.
fn place(replaced: Option<Half>, bytes: u64) -> Half {
    let base = match replaced {
        None => 0,
        Some(half) if half.bytes == bytes && half.base > 0 => 0,
        Some(_) => bytes,
    };
    Half { base, bytes }
}
