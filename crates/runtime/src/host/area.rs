//! The file or block device of one disk area: opened, made, grown.
//!
//! Promises: an area that is [`Allocation::Reserved`] owns all its blocks, one that is
//! [`Allocation::Written`] has written them once, so that later writes neither meet a full disk
//! nor pay for the conversion of unwritten extents. Growing is restartable, because a file's
//! length never runs ahead of what was reserved, or pre-written. What cannot grow is left as it
//! was.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::discard::GivesBack;
use super::disk::disk_error;
use crate::buffer::{Buffer, PAGE_BYTES};
use crate::disk::{Allocation, DiskError, DiskOptions};

/// Large enough to make the cost of a request vanish, small enough to hold in memory.
const PREWRITE_CHUNK_BYTES: usize = 4 << 20;

/// An area that was opened.
pub(super) struct Opened {
    pub(super) file: File,
    /// Whole pages.
    pub(super) size_bytes: u64,
    /// How a range of it is given back.
    pub(super) gives_back: GivesBack,
}

/// Opens or makes the area.
pub(super) fn open_area(
    path: &Path,
    name: &str,
    options: DiskOptions,
) -> Result<Opened, DiskError> {
    assert!(
        options.size_bytes.is_multiple_of(PAGE_BYTES as u64),
        "{name}: {} bytes are not whole pages",
        options.size_bytes
    );
    let wanted = options.size_bytes;
    let failed = |error: io::Error| disk_error(name, "open", 0, wanted, &error);
    refuse_special(path).map_err(failed)?;
    let new = !path.exists();
    let mut file = open_file(path, name, 0).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let is_device = metadata.file_type().is_block_device();
    let mut size = if is_device {
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size < wanted {
            return Err(DiskError::Full {
                name: name.into(),
                wanted_bytes: wanted,
            });
        }
        match wanted {
            0 => size,
            wanted => wanted,
        }
    } else {
        metadata.len()
    };
    let lacks_space = !is_device
        && options.allocation == Allocation::Reserved
        && metadata.blocks() * 512 < size.max(wanted);
    if size < wanted || lacks_space {
        let options = DiskOptions {
            size_bytes: size.max(wanted),
            ..options
        };
        let grown = grow(&file, size, options).and_then(|()| file.sync_all());
        if let Err(error) = grown {
            // Gives back the blocks that were allocated: nothing has changed.
            let undone = if new {
                std::fs::remove_file(path)
            } else {
                file.set_len(size)
            };
            if let Err(error) = undone {
                tracing::warn!(area = name, %error, "cannot give back space after a failure");
            }
            return Err(failed(error));
        }
        size = options.size_bytes;
    }
    if new {
        sync_parent(path).map_err(failed)?;
    }
    if options.durable_writes {
        file = open_file(path, name, libc::O_DSYNC).map_err(failed)?;
    }
    Ok(Opened {
        file,
        size_bytes: size - size % PAGE_BYTES as u64,
        gives_back: match (is_device, options.allocation) {
            (true, _) => GivesBack::Device,
            (false, Allocation::Sparse) => GivesBack::Hole,
            (false, Allocation::Reserved | Allocation::Written) => GivesBack::Nothing,
        },
    })
}

/// Opens for direct I/O, or through the page cache where the file system refuses that.
fn open_file(path: &Path, name: &str, flags: i32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    match options.custom_flags(libc::O_DIRECT | flags).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(
                area = name,
                "the file system refuses direct I/O; going through the page cache, which costs \
                 memory and time"
            );
            options.custom_flags(flags).open(path)
        }
        outcome => outcome,
    }
}

fn grow(file: &File, from: u64, options: DiskOptions) -> io::Result<()> {
    // A last page that is not whole was never part of the area (sizes are rounded down).
    let start = from - from % PAGE_BYTES as u64;
    match options.allocation {
        Allocation::Sparse => file.set_len(options.size_bytes),
        Allocation::Reserved => reserve(file, options.size_bytes),
        Allocation::Written => {
            let len = options.size_bytes - start;
            let reserved = allocate(file, start, len, len, libc::FALLOC_FL_KEEP_SIZE);
            match reserved {
                // Not every file system can reserve; pre-writing then allocates.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                reserved => reserved?,
            }
            write_zeroes(file, start, options.size_bytes)
        }
    }
}

/// Reserves what a file lacks of its space. Its length grows with that.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    let taken = file.metadata()?.blocks() * 512;
    allocate(file, 0, size, size.saturating_sub(taken), 0)
}

fn write_zeroes(file: &File, start: u64, end: u64) -> io::Result<()> {
    let zeroes = Buffer::zeroed(PREWRITE_CHUNK_BYTES);
    let mut offset = start;
    while offset < end {
        let left = end - offset;
        let chunk = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(zeroes.len());
        file.write_all_at(&zeroes[..chunk], offset)?;
        offset += chunk as u64;
    }
    Ok(())
}

