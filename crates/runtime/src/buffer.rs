//! Memory that direct I/O accepts: whole pages at page alignment.

use std::fmt;
use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Size and alignment of every disk transfer, in bytes.
pub const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

const _: () = assert!(size_of::<Page>() == PAGE_BYTES && align_of::<Page>() == PAGE_BYTES);

/// A page-aligned byte buffer whose length is a multiple of [`PAGE_BYTES`].
#[derive(Clone, Default)]
pub struct Buffer {
    pages: Vec<Page>,
}

impl Buffer {
    /// A zeroed buffer. Panics unless `len` is a multiple of [`PAGE_BYTES`].
    pub fn zeroed(len: usize) -> Self {
        assert!(
            len.is_multiple_of(PAGE_BYTES),
            "a disk buffer holds whole pages, not {len} bytes"
        );
        Self {
            pages: Page::new_vec_zeroed(len / PAGE_BYTES).expect("memory for a disk transfer"),
        }
    }

    /// A buffer with the bytes of `source`, padded with zeroes to whole pages.
    pub fn padded_from(source: &[u8]) -> Self {
        let mut buffer = Self::zeroed(source.len().next_multiple_of(PAGE_BYTES));
        buffer[..source.len()].copy_from_slice(source);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.pages.as_bytes()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Buffer> for bytes::Bytes {
    fn from(buffer: Buffer) -> Self {
        Self::from_owner(buffer)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} bytes)", self.len())
    }
}
