//! A directory that counts what its disks do, can leave out the blocks' bytes, and can be as slow
//! to read as a slower device.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use holdfast_runtime::host::HostDirectory;
use holdfast_runtime::{Buffer, Directory, Discarded, Disk, DiskError, DiskOptions, PAGE_BYTES};

/// What one area's disk did.
#[derive(Default)]
pub(crate) struct Meter {
    pub(crate) reads: Cell<u64>,
    pub(crate) read_bytes: Cell<u64>,
    pub(crate) written_bytes: Cell<u64>,
}

/// See the module's header.
#[derive(Clone)]
pub(crate) struct Metered {
    directory: Rc<HostDirectory>,
    meters: Rc<RefCell<BTreeMap<String, Rc<Meter>>>>,
    /// Pages that begin like this are not written, and read as whole pages of it: the data of
    /// blocks, while everything the store says of itself is real.
    hollow: Option<u8>,
    device: Rc<Device>,
}

/// What the disks share: a device that does one read after the other.
#[derive(Default)]
struct Device {
    /// Of each read, before its bytes are there.
    latency: Cell<Duration>,
    /// When it has done what it was asked for so far.
    free_at: Cell<Option<Instant>>,
}

impl Device {
    /// When a read that is asked for now is done; `None` at once.
    fn queue(&self) -> Option<Instant> {
        let latency = Some(self.latency.get()).filter(|latency| !latency.is_zero())?;
        let now = Instant::now();
        let begins = self.free_at.get().map_or(now, |free_at| free_at.max(now));
        self.free_at.set(Some(begins + latency));
        self.free_at.get()
    }
}

impl Metered {
    pub(crate) fn new(directory: HostDirectory, hollow: Option<u8>) -> Self {
        Self {
            directory: Rc::new(directory),
            meters: Rc::default(),
            hollow,
            device: Rc::default(),
        }
    }

    /// From now on each read takes so much longer.
    pub(crate) fn set_read_latency(&self, latency: Duration) {
        self.device.latency.set(latency);
    }

    pub(crate) fn meter(&self, area: &str) -> Rc<Meter> {
        let mut meters = self.meters.borrow_mut();
        meters.entry(area.to_owned()).or_default().clone()
    }
}

impl Directory for Metered {
    fn open(
        &self,
        name: &str,
        options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        let meter = self.meter(name);
        let hollow = self.hollow.filter(|_| name == "home");
        let device = self.device.clone();
        let opening = self.directory.open(name, options);
        Box::pin(async move {
            let disk = opening.await?;
            let disk: Rc<dyn Disk> = Rc::new(MeteredDisk {
                disk,
                meter,
                hollow,
                device,
                solid: RefCell::default(),
            });
            Ok(disk)
        })
    }

    fn exists(&self, name: &str) -> bool {
        self.directory.exists(name)
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        self.directory.remove(name)
    }
}

struct MeteredDisk {
    disk: Rc<dyn Disk>,
    meter: Rc<Meter>,
    hollow: Option<u8>,
    device: Rc<Device>,
    /// Pages that hold something else.
    solid: RefCell<BTreeSet<u64>>,
}

fn add(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

impl Disk for MeteredDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        add(&self.meter.reads, 1);
        add(&self.meter.read_bytes, len as u64);
        let reading = self.disk.read(offset, len);
        let (device, hollow) = (self.device.clone(), self.hollow);
        Box::pin(async move {
            if let Some(done_at) = device.queue() {
                // Timers tick in milliseconds, which is too coarse; threads sleep finer.
                let sleeping = tokio::task::spawn_blocking(move || {
                    std::thread::sleep(done_at.saturating_duration_since(Instant::now()));
                });
                sleeping.await.expect("a sleep");
            }
            let mut read = reading.await?;
            let Some(fill) = hollow else {
                return Ok(read);
            };
            // Nothing was written there: the file has a hole.
            for page in read
                .chunks_mut(PAGE_BYTES)
                .filter(|page| page.iter().all(|b| *b == 0))
            {
                page.fill(fill);
            }
            Ok(read)
        })
    }

    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        add(&self.meter.written_bytes, data.len() as u64);
        let Some(fill) = self.hollow else {
            return self.disk.write(offset, data);
        };
        let mut writes = Vec::new();
        let mut kept: Option<(u64, Vec<u8>)> = None;
        let mut solid = self.solid.borrow_mut();
        for (index, page) in data.chunks(PAGE_BYTES).enumerate() {
            let at = offset + (index * PAGE_BYTES) as u64;
            let is_hollow = page.iter().all(|byte| *byte == fill);
            // What a solid page held must not show through.
            let goes = if is_hollow {
                solid.remove(&at)
            } else {
                solid.insert(at);
                true
            };
            let bytes = if is_hollow { &[0; PAGE_BYTES] } else { page };
            match &mut kept {
                Some((_, run)) if goes => run.extend_from_slice(bytes),
                None if goes => kept = Some((at, bytes.to_vec())),
                Some(_) | None => writes.extend(kept.take()),
            }
        }
        drop(solid);
        writes.extend(kept);
        let disk = self.disk.clone();
        Box::pin(async move {
            for (at, bytes) in writes {
                disk.write(at, Buffer::padded_from(&bytes)).await?;
            }
            Ok(())
        })
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        self.disk.sync()
    }

    fn discard(
        &self,
        offset: u64,
        len: u64,
    ) -> LocalBoxFuture<'static, Result<Discarded, DiskError>> {
        let pages = offset..offset + len;
        self.solid.borrow_mut().retain(|at| !pages.contains(at));
        self.disk.discard(offset, len)
    }
}
