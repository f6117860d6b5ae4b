//! The facts as formats 0 to 2 had them: two images of everything, each written anew by every
//! change. They are read once, and the log takes their place.
//!
//! Tested in `facts/tests.rs`, with images that those versions left.

use std::rc::Rc;

use holdfast_runtime::{Disk, PAGE_BYTES};

use super::AREA;
use super::entry::{MAGIC, Owner, read_facts};
use super::state::{Edit, FactsState, Removal, Scope, Void};
use crate::encoding::{FieldReader, plain_checksum};
use crate::error::StoreError;
use crate::form::{Claim, Form};
use crate::record::{Seq, SliceKey, View};

/// Bytes of one image.
pub(super) const IMAGE_BYTES: usize = 1 << 20;
/// Format 1 knew removals of whole volumes only.
const NEWEST: u32 = 2;
const FORM: Form = Form {
    area: AREA,
    magic: MAGIC,
    known: 0..=NEWEST,
    retired: &[],
};
/// Magic, version, blocks per slice, identity, sequence, body length, checksum.
const HEADER_BYTES: usize = 8 + 4 + 4 + 16 + 8 + 8 + 8;
const CHECKSUM_AT: usize = HEADER_BYTES - 8;

/// One of the two places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageFound {
    /// Zeroes, or what is no image: an entry perhaps.
    Nothing {
        zeroes: bool,
    },
    Good(Box<Image>),
    /// The beginning of an image, damaged.
    Bad,
}

/// An image that is intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) state: FactsState,
    pub(crate) sequence: u64,
    pub(crate) slice_blocks: u32,
}

/// Where an image is, in bytes.
pub(super) fn image_at(copy: usize) -> u64 {
    (copy * IMAGE_BYTES) as u64
}

/// Reads both. An intact one of another store is an error.
pub(super) async fn read_images(
    disk: &Rc<dyn Disk>,
    owner: Owner,
) -> Result<[ImageFound; 2], StoreError> {
    let first = read_image(disk, owner, 0).await?;
    Ok([first, read_image(disk, owner, 1).await?])
}

async fn read_image(
    disk: &Rc<dyn Disk>,
    owner: Owner,
    copy: usize,
) -> Result<ImageFound, StoreError> {
    let at = image_at(copy);
    if at + PAGE_BYTES as u64 > disk.size_bytes() {
        return Ok(ImageFound::Nothing { zeroes: true });
    }
    // A read error is damage like any other; of what, its neighbour tells.
    let Ok(page) = disk.read(at, PAGE_BYTES).await else {
        return Ok(ImageFound::Nothing { zeroes: false });
    };
    if !is_image(&page) {
        let zeroes = page.iter().all(|byte| *byte == 0);
        return Ok(ImageFound::Nothing { zeroes });
    }
    let size = (disk.size_bytes() - at).min(IMAGE_BYTES as u64) as usize;
    let Ok(bytes) = disk.read(at, size / PAGE_BYTES * PAGE_BYTES).await else {
        return Ok(ImageFound::Bad);
    };
    let image = decode(&bytes, owner)?;
    Ok(image.map_or(ImageFound::Bad, |image| ImageFound::Good(Box::new(image))))
}

fn is_image(page: &[u8]) -> bool {
    let mut reader = FieldReader::new(page);
    let magic = reader.u64();
    magic == Some(MAGIC) && reader.u32().is_some_and(|version| version <= NEWEST)
}

/// `Ok(None)` for damage; an error for an intact image that must not be used.
fn decode(bytes: &[u8], owner: Owner) -> Result<Option<Image>, StoreError> {
    let mut header = FieldReader::new(bytes);
    let fields = (|| {
        let magic = header.u64()?;
        let version = header.u32()?;
        let slice_blocks = header.u32()?;
        let identity = header.array::<16>()?;
        let sequence = header.u64()?;
        let end = usize::try_from(header.u64()?)
            .ok()?
            .checked_add(HEADER_BYTES)?;
        let checksum = header.u64()?;
        let mut covered = bytes.get(..end)?.to_vec();
        covered[CHECKSUM_AT..HEADER_BYTES].fill(0);
        let claim = Claim {
            magic,
            version,
            identity,
            intact: plain_checksum(&covered) == checksum,
        };
        Some((claim, slice_blocks, sequence, end))
    })();
    let Some((claim, slice_blocks, sequence, end)) = fields else {
        return Ok(None);
    };
    if !owner.admits(&FORM, claim, slice_blocks)? {
        return Ok(None);
    }
    let state = decode_body(&bytes[HEADER_BYTES..end], claim.version);
    Ok(state.map(|state| Image {
        state,
        sequence,
        slice_blocks,
    }))
}

fn decode_body(bytes: &[u8], version: u32) -> Option<FactsState> {
    let mut reader = FieldReader::new(bytes);
    let mut state = FactsState::default();
    let hole = reader.u32()? != 0;
    let mut edits = Vec::new();
    for _ in 0..reader.u32()? {
        edits.push(Edit::Promise {
            volume: reader.u64()?,
            view: View(reader.u64()?),
        });
    }
    for _ in 0..reader.u32()? {
        edits.push(Edit::Slice {
            key: reader.slice()?,
            facts: read_facts(&mut reader)?,
        });
    }
    for _ in 0..reader.u32()? {
        edits.push(Edit::Voided(Void {
            slice: reader.slice()?,
            keep_through: Seq(reader.u64()?),
            before_lsn: reader.u64()?,
        }));
    }
    let mut removals = Vec::new();
    for _ in 0..reader.u32()? {
        removals.push(read_removal(&mut reader, version)?);
    }
    // What a removal takes with it had gone before it was written down: first of all, then.
    for removal in removals {
        removal.edits().for_each(|edit| state.apply(&edit));
    }
    edits.iter().for_each(|edit| state.apply(edit));
    if hole {
        state.apply(&Edit::Hole);
    }
    Some(state)
}

fn read_removal(reader: &mut FieldReader<'_>, version: u32) -> Option<Removal> {
    let volume = reader.u64()?;
    let before_lsn = reader.u64()?;
    let flags = reader.u32()?;
    let scope = match version {
        0 | 1 => Scope::Volume(volume),
        _ => {
            let slice = reader.u32()?;
            match flags & 0x100 {
                0 => Scope::Volume(volume),
                _ => Scope::Slice(SliceKey { volume, slice }),
            }
        }
    };
    Some(Removal {
        scope,
        before_lsn,
        cleared: flags & 1 != 0,
    })
}
