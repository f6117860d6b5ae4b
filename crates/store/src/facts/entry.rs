//! The form of entries: what the area of the facts is made of.
//!
//! ```text
//! magic 8 | version 4 | blocks of a slice 4 | identity 16 | kind 4 | chunk 4 | generation 8
//! | number 8 | length 8 | checksum 8 | edits, in whole pages
//! edit: kind 4 | fields
//! ```
//!
//! It begins like the images of formats 1 and 2, so that either is recognised by the other.

use holdfast_runtime::{Buffer, PAGE_BYTES};

use super::state::{Edit, Scope, SliceFacts, Void};
use super::{AREA, VERSION};
use crate::encoding::{FieldReader, FieldWriter, plain_checksum};
use crate::error::StoreError;
use crate::form::{Claim, Form};
use crate::record::{CopyState, Seq, SliceKey, View};

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"HFFACTS\n");
/// Images of formats 0 to 2 are read by [`super::image`].
const FORM: Form = Form {
    area: AREA,
    magic: MAGIC,
    known: VERSION..=VERSION,
    retired: &[],
};
const HEADER_BYTES: usize = 72;
const CHECKSUM_AT: usize = HEADER_BYTES - 8;
/// Most bytes of one entry: several fit into a chunk.
pub(super) const ENTRY_BYTES_MAX: usize = 32 << 10;
/// Most bytes of an edit.
const EDIT_BYTES_MAX: usize = 52;
/// Edits that fit into one entry, whatever they are.
pub(super) const EDITS_MAX: usize = (ENTRY_BYTES_MAX - HEADER_BYTES) / EDIT_BYTES_MAX;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A part of the generation's snapshot.
    Snapshot,
    /// The snapshot is complete with the entries before this one: the generation counts.
    Commit,
    /// Changes, or the first part of some that take effect together.
    First,
    /// A further part.
    Further,
    /// The last part.
    Last,
    /// Changes in one part.
    Whole,
}

impl EntryKind {
    const ALL: [Self; 6] = [
        Self::Snapshot,
        Self::Commit,
        Self::First,
        Self::Further,
        Self::Last,
        Self::Whole,
    ];

    fn code(self) -> u32 {
        match self {
            Self::Snapshot => 1,
            Self::Commit => 2,
            Self::First => 3,
            Self::Further => 4,
            Self::Last => 5,
            Self::Whole => 6,
        }
    }

    /// What part `number` of `parts` is.
    pub(super) fn of_part(number: usize, parts: usize) -> Self {
        match (number == 0, number + 1 == parts) {
            (true, true) => Self::Whole,
            (true, false) => Self::First,
            (false, true) => Self::Last,
            (false, false) => Self::Further,
        }
    }
}

/// Which store's facts, as every entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) identity: [u8; 16],
    /// `None` if nobody knows: the first entry that is intact says it.
    pub(crate) slice_blocks: Option<u32>,
}

impl Owner {
    /// Whether what claims this is whole, and of this store; an error if it is whole and must not
    /// be used.
    pub(super) fn admits(
        self,
        form: &Form,
        claim: Claim,
        slice_blocks: u32,
    ) -> Result<bool, StoreError> {
        if !form.admits(self.identity, claim)? {
            return Ok(false);
        }
        if self.slice_blocks.is_some_and(|own| own != slice_blocks) {
            return Err(StoreError::Foreign {
                area: AREA,
                what: "blocks per slice",
            });
        }
        Ok(true)
    }
}

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryPlace {
    pub(crate) generation: u64,
    /// Which chunk of the generation it lies in.
    pub(crate) chunk: u32,
    /// Of the generation's entries, without gaps from zero on.
    pub(crate) number: u64,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) place: EntryPlace,
    pub(crate) edits: Vec<Edit>,
    pub(crate) slice_blocks: u32,
    /// Bytes on disk, in whole pages.
    pub(crate) bytes: usize,
}

/// The bytes of an entry.
pub(super) fn encode(
    identity: [u8; 16],
    slice_blocks: u32,
    kind: EntryKind,
    place: EntryPlace,
    edits: &[Edit],
) -> Buffer {
    let mut body = FieldWriter::default();
    edits.iter().for_each(|edit| write_edit(&mut body, edit));
    let mut writer = FieldWriter::default();
    writer.u64(MAGIC);
    writer.u32(VERSION);
    writer.u32(slice_blocks);
    writer.raw(&identity);
    writer.u32(kind.code());
    writer.u32(place.chunk);
    writer.u64(place.generation);
    writer.u64(place.number);
    writer.u64(body.bytes.len() as u64);
    writer.u64(0);
    debug_assert_eq!(writer.bytes.len(), HEADER_BYTES);
    writer.raw(&body.bytes);
    debug_assert!(writer.bytes.len() <= ENTRY_BYTES_MAX);
    let checksum = plain_checksum(&writer.bytes);
    writer.bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Buffer::padded_from(&writer.bytes)
}

