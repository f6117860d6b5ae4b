//! A volume in memory: for tests, for trying out initiators, for measuring the front alone. It
//! leaves the check of reservations to the command set.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use futures::future::{LocalBoxFuture, ready};
use holdfast_path::Requester;

use crate::device::{BlockDevice, CompareOutcome, DeviceError, DeviceIdentity, MappedExtent};

/// Size of the unit in which memory is allocated.
const PAGE_BYTES: usize = 4096;

type Page = Box<[u8; PAGE_BYTES]>;

/// A sparse volume in memory; every request completes at once.
pub struct MemoryDevice {
    identity: DeviceIdentity,
    capacity_bytes: Cell<u64>,
    pages: Rc<RefCell<BTreeMap<u64, Page>>>,
}

impl MemoryDevice {
    /// An empty volume.
    pub fn new(identity: DeviceIdentity) -> Self {
        let capacity_bytes = Cell::new(identity.capacity_bytes);
        Self {
            identity,
            capacity_bytes,
            pages: Rc::default(),
        }
    }

    /// Changes the capacity.
    pub fn resize(&self, capacity_bytes: u64) {
        self.capacity_bytes.set(capacity_bytes);
    }

    /// Bytes of memory in use for data.
    pub fn allocated_bytes(&self) -> u64 {
        (self.pages.borrow().len() * PAGE_BYTES) as u64
    }

    fn outside(&self, offset_bytes: u64, length_bytes: u64) -> bool {
        let end = offset_bytes.checked_add(length_bytes);
        end.is_none_or(|end| end > self.capacity_bytes.get())
    }

    fn copy_out(&self, offset_bytes: u64, length_bytes: usize) -> Bytes {
        let pages = self.pages.borrow();
        let mut data = BytesMut::with_capacity(length_bytes);
        for piece in pieces(offset_bytes, length_bytes as u64) {
            match pages.get(&piece.page) {
                Some(page) => data.extend_from_slice(&page[piece.start..piece.end]),
                None => data.resize(data.len() + piece.end - piece.start, 0),
            }
        }
        data.freeze()
    }

    fn copy_in(&self, offset_bytes: u64, mut data: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        for piece in pieces(offset_bytes, data.len() as u64) {
            let (now, later) = data.split_at(piece.end - piece.start);
            let page = pages
                .entry(piece.page)
                .or_insert_with(|| Box::new([0; PAGE_BYTES]));
            page[piece.start..piece.end].copy_from_slice(now);
            data = later;
        }
    }
}

/// A part of one page.
struct Piece {
    page: u64,
    start: usize,
    end: usize,
}

fn pieces(offset_bytes: u64, length_bytes: u64) -> impl Iterator<Item = Piece> {
    const PAGE: u64 = PAGE_BYTES as u64;
    let end = offset_bytes + length_bytes;
    (offset_bytes / PAGE..end.div_ceil(PAGE)).map(move |page| {
        let base = page * PAGE;
        let start = offset_bytes.saturating_sub(base) as usize;
        let end = (end - base).min(PAGE) as usize;
        Piece { page, start, end }
    })
}

impl BlockDevice for MemoryDevice {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            capacity_bytes: self.capacity_bytes.get(),
            ..self.identity.clone()
        }
    }

    fn read(
        &self,
        _requester: Requester,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> LocalBoxFuture<'static, Result<Bytes, DeviceError>> {
        if self.outside(offset_bytes, u64::from(length_bytes)) {
            return Box::pin(ready(Err(DeviceError::Internal)));
        }
        Box::pin(ready(
            Ok(self.copy_out(offset_bytes, length_bytes as usize)),
        ))
    }

    fn write(
        &self,
        _requester: Requester,
        offset_bytes: u64,
        data: Bytes,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        if self.outside(offset_bytes, data.len() as u64) {
            return Box::pin(ready(Err(DeviceError::Internal)));
        }
        self.copy_in(offset_bytes, &data);
        Box::pin(ready(Ok(())))
    }

    fn zero(
        &self,
        _requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        if self.outside(offset_bytes, length_bytes) {
            return Box::pin(ready(Err(DeviceError::Internal)));
        }
        let mut pages = self.pages.borrow_mut();
        let end = offset_bytes + length_bytes;
        let first = offset_bytes / PAGE_BYTES as u64;
        let touched: Vec<u64> = pages
            .range(first..end.div_ceil(PAGE_BYTES as u64))
            .map(|(page, _)| *page)
            .collect();
        for page in touched {
            let base = page * PAGE_BYTES as u64;
            let from = offset_bytes.saturating_sub(base) as usize;
            let to = (end - base).min(PAGE_BYTES as u64) as usize;
            if from == 0 && to == PAGE_BYTES {
                pages.remove(&page);
            } else if let Some(page) = pages.get_mut(&page) {
                page[from..to].fill(0);
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn flush(&self) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        Box::pin(ready(Ok(())))
    }

    fn compare_and_write(
        &self,
        _requester: Requester,
        offset_bytes: u64,
        compare: Bytes,
        write: Bytes,
    ) -> LocalBoxFuture<'static, Result<CompareOutcome, DeviceError>> {
        if self.outside(offset_bytes, compare.len() as u64) {
            return Box::pin(ready(Err(DeviceError::Internal)));
        }
        let present = self.copy_out(offset_bytes, compare.len());
        let difference = present
            .iter()
            .zip(&compare)
            .position(|(left, right)| left != right);
        let outcome = match difference {
            Some(at) => CompareOutcome::Miscompare {
                offset_bytes: at as u32,
            },
            None => {
                self.copy_in(offset_bytes, &write);
                CompareOutcome::Written
            }
        };
        Box::pin(ready(Ok(outcome)))
    }

    fn mapped_extents(
        &self,
        _requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<Vec<MappedExtent>, DeviceError>> {
        const PAGE: u64 = PAGE_BYTES as u64;
        let pages = self.pages.borrow();
        let first = offset_bytes / PAGE;
        let mapped = pages.contains_key(&first);
        let end_page = if mapped {
            let mut page = first + 1;
            while pages.contains_key(&page) {
                page += 1;
            }
            page
        } else {
            pages
                .range(first..)
                .next()
                .map_or(u64::MAX / PAGE, |(page, _)| *page)
        };
        let length_bytes = length_bytes.min(end_page * PAGE - offset_bytes);
        Box::pin(ready(Ok(vec![MappedExtent {
            mapped,
            length_bytes,
        }])))
    }
}
