//! The scrub: everything that this node's disk holds is read back from time to time, slowly.
//!
//! One pass goes through the whole home. It is begun once per interval and spread over half of
//! it, but goes no slower than [`RATE_MIN`] and no faster than the limit. Where it is, is
//! written to the area `scrub` now and then, so that a restart goes on from there; nothing rests
//! on that, and what cannot be read there begins the pass anew.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::{Allocation, Buffer, Directory, Disk, DiskOptions, PAGE_BYTES};
use holdfast_store::VerifyPosition;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::node::Node;

/// Name of the area.
const AREA: &str = "scrub";
/// Slowest pace, in bytes a second.
const RATE_MIN: u64 = 4 << 20;
/// How much is read between two pauses.
const STRIDE_BYTES: u64 = 1 << 20;
/// How often the position is written.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// How a node scrubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// From the begin of one pass to the begin of the next.
    pub interval: Duration,
    /// Most bytes read in a second.
    pub bytes_per_second: u64,
}

impl Default for ScrubOptions {
    /// Once a week, at 32 MiB/s or slower.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(7 * 24 * 3600),
            bytes_per_second: 32 << 20,
        }
    }
}

/// What an operator wants of the scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubOrder {
    /// Begin a pass now, from the start.
    Start,
    /// Stand still until told to go on; outlasts a restart.
    Pause,
    /// Go on.
    Resume,
}

/// One pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubPass {
    /// When it began, in milliseconds since the Unix epoch.
    pub begun_unix_ms: u64,
    /// When it ended; zero while it goes on.
    pub ended_unix_ms: u64,
    /// Bytes read and compared.
    pub bytes: u64,
    /// Blocks found damaged.
    pub damaged_blocks: u64,
}

/// How the scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// An operator has stopped it.
    pub paused: bool,
    /// The pass under way.
    pub current: Option<ScrubPass>,
    /// The pass before.
    pub last: Option<ScrubPass>,
}

/// What is written to the disk.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Noted {
    status: ScrubStatus,
    /// Where the pass under way goes on.
    position: Option<VerifyPosition>,
}

/// The scrub of one node.
pub(crate) struct Scrub {
    options: ScrubOptions,
    disk: Option<Rc<dyn Disk>>,
    noted: RefCell<Noted>,
    /// The pass under way began in this process.
    whole: Cell<bool>,
    order: Cell<Option<ScrubOrder>>,
    ordered: Notify,
}

impl Scrub {
    pub(crate) async fn open(directory: &Rc<dyn Directory>, options: ScrubOptions) -> Self {
        let area = DiskOptions {
            size_bytes: PAGE_BYTES as u64,
            durable_writes: false,
            allocation: Allocation::Sparse,
        };
        let disk = match directory.open(AREA, area).await {
            Ok(disk) => Some(disk),
            Err(error) => {
                tracing::warn!(%error, "the scrub will begin anew after a restart");
                None
            }
        };
        let noted = match &disk {
            Some(disk) => read(disk).await.unwrap_or_default(),
            None => Noted::default(),
        };
        Self {
            options,
            disk,
            noted: RefCell::new(noted),
            whole: Cell::new(false),
            order: Cell::new(None),
            ordered: Notify::new(),
        }
    }

    /// An order counts as obeyed from when it was given: whoever gave it sees what comes of it.
    pub(crate) fn status(&self) -> ScrubStatus {
        let mut status = self.noted.borrow().status;
        match self.order.get() {
            Some(ScrubOrder::Start | ScrubOrder::Resume) => status.paused = false,
            Some(ScrubOrder::Pause) => status.paused = true,
            None => {}
        }
        status
    }

    pub(crate) fn order(&self, order: ScrubOrder) {
        self.order.set(Some(order));
        self.ordered.notify_one();
    }

    /// Bytes a second that end a pass over `bytes` in half the interval.
    fn rate(&self, bytes: u64) -> u64 {
        let half = (self.options.interval.as_secs() / 2).max(1);
        (bytes / half)
            .max(RATE_MIN)
            .min(self.options.bytes_per_second)
    }

