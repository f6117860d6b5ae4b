//! An in-memory machine with crash simulation, for tests of this crate and of those above it.
//!
//! [`run`] executes a test in virtual time on one thread; [`MemoryDirectory`] keeps disk areas
//! whose unfinished and unsynced writes a [`MemoryDirectory::crash`] keeps, tears at 512 bytes,
//! or drops.
// The one place of this crate that stands in for the machine.
#![allow(clippy::disallowed_methods)]

mod contents;
pub mod golden;
pub mod states;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_runtime::{
    Backend, Buffer, Directory, Discarded, Disk, DiskError, DiskOptions, Instant, PAGE_BYTES,
    Runtime, Task,
};
use tokio::sync::oneshot;

use self::contents::{AreaContents, Contents, Pages, discard, pages, put};

/// The unit that a device writes as a whole.
const SECTOR_BYTES: usize = 512;

/// A seeded source of randomness (splitmix64).
#[derive(Debug)]
pub struct Dice(Cell<u64>);

impl Dice {
    /// Dice that always fall the same for a seed.
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// 64 random bits.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A draw from `0..bound`.
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct VirtualTime {
    start: tokio::time::Instant,
    dice: Dice,
}

impl Backend for VirtualTime {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.start.elapsed().as_nanos() as u64)
    }

    fn unix_time_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let deadline = self.start + Duration::from_nanos(deadline.as_nanos());
        tokio::time::sleep_until(deadline).boxed_local()
    }

    fn spawn(&self, _name: &'static str, future: LocalBoxFuture<'static, ()>) -> Task {
        let handle = tokio::task::spawn_local(future);
        Task::new(move || handle.abort())
    }

    fn random_u64(&self) -> u64 {
        self.dice.next()
    }
}

/// Runs a test in virtual time.
pub fn run<T, F: Future<Output = T>>(seed: u64, test: impl FnOnce(Runtime) -> F) -> T {
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("an executor without input or output");
    let local = tokio::task::LocalSet::new();
    local.block_on(&executor, async {
        let start = tokio::time::Instant::now();
        test(Runtime::new(Rc::new(VirtualTime {
            start,
            dice: Dice::new(seed),
        })))
        .await
    })
}

/// What happened to the disks, in order.
#[derive(Clone)]
enum Event {
    /// A change began; from here on it may survive, in whole or in part.
    Begun {
        ticket: u64,
        area: String,
        offset: u64,
        change: Change,
    },
    /// These changes are durable.
    Settled(Vec<u64>),
}

/// What is done to a range of an area.
#[derive(Clone)]
enum Change {
    Write(Buffer),
    /// So many bytes are given back.
    Discard(u64),
}

impl Change {
    /// Does it to pages.
    fn apply(&self, pages: &mut Pages, offset: u64) {
        match self {
            Self::Write(data) => put(pages, offset, data),
            Self::Discard(len) => discard(pages, offset, *len),
        }
    }
}

struct PendingChange {
    ticket: u64,
    offset: u64,
    change: Change,
    complete: bool,
}

#[derive(Default)]
struct Area {
    size_bytes: u64,
    /// What reads see.
    current: Pages,
    /// What survives a crash for certain.
    durable: Pages,
    /// Changes that may or may not survive.
    pending: Vec<PendingChange>,
    fail_writes_after: Option<u64>,
    fail_next_sync: bool,
    unreadable: Vec<std::ops::Range<u64>>,
    /// Pages that read as something else, once.
    once: BTreeMap<u64, Vec<u8>>,
    reads: u64,
    writes: u64,
    discards: u64,
    fail_next_discard: bool,
}

impl Area {
    fn settle(&mut self, is_settled: impl Fn(&PendingChange) -> bool) {
        for settled in self.pending.extract_if(.., |pending| is_settled(pending)) {
            settled.change.apply(&mut self.durable, settled.offset);
        }
    }

    /// A change that has not completed yet is done; reads see it.
    fn complete(&mut self, ticket: u64) {
        let mut pending = self.pending.iter_mut();
        if let Some(pending) = pending.find(|pending| pending.ticket == ticket) {
            pending.change.apply(&mut self.current, pending.offset);
            pending.complete = true;
        }
    }
}

#[derive(Default)]
struct Machine {
    areas: BTreeMap<String, Area>,
    life: u64,
    next_ticket: u64,
    events: Option<Vec<Event>>,
    /// Nothing is taken back.
    keeps_all: bool,
    /// No area gets larger.
    is_full: bool,
}

