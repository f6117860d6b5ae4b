//! Where a node's journal and home are: in its directory, in a file elsewhere, or on a block
//! device.
//!
//! The directory's identity file names the place; the area's first pages name the directory by its
//! UUID. What must always hold: an area is used by the one directory it was made for; what a place
//! holds is overwritten only if that is asked for; an area that is not there is never made anew
//! once the node has lived.
//!
//! | directory | place | decision at start |
//! |---|---|---|
//! | new | absent, empty or blank | make the area |
//! | new | holds something | refuse, unless told to overwrite |
//! | new, a start was cut short | this node's area, or blank | go on |
//! | used | this node's area | use it |
//! | used | absent | refuse: its disk is missing |
//! | used | another node's, another area, or something else | refuse: it is the wrong one |
//! | used, the option differs from what it says | any | refuse: areas are moved offline |

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use holdfast_runtime::host::{HostDirectory, NodeUuid, read_ends};
use holdfast_runtime::{Allocation, DiskError, PAGE_BYTES};
use holdfast_store::{home_owner, journal_owner};

use super::identity::{Identity, IdentityFile};
use super::signature;
use crate::cli::StartArgs;
use crate::failure::Failure;

/// How much of a place is looked at, at either end: signatures of file systems, partition tables
/// and volume managers lie there.
const LOOKED_AT_BYTES: u64 = 1 << 20;

/// An area that may lie elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    /// What is durable and not at home yet.
    Journal,
    /// Where blocks live.
    Home,
}

impl Area {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Journal, Self::Home];

    /// Its name, which is that of its file where none else is named, and of its option.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Home => "home",
        }
    }

    /// The node that a page names as its owner, if it is one of the area's first two.
    fn owner(self, page: &[u8]) -> Option<NodeUuid> {
        let owner = match self {
            Self::Journal => journal_owner(page),
            Self::Home => home_owner(page),
        };
        owner.map(NodeUuid)
    }

    /// Why a node cannot do without.
    fn worth(self) -> &'static str {
        match self {
            Self::Journal => "acknowledged writes that are nowhere else on this node",
            Self::Home => "the blocks of this node's copies",
        }
    }

    /// Where it is, if not in the directory.
    pub(crate) fn place(self, identity: &Identity) -> Option<&Path> {
        match self {
            Self::Journal => identity.journal.as_deref(),
            Self::Home => identity.home.as_deref(),
        }
    }

    pub(super) fn set_place(self, identity: &mut Identity, place: Option<PathBuf>) {
        match self {
            Self::Journal => identity.journal = place,
            Self::Home => identity.home = place,
        }
    }

    /// Its size in whole pages.
    pub(super) fn bytes(self, identity: &Identity) -> u64 {
        let bytes = match self {
            Self::Journal => identity.journal_bytes,
            Self::Home => identity.home_bytes,
        };
        bytes / PAGE_BYTES as u64 * PAGE_BYTES as u64
    }

    pub(super) fn allocation(self, identity: &Identity) -> Allocation {
        match self {
            Self::Journal => Allocation::Written,
            Self::Home if identity.home_preallocated => Allocation::Reserved,
            Self::Home => Allocation::Sparse,
        }
    }

    /// The place on the command line.
    fn given(self, args: &StartArgs) -> Option<&Path> {
        match self {
            Self::Journal => args.journal.as_deref(),
            Self::Home => args.home.as_deref(),
        }
    }

    /// Whether what its place holds is of no worth.
    pub(super) fn overwrites(self, args: &StartArgs) -> bool {
        match self {
            Self::Journal => args.journal_force,
            Self::Home => args.home_force,
        }
    }
}

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No file, or an empty one.
    Nothing,
    /// Zeroes, as far as was looked.
    Blank,
    /// An area of the directory with this UUID.
    Owned(Area, NodeUuid),
    /// Something else, first seen at this byte, and what that is, if it is known.
    Other(u64, Option<&'static str>),
}

/// Looks at a place without changing it.
pub(super) fn content(path: &Path) -> io::Result<Content> {
    let (size, [head, tail]) = match read_ends(path, LOOKED_AT_BYTES as usize) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Nothing),
        Err(error) => return Err(error),
    };
    if size == 0 {
        return Ok(Content::Nothing);
    }
    for page in head.chunks(PAGE_BYTES).take(2) {
        for area in Area::ALL {
            if let Some(owner) = area.owner(page) {
                return Ok(Content::Owned(area, owner));
            }
        }
    }
    let first = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0);
    let in_tail = |at: usize| size.saturating_sub(tail.len() as u64) + at as u64;
    let found = first(&head).map(|at| at as u64);
    let found = found.or_else(|| first(&tail).map(in_tail));
    Ok(found.map_or(Content::Blank, |at| {
        Content::Other(at, signature::name(&head))
    }))
}

/// Bytes of a block device; `None` for anything else.
pub(super) fn device_bytes(path: &Path) -> io::Result<Option<u64>> {
    match path.metadata() {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            File::open(path)?.seek(SeekFrom::End(0)).map(Some)
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes what a place holds unrecognisable, at both ends.
pub(super) fn wipe(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    let zeroes = vec![0; LOOKED_AT_BYTES.min(size) as usize];
    for from in [0, size - zeroes.len() as u64] {
        file.seek(SeekFrom::Start(from))?;
        file.write_all(&zeroes)?;
    }
    file.sync_all()
}

/// The place as it is remembered. `None` is the directory itself.
pub(super) fn place(
    area: Area,
    directory: &Path,
    given: &Path,
) -> Result<Option<PathBuf>, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
    };
    let given = absolute(given)?;
    let inside = absolute(&directory.join(area.name())).ok();
    Ok(Some(given.clone()).filter(|_| inside != Some(given)))
}

