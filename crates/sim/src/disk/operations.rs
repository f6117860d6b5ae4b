//! What one process does to one area: reads, writes, syncs and discards that take their time, fail,
//! or do something else than they say.

use std::ops::Range;
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use holdfast_runtime::{Buffer, Discarded, Disk, DiskError, PAGE_BYTES};

use super::image::InFlight;
use super::{Area, Damage, HostDisks, Moment, RECENT_PAGES};
use crate::executor::ProcessId;
use crate::faults::FaultClass;
use crate::trace::{Step, digest};

/// One area as one process sees it.
pub(super) struct SimulatedDisk {
    pub(super) disks: Rc<HostDisks>,
    pub(super) area: Rc<Area>,
    pub(super) process: ProcessId,
    pub(super) durable_writes: bool,
}

impl SimulatedDisk {
    fn pages(&self, offset: u64, len: usize) -> (u64, u64) {
        let page_bytes = PAGE_BYTES as u64;
        let aligned = offset.is_multiple_of(page_bytes) && len.is_multiple_of(PAGE_BYTES);
        let size_bytes = self.area.image.borrow().size_bytes();
        assert!(
            aligned && offset + len as u64 <= size_bytes,
            "{len} bytes at {offset} of {} ({size_bytes} bytes) are no disk transfer",
            self.area.name
        );
        (offset / page_bytes, len as u64 / page_bytes)
    }
}

impl Area {
    fn error(&self, operation: &'static str, offset: u64) -> DiskError {
        let reason = "simulated device error".to_owned();
        DiskError::Io {
            name: self.name.clone(),
            operation,
            offset,
            reason,
        }
    }
}

impl Disk for SimulatedDisk {
    fn size_bytes(&self) -> u64 {
        self.area.image.borrow().size_bytes()
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        let (page, count) = self.pages(offset, len);
        let delay_ns = self
            .disks
            .delay(&self.area.name, self.disks.timing.read_ns, count);
        self.disks.reached(Moment::Read, delay_ns);
        let area = self.area.clone();
        self.disks.operate(self.process, delay_ns, move |disks| {
            let data = match disks.fails(&area.name) {
                true => None,
                false => area.image.borrow().read(page, count, &disks.random),
            };
            disks.say(Step::Disk, page, || {
                format!("read {} {page}+{count}", area.name)
            });
            data.ok_or_else(|| area.error("read", offset))
        })
    }

    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let (page, count) = self.pages(offset, data.len());
        let delay_ns = self
            .disks
            .delay(&self.area.name, self.disks.timing.write_ns, count);
        let area = self.area.clone();
        if self.disks.health_of(&area.name).full.get()
            && !area.preallocated.get()
            && area.image.borrow().unwritten(page, count) > 0
        {
            self.disks.counts.fired(FaultClass::FullDisk);
            let full = DiskError::Full {
                name: area.name.clone(),
                wanted_bytes: data.len() as u64,
            };
            return self
                .disks
                .operate(self.process, delay_ns, move |_| Err(full));
        }
        if !self.disks.executor.is_alive(self.process) {
            // What a dead process left behind must not write.
            return Box::pin(std::future::pending());
        }
        let contents = digest(&data);
        let write = InFlight {
            page,
            data,
            durable: self.durable_writes,
        };
        let number = area.image.borrow_mut().begin(write);
        self.disks.reached(Moment::Write, delay_ns);
        self.disks.operate(self.process, delay_ns, move |disks| {
            disks.say(Step::Disk, contents, || {
                format!("wrote {} {page}+{count}", area.name)
            });
            disks.finish_write(&area, number, page..page + count)
        })
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let delay_ns = self
            .disks
            .delay(&self.area.name, self.disks.timing.sync_ns, 0);
        let area = self.area.clone();
        let mark = area.image.borrow().sync_mark();
        self.disks.reached(Moment::Sync, delay_ns);
        self.disks.operate(self.process, delay_ns, move |disks| {
            disks.say(Step::Disk, mark, || format!("synced {}", area.name));
            if disks.fails(&area.name) {
                area.image.borrow_mut().sync_failed(mark);
                return Err(area.error("sync", 0));
            }
            if !disks.lies_now(&area) {
                area.image.borrow_mut().synced(mark);
            }
            Ok(())
        })
    }

    fn discard(
        &self,
        offset: u64,
        len: u64,
    ) -> LocalBoxFuture<'static, Result<Discarded, DiskError>> {
        let (page, count) = self.pages(offset, len as usize);
        let delay_ns = self
            .disks
            .delay(&self.area.name, self.disks.timing.write_ns, 0);
        if !self.disks.executor.is_alive(self.process) {
            return Box::pin(std::future::pending());
        }
        let begun = match self.disks.takes_back {
            true => {
                let mut image = self.area.image.borrow_mut();
                Some(image.begin_discard(page, count, &self.disks.random))
            }
            false => None,
        };
        let area = self.area.clone();
        self.disks.reached(Moment::Discard, delay_ns);
        self.disks.operate(self.process, delay_ns, move |disks| {
            disks.say(Step::Disk, page, || {
                format!("discarded {} {page}+{count}", area.name)
            });
            let Some(begun) = begun else {
                return Ok(Discarded::Unsupported);
            };
            let fails = disks.fails(&area.name);
            let mut image = area.image.borrow_mut();
            for number in begun {
                if fails && disks.random.chance(500_000) {
                    image.drop_write(number);
                } else {
                    image.complete(number);
                }
            }
            if fails {
                return Err(area.error("discard", offset));
            }
            disks.counts.fired(FaultClass::DiscardedRange);
            Ok(Discarded::Done)
        })
    }
}