impl Machine {
    fn note(&mut self, event: impl FnOnce() -> Event) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }
}

/// Disk areas in memory. Clones are handles on the same areas.
#[derive(Clone)]
pub struct MemoryDirectory {
    runtime: Runtime,
    machine: Rc<RefCell<Machine>>,
}

impl MemoryDirectory {
    /// No areas yet. `runtime` gives operations their (random, short) durations.
    pub fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            machine: Rc::default(),
        }
    }

    /// Cuts the power: every change that is not durable survives wholly, in part or not at all.
    /// Operations of disks opened before never complete.
    pub fn crash(&self, dice: &Dice) {
        let mut machine = self.machine.borrow_mut();
        machine.life += 1;
        for area in machine.areas.values_mut() {
            for pending in std::mem::take(&mut area.pending) {
                let fate = dice.below(4);
                let survives = || match fate {
                    0 => false,
                    1 => true,
                    _ => dice.below(2) == 0,
                };
                match &pending.change {
                    Change::Write(data) => {
                        let offsets = (pending.offset..).step_by(SECTOR_BYTES);
                        for (offset, sector) in offsets.zip(data.chunks(SECTOR_BYTES)) {
                            if survives() {
                                put(&mut area.durable, offset, sector);
                            }
                        }
                    }
                    Change::Discard(len) => {
                        let end = pending.offset + len;
                        for offset in (pending.offset..end).step_by(PAGE_BYTES) {
                            if survives() {
                                discard(&mut area.durable, offset, PAGE_BYTES as u64);
                            }
                        }
                    }
                }
            }
            area.current = area.durable.clone();
            area.fail_next_sync = false;
            area.fail_writes_after = None;
        }
    }

    /// What reads see of all areas.
    fn contents(&self) -> Contents {
        let machine = self.machine.borrow();
        let areas = machine.areas.iter().map(|(name, area)| {
            let contents = AreaContents {
                size_bytes: area.size_bytes,
                pages: area.current.clone(),
            };
            (name.clone(), contents)
        });
        Contents::new(areas.collect())
    }

    /// Another machine with the same bytes at rest.
    pub fn copy(&self) -> Self {
        Self::with_contents(self.runtime.clone(), &self.contents())
    }

    /// Makes an area smaller; away with it if nothing is to be left.
    pub fn cut(&self, area: &str, size_bytes: u64) {
        let mut machine = self.machine.borrow_mut();
        match machine.areas.get_mut(area) {
            Some(_) if size_bytes == 0 => _ = machine.areas.remove(area),
            Some(area) => area.size_bytes = size_bytes,
            None => {}
        }
    }

    /// From here on all that happens is recorded.
    fn record(&self) {
        self.machine.borrow_mut().events = Some(Vec::new());
    }

    /// How much was recorded so far.
    fn recorded(&self) -> usize {
        self.machine.borrow().events.as_ref().map_or(0, Vec::len)
    }

    /// What was recorded.
    fn take_events(&self) -> Vec<Event> {
        self.machine.borrow_mut().events.take().unwrap_or_default()
    }

    /// Areas that hold just this.
    fn with_contents(runtime: Runtime, contents: &Contents) -> Self {
        let directory = Self::new(runtime);
        let areas = contents.areas().iter().map(|(name, at_rest)| {
            let area = Area {
                size_bytes: at_rest.size_bytes,
                current: at_rest.pages.clone(),
                durable: at_rest.pages.clone(),
                ..Area::default()
            };
            (name.clone(), area)
        });
        directory.machine.borrow_mut().areas = areas.collect();
        directory
    }

    /// Ends the process: what was written stays, what was in flight is lost.
    pub fn kill(&self) {
        let mut machine = self.machine.borrow_mut();
        machine.life += 1;
        for area in machine.areas.values_mut() {
            area.pending.clear();
            area.durable = area.current.clone();
        }
    }

    /// Lets the area's write after `writes` more of them fail.
    pub fn fail_write_after(&self, area: &str, writes: u64) {
        self.with(area, |area| area.fail_writes_after = Some(writes));
    }

    /// Lets the area's next sync fail.
    pub fn fail_next_sync(&self, area: &str) {
        self.with(area, |area| area.fail_next_sync = true);
    }

    /// Lets reads that touch `range` fail.
    pub fn fail_reads(&self, area: &str, range: std::ops::Range<u64>) {
        self.with(area, |area| area.unreadable.push(range));
    }

    /// Lets a page read as these bytes, once.
    pub fn read_once(&self, area: &str, page: u64, bytes: &[u8]) {
        self.with(area, |area| area.once.insert(page, bytes.to_vec()));
    }

    /// How many reads the area has seen.
    pub fn reads(&self, area: &str) -> u64 {
        self.with(area, |area| area.reads)
    }

    /// Lets areas find no room to grow, or find some again.
    pub fn fail_growth(&self, fails: bool) {
        self.machine.borrow_mut().is_full = fails;
    }

    /// Takes nothing back that is discarded.
    pub fn keep_all(&self) {
        self.machine.borrow_mut().keeps_all = true;
    }

    /// Lets the area's next discard fail.
    pub fn fail_next_discard(&self, area: &str) {
        self.with(area, |area| area.fail_next_discard = true);
    }

    /// How many discards the area has seen.
    pub fn discards(&self, area: &str) -> u64 {
        self.with(area, |area| area.discards)
    }

    /// How many writes the area has seen.
    pub fn writes(&self, area: &str) -> u64 {
        self.with(area, |area| area.writes)
    }

    /// The bytes a read would see, whatever faults are set.
    pub fn peek(&self, area: &str, offset: u64, len: usize) -> Vec<u8> {
        let page = offset / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        let within = (offset - page) as usize;
        let whole = (within + len).next_multiple_of(PAGE_BYTES);
        self.with(area, |area| {
            pages(&area.current, page, whole)[within..within + len].to_vec()
        })
    }

    /// Changes bytes at rest.
    pub fn poke(&self, area: &str, offset: u64, bytes: &[u8]) {
        self.with(area, |area| {
            put(&mut area.current, offset, bytes);
            put(&mut area.durable, offset, bytes);
        });
    }

    /// Flips one bit at rest.
    pub fn flip(&self, area: &str, offset: u64) {
        let byte = self.peek(area, offset, 1)[0];
        self.poke(area, offset, &[byte ^ 0x10]);
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Area) -> T) -> T {
        act(self
            .machine
            .borrow_mut()
            .areas
            .get_mut(name)
            .expect("an area that was opened"))
    }
}