/// Where an area is or shall be, if not in the directory.
pub(super) fn chosen(
    area: Area,
    directory: &Path,
    known: Option<&IdentityFile>,
    args: &StartArgs,
) -> Result<Option<PathBuf>, Failure> {
    let given = area.given(args);
    let wanted = match given {
        Some(path) => place(area, directory, path)?,
        None => None,
    };
    let Some(file) = known else {
        return Ok(wanted);
    };
    let known = area.place(&file.identity).map(Path::to_owned);
    if given.is_some() && known != wanted {
        let name = area.name();
        let inside = directory.join(name);
        let known = known.as_ref().unwrap_or(&inside).display();
        let wanted = wanted.as_ref().unwrap_or(&inside).display();
        return Err(Failure::Failed(format!(
            "the {name} of this node is {known}, not {wanted}. Leave --{name} out, or move the \
             {name} first: holdfast store move-{name} {} {wanted}",
            directory.display()
        )));
    }
    Ok(known)
}

/// Claims the place of an area, before anything of it is overwritten.
pub(super) fn claimed(
    area: Area,
    directory: HostDirectory,
    place: Option<&Path>,
) -> Result<HostDirectory, Failure> {
    let Some(path) = place else {
        return Ok(directory);
    };
    directory
        .with_area_at(area.name(), path)
        .map_err(|error| match error {
            DiskError::InUse { .. } => Failure::Failed(format!(
                "the {} {} is mounted, or in use by another process: is the node running already?",
                area.name(),
                path.display()
            )),
            DiskError::Io { .. } | DiskError::Full { .. } => {
                Failure::Failed(format!("the {} {}: {error}", area.name(), path.display()))
            }
        })
}

/// Refuses a place for a new area of `owner` that holds something, or empties it. The caller has
/// claimed it: nobody else uses it.
pub(super) fn make_room(
    area: Area,
    path: &Path,
    owner: Option<NodeUuid>,
    overwrite: bool,
    how: &str,
) -> Result<(), Failure> {
    let (name, wanted) = (path.display(), area.name());
    let failed =
        |error: io::Error| Failure::Failed(format!("the {wanted}'s place {name}: {error}"));
    let held = match content(path).map_err(failed)? {
        Content::Nothing => return refuse_missing_device(path),
        Content::Blank => return Ok(()),
        Content::Owned(found, uuid) if owner == Some(uuid) && found == area => return Ok(()),
        Content::Owned(found, uuid) => {
            format!("the {} of the node with directory {uuid}", found.name())
        }
        Content::Other(at, None) => format!("something else (first at byte {at})"),
        Content::Other(_, Some(known)) => known.to_owned(),
    };
    if overwrite {
        tracing::warn!("{name} holds {held}, and is overwritten");
        return wipe(path).map_err(failed);
    }
    Err(Failure::Failed(format!(
        "{name} holds {held}, and is not overwritten. Choose another place for the {wanted}, or \
         if nobody needs it any more, say {how}"
    )))
}

/// A device that is not there must not become a file of that name.
pub(super) fn refuse_missing_device(path: &Path) -> Result<(), Failure> {
    let in_devices = path.starts_with("/dev") && !path.starts_with("/dev/shm");
    if in_devices && !path.exists() {
        return Err(Failure::Failed(format!(
            "there is no device {}: is the disk attached?",
            path.display()
        )));
    }
    Ok(())
}

/// Refuses a recorded place that does not hold this node's area, if the node has lived.
pub(super) fn verify(area: Area, file: &IdentityFile) -> Result<(), Failure> {
    let identity = &file.identity;
    let Some(path) = area.place(identity) else {
        return Ok(());
    };
    let (name, wanted) = (path.display(), area.name());
    let found = content(path)
        .map_err(|error| Failure::Failed(format!("the {wanted} {name} cannot be read: {error}")))?;
    let uuid = identity.uuid;
    let member = identity.membership.as_ref();
    let has_lived = member.is_some_and(|member| member.has_run);
    let problem = match found {
        Content::Owned(found, owner) if found == area && owner == uuid => return Ok(()),
        Content::Owned(found, owner) if owner == uuid => {
            format!("is its {}", found.name())
        }
        Content::Owned(found, owner) => {
            format!(
                "is the {} of another node, with directory {owner}",
                found.name()
            )
        }
        // The area is about to be made.
        Content::Nothing if !has_lived => return refuse_missing_device(path),
        Content::Blank if !has_lived => return Ok(()),
        Content::Nothing => "is not there".to_owned(),
        Content::Blank => "is blank".to_owned(),
        Content::Other(_, Some(known)) => format!("is {known}"),
        // Both header pages may be damaged: the store says so, and how to go on.
        Content::Other(at, None) if at < 2 * PAGE_BYTES as u64 => return Ok(()),
        Content::Other(_, None) => format!("is no {wanted}"),
    };
    Err(Failure::Failed(format!(
        "the {wanted} of this node (directory {uuid}) is {name}, and what is there {problem}. It \
         holds {}: bring its disk back, attached and mounted where it was. If it is lost, the \
         node has to join again with an empty directory",
        area.worth()
    )))
}
