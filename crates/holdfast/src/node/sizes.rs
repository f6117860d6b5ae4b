//! How large a node's journal and home are.
//!
//! | area | size | in a file | on a block device |
//! |---|---|---|---|
//! | journal | not given | 256 MiB | the device, up to 4 GiB |
//! | home, preallocated | not given | 64 GiB, but half of what is available at most | the device |
//! | home, sparse | not given | 64 GiB | the device |
//! | home | given, or grown, beyond 256 TiB | refused | refused |
//! | either | given, or grown | refused if it is not available | refused if the device is smaller |
//!
//! A sparse home takes its space as it needs it: nobody looks whether that is there.

use std::path::{Path, PathBuf};

use holdfast_runtime::PAGE_BYTES;
use holdfast_runtime::host::available_bytes;
use holdfast_store::{HOME_BYTES_MAX, HOME_BYTES_MIN};

use super::identity::{IdentityFile, NewLayout};
use super::places::{Area, device_bytes, make_room, refuse_missing_device};
use crate::cli::StartArgs;
use crate::failure::Failure;
use crate::quantity::show_size;

const JOURNAL_BYTES: u64 = 256 << 20;
/// A record has to be small beside the ring (a sixteenth), and one of 1 MiB has to be possible.
const JOURNAL_BYTES_MIN: u64 = 32 << 20;
/// Of a larger device no more is taken: a restart reads what is in the journal, and holds it in
/// memory.
const JOURNAL_DEVICE_BYTES_MAX: u64 = 4 << 30;
const HOME_BYTES: u64 = 64 << 30;
/// With less a node is started by somebody who says so.
const HOME_BYTES_CHOSEN_MIN: u64 = 1 << 30;

/// The layout of a directory at its first start. What the places of its areas hold is overwritten
/// if that was asked for; the caller has claimed them.
pub(super) fn new_layout(
    directory: &Path,
    [journal, home]: [Option<PathBuf>; 2],
    args: &StartArgs,
) -> Result<NewLayout, Failure> {
    // Whatever is to be refused is refused before anything is overwritten.
    for place in [&journal, &home].into_iter().flatten() {
        refuse_missing_device(place)?;
    }
    refuse_impossible_home(args.home_size)?;
    let journal_bytes = journal_bytes(journal.as_deref(), args)?;
    let inside = match journal {
        Some(_) => 0,
        None => journal_bytes,
    };
    let home_bytes = home_bytes(directory, home.as_deref(), inside, args)?;
    for (area, place) in Area::ALL.into_iter().zip([&journal, &home]) {
        if let Some(path) = place {
            let force = format!("--{}-force", area.name());
            make_room(area, path, None, area.overwrites(args), &force)?;
        }
    }
    let home_place = home.as_deref().unwrap_or(directory).display();
    tracing::info!(
        home = %home_place,
        size = show_size(home_bytes),
        preallocated = !args.home_sparse,
        "a new node"
    );
    Ok(NewLayout {
        journal_bytes,
        journal,
        home_bytes,
        home,
        home_preallocated: !args.home_sparse,
    })
}

fn journal_bytes(place: Option<&Path>, args: &StartArgs) -> Result<u64, Failure> {
    let device = sufficient_device(Area::Journal, place, args.journal_size)?;
    let whole = device.map(|size| size.min(JOURNAL_DEVICE_BYTES_MAX));
    let bytes = args.journal_size.or(whole).unwrap_or(JOURNAL_BYTES);
    if bytes < JOURNAL_BYTES_MIN {
        return Err(Failure::Usage(format!(
            "a journal of {bytes} bytes is too small: the largest write of an initiator would not \
             fit. Give it {JOURNAL_BYTES_MIN} bytes at least"
        )));
    }
    Ok(bytes)
}

/// `beside` is what else the file system of the directory is to take.
fn home_bytes(
    directory: &Path,
    place: Option<&Path>,
    beside: u64,
    args: &StartArgs,
) -> Result<u64, Failure> {
    if let Some(size) = sufficient_device(Area::Home, place, args.home_size)? {
        let whole = size / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        return Ok(args.home_size.unwrap_or(whole).min(HOME_BYTES_MAX));
    }
    if args.home_sparse {
        return Ok(args.home_size.unwrap_or(HOME_BYTES));
    }
    let path = place.unwrap_or(directory);
    let beside = match place {
        Some(_) => 0,
        None => beside,
    };
    let available = available(path)?.saturating_sub(beside);
    let bytes = match args.home_size {
        Some(bytes) => bytes,
        None if available / 2 < HOME_BYTES => available / 2 / (1 << 30) * (1 << 30),
        None => HOME_BYTES,
    };
    if args.home_size.is_none() && bytes < HOME_BYTES_CHOSEN_MIN {
        return Err(Failure::Failed(format!(
            "the file system of {} has {} left for the home, which is little. Say how much of it \
             the home is to take (--home-size), or give it another place (--home)",
            path.display(),
            show_size(available)
        )));
    }
    refuse_unavailable(path, bytes, available)?;
    Ok(bytes)
}