/// How many bytes, in whole pages, the entry that begins here says it has; `None` if none does.
pub(super) fn length(page: &[u8]) -> Option<usize> {
    let mut reader = FieldReader::new(page);
    (reader.u64()? == MAGIC).then_some(())?;
    reader.raw(HEADER_BYTES - 24)?;
    let length = usize::try_from(reader.u64()?).ok()?;
    let bytes = length.checked_add(HEADER_BYTES)?;
    (bytes <= ENTRY_BYTES_MAX).then(|| bytes.next_multiple_of(PAGE_BYTES))
}

/// The entry at the beginning of these bytes; `None` if none is, or only a part of one.
pub(super) fn decode(owner: Owner, bytes: &[u8]) -> Result<Option<Entry>, StoreError> {
    let Some(whole) = length(bytes).and_then(|length| bytes.get(..length)) else {
        return Ok(None);
    };
    let mut header = FieldReader::new(whole);
    let fields = (|| {
        let magic = header.u64()?;
        let version = header.u32()?;
        let slice_blocks = header.u32()?;
        let identity = header.array::<16>()?;
        let kind = header.u32()?;
        let place = EntryPlace {
            chunk: header.u32()?,
            generation: header.u64()?,
            number: header.u64()?,
        };
        let end = HEADER_BYTES + usize::try_from(header.u64()?).ok()?;
        let checksum = header.u64()?;
        let mut covered = whole.get(..end)?.to_vec();
        covered[CHECKSUM_AT..HEADER_BYTES].fill(0);
        let claim = Claim {
            magic,
            version,
            identity,
            intact: plain_checksum(&covered) == checksum,
        };
        Some((claim, slice_blocks, kind, place, end))
    })();
    let Some((claim, slice_blocks, kind, place, end)) = fields else {
        return Ok(None);
    };
    if !owner.admits(&FORM, claim, slice_blocks)? {
        return Ok(None);
    }
    let kind = EntryKind::ALL.into_iter().find(|one| one.code() == kind);
    let mut body = FieldReader::new(&whole[HEADER_BYTES..end]);
    let mut edits = Vec::new();
    while !body.is_empty() {
        let Some(edit) = read_edit(&mut body) else {
            return Ok(None);
        };
        edits.push(edit);
    }
    Ok(kind.map(|kind| Entry {
        kind,
        place,
        edits,
        slice_blocks,
        bytes: whole.len(),
    }))
}

fn write_edit(writer: &mut FieldWriter, edit: &Edit) {
    match edit {
        Edit::Promise { volume, view } => {
            writer.u32(1);
            writer.u64(*volume);
            writer.u64(view.0);
        }
        Edit::Slice { key, facts } => {
            writer.u32(2);
            writer.slice(*key);
            write_facts(writer, facts);
        }
        Edit::Voided(void) => {
            writer.u32(3);
            writer.slice(void.slice);
            writer.u64(void.keep_through.0);
            writer.u64(void.before_lsn);
        }
        Edit::RemovalBegun { scope, before_lsn } => {
            writer.u32(4);
            write_scope(writer, *scope);
            writer.u64(*before_lsn);
        }
        Edit::RemovalCleared { scope, before_lsn } => {
            writer.u32(5);
            write_scope(writer, *scope);
            writer.u64(*before_lsn);
        }
        Edit::Forgotten { tail_lsn } => {
            writer.u32(6);
            writer.u64(*tail_lsn);
        }
        Edit::Hole => writer.u32(7),
    }
}

fn read_edit(reader: &mut FieldReader<'_>) -> Option<Edit> {
    Some(match reader.u32()? {
        1 => Edit::Promise {
            volume: reader.u64()?,
            view: View(reader.u64()?),
        },
        2 => Edit::Slice {
            key: reader.slice()?,
            facts: read_facts(reader)?,
        },
        3 => Edit::Voided(Void {
            slice: reader.slice()?,
            keep_through: Seq(reader.u64()?),
            before_lsn: reader.u64()?,
        }),
        4 => Edit::RemovalBegun {
            scope: read_scope(reader)?,
            before_lsn: reader.u64()?,
        },
        5 => Edit::RemovalCleared {
            scope: read_scope(reader)?,
            before_lsn: reader.u64()?,
        },
        6 => Edit::Forgotten {
            tail_lsn: reader.u64()?,
        },
        7 => Edit::Hole,
        _ => return None,
    })
}

fn write_scope(writer: &mut FieldWriter, scope: Scope) {
    let (is_slice, slice) = match scope {
        Scope::Volume(_) => (0, 0),
        Scope::Slice(key) => (1, key.slice),
    };
    writer.u32(is_slice);
    writer.u64(scope.volume());
    writer.u32(slice);
}

fn read_scope(reader: &mut FieldReader<'_>) -> Option<Scope> {
    let is_slice = reader.u32()?;
    let key: SliceKey = reader.slice()?;
    match is_slice {
        0 => Some(Scope::Volume(key.volume)),
        1 => Some(Scope::Slice(key)),
        _ => None,
    }
}

