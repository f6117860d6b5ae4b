//! Where a node's journal is: in its directory, in a file elsewhere, or on a block device.
//!
//! The directory's identity file names the place, the journal's header pages name the directory by
//! its UUID. What must always hold: a journal is used by the one directory it was made for; what a
//! place holds is overwritten only if that is asked for; a journal that is not there is never
//! made anew once the node has lived.
//!
//! | directory | place | decision at start |
//! |---|---|---|
//! | new | absent, empty or blank | make the journal |
//! | new | holds something | refuse, unless told to overwrite |
//! | new, a start was cut short | this node's journal | go on |
//! | used | this node's journal | use it |
//! | used | absent | refuse: its disk is missing |
//! | used | another node's journal, or something else | refuse: it is the wrong one |
//! | used, `--journal` differs from what it says | any | refuse: a journal is moved offline |

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use holdfast_runtime::host::{HostDirectory, NodeUuid, read_ends};
use holdfast_runtime::{Allocation, Directory, DiskError, DiskOptions, PAGE_BYTES};
use holdfast_store::journal_owner;

use super::identity::IdentityFile;
use crate::failure::Failure;
use crate::quantity::show_size;

/// Name of the area, and of its file where none else is named.
pub(crate) const JOURNAL_AREA: &str = "journal";
/// A node that has the facts has had a journal: it is made first.
const FACTS_AREA: &str = "facts";
/// How much of a place is looked at, at either end: signatures of file systems, partition tables
/// and volume managers lie there.
const LOOKED_AT_BYTES: u64 = 1 << 20;
/// One transfer when a journal is moved.
const CHUNK_BYTES: u64 = 1 << 20;

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No file, or an empty one.
    Nothing,
    /// Zeroes, as far as was looked.
    Blank,
    /// A journal of the directory with this UUID.
    Journal(NodeUuid),
    /// Something else, first seen at this byte.
    Other(u64),
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
        if let Some(owner) = journal_owner(page) {
            return Ok(Content::Journal(NodeUuid(owner)));
        }
    }
    let first = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0);
    let in_tail = |at: usize| size.saturating_sub(tail.len() as u64) + at as u64;
    let found = first(&head).map(|at| at as u64);
    let found = found.or_else(|| first(&tail).map(in_tail));
    Ok(found.map_or(Content::Blank, Content::Other))
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
fn wipe(path: &Path) -> io::Result<()> {
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
pub(super) fn place(directory: &Path, given: &Path) -> Result<Option<PathBuf>, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
    };
    let given = absolute(given)?;
    Ok(Some(given.clone()).filter(|_| absolute(&directory.join(JOURNAL_AREA)).ok() != Some(given)))
}

/// Refuses a place for a new journal of `owner` that holds something, or empties it. The caller has
/// claimed it: nobody else uses it.
pub(super) fn make_room(
    path: &Path,
    owner: Option<NodeUuid>,
    overwrite: bool,
    how: &str,
) -> Result<(), Failure> {
    let name = path.display();
    let failed = |error: io::Error| Failure::Failed(format!("the journal's place {name}: {error}"));
    let held = match content(path).map_err(failed)? {
        Content::Nothing => {
            let in_devices = path.starts_with("/dev") && !path.starts_with("/dev/shm");
            if in_devices && !path.exists() {
                return Err(Failure::Failed(format!(
                    "there is no device {name}: is the disk attached?"
                )));
            }
            return Ok(());
        }
        Content::Blank => return Ok(()),
        Content::Journal(uuid) if owner == Some(uuid) => return Ok(()),
        Content::Journal(uuid) => format!("the journal of the node with directory {uuid}"),
        Content::Other(at) => format!("something else (first at byte {at})"),
    };
    if overwrite {
        tracing::warn!("{name} holds {held}, and is overwritten");
        return wipe(path).map_err(failed);
    }
    Err(Failure::Failed(format!(
        "{name} holds {held}, and is not overwritten. Choose another place for the journal, or if \
         nobody needs it any more, say {how}"
    )))
}

/// Refuses a recorded place that does not hold this node's journal, if the node has lived.
pub(super) fn verify(directory: &Path, file: &IdentityFile) -> Result<(), Failure> {
    let identity = &file.identity;
    let Some(path) = &identity.journal else {
        return Ok(());
    };
    let name = path.display();
    let found = content(path)
        .map_err(|error| Failure::Failed(format!("the journal {name} cannot be read: {error}")))?;
    let uuid = identity.uuid;
    let problem = match found {
        Content::Journal(owner) if owner == uuid => return Ok(()),
        Content::Journal(owner) => {
            format!("is the journal of another node, with directory {owner}")
        }
        // The node has never lived: its journal is about to be made.
        Content::Nothing | Content::Blank if !directory.join(FACTS_AREA).exists() => return Ok(()),
        Content::Nothing => "is not there".to_owned(),
        Content::Blank => "is blank".to_owned(),
        // Both header pages may be damaged: the store says so, and how to go on.
        Content::Other(at) if at < 2 * PAGE_BYTES as u64 => return Ok(()),
        Content::Other(_) => "is no journal".to_owned(),
    };
    Err(Failure::Failed(format!(
        "the journal of this node (directory {uuid}) is {name}, and what is there {problem}. It \
         holds acknowledged writes that are nowhere else on this node: bring its disk back, \
         attached and mounted where it was. If it is lost, the node has to join again with an \
         empty directory"
    )))
}

