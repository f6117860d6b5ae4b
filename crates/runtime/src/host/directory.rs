//! The disk areas of one host, in one directory that one process holds at a time.
//!
//! Promises: nobody else has the directory, or a file or device elsewhere that was there when it
//! was claimed, for as long as this one is held. How an area's file is made: [`super::area`].

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::area::{Opened, open_area, refuse_special, sync_parent};
use super::disk::{DiskMethod, Engine, HostDisk, disk_error};
use crate::disk::{Directory, Disk, DiskError, DiskOptions};

pub(super) const LOCK_FILE: &str = "lock";

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
    refuse_special(path).map_err(failed)?;
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

    /// How an area is reached, in a directory that is reached like this: what lies elsewhere may
    /// be slower than memory.
    pub(super) fn engine(&self, name: &str, of_directory: &Engine) -> Engine {
        match of_directory {
            Engine::Inline if self.0.contains_key(name) => Engine::of(DiskMethod::IoUring),
            Engine::Inline | Engine::Ring(_) | Engine::Threads => of_directory.clone(),
        }
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
        let engine = self.places.engine(name, &self.engine);
        let (path, name) = (self.area_path(name), name.to_owned());
        Box::pin(async move {
            let area = off_thread(&name, {
                let name = name.clone();
                move || open_area(&path, &name, options)
            });
            let Opened {
                file,
                size_bytes,
                gives_back,
            } = area.await?;
            let disk = HostDisk::new(&name, size_bytes, file, &engine);
            Ok(Rc::new(disk.with_discard(gives_back)) as Rc<dyn Disk>)
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

fn open_error(path: &Path, error: &io::Error) -> DiskError {
    disk_error(&path.display().to_string(), "open", 0, 0, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Buffer, PAGE_BYTES};
    use crate::disk::{Allocation, Discarded};
    use crate::host::run;

    const METHODS: [DiskMethod; 3] = [DiskMethod::IoUring, DiskMethod::Threads, DiskMethod::Inline];

    fn options(size_bytes: u64) -> DiskOptions {
        DiskOptions {
            size_bytes,
            durable_writes: true,
            allocation: Allocation::Written,
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
    fn a_discarded_range_of_a_sparse_file_takes_no_space_and_reads_zero() {
        for method in METHODS {
            let folder = tempfile::tempdir().unwrap();
            run(async |_| {
                let directory = HostDirectory::open_with(folder.path(), method).unwrap();
                let taken = |name: &str| {
                    let found = folder.path().join(name).metadata().unwrap();
                    std::os::unix::fs::MetadataExt::blocks(&found) * 512
                };
                let whole = Buffer::padded_from(&[5; 1 << 20]);
                for (name, allocation, expected) in [
                    ("sparse", Allocation::Sparse, Discarded::Done),
                    ("reserved", Allocation::Reserved, Discarded::Unsupported),
                ] {
                    let options = DiskOptions {
                        allocation,
                        ..options(1 << 20)
                    };
                    let disk = directory.open(name, options).await.unwrap();
                    disk.write(0, whole.clone()).await.unwrap();
                    let before = taken(name);
                    assert_eq!(disk.discard(4096, 512 << 10).await, Ok(expected));
                    let rest = disk.read(4096 + (512 << 10), 4096).await.unwrap();
                    assert!(rest.iter().all(|byte| *byte == 5));
                    let given = disk.read(4096, 512 << 10).await.unwrap();
                    let byte = if expected == Discarded::Done { 0 } else { 5 };
                    assert!(given.iter().all(|found| *found == byte));
                    let back = if expected == Discarded::Done {
                        512 << 10
                    } else {
                        0
                    };
                    assert_eq!(before - taken(name), back, "{name} by {method:?}");
                }
            });
        }
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