impl Directory for MemoryDirectory {
    fn open(
        &self,
        name: &str,
        options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        let mut machine = self.machine.borrow_mut();
        let (life, is_full) = (machine.life, machine.is_full);
        let area = machine.areas.entry(name.to_owned()).or_default();
        if is_full && options.size_bytes > area.size_bytes {
            let full = DiskError::Full {
                name: name.to_owned(),
                wanted_bytes: options.size_bytes,
            };
            return std::future::ready(Err(full)).boxed_local();
        }
        area.size_bytes = area.size_bytes.max(options.size_bytes);
        let disk = MemoryDisk {
            directory: self.clone(),
            name: name.to_owned(),
            life,
            durable_writes: options.durable_writes,
        };
        async move { Ok(Rc::new(disk) as Rc<dyn Disk>) }.boxed_local()
    }

    fn exists(&self, name: &str) -> bool {
        self.machine.borrow().areas.contains_key(name)
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        self.machine.borrow_mut().areas.remove(name);
        async { Ok(()) }.boxed_local()
    }
}

#[derive(Clone)]
struct MemoryDisk {
    directory: MemoryDirectory,
    name: String,
    life: u64,
    durable_writes: bool,
}

impl MemoryDisk {
    /// Waits as long as an operation may take; for ever if the machine has crashed meanwhile.
    async fn work(&self) {
        let runtime = &self.directory.runtime;
        runtime
            .sleep(Duration::from_micros(5 + runtime.random_below(100)))
            .await;
        if self.directory.machine.borrow().life != self.life {
            std::future::pending::<()>().await;
        }
    }

    /// A number for a write; `None` after the machine has crashed.
    fn ticket(&self) -> Option<u64> {
        let mut machine = self.directory.machine.borrow_mut();
        machine.next_ticket += 1;
        (machine.life == self.life).then_some(machine.next_ticket)
    }

    fn begin(&self, ticket: u64, offset: u64, change: Change) {
        self.directory.machine.borrow_mut().note(|| Event::Begun {
            ticket,
            area: self.name.clone(),
            offset,
            change: change.clone(),
        });
        self.directory.with(&self.name, |area| {
            area.pending.push(PendingChange {
                ticket,
                offset,
                change,
                complete: false,
            });
        });
    }