fn write_facts(writer: &mut FieldWriter, facts: &SliceFacts) {
    let (tag, base) = match facts.copy {
        CopyState::Absent => (0, Seq(0)),
        CopyState::InSync => (1, Seq(0)),
        CopyState::Joining { base } => (2, base),
    };
    writer.u32(tag | u32::from(facts.suspect.is_some()) << 8);
    writer.u64(base.0);
    writer.u64(facts.stable.0);
    writer.u64(facts.destaged.0);
    writer.u64(facts.suspect.unwrap_or_default().0);
}

/// What is known of a slice: the same in every format.
pub(super) fn read_facts(reader: &mut FieldReader<'_>) -> Option<SliceFacts> {
    let tag = reader.u32()?;
    let base = Seq(reader.u64()?);
    let copy = match tag & 0xff {
        0 => CopyState::Absent,
        1 => CopyState::InSync,
        2 => CopyState::Joining { base },
        _ => return None,
    };
    Some(SliceFacts {
        copy,
        stable: Seq(reader.u64()?),
        destaged: Seq(reader.u64()?),
        suspect: Some(Seq(reader.u64()?)).filter(|_| tag & 0x100 != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        identity: [3; 16],
        slice_blocks: Some(1024),
    };
    const PLACE: EntryPlace = EntryPlace {
        generation: 9,
        chunk: 2,
        number: 77,
    };

    fn every_edit() -> Vec<Edit> {
        let key = SliceKey {
            volume: 5,
            slice: 6,
        };
        let facts = SliceFacts {
            copy: CopyState::Joining { base: Seq(8) },
            stable: Seq(9),
            destaged: Seq(10),
            suspect: Some(Seq(0)),
        };
        let before_lsn = 12;
        let void = Void {
            slice: key,
            keep_through: Seq(11),
            before_lsn,
        };
        let mut edits = vec![
            Edit::Promise {
                volume: 5,
                view: View(7),
            },
            Edit::Slice { key, facts },
            Edit::Voided(void),
            Edit::Forgotten { tail_lsn: 13 },
            Edit::Hole,
        ];
        for scope in [Scope::Volume(5), Scope::Slice(key)] {
            edits.push(Edit::RemovalBegun { scope, before_lsn });
            edits.push(Edit::RemovalCleared { scope, before_lsn });
        }
        edits
    }

    fn encoded(edits: &[Edit]) -> Buffer {
        encode(OWNER.identity, 1024, EntryKind::Whole, PLACE, edits)
    }

    #[test]
    fn every_edit_is_read_back() {
        let edits = every_edit();
        let entry = decode(OWNER, &encoded(&edits)).unwrap().unwrap();
        assert_eq!((entry.kind, entry.place), (EntryKind::Whole, PLACE));
        assert_eq!(entry.edits, edits);
        assert_eq!((entry.bytes, entry.slice_blocks), (PAGE_BYTES, 1024));
    }

    #[test]
    fn as_many_edits_as_an_entry_takes_fit_whatever_they_are() {
        for edit in every_edit() {
            let bytes = encoded(&vec![edit; EDITS_MAX]);
            assert!(bytes.len() <= ENTRY_BYTES_MAX);
            let entry = decode(OWNER, &bytes).unwrap().unwrap();
            assert_eq!(entry.edits.len(), EDITS_MAX);
        }
    }

    #[test]
    fn a_torn_or_flipped_entry_is_none_and_a_foreign_one_is_refused() {
        let bytes = encoded(&[every_edit()[1]; 200]);
        assert!(bytes.len() > PAGE_BYTES);
        assert_eq!(decode(OWNER, &bytes[..PAGE_BYTES]), Ok(None));
        for at in [0, 9, 40, 60, HEADER_BYTES + 5, PAGE_BYTES + 9] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 4;
            assert_eq!(decode(OWNER, &flipped), Ok(None), "{at}");
        }
        let other = Owner {
            identity: [4; 16],
            ..OWNER
        };
        assert!(decode(other, &bytes).is_err());
        let other = Owner {
            slice_blocks: Some(8),
            ..OWNER
        };
        assert!(decode(other, &bytes).is_err());
        let anyone = Owner {
            slice_blocks: None,
            ..OWNER
        };
        assert!(decode(anyone, &bytes).unwrap().is_some());
    }

    #[test]
    fn parts_say_which_they_are() {
        let kinds = |parts| -> Vec<EntryKind> {
            (0..parts).map(|n| EntryKind::of_part(n, parts)).collect()
        };
        assert_eq!(kinds(1), [EntryKind::Whole]);
        assert_eq!(kinds(2), [EntryKind::First, EntryKind::Last]);
        let three = [EntryKind::First, EntryKind::Further, EntryKind::Last];
        assert_eq!(kinds(3), three);
    }
}
