//! The disk areas of a directory that no node runs on, to look at.
//!
//! Promises: nothing in the directory changes, its lock file included; every file is opened for
//! reading alone, so that a write fails in the kernel. While it is held, no node starts on the
//! directory, unless it never had one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::area::refuse_special;
use super::directory::{LOCK_FILE, Places};
use super::disk::{Engine, HostDisk, disk_error};
use crate::buffer::{Buffer, PAGE_BYTES};
use crate::disk::{Directory, Disk, DiskError, DiskOptions};

/// A directory of disk areas that cannot be changed. Use it inside the [`super::run`] in which it
/// was opened.
pub struct ReadOnlyDirectory {
    path: PathBuf,
    places: Places,
    sizes: BTreeMap<String, u64>,
    engine: Engine,
    /// Holds the lock until the directory is dropped, if there is a lock file.
    _lock: Option<File>,
}

impl ReadOnlyDirectory {
    /// Takes the directory's lock.
    ///
    /// Fails with [`DiskError::InUse`] while a node runs on it, and with [`DiskError::Io`] if it
    /// cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let failed = |error: io::Error| disk_error(&name, "open", 0, 0, &error);
        std::fs::read_dir(path).map_err(failed)?;
        let lock = match File::open(path.join(LOCK_FILE)) {
            Ok(lock) => Some(lock),
            // A copy of a node's files, perhaps: no node has ever run here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        match lock.as_ref().map(File::try_lock) {
            Some(Err(TryLockError::WouldBlock)) => Err(DiskError::InUse { name }),
            Some(Err(TryLockError::Error(error))) => Err(failed(error)),
            Some(Ok(())) | None => Ok(Self {
                path: path.into(),
                places: Places::default(),
                sizes: BTreeMap::new(),
                engine: Engine::choose(path),
                _lock: lock,
            }),
        }
    }

    /// Says that an area lies elsewhere.
    #[must_use]
    pub fn with_area_at(mut self, name: &str, path: impl Into<PathBuf>) -> Self {
        self.places.put(name, path.into());
        self
    }

    /// Says that an area has so many bytes at most, whatever the device has that it lies on.
    #[must_use]
    pub fn with_size_at_most(mut self, name: &str, bytes: u64) -> Self {
        self.sizes.insert(name.to_owned(), bytes);
        self
    }
}

impl Directory for ReadOnlyDirectory {
    fn open(
        &self,
        name: &str,
        _options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        let most = self.sizes.get(name).copied().unwrap_or(u64::MAX);
        let most = most - most % PAGE_BYTES as u64;
        let engine = self.places.engine(name, &self.engine);
        let opened = open_file(&self.places.of(&self.path, name))
            .map(|(file, size)| {
                Rc::new(HostDisk::new(name, size.min(most), file, &engine)) as Rc<dyn Disk>
            })
            .map_err(|error| disk_error(name, "open", 0, 0, &error));
        Box::pin(std::future::ready(opened))
    }

    fn exists(&self, name: &str) -> bool {
        self.places.of(&self.path, name).exists()
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let refusal = io::Error::from(io::ErrorKind::PermissionDenied);
        let refusal = disk_error(name, "open", 0, 0, &refusal);
        Box::pin(std::future::ready(Err(refusal)))
    }
}

/// The file and its size in whole pages.
fn open_file(path: &Path) -> io::Result<(File, u64)> {
    refuse_special(path)?;
    let mut options = OpenOptions::new();
    options.read(true);
    let mut file = match options.custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.custom_flags(0).open(path)?
        }
        outcome => outcome?,
    };
    let metadata = file.metadata()?;
    let size = match metadata.file_type().is_block_device() {
        true => file.seek(SeekFrom::End(0))?,
        false => metadata.len(),
    };
    Ok((file, size - size % PAGE_BYTES as u64))
}

/// Size of a file or block device, and at most `bytes` of its beginning and of its end, padded to
/// whole pages. Past the page cache, which may hold what direct writes have replaced. Blocks.
pub fn read_ends(path: impl AsRef<Path>, bytes: usize) -> io::Result<(u64, [Buffer; 2])> {
    let path = path.as_ref();
    let (file, size) = open_file(path)?;
    if size == 0 {
        // Less than a page, if anything.
        let content = std::fs::read(path)?;
        let buffer = Buffer::padded_from(&content);
        return Ok((content.len() as u64, [buffer.clone(), buffer]));
    }
    let bytes = bytes.min(usize::try_from(size).unwrap_or(usize::MAX));
    let mut ends = [Buffer::zeroed(bytes), Buffer::zeroed(bytes)];
    file.read_exact_at(&mut ends[0], 0)?;
    file.read_exact_at(&mut ends[1], size - bytes as u64)?;
    Ok((size, ends))
}

#[cfg(test)]
mod tests {
    use super::super::{HostDirectory, run};
    use super::*;
    use crate::disk::Allocation;

    const OPTIONS: DiskOptions = DiskOptions {
        size_bytes: 8192,
        durable_writes: false,
        allocation: Allocation::Sparse,
    };

    #[test]
    fn what_is_read_only_is_read_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            let held = HostDirectory::open(folder.path()).unwrap();
            let disk = held.open("area", OPTIONS).await.unwrap();
            disk.write(4096, Buffer::padded_from(&[7; 4096]))
                .await
                .unwrap();
            let refused = ReadOnlyDirectory::open(folder.path()).err().unwrap();
            assert!(matches!(refused, DiskError::InUse { .. }));
            drop((held, disk));
            let looked = ReadOnlyDirectory::open(folder.path()).unwrap();
            assert!(looked.exists("area") && !looked.exists("other"));
            assert!(looked.open("other", OPTIONS).await.is_err());
            let larger = DiskOptions {
                size_bytes: 1 << 20,
                ..OPTIONS
            };
            let disk = looked.open("area", larger).await.unwrap();
            assert_eq!(disk.size_bytes(), 8192, "it stays as it is");
            assert_eq!(disk.read(4096, 4096).await.unwrap()[..], [7; 4096]);
            let written = disk.write(0, Buffer::zeroed(4096)).await;
            assert!(matches!(written, Err(DiskError::Io { .. })));
            assert!(looked.remove("area").await.is_err());
            let looked = looked.with_size_at_most("area", 5000);
            let disk = looked.open("area", OPTIONS).await.unwrap();
            assert_eq!(disk.size_bytes(), 4096);
            // As long as somebody looks, no node starts.
            assert!(HostDirectory::open(folder.path()).is_err());
            drop(looked);
            HostDirectory::open(folder.path()).unwrap();
        });
    }

    #[test]
    fn a_directory_without_a_lock_file_gets_none() {
        let folder = tempfile::tempdir().unwrap();
        run(async |_| {
            ReadOnlyDirectory::open(folder.path()).unwrap();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
            assert!(ReadOnlyDirectory::open(folder.path().join("absent")).is_err());
        });
    }
}