/// Reserves blocks, so that a full disk shows before any byte is written and the file is laid out
/// in few extents: `lacking_bytes` of them. `mode` says whether its length grows with them.
fn allocate(file: &File, offset: u64, len: u64, lacking_bytes: u64, mode: i32) -> io::Result<()> {
    // Without this look first, a hopeless reservation would fill the disk for a moment, under
    // everyone else who writes to it.
    if free_bytes(file)? < lacking_bytes {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off_t::try_from(offset).map_err(too_large)?;
    let len = libc::off_t::try_from(len).map_err(too_large)?;
    loop {
        // SAFETY: fallocate takes no pointers, and the descriptor is open.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
                let reason = "the file system cannot reserve space for a file";
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
            _ => return Err(error),
        }
    }
}

/// Refuses what is neither a file nor a block device before it is opened: a named pipe would keep
/// who opens it waiting for ever, and `/dev/zero` has no end. A path that leads nowhere is fine.
pub(super) fn refuse_special(path: &Path) -> io::Result<()> {
    let kind = match path.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = "it is neither a file nor a block device";
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// Bytes that this process may still take on the file system that `path` lies on, or would.
pub fn available_bytes(path: impl AsRef<Path>) -> io::Result<u64> {
    let mut places = path.as_ref().ancestors().map(|place| match place {
        place if place.as_os_str().is_empty() => Path::new("."),
        place => place,
    });
    let existing = places.find(|place| place.exists());
    free_bytes(&File::open(existing.unwrap_or(Path::new("/")))?)
}

fn free_bytes(file: &File) -> io::Result<u64> {
    let mut status = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `status` is writable for the whole call, and the descriptor is open.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs is plain integers, zeroed above and filled in by the kernel.
    let status = unsafe { status.assume_init() };
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// Makes the file's name durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(size_bytes: u64, allocation: Allocation) -> DiskOptions {
        DiskOptions {
            size_bytes,
            durable_writes: true,
            allocation,
        }
    }

    /// Bytes that the file really takes.
    fn taken(opened: &Opened) -> u64 {
        opened.file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn an_area_takes_its_space_when_it_is_told_to_and_is_direct_and_durable() {
        const SIZE: u64 = 8 << 20;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("written");
        let written = open_area(&path, "area", options(SIZE, Allocation::Written)).unwrap();
        assert_eq!(written.size_bytes, SIZE);
        // SAFETY: F_GETFL takes no pointers, and the descriptor is open.
        let flags = unsafe { libc::fcntl(written.file.as_raw_fd(), libc::F_GETFL) };
        assert_eq!(
            flags & (libc::O_DIRECT | libc::O_DSYNC),
            libc::O_DIRECT | libc::O_DSYNC
        );
        let sparse = options(SIZE, Allocation::Sparse);
        let reopened = open_area(&path, "area", sparse).unwrap();
        assert!(taken(&reopened) >= SIZE);
        let path = folder.path().join("sparse");
        let opened = open_area(&path, "area", sparse).unwrap();
        assert_eq!((taken(&opened), opened.gives_back), (0, GivesBack::Hole));
        let path = folder.path().join("reserved");
        let reserved = |size| options(size, Allocation::Reserved);
        let opened = open_area(&path, "area", reserved(SIZE)).unwrap();
        assert_eq!(opened.gives_back, GivesBack::Nothing);
        assert!(taken(&opened) >= SIZE);
        let grown = open_area(&path, "area", reserved(2 * SIZE)).unwrap();
        assert_eq!(grown.size_bytes, 2 * SIZE);
        assert!(taken(&grown) >= 2 * SIZE);
        // A file of the right length, or one of which a copy has left holes.
        let path = folder.path().join("holes");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let filled = open_area(&path, "area", reserved(SIZE / 2)).unwrap();
        assert!(filled.size_bytes == SIZE && taken(&filled) >= SIZE);
    }

    #[test]
    fn pipes_and_devices_without_an_end_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [&pipe, folder.path(), Path::new("/dev/zero")] {
            let refused = open_area(path, "area", options(4096, Allocation::Sparse));
            let text = refused.err().unwrap().to_string();
            assert!(text.contains("neither a file nor"), "{text}");
            let refused = crate::host::read_ends(path, 4096);
            assert!(refused.err().unwrap().to_string().contains("neither"));
        }
        assert!(refuse_special(&folder.path().join("absent")).is_ok());
    }

    #[test]
    fn what_is_available_is_told_of_places_that_are_yet_to_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let here = available_bytes(folder.path()).unwrap();
        let there = available_bytes(folder.path().join("yet/to/be/made")).unwrap();
        assert!(here > 0 && there > 0);
    }
}
