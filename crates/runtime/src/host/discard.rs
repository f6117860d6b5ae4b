//! Giving a range of an area back: a hole in a sparse file, a discard of a block device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::Discarded;

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// How a range of an area is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivesBack {
    /// Not at all: its space is to stay.
    Nothing,
    /// As a hole of its file.
    Hole,
    /// By a discard of its block device.
    Device,
}

/// An area whose ranges can be given back.
pub(super) struct Discards {
    file: File,
    by: GivesBack,
    /// The kernel said so.
    unsupported: AtomicBool,
}

impl Discards {
    /// `None` if nothing of it is ever given back.
    pub(super) fn of(file: &File, by: GivesBack) -> Option<Arc<Self>> {
        let file = match by {
            GivesBack::Nothing => return None,
            // Without a descriptor of its own, nothing is given back: only space is lost.
            GivesBack::Hole | GivesBack::Device => file.try_clone().ok()?,
        };
        Some(Arc::new(Self {
            file,
            by,
            unsupported: AtomicBool::new(false),
        }))
    }

    /// Gives the range back. Blocks.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<Discarded> {
        if len == 0 {
            return Ok(Discarded::Done);
        }
        if self.unsupported.load(Ordering::Relaxed) {
            return Ok(Discarded::Unsupported);
        }
        loop {
            let outcome = match self.by {
                GivesBack::Nothing => return Ok(Discarded::Unsupported),
                GivesBack::Hole => punch(&self.file, offset, len)?,
                GivesBack::Device => discard(&self.file, offset, len),
            };
            let Err(error) = outcome else {
                return Ok(Discarded::Done);
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => {
                    self.unsupported.store(true, Ordering::Relaxed);
                    return Ok(Discarded::Unsupported);
                }
                _ => return Err(error),
            }
        }
    }
}

fn punch(file: &File, offset: u64, len: u64) -> io::Result<io::Result<()>> {
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off_t::try_from(offset).map_err(too_large)?;
    let len = libc::off_t::try_from(len).map_err(too_large)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes no pointers, and the descriptor is open.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
    Ok(outcome(result))
}

fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the descriptor is open, and this request reads two 64-bit numbers from where
    // `range` lies, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    outcome(result)
}

fn outcome(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