    fn complete(&self, ticket: u64) {
        if self.durable_writes {
            let settled = || Event::Settled(vec![ticket]);
            self.directory.machine.borrow_mut().note(settled);
        }
        self.directory.with(&self.name, |area| {
            area.complete(ticket);
            if self.durable_writes {
                area.settle(|pending| pending.ticket == ticket);
            }
        });
    }

    fn failure(&self, operation: &'static str, offset: u64) -> DiskError {
        let reason = "injected".to_owned();
        DiskError::Io {
            name: self.name.clone(),
            operation,
            offset,
            reason,
        }
    }

    fn check(&self, offset: u64, len: usize) {
        assert!(offset.is_multiple_of(PAGE_BYTES as u64) && len.is_multiple_of(PAGE_BYTES));
        let size = self.size_bytes();
        assert!(
            offset + len as u64 <= size,
            "{offset}+{len} leaves {} of {size}",
            self.name
        );
    }
}

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.directory.with(&self.name, |area| area.size_bytes)
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        self.check(offset, len);
        let (disk, (sender, receiver)) = (self.clone(), oneshot::channel());
        // Like a device's, a read goes on whether or not anybody waits for it.
        self.directory.runtime.spawn("read", async move {
            disk.work().await;
            let read = disk.directory.with(&disk.name, |area| {
                area.reads += 1;
                let end = offset + len as u64;
                if area
                    .unreadable
                    .iter()
                    .any(|bad| bad.start < end && offset < bad.end)
                {
                    return Err(disk.failure("read", offset));
                }
                let mut read = pages(&area.current, offset, len);
                let first = offset / PAGE_BYTES as u64;
                let last = first + (len / PAGE_BYTES) as u64;
                for (page, bytes) in area.once.extract_if(first..last, |_, _| true) {
                    let at = (page - first) as usize * PAGE_BYTES;
                    read[at..at + PAGE_BYTES].copy_from_slice(&bytes);
                }
                Ok(read)
            });
            // The caller may have lost interest.
            let _ = sender.send(read);
        });
        async move {
            match receiver.await {
                Ok(read) => read,
                // Only what a dead process asked for goes unanswered.
                Err(_) => std::future::pending().await,
            }
        }
        .boxed_local()
    }

    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        self.check(offset, data.len());
        let disk = self.clone();
        async move {
            let Some(ticket) = disk.ticket() else {
                return std::future::pending().await;
            };
            disk.begin(ticket, offset, Change::Write(data));
            let failing = disk.directory.with(&disk.name, |area| {
                area.writes += 1;
                let failing = area.fail_writes_after == Some(0);
                area.fail_writes_after = area.fail_writes_after.map(|left| left.saturating_sub(1));
                failing
            });
            disk.work().await;
            if failing {
                return Err(disk.failure("write", offset));
            }
            disk.complete(ticket);
            Ok(())
        }
        .boxed_local()
    }

    fn discard(
        &self,
        offset: u64,
        len: u64,
    ) -> LocalBoxFuture<'static, Result<Discarded, DiskError>> {
        self.check(offset, len as usize);
        let disk = self.clone();
        async move {
            let Some(ticket) = disk.ticket() else {
                return std::future::pending().await;
            };
            let failing = disk.directory.with(&disk.name, |area| {
                area.discards += 1;
                std::mem::take(&mut area.fail_next_discard)
            });
            if disk.directory.machine.borrow().keeps_all {
                return Ok(Discarded::Unsupported);
            }
            disk.begin(ticket, offset, Change::Discard(len));
            disk.work().await;
            if failing {
                return Err(disk.failure("discard", offset));
            }
            disk.complete(ticket);
            Ok(Discarded::Done)
        }
        .boxed_local()
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let disk = self.clone();
        async move {
            let complete: Vec<u64> = disk.directory.with(&disk.name, |area| {
                let complete = area.pending.iter().filter(|pending| pending.complete);
                complete.map(|pending| pending.ticket).collect()
            });
            disk.work().await;
            disk.directory.with(&disk.name, |area| {
                if std::mem::take(&mut area.fail_next_sync) {
                    return Err(disk.failure("sync", 0));
                }
                area.settle(|pending| complete.contains(&pending.ticket));
                Ok(())
            })?;
            let settled = || Event::Settled(complete);
            disk.directory.machine.borrow_mut().note(settled);
            Ok(())
        }
        .boxed_local()
    }
}