impl HostDisks {
    /// Whether this sync is the one to lie.
    fn lies_now(&self, area: &Area) -> bool {
        let mut policy = self.policy.borrow_mut();
        let allowed = policy.budget > 0 && policy.areas.contains(&area.name);
        let lies = allowed && self.armed.get() == Some(Damage::LieAtNextSync);
        if lies {
            policy.budget -= 1;
            self.armed.set(None);
            self.counts.fired(FaultClass::LyingSync);
        }
        lies
    }

    fn finish_write(&self, area: &Area, number: u64, pages: Range<u64>) -> Result<(), DiskError> {
        let mut recent = area.recent.borrow_mut();
        let now_ns = self.executor.now_ns();
        recent.extend(pages.clone().map(|page| (now_ns, page)));
        let surplus = recent.len().saturating_sub(RECENT_PAGES);
        recent.drain(..surplus);
        let mut image = area.image.borrow_mut();
        if self.fails(&area.name) {
            // An error says nothing about the medium.
            if self.random.chance(500_000) {
                image.complete(number);
            } else {
                image.drop_write(number);
            }
            return Err(area.error("write", pages.start * PAGE_BYTES as u64));
        }
        let mut policy = self.policy.borrow_mut();
        let is_armed = match self.armed.get() {
            Some(Damage::LoseNextWrite | Damage::MisdirectNextWrite) => true,
            Some(
                Damage::FlipBits | Damage::Unreadable | Damage::StaleRead | Damage::LieAtNextSync,
            )
            | None => false,
        };
        if is_armed && policy.budget > 0 && policy.areas.contains(&area.name) {
            policy.budget -= 1;
            self.counts.fired(FaultClass::MisplacedWrite);
            let misdirected = self.armed.take() == Some(Damage::MisdirectNextWrite);
            let size_pages = image.size_bytes() / PAGE_BYTES as u64;
            if let Some(write) = image.drop_write(number)
                && misdirected
            {
                let pages = (write.data.len() / PAGE_BYTES) as u64;
                let page = self.random.below(size_pages - pages + 1);
                let elsewhere = image.begin(InFlight { page, ..write });
                image.complete(elsewhere);
            }
            return Ok(());
        }
        image.complete(number);
        Ok(())
    }
}