    /// A failure costs a repetition, no more.
    async fn note(&self) {
        let noted = *self.noted.borrow();
        if let Some(disk) = &self.disk
            && let Ok(text) = serde_json::to_vec(&noted)
            && let Err(error) = disk.write(0, Buffer::padded_from(&text)).await
        {
            tracing::debug!(%error, "the scrub's position could not be written");
        }
    }
}

async fn read(disk: &Rc<dyn Disk>) -> Option<Noted> {
    let bytes = disk.read(0, PAGE_BYTES).await.ok()?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    serde_json::from_slice(&bytes[..end]).ok()
}

impl Node {
    /// Goes on with the pass under way, begins one when it is time, does what is ordered.
    pub(crate) async fn keep_scrubbing(self: Rc<Self>) {
        let scrub = &self.scrub;
        let runtime = &self.context.runtime;
        loop {
            if let Some(order) = scrub.order.take() {
                self.obey(order).await;
            }
            let Noted { status, .. } = *scrub.noted.borrow();
            if status.paused {
                scrub.ordered.notified().await;
            } else if status.current.is_some() {
                self.scrub_on().await;
            } else {
                let begun = status.last.map_or(0, |last| last.begun_unix_ms);
                let due = begun.saturating_add(scrub.options.interval.as_millis() as u64);
                let left = due.saturating_sub(runtime.unix_time_ms());
                if left == 0 {
                    self.begin_pass();
                } else {
                    let pause = Duration::from_millis(left);
                    runtime.timeout(pause, scrub.ordered.notified()).await;
                }
            }
        }
    }

    async fn obey(&self, order: ScrubOrder) {
        match order {
            ScrubOrder::Start => {
                self.scrub.noted.borrow_mut().status.paused = false;
                self.begin_pass();
            }
            ScrubOrder::Pause => self.scrub.noted.borrow_mut().status.paused = true,
            ScrubOrder::Resume => self.scrub.noted.borrow_mut().status.paused = false,
        }
        self.scrub.note().await;
    }

    fn begin_pass(&self) {
        self.scrub.whole.set(true);
        let mut noted = self.scrub.noted.borrow_mut();
        noted.position = None;
        noted.status.current = Some(ScrubPass {
            begun_unix_ms: self.context.runtime.unix_time_ms(),
            ..ScrubPass::default()
        });
    }

    /// Reads on until the pass ends or something is ordered.
    async fn scrub_on(&self) {
        let (scrub, store) = (&self.scrub, &self.context.store);
        let runtime = &self.context.runtime;
        let rate = scrub.rate(store.usage().home_used_bytes);
        let mut noted_at = runtime.now();
        let mut stride = 0;
        while scrub.order.get().is_none() {
            let from = scrub.noted.borrow().position;
            let step = store.verify(from).await;
            {
                let mut noted = scrub.noted.borrow_mut();
                noted.position = step.next;
                let Some(pass) = &mut noted.status.current else {
                    return;
                };
                pass.bytes += step.bytes;
                pass.damaged_blocks += u64::from(step.damaged_blocks);
                if step.next.is_none() {
                    pass.ended_unix_ms = runtime.unix_time_ms().max(1);
                    noted.status.last = noted.status.current.take();
                }
            }
            if step.next.is_none() {
                return self.end_pass().await;
            }
            stride += step.bytes;
            if stride >= STRIDE_BYTES {
                let pause = Duration::from_nanos(stride * 1_000_000_000 / rate.max(1));
                runtime.timeout(pause, scrub.ordered.notified()).await;
                stride = 0;
            }
            if runtime.now().saturating_since(noted_at) >= NOTE_EVERY {
                scrub.note().await;
                noted_at = runtime.now();
            }
        }
    }

    async fn end_pass(&self) {
        self.scrub.note().await;
        if let Some(ScrubPass {
            bytes,
            damaged_blocks,
            ..
        }) = self.scrub.status().last
        {
            tracing::info!(bytes, damaged_blocks, "scrub pass over");
            if damaged_blocks == 0 && self.scrub.whole.get() {
                self.context.store.note_sound();
            }
        }
    }
}
