//! The disk areas of one host, in one directory that one process holds at a time.
//!
//! Promises: an area opened with `preallocate` owns all its blocks, written once, so that later
//! writes neither meet a full disk nor pay for the conversion of unwritten extents; growing is
//! restartable, because a file's length never runs ahead of what was pre-written.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::disk::{DiskMethod, Engine, HostDisk, disk_error};
use crate::buffer::{Buffer, PAGE_BYTES};
use crate::disk::{Directory, Disk, DiskError, DiskOptions};

pub(super) const LOCK_FILE: &str = "lock";
/// Large enough to make the cost of a request vanish, small enough to hold in memory.
const PREWRITE_CHUNK_BYTES: usize = 4 << 20;

/// A directory of disk areas, locked for this process. Use it, and the disks it opens, inside
/// the [`super::run`] in which it was opened.
pub struct HostDirectory {
    path: PathBuf,
    places: Places,
    engine: Engine,
    /// Hold what lies elsewhere.
    claims: Vec<File>,
    /// Holds the lock until the directory is dropped.
    _lock: File,
}

impl HostDirectory {
    /// Locks the directory, creating it (mode 0700) if absent. The environment variable
    /// [`super::DISK_METHOD_VARIABLE`] may name the disk method.
    ///
    /// Fails with [`DiskError::InUse`] while another process, or another value in this one,
    /// holds it. Panics outside [`super::run`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        Self::lock(path.as_ref(), Engine::choose(path.as_ref()))
    }

    /// Like [`HostDirectory::open`], with the disk method given (threads if the host refuses
    /// `io_uring`).
    pub fn open_with(path: impl AsRef<Path>, method: DiskMethod) -> Result<Self, DiskError> {
        Self::lock(path.as_ref(), Engine::of(method))
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How this directory's disks reach the kernel.
    pub fn disk_method(&self) -> DiskMethod {
        self.engine.method()
    }

    fn lock(path: &Path, engine: Engine) -> Result<Self, DiskError> {
        let failed = |error: io::Error| open_error(path, &error);
        if !path.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed)?;
            sync_parent(path).map_err(failed)?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.into(),
                places: Places::default(),
                engine,
                claims: Vec::new(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(DiskError::InUse {
                name: path.display().to_string(),
            }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Says that an area lies elsewhere, on another file system or on a block device, and claims
    /// that place if it is there: [`DiskError::InUse`] if another process has it, or the device
    /// is mounted.
    pub fn with_area_at(mut self, name: &str, path: impl Into<PathBuf>) -> Result<Self, DiskError> {
        let path = path.into();
        self.claims.extend(claim(&path)?);
        self.places.put(name, path);
        Ok(self)
    }

    fn area_path(&self, name: &str) -> PathBuf {
        self.places.of(&self.path, name)
    }
}

/// Keeps others away from a file or block device, as long as the handle is open; `None` if there
/// is none yet.
fn claim(path: &Path) -> Result<Option<File>, DiskError> {
    let name = path.display().to_string();
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::EBUSY) => DiskError::InUse { name: name.clone() },
        _ => disk_error(&name, "open", 0, 0, &error),
    };
    let is_device = match path.metadata() {
        Ok(metadata) => metadata.file_type().is_block_device(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut options = OpenOptions::new();
    options.read(true);
    if is_device {
        // Linux: one holder at a time, mounts included.
        options.custom_flags(libc::O_EXCL);
    }
    let file = options.open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse { name }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Areas that do not lie in their directory.
#[derive(Default)]
pub(super) struct Places(BTreeMap<String, PathBuf>);

impl Places {
    pub(super) fn put(&mut self, name: &str, path: PathBuf) {
        self.0.insert(name.to_owned(), path);
    }

    /// Where an area lies.
    pub(super) fn of(&self, directory: &Path, name: &str) -> PathBuf {
        assert!(
            !name.is_empty() && !name.contains('/') && ![".", "..", LOCK_FILE].contains(&name),
            "{name:?} is no name for a disk area"
        );
        let elsewhere = self.0.get(name).cloned();
        elsewhere.unwrap_or_else(|| directory.join(name))
    }
}

impl Directory for HostDirectory {
    fn open(
        &self,
        name: &str,
        options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        let (path, name, engine) = (self.area_path(name), name.to_owned(), self.engine.clone());
        Box::pin(async move {
            let area = off_thread(&name, {
                let name = name.clone();
                move || open_area(&path, &name, options)
            });
            let (file, size_bytes) = area.await?;
            Ok(Rc::new(HostDisk::new(&name, size_bytes, file, &engine)) as Rc<dyn Disk>)
        })
    }

    fn exists(&self, name: &str) -> bool {
        self.area_path(name).exists()
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let (path, name) = (self.area_path(name), name.to_owned());
        Box::pin(async move {
            off_thread(&name, {
                let name = name.clone();
                move || match std::fs::remove_file(&path).and_then(|()| sync_parent(&path)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    outcome => outcome.map_err(|error| disk_error(&name, "open", 0, 0, &error)),
                }
            })
            .await
        })
    }
}

/// Replaces the file's content (mode 0600) so that a crash leaves the old or the new one, whole.
/// On an error the old content is in place, except that a failed last step (the directory's
/// sync) leaves open which of the two a power cut would leave. Blocks; for small files.
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), DiskError> {
    let path = path.as_ref();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let outcome = write();
    if outcome.is_err() {
        // Best effort: the next call overwrites what is left.
        let _ = std::fs::remove_file(&temporary);
    }
    outcome.and_then(|()| sync_parent(path)).map_err(|error| {
        disk_error(
            &path.display().to_string(),
            "write",
            0,
            bytes.len() as u64,
            &error,
        )
    })
}

async fn off_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|failure| match failure.try_into_panic() {
        Ok(payload) => std::panic::resume_unwind(payload),
        Err(_) => Err(DiskError::Io {
            name: name.into(),
            operation: "open",
            offset: 0,
            reason: "the process is stopping".into(),
        }),
    })
}