/// Moves the journal of a node that does not run. See `holdfast store move-journal --help`.
pub(crate) async fn move_to(data: &Path, to: &Path, overwrite: bool) -> Result<String, Failure> {
    let mut file = IdentityFile::read(data)
        .map_err(Failure::of)?
        .ok_or_else(|| Failure::Usage(format!("{} is no node's directory", data.display())))?;
    let uuid = file.identity.uuid;
    let inside = std::path::absolute(data.join(JOURNAL_AREA)).map_err(Failure::of)?;
    let from = file.identity.journal.clone().unwrap_or(inside.clone());
    let goal = place(data, to)?;
    let to = goal.clone().unwrap_or(inside);
    if from == to {
        return Ok(format!("the journal is at {} already", to.display()));
    }
    let directory = HostDirectory::open(data).map_err(|error| match error {
        DiskError::InUse { .. } => {
            Failure::Usage(format!("a node runs on {}. Stop it first", data.display()))
        }
        DiskError::Io { .. } | DiskError::Full { .. } => Failure::of(error),
    })?;
    match content(&from).map_err(Failure::of)? {
        Content::Journal(owner) if owner == uuid => {}
        Content::Nothing | Content::Blank | Content::Journal(_) | Content::Other(_) => {
            return Err(Failure::Failed(format!(
                "{} is not a readable journal of this node; nothing was changed. `holdfast store \
                 check {}` says more",
                from.display(),
                data.display()
            )));
        }
    }
    let bytes = file.identity.journal_bytes / PAGE_BYTES as u64 * PAGE_BYTES as u64;
    if let Some(size) = device_bytes(&to).map_err(Failure::of)?
        && size < bytes
    {
        return Err(Failure::Failed(format!(
            "{} has {}, the journal {}; nothing was changed",
            to.display(),
            show_size(size),
            show_size(bytes)
        )));
    }
    const OLD: &str = "old-journal";
    const NEW: &str = "new-journal";
    let directory = directory
        .with_area_at(OLD, &from)
        .and_then(|directory| directory.with_area_at(NEW, &to))
        .map_err(Failure::of)?;
    make_room(&to, Some(uuid), overwrite, "--force")?;
    copy(&directory, OLD, NEW, bytes)
        .await
        .map_err(Failure::of)?;
    // From here on the new one counts.
    file.update(|identity| identity.journal = goal)
        .map_err(Failure::of)?;
    let old_is_device = device_bytes(&from).map_err(Failure::of)?.is_some();
    let gone = match old_is_device {
        true => wipe(&from),
        false => std::fs::remove_file(&from),
    };
    let old = from.display();
    Ok(match gone {
        Ok(()) => format!("the journal is at {} now; {old} is free", to.display()),
        Err(error) => format!(
            "the journal is at {} now; {old} could not be cleared ({error}) and is not used any \
             more",
            to.display()
        ),
    })
}

/// Copies a journal, its header pages last, and compares.
async fn copy(
    directory: &HostDirectory,
    old: &str,
    new: &str,
    bytes: u64,
) -> Result<(), DiskError> {
    let options = |allocation| DiskOptions {
        size_bytes: bytes,
        durable_writes: false,
        allocation,
    };
    let source = directory.open(old, options(Allocation::Sparse)).await?;
    let target = directory.open(new, options(Allocation::Written)).await?;
    let header = 2 * PAGE_BYTES as u64;
    let ring = (header..bytes).step_by(CHUNK_BYTES as usize);
    let parts: Vec<(u64, usize)> = ring
        .map(|at| (at, CHUNK_BYTES.min(bytes - at) as usize))
        .chain([(0, header as usize)])
        .collect();
    for (at, length) in &parts {
        if *at == 0 {
            target.sync().await?;
        }
        let chunk = source.read(*at, *length).await?;
        target.write(*at, chunk).await?;
    }
    target.sync().await?;
    for (at, length) in parts {
        let (old, new) = (
            source.read(at, length).await?,
            target.read(at, length).await?,
        );
        if old[..] != new[..] {
            return Err(DiskError::Io {
                name: format!("the new journal of {}", directory.path().display()),
                operation: "read",
                offset: at,
                reason: "it is not what was written: the disk lies".into(),
            });
        }
    }
    Ok(())
}
