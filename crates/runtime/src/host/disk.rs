//! One disk area of a host: direct I/O through the shard's ring, or through blocking threads
//! where the host forbids `io_uring`.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures::future::LocalBoxFuture;

use super::discard::{Discards, GivesBack};
use super::ring::{Ring, Work, part_failed};
use crate::buffer::{Buffer, PAGE_BYTES};
use crate::disk::{Discarded, Disk, DiskError};

/// How disk operations reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskMethod {
    /// One ring per shard thread.
    IoUring,
    /// `pread`, `pwrite` and `fdatasync` on a pool of threads.
    Threads,
    /// The same calls on the shard's own thread: only where they never wait.
    Inline,
}

/// Names the method to use, `io_uring` or `threads`. Unset, files in memory (`tmpfs`) are read and
/// written in place, as the kernel would hand each operation of a ring to a thread only to copy
/// some pages; for all others `io_uring` is tried first.
pub const DISK_METHOD_VARIABLE: &str = "HOLDFAST_DISK_IO";

/// The chosen method, with what it needs.
#[derive(Clone)]
pub(super) enum Engine {
    Ring(Rc<Ring>),
    Threads,
    Inline,
}

thread_local! {
    static RING: RefCell<Weak<Ring>> = const { RefCell::new(Weak::new()) };
}

impl Engine {
    /// The method that the environment asks for and the host allows, for files in `directory`.
    pub(super) fn choose(directory: &Path) -> Self {
        match std::env::var(DISK_METHOD_VARIABLE).as_deref() {
            Ok("threads") => {
                tracing::info!("disk I/O through threads, as {DISK_METHOD_VARIABLE} asks");
                return Self::Threads;
            }
            Err(_) if is_in_memory(directory) => {
                tracing::info!("disk I/O in place: the file system is in memory");
                return Self::Inline;
            }
            Ok("io_uring") | Err(_) => {}
            Ok(other) => tracing::warn!(
                "{DISK_METHOD_VARIABLE}={other} is neither io_uring nor threads; ignored"
            ),
        }
        Self::of(DiskMethod::IoUring)
    }

    /// The given method; threads if the host refuses a ring.
    pub(super) fn of(method: DiskMethod) -> Self {
        match method {
            DiskMethod::Threads => return Self::Threads,
            DiskMethod::Inline => return Self::Inline,
            DiskMethod::IoUring => {}
        }
        if let Some(ring) = RING
            .with_borrow(Weak::upgrade)
            .filter(|ring| !ring.stopped())
        {
            return Self::Ring(ring);
        }
        match Ring::start() {
            Ok(ring) => {
                RING.set(Rc::downgrade(&ring));
                tracing::info!("disk I/O through io_uring");
                Self::Ring(ring)
            }
            Err(error) => {
                tracing::info!(%error, "disk I/O through threads: the host refuses io_uring");
                Self::Threads
            }
        }
    }

    pub(super) fn method(&self) -> DiskMethod {
        match self {
            Self::Ring(_) => DiskMethod::IoUring,
            Self::Threads => DiskMethod::Threads,
            Self::Inline => DiskMethod::Inline,
        }
    }
}

/// Whether files in `directory` are pages of memory, so that no operation on them waits.
fn is_in_memory(directory: &Path) -> bool {
    // It may be yet to be made.
    let mut existing = directory.ancestors().map(|path| match path.as_os_str() {
        path if path.is_empty() => File::open("."),
        path => File::open(path),
    });
    existing.find_map(Result::ok).is_some_and(|existing| {
        file_system(&existing).is_ok_and(|found| found == libc::TMPFS_MAGIC)
    })
}

/// The `f_type` of the file system that `file` lies on.
fn file_system(file: &File) -> io::Result<libc::__fsword_t> {
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open for the whole call, and the kernel writes at most one
    // `statfs` to where `found` lies.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has filled it in.
    Ok(unsafe { found.assume_init() }.f_type)
}

/// An open disk area. Made by [`super::HostDirectory`].
pub(super) struct HostDisk {
    name: Rc<str>,
    size_bytes: u64,
    discards: Option<Arc<Discards>>,
    file: Handle,
}

enum Handle {
    Ring(Rc<Ring>, Rc<File>),
    Threads(Arc<File>),
    Inline(File),
}

impl HostDisk {
    pub(super) fn new(name: &str, size_bytes: u64, file: File, engine: &Engine) -> Self {
        let file = match engine {
            Engine::Ring(ring) => Handle::Ring(ring.clone(), Rc::new(file)),
            Engine::Threads => Handle::Threads(Arc::new(file)),
            Engine::Inline => Handle::Inline(file),
        };
        Self {
            name: name.into(),
            size_bytes,
            discards: None,
            file,
        }
    }