/// Opens or makes the area; gives its file and size.
fn open_area(path: &Path, name: &str, options: DiskOptions) -> Result<(File, u64), DiskError> {
    assert!(
        options.size_bytes.is_multiple_of(PAGE_BYTES as u64),
        "{name}: {} bytes are not whole pages",
        options.size_bytes
    );
    let wanted = options.size_bytes;
    let failed = |error: io::Error| disk_error(name, "open", 0, wanted, &error);
    let new = !path.exists();
    let mut file = open_file(path, name, 0).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mut size = if metadata.file_type().is_block_device() {
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size < wanted {
            return Err(DiskError::Full {
                name: name.into(),
                wanted_bytes: wanted,
            });
        }
        size
    } else {
        metadata.len()
    };
    if size < wanted {
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
        size = wanted;
    }
    if new {
        sync_parent(path).map_err(failed)?;
    }
    if options.durable_writes {
        file = open_file(path, name, libc::O_DSYNC).map_err(failed)?;
    }
    Ok((file, size - size % PAGE_BYTES as u64))
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
    if !options.preallocate {
        return file.set_len(options.size_bytes);
    }
    // A last page that is not whole was never part of the area (sizes are rounded down).
    let start = from - from % PAGE_BYTES as u64;
    allocate(file, start, options.size_bytes - start)?;
    let zeroes = Buffer::zeroed(PREWRITE_CHUNK_BYTES);
    let mut offset = start;
    while offset < options.size_bytes {
        let left = options.size_bytes - offset;
        let chunk = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(zeroes.len());
        file.write_all_at(&zeroes[..chunk], offset)?;
        offset += chunk as u64;
    }
    Ok(())
}

