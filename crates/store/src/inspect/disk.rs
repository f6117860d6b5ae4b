//! A disk area to look at: reads within its bounds, paced if so wished; it cannot be written.
//!
//! Tested with the whole store: `tests/inspect.rs`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_runtime::{Buffer, Disk, DiskError, Runtime};

/// How fast areas may be read, and how much of them was.
pub(crate) struct Pace {
    runtime: Runtime,
    bytes_per_second: Option<u64>,
    pub(crate) read_bytes: Cell<u64>,
}

impl Pace {
    pub(crate) fn new(runtime: Runtime, bytes_per_second: Option<u64>) -> Rc<Self> {
        Rc::new(Self {
            runtime,
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            read_bytes: Cell::new(0),
        })
    }

    /// Takes as long as these bytes may take.
    async fn account(&self, bytes: u64) {
        self.read_bytes.set(self.read_bytes.get() + bytes);
        if let Some(rate) = self.bytes_per_second {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            self.runtime.sleep(Duration::from_nanos(nanos)).await;
        }
    }
}

/// An area of a store that is inspected. `None` is an area that is not there: every read fails.
#[derive(Clone)]
pub(crate) struct ReadOnlyDisk {
    name: &'static str,
    disk: Option<Rc<dyn Disk>>,
    pace: Rc<Pace>,
}

impl ReadOnlyDisk {
    pub(crate) fn new(name: &'static str, disk: Option<Rc<dyn Disk>>, pace: Rc<Pace>) -> Self {
        Self { name, disk, pace }
    }

    pub(crate) fn exists(&self) -> bool {
        self.disk.is_some()
    }

    fn refusal(&self, operation: &'static str, offset: u64, reason: &str) -> DiskError {
        DiskError::Io {
            name: self.name.to_owned(),
            operation,
            offset,
            reason: reason.to_owned(),
        }
    }
}

impl Disk for ReadOnlyDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.size_bytes())
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        let area = self.clone();
        async move {
            let Some(disk) = &area.disk else {
                return Err(area.refusal("read", offset, "the area is missing"));
            };
            let end = offset.checked_add(len as u64);
            if end.is_none_or(|end| end > disk.size_bytes()) {
                return Err(area.refusal("read", offset, "the area ends before that"));
            }
            area.pace.account(len as u64).await;
            disk.read(offset, len).await
        }
        .boxed_local()
    }

    fn write(&self, offset: u64, _data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let refusal = self.refusal("write", offset, "the store is only looked at");
        std::future::ready(Err(refusal)).boxed_local()
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let refusal = self.refusal("sync", 0, "the store is only looked at");
        std::future::ready(Err(refusal)).boxed_local()
    }
}