    /// The same, and ranges of it can be given back.
    pub(super) fn with_discard(self, by: GivesBack) -> Self {
        let file = match &self.file {
            Handle::Ring(_, file) => &**file,
            Handle::Threads(file) => &**file,
            Handle::Inline(file) => file,
        };
        Self {
            discards: Discards::of(file, by),
            ..self
        }
    }

    fn check_range(&self, offset: u64, len: u64) {
        assert!(
            offset.is_multiple_of(PAGE_BYTES as u64) && len.is_multiple_of(PAGE_BYTES as u64),
            "{}: {len} bytes at {offset} are not whole pages",
            self.name
        );
        assert!(
            offset
                .checked_add(len)
                .is_some_and(|end| end <= self.size_bytes),
            "{}: {len} bytes at {offset} end behind the area's {} bytes",
            self.name,
            self.size_bytes
        );
    }

    fn run(
        &self,
        work: Work,
        offset: u64,
        buffer: Buffer,
    ) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        let name = self.name.clone();
        let len = buffer.len() as u64;
        let failed = move |error| disk_error(&name, operation(work), offset, len, &error);
        match &self.file {
            Handle::Ring(ring, file) => {
                let (ring, file) = (ring.clone(), file.clone());
                Box::pin(async move { ring.run(file, work, offset, buffer).await.map_err(failed) })
            }
            Handle::Inline(file) => {
                let outcome = blocking(file, work, offset, buffer).map_err(failed);
                Box::pin(std::future::ready(outcome))
            }
            Handle::Threads(file) => {
                let file = file.clone();
                Box::pin(async move {
                    // The closure owns the buffer, so dropping this future frees nothing early.
                    tokio::task::spawn_blocking(move || blocking(&file, work, offset, buffer))
                        .await
                        .unwrap_or_else(|_| Err(io::Error::other("the I/O thread was stopped")))
                        .map_err(failed)
                })
            }
        }
    }
}

impl Disk for HostDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        self.check_range(offset, len as u64);
        if len == 0 {
            return Box::pin(async { Ok(Buffer::default()) });
        }
        self.run(Work::Read, offset, Buffer::zeroed(len))
    }

    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        self.check_range(offset, data.len() as u64);
        if data.is_empty() {
            return Box::pin(async { Ok(()) });
        }
        let written = self.run(Work::Write, offset, data);
        Box::pin(async move { written.await.map(drop) })
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let synced = self.run(Work::Sync, 0, Buffer::default());
        Box::pin(async move { synced.await.map(drop) })
    }

    fn discard(
        &self,
        offset: u64,
        len: u64,
    ) -> LocalBoxFuture<'static, Result<Discarded, DiskError>> {
        self.check_range(offset, len);
        let Some(discards) = self.discards.clone() else {
            return Box::pin(std::future::ready(Ok(Discarded::Unsupported)));
        };
        let name = self.name.clone();
        let failed = move |error| disk_error(&name, "discard", offset, len, &error);
        if let Handle::Inline(_) = self.file {
            let outcome = discards.discard(offset, len).map_err(failed);
            return Box::pin(std::future::ready(outcome));
        }
        Box::pin(async move {
            // With a ring too: the kernel would hand it to a thread of its own, and knows no
            // discard of devices in a ring before 6.12.
            tokio::task::spawn_blocking(move || discards.discard(offset, len))
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the I/O thread was stopped")))
                .map_err(failed)
        })
    }
}

/// Translates an operating system's error.
pub(super) fn disk_error(
    name: &str,
    operation: &'static str,
    offset: u64,
    wanted_bytes: u64,
    error: &io::Error,
) -> DiskError {
    match error.raw_os_error() {
        // The number is there only if nothing was written (`part_failed`).
        Some(libc::ENOSPC | libc::EDQUOT) if operation != "sync" => DiskError::Full {
            name: name.into(),
            wanted_bytes,
        },
        _ => DiskError::Io {
            name: name.into(),
            operation,
            offset,
            reason: error.to_string(),
        },
    }
}

fn operation(work: Work) -> &'static str {
    match work {
        Work::Read => "read",
        Work::Write => "write",
        Work::Sync => "sync",
    }
}

fn blocking(file: &File, work: Work, offset: u64, mut buffer: Buffer) -> io::Result<Buffer> {
    match work {
        Work::Read => file.read_exact_at(&mut buffer, offset)?,
        Work::Write => write_all(file, &buffer, offset)?,
        Work::Sync => file.sync_data()?,
    }
    Ok(buffer)
}

fn write_all(file: &File, buffer: &Buffer, offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.write_at(&buffer[done..], offset + done as u64) {
            // Direct I/O has to go on at a page boundary; repeating part of a page is harmless.
            Ok(written) if written >= PAGE_BYTES => done += written - written % PAGE_BYTES,
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(errno) => return Err(part_failed(errno, done)),
                None => return Err(error),
            },
        }
    }
    Ok(())
}