/// Reserves blocks without changing the file's length, so that a full disk shows before any
/// byte is written and the file is laid out in few extents.
fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // Without this look first, a hopeless reservation would fill the disk for a moment, under
    // everyone else who writes to it.
    if free_bytes(file)? < len {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off_t::try_from(offset).map_err(too_large)?;
    let len = libc::off_t::try_from(len).map_err(too_large)?;
    loop {
        // SAFETY: fallocate takes no pointers, and the descriptor is open.
        let result =
            unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, len) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // Not every file system can reserve; pre-writing then allocates.
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(()),
            _ => return Err(error),
        }
    }
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
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn open_error(path: &Path, error: &io::Error) -> DiskError {
    disk_error(&path.display().to_string(), "open", 0, 0, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::run;

    const METHODS: [DiskMethod; 3] = [DiskMethod::IoUring, DiskMethod::Threads, DiskMethod::Inline];

    fn options(size_bytes: u64) -> DiskOptions {
        DiskOptions {
            size_bytes,
            durable_writes: true,
            preallocate: true,
        }
    }

    fn page(byte: u8) -> Buffer {
        Buffer::padded_from(&[byte; PAGE_BYTES])
    }

    #[test]
    fn writes_read_back_on_every_method_and_after_reopening() {
        for method in METHODS {
            let folder = tempfile::tempdir().unwrap();
            run(async |_| {
                let directory = HostDirectory::open_with(folder.path(), method).unwrap();
                assert_eq!(
                    directory.disk_method(),
                    method,
                    "this host offers both methods"
                );
                let disk = directory.open("area", options(1 << 20)).await.unwrap();
                assert_eq!(disk.size_bytes(), 1 << 20);
                let writes = (0..64).map(|n| disk.write(n * 4096, page(n as u8 + 1)));
                for outcome in futures::future::join_all(writes).await {
                    outcome.unwrap();
                }
                disk.sync().await.unwrap();
                let whole = disk.read(0, 1 << 20).await.unwrap();
                for (n, bytes) in whole.chunks(4096).enumerate() {
                    let expected = if n < 64 { n as u8 + 1 } else { 0 };
                    assert!(bytes.iter().all(|byte| *byte == expected), "page {n}");
                }
            });
            run(async |_| {
                let directory = HostDirectory::open_with(folder.path(), method).unwrap();
                assert!(directory.exists("area"));
                let disk = directory.open("area", options(2 << 20)).await.unwrap();
                assert_eq!(disk.size_bytes(), 2 << 20, "grown");
                assert_eq!(disk.read(63 * 4096, 4096).await.unwrap()[..], page(64)[..]);
                assert_eq!(disk.read(1 << 20, 4096).await.unwrap()[..], page(0)[..]);
                let disk = directory.open("area", options(1 << 20)).await.unwrap();
                assert_eq!(disk.size_bytes(), 2 << 20, "never shrunk");
                directory.remove("area").await.unwrap();
                directory.remove("area").await.unwrap();
                assert!(!directory.exists("area"));
            });
        }
    }

    #[test]
    fn more_operations_than_the_ring_holds_all_complete() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            let directory = HostDirectory::open_with(folder.path(), DiskMethod::IoUring).unwrap();
            let disk = directory.open("area", options(16 << 20)).await.unwrap();
            let writes = (0..4096).map(|n| disk.write(n * 4096, page(n as u8)));
            for outcome in futures::future::join_all(writes).await {
                outcome.unwrap();
            }
            let reads = (0..4096).map(|n| disk.read(n * 4096, 4096));
            for (n, read) in futures::future::join_all(reads)
                .await
                .into_iter()
                .enumerate()
            {
                assert_eq!(read.unwrap()[0], n as u8);
            }
        });
    }

    #[test]
    fn an_operation_whose_future_is_dropped_keeps_its_buffer_until_the_kernel_is_done() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            let directory = HostDirectory::open_with(folder.path(), DiskMethod::IoUring).unwrap();
            let disk = directory.open("area", options(8 << 20)).await.unwrap();
            for _ in 0..16 {
                let mut reads: Vec<_> = (0..8).map(|n| disk.read(n << 20, 1 << 20)).collect();
                for read in &mut reads {
                    // Started, then dropped in flight.
                    assert!(futures::poll!(read).is_pending());
                }
                tokio::task::yield_now().await;
                drop(reads);
                // Memory freed too early would be handed out here and overwritten with zeroes.
                let fresh = vec![7_u8; 8 << 20];
                disk.write(0, page(0)).await.unwrap();
                disk.sync().await.unwrap();
                assert!(fresh.iter().all(|byte| *byte == 7));
            }
        });
    }

    #[test]
    fn a_shard_that_ends_with_operations_in_flight_waits_for_them() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            let directory = HostDirectory::open_with(folder.path(), DiskMethod::IoUring).unwrap();
            let disk = directory.open("area", options(1 << 20)).await.unwrap();
            let mut write = disk.write(0, page(9));
            assert!(futures::poll!(&mut write).is_pending());
            tokio::task::yield_now().await;
        });
        let bytes = std::fs::read(folder.path().join("area")).unwrap();
        assert_eq!(
            bytes[0], 9,
            "the write was submitted, so it was carried out"
        );
    }

    #[test]
    fn a_directory_is_held_by_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            let path = folder.path().join("new/data");
            let held = HostDirectory::open(&path).unwrap();
            let second = HostDirectory::open(&path).err().unwrap();
            assert_eq!(
                second,
                DiskError::InUse {
                    name: path.display().to_string()
                }
            );
            drop(held);
            HostDirectory::open(&path).unwrap();
        });
    }

    #[test]
    fn an_area_elsewhere_belongs_to_one_directory() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            let path = folder.path().join("fast");
            let first = || HostDirectory::open(folder.path().join("first")).unwrap();
            let held = first().with_area_at("area", &path).unwrap();
            let disk = held.open("area", options(8192)).await.unwrap();
            disk.write(4096, page(3)).await.unwrap();
            drop((disk, held));
            assert!(!folder.path().join("first/area").exists());
            let held = first().with_area_at("area", &path).unwrap();
            let disk = held.open("area", options(4096)).await.unwrap();
            assert_eq!(disk.size_bytes(), 8192);
            assert_eq!(disk.read(4096, 4096).await.unwrap()[..], page(3)[..]);
            let second = HostDirectory::open(folder.path().join("second")).unwrap();
            let refused = second.with_area_at("area", &path).err().unwrap();
            assert!(matches!(refused, DiskError::InUse { .. }));
        });
    }

    #[test]
    fn an_area_larger_than_the_disk_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            let directory = HostDirectory::open(folder.path()).unwrap();
            let wanted = 1 << 43;
            let refused = directory.open("huge", options(wanted)).await.err().unwrap();
            assert_eq!(
                refused,
                DiskError::Full {
                    name: "huge".into(),
                    wanted_bytes: wanted
                }
            );
            assert!(!directory.exists("huge"));
            directory.open("small", options(1 << 20)).await.unwrap();
            let refused = directory
                .open("small", options(wanted))
                .await
                .err()
                .unwrap();
            assert_eq!(
                refused,
                DiskError::Full {
                    name: "small".into(),
                    wanted_bytes: wanted
                }
            );
            let disk = directory.open("small", options(4096)).await.unwrap();
            assert_eq!(disk.size_bytes(), 1 << 20, "as it was");
        });
    }

    #[test]
    fn a_write_to_a_full_device_says_so() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        for engine in [DiskMethod::IoUring, DiskMethod::Threads] {
            let full = full.try_clone().unwrap();
            run(async move |_| {
                let disk = HostDisk::new("full", 1 << 20, full, &Engine::of(engine));
                let outcome = disk.write(4096, page(1)).await;
                assert_eq!(
                    outcome,
                    Err(DiskError::Full {
                        name: "full".into(),
                        wanted_bytes: 4096
                    })
                );
            });
        }
    }

    #[test]
    fn a_read_that_meets_the_end_of_its_file_is_an_error() {
        for engine in [DiskMethod::IoUring, DiskMethod::Threads] {
            run(async move |_| {
                let file = tempfile::tempfile().unwrap();
                file.set_len(4096).unwrap();
                let disk = HostDisk::new("cut", 1 << 20, file, &Engine::of(engine));
                assert!(matches!(
                    disk.read(0, 8192).await,
                    Err(DiskError::Io {
                        operation: "read",
                        offset: 0,
                        ..
                    })
                ));
            });
        }
    }

    #[test]
    #[should_panic(expected = "are not whole pages")]
    fn a_transfer_off_the_page_grid_is_a_bug() {
        run(async |_| {
            let file = tempfile::tempfile().unwrap();
            let disk = HostDisk::new("area", 1 << 20, file, &Engine::Threads);
            let _ = disk.read(512, 4096).await;
        });
    }

    #[test]
    fn preallocated_areas_have_written_extents_and_direct_durable_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("area");
        let (file, size) = open_area(&path, "area", options(8 << 20)).unwrap();
        assert_eq!(size, 8 << 20);
        // SAFETY: F_GETFL takes no pointers, and the descriptor is open.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        assert_eq!(
            flags & (libc::O_DIRECT | libc::O_DSYNC),
            libc::O_DIRECT | libc::O_DSYNC
        );
        let sparse = DiskOptions {
            preallocate: false,
            ..options(8 << 20)
        };
        let (file, _) = open_area(&folder.path().join("sparse"), "sparse", sparse).unwrap();
        let blocks =
            |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert_eq!(blocks(&file), 0);
        assert!(blocks(&open_area(&path, "area", sparse).unwrap().0) >= (8 << 20) / 512);
    }

    #[test]
    fn a_small_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        write_atomically(&path, b"first").unwrap();
        write_atomically(&path, b"second, longer").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second, longer");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_atomically(folder.path().join("absent/identity"), b"x").is_err());
    }
}