fn refuse_impossible_home(wanted: Option<u64>) -> Result<(), Failure> {
    let range = HOME_BYTES_MIN..=HOME_BYTES_MAX;
    match wanted {
        Some(bytes) if !range.contains(&bytes) => Err(Failure::Usage(format!(
            "a home of {} ({bytes} bytes) cannot be made. Give --home-size between {} and {}",
            show_size(bytes),
            show_size(HOME_BYTES_MIN),
            show_size(HOME_BYTES_MAX)
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Size of the block device at this place, if it is one, and large enough for what is wanted.
fn sufficient_device(
    area: Area,
    place: Option<&Path>,
    wanted: Option<u64>,
) -> Result<Option<u64>, Failure> {
    let Some(path) = place else {
        return Ok(None);
    };
    let size = device_bytes(path).map_err(Failure::of)?;
    if let (Some(size), Some(wanted)) = (size, wanted)
        && size < wanted
    {
        return Err(Failure::Failed(format!(
            "{} has {} ({size} bytes), and --{}-size asks for {} ({wanted} bytes)",
            path.display(),
            show_size(size),
            area.name(),
            show_size(wanted)
        )));
    }
    Ok(size)
}

fn available(path: &Path) -> Result<u64, Failure> {
    available_bytes(path).map_err(|error| {
        Failure::Failed(format!(
            "how much is free on the file system of {} cannot be told: {error}",
            path.display()
        ))
    })
}

fn refuse_unavailable(path: &Path, wanted: u64, available: u64) -> Result<(), Failure> {
    if wanted <= available {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "the home is to take {} ({wanted} bytes) more of the file system of {}, which has {} \
         ({available} bytes) left for it. Give it less (--home-size), let it be on another disk \
         (--home), or let a new one take its space only as it is written (--home-sparse)",
        show_size(wanted),
        path.display(),
        show_size(available)
    )))
}

/// The sizes on the command line against those that the directory was made with.
pub(super) fn apply(
    directory: &Path,
    file: &mut IdentityFile,
    args: &StartArgs,
) -> Result<(), Failure> {
    refuse_impossible_home(args.home_size)?;
    let identity = &file.identity;
    let (known_journal, known_home) = (identity.journal_bytes, identity.home_bytes);
    let journal = args.journal_size.unwrap_or(known_journal);
    let home = args.home_size.unwrap_or(known_home);
    if journal != known_journal {
        return Err(Failure::Failed(format!(
            "the journal was made with {known_journal} bytes and cannot become {journal}. Leave \
             --journal-size out, or let the node join again with an empty directory"
        )));
    }
    if home < known_home {
        return Err(Failure::Failed(format!(
            "the home has {known_home} bytes and cannot shrink to {home}"
        )));
    }
    if args.home_sparse && identity.home_preallocated {
        return Err(Failure::Failed(
            "the home of this node has all its space already. Leave --home-sparse out: it is for \
             the first start"
                .to_owned(),
        ));
    }
    if home == known_home {
        return Ok(());
    }
    let place = identity.home.as_deref();
    if sufficient_device(Area::Home, place, Some(home))?.is_none() && identity.home_preallocated {
        let path = place.unwrap_or(directory);
        refuse_unavailable(path, home - known_home, available(path)?)?;
    }
    file.update(|identity| identity.home_bytes = home)
        .map_err(Failure::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_size_beyond_the_limits_is_refused_with_the_range() {
        for size in [None, Some(HOME_BYTES_MIN), Some(HOME_BYTES_MAX)] {
            assert!(refuse_impossible_home(size).is_ok());
        }
        for size in [0, HOME_BYTES_MIN - 1, HOME_BYTES_MAX + 1] {
            let Err(Failure::Usage(said)) = refuse_impossible_home(Some(size)) else {
                panic!("a home of {size} bytes is possible");
            };
            assert!(said.contains("between 4 MiB and 256 TiB"), "{said}");
        }
    }
}
