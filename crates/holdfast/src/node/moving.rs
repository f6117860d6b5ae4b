//! Moving the journal or the home of a node that does not run to another disk.
//!
//! The area is copied, its first pages last, made durable and compared; then the identity file
//! names the new place, in one step; then the old one is made unusable. So a node that starts in
//! between finds one of the two whole, and whoever moves again finishes it.

use std::path::Path;

use holdfast_runtime::host::HostDirectory;
use holdfast_runtime::{Allocation, Buffer, Directory, DiskError, DiskOptions, PAGE_BYTES};

use super::identity::IdentityFile;
use super::places::{Area, Content, content, device_bytes, make_room, place, wipe};
use crate::failure::Failure;
use crate::quantity::show_size;

/// One transfer.
const CHUNK_BYTES: u64 = 1 << 20;
/// Header pages of a journal, superblocks of a home.
const HEAD_BYTES: u64 = 2 * PAGE_BYTES as u64;
const OLD: &str = "old-place";
const NEW: &str = "new-place";

/// Moves an area, and says what has become of it. `progress` hears how many bytes of how many are
/// done. See `holdfast store move-journal --help`.
pub(crate) async fn move_to(
    area: Area,
    data: &Path,
    to: &Path,
    overwrite: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<String, Failure> {
    let mut file = IdentityFile::read(data)
        .map_err(Failure::of)?
        .ok_or_else(|| Failure::Usage(format!("{} is no node's directory", data.display())))?;
    let (uuid, name) = (file.identity.uuid, area.name());
    let inside = std::path::absolute(data.join(name)).map_err(Failure::of)?;
    let from = area.place(&file.identity).unwrap_or(&inside).to_owned();
    let goal = place(area, data, to)?;
    let to = goal.clone().unwrap_or(inside);
    if from == to {
        return Ok(format!("the {name} is at {} already", to.display()));
    }
    let directory = HostDirectory::open(data).map_err(|error| match error {
        DiskError::InUse { .. } => {
            Failure::Usage(format!("a node runs on {}. Stop it first", data.display()))
        }
        DiskError::Io { .. } | DiskError::Full { .. } => Failure::of(error),
    })?;
    match content(&from).map_err(Failure::of)? {
        Content::Owned(found, owner) if found == area && owner == uuid => {}
        Content::Nothing | Content::Blank | Content::Owned(..) | Content::Other(..) => {
            return Err(Failure::Failed(format!(
                "{} is not a readable {name} of this node; nothing was changed. `holdfast store \
                 check {}` says more",
                from.display(),
                data.display()
            )));
        }
    }
    let bytes = area.bytes(&file.identity);
    if let Some(size) = device_bytes(&to).map_err(Failure::of)?
        && size < bytes
    {
        return Err(Failure::Failed(format!(
            "{} has {}, the {name} {}; nothing was changed",
            to.display(),
            show_size(size),
            show_size(bytes)
        )));
    }
    let directory = directory
        .with_area_at(OLD, &from)
        .and_then(|directory| directory.with_area_at(NEW, &to))
        .map_err(Failure::of)?;
    make_room(area, &to, Some(uuid), overwrite, "--force")?;
    let allocation = area.allocation(&file.identity);
    copy(&directory, bytes, allocation, progress)
        .await
        .map_err(Failure::of)?;
    // From here on the new one counts.
    file.update(|identity| area.set_place(identity, goal))
        .map_err(Failure::of)?;
    let old_is_device = device_bytes(&from).map_err(Failure::of)?.is_some();
    let gone = match old_is_device {
        true => wipe(&from),
        false => std::fs::remove_file(&from),
    };
    let (old, new) = (from.display(), to.display());
    Ok(match gone {
        Ok(()) => format!("the {name} is at {new} now; {old} is free"),
        Err(error) => format!(
            "the {name} is at {new} now; {old} could not be cleared ({error}) and is not used any \
             more"
        ),
    })
}

/// Copies an area, its first pages last, and compares.
async fn copy(
    directory: &HostDirectory,
    bytes: u64,
    allocation: Allocation,
    progress: &dyn Fn(u64, u64),
) -> Result<(), DiskError> {
    let options = |allocation| DiskOptions {
        size_bytes: bytes,
        durable_writes: false,
        allocation,
    };
    let source = directory.open(OLD, options(Allocation::Sparse)).await?;
    let target = directory.open(NEW, options(allocation)).await?;
    let rest = (HEAD_BYTES..bytes).step_by(CHUNK_BYTES as usize);
    let parts: Vec<(u64, usize)> = rest
        .map(|at| (at, CHUNK_BYTES.min(bytes - at) as usize))
        .chain([(0, HEAD_BYTES as usize)])
        .collect();
    let mut done = 0;
    let mut went_on = |length: &usize| {
        done += *length as u64;
        progress(done, 2 * bytes);
    };
    for (at, length) in &parts {
        if *at == 0 {
            target.sync().await?;
        }
        let chunk = source.read(*at, *length).await?;
        if !(is_zero(&chunk) && is_zero(&target.read(*at, *length).await?)) {
            target.write(*at, chunk).await?;
        }
        went_on(length);
    }
    target.sync().await?;
    for (at, length) in &parts {
        let (old, new) = (
            source.read(*at, *length).await?,
            target.read(*at, *length).await?,
        );
        if old[..] != new[..] {
            return Err(DiskError::Io {
                name: format!("the copy of what is in {}", directory.path().display()),
                operation: "read",
                offset: *at,
                reason: "it is not what was written: the disk lies".into(),
            });
        }
        went_on(length);
    }
    Ok(())
}

/// A hole stays one.
fn is_zero(chunk: &Buffer) -> bool {
    chunk.iter().all(|byte| *byte == 0)
}
