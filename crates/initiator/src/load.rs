//! The load generator: workers that read and write blocks of a ledger's region, each read judged
//! on the spot.
//!
//! Invariants
//! - Per block one write at a time, as [`Ledger`] demands: so a write that is sent again after a
//!   failover can never overtake a later one of this load.
//! - A write that ends with an error or is dropped stays "issued, not acknowledged".
//! - Given the same seed and the same order of completions, the same I/O is chosen.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::error::Error;
use crate::ledger::{BLOCK_BYTES, Ledger};
use crate::statistics::{GapMeter, Statistics};

/// Places to try for a write before waiting for other writes to end.
const PLACES_TRIED: u32 = 16;
/// How long a worker rests when every place was busy, or after an error.
const REST: Duration = Duration::from_millis(5);
/// With a rate limit: how much lateness may be made up for at once. Timers have 1 ms steps.
const CATCH_UP: Duration = Duration::from_millis(20);

/// A disk, as the load sees it: [`crate::Disk`], or a stand-in.
pub trait BlockDevice: Clone + 'static {
    /// Its size in bytes.
    fn capacity_bytes(&self) -> u64;
    /// Reads `length` bytes from `offset`, both multiples of [`BLOCK_BYTES`].
    fn read(&self, offset: u64, length: u32) -> impl Future<Output = Result<Bytes, Error>>;
    /// Writes at `offset`; offset and length are multiples of [`BLOCK_BYTES`].
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<(), Error>>;
}

/// How often a size of I/O is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeWeight {
    /// Bytes, a multiple of [`BLOCK_BYTES`].
    pub bytes: u32,
    /// Chosen this often in relation to the other sizes.
    pub weight: u32,
}

/// What the load does. The region is the ledger's.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// I/Os outstanding at once.
    pub workers: usize,
    /// The mix of sizes.
    pub sizes: Vec<SizeWeight>,
    /// Share of reads, 0 to 100.
    pub read_percent: u8,
    /// I/Os a second at most, all workers together.
    pub operations_per_second_max: Option<f64>,
    /// End after this time.
    pub duration: Option<Duration>,
    /// End after so many I/Os.
    pub operations: Option<u64>,
    /// Decides places, sizes and directions.
    pub seed: u64,
}

impl Default for LoadOptions {
    /// 16 workers, 4 KiB, 30 % reads, until stopped.
    fn default() -> Self {
        Self {
            workers: 16,
            sizes: vec![SizeWeight {
                bytes: BLOCK_BYTES as u32,
                weight: 1,
            }],
            read_percent: 30,
            operations_per_second_max: None,
            duration: None,
            operations: None,
            seed: 1,
        }
    }
}

/// A running load. Dropping it stops the workers at once, whatever they wait for.
pub struct Load {
    state: Rc<State>,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts the workers. Needs a `LocalSet` around it.
    ///
    /// # Errors
    /// [`Error::BadOptions`] if sizes or percentages make no sense, [`Error::OutOfRange`] if the
    /// ledger's region leaves the disk. Nothing was sent.
    pub fn start<D: BlockDevice>(
        device: D,
        ledger: Rc<RefCell<Ledger>>,
        options: LoadOptions,
    ) -> Result<Self, Error> {
        check(&options, &ledger.borrow(), device.capacity_bytes())?;
        let now = Instant::now();
        let state = Rc::new(State {
            deadline: options.duration.map(|duration| now + duration),
            remaining: Cell::new(options.operations.unwrap_or(u64::MAX)),
            options,
            ledger,
            started: now,
            statistics: RefCell::new(Statistics::new()),
            gap: RefCell::new(GapMeter::new(now)),
            next_turn: Cell::new(now),
            stop: watch::Sender::new(false),
        });
        let mut workers = JoinSet::new();
        for worker in 0..state.options.workers {
            let random = Random::new(state.options.seed, worker as u64);
            workers.spawn_local(work(Rc::clone(&state), device.clone(), random));
        }
        Ok(Self { state, workers })
    }

    /// How it goes, now.
    pub fn statistics(&self) -> Statistics {
        self.state.snapshot()
    }

    /// Whether every worker has ended.
    pub fn is_finished(&self) -> bool {
        // Each worker holds the state until it ends.
        Rc::strong_count(&self.state) == 1
    }

    /// Waits for the end that the options set.
    pub async fn wait(mut self) -> Statistics {
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("no worker panics or is aborted");
        }
        self.state.snapshot()
    }

    /// Stops the load: outstanding I/Os are waited for, no new ones begin.
    pub async fn stop(self) -> Statistics {
        self.state.stop.send_replace(true);
        self.wait().await
    }
}

struct State {
    options: LoadOptions,
    ledger: Rc<RefCell<Ledger>>,
    started: Instant,
    deadline: Option<Instant>,
    remaining: Cell<u64>,
    statistics: RefCell<Statistics>,
    gap: RefCell<GapMeter>,
    /// With a rate limit: when the next I/O is due.
    next_turn: Cell<Instant>,
    stop: watch::Sender<bool>,
}

impl State {
    fn snapshot(&self) -> Statistics {
        let now = Instant::now();
        let mut statistics = self.statistics.borrow().clone();
        statistics.elapsed = now - self.started;
        statistics.gap = self.gap.borrow().read(now);
        statistics
    }

    /// Waits until the next I/O may begin; `false` if there is none.
    async fn turn(&self) -> bool {
        if let Some(rate) = self.options.operations_per_second_max {
            let now = Instant::now();
            let due = self
                .next_turn
                .get()
                .max(now.checked_sub(CATCH_UP).unwrap_or(now));
            self.next_turn
                .set(due + Duration::from_secs_f64(1.0 / rate));
            if due > now {
                self.rest_until(due).await;
            }
        }
        let is_late = self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        if is_late || *self.stop.borrow() {
            return false;
        }
        match self.remaining.get().checked_sub(1) {
            Some(left) => {
                self.remaining.set(left);
                true
            }
            None => false,
        }
    }

    async fn rest_until(&self, until: Instant) {
        let until = self.deadline.map_or(until, |deadline| deadline.min(until));
        let mut stop = self.stop.subscribe();
        tokio::select! {
            () = sleep_until(until) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    fn note_error(&self, error: Error) {
        let mut statistics = self.statistics.borrow_mut();
        statistics.errors += 1;
        statistics.last_error = Some(error);
    }
}

async fn work<D: BlockDevice>(state: Rc<State>, device: D, mut random: Random) {
    while state.turn().await {
        let count = random.size(&state.options.sizes) / BLOCK_BYTES as u32;
        let result = if random.below(100) < u64::from(state.options.read_percent) {
            read(&state, &device, &mut random, count).await
        } else {
            write(&state, &device, &mut random, count).await
        };
        if let Err(error) = result {
            state.note_error(error);
            state.rest_until(Instant::now() + REST).await;
        }
    }
}

async fn read<D: BlockDevice>(
    state: &State,
    device: &D,
    random: &mut Random,
    count: u32,
) -> Result<(), Error> {
    let first = random.place(&state.ledger.borrow(), count);
    let ticket = state.ledger.borrow().begin_read(first, count);
    let bytes = count * BLOCK_BYTES as u32;
    let timed = Timed::begin(state);
    let data = device.read(first * BLOCK_BYTES as u64, bytes).await?;
    let latency = timed.completed();
    let mut statistics = state.statistics.borrow_mut();
    state
        .ledger
        .borrow_mut()
        .end_read(ticket, &data, &mut statistics.findings);
    statistics.reads += 1;
    statistics.bytes_read += u64::from(bytes);
    statistics.read_latency.record(latency);
    Ok(())
}

async fn write<D: BlockDevice>(
    state: &State,
    device: &D,
    random: &mut Random,
    count: u32,
) -> Result<(), Error> {
    let (first, data) = loop {
        let begun = (0..PLACES_TRIED).find_map(|_| {
            let mut ledger = state.ledger.borrow_mut();
            let first = random.place(&ledger, count);
            ledger.begin_write(first, count).map(|data| (first, data))
        });
        match begun {
            Some(begun) => break begun,
            None => state.rest_until(Instant::now() + REST).await,
        }
        if *state.stop.borrow() {
            return Ok(());
        }
    };
    let mut open = OpenWrite {
        ledger: &state.ledger,
        first,
        count,
        is_acknowledged: false,
    };
    let bytes = data.len() as u64;
    let timed = Timed::begin(state);
    device
        .write(first * BLOCK_BYTES as u64, data.into())
        .await?;
    open.is_acknowledged = true;
    let latency = timed.completed();
    let mut statistics = state.statistics.borrow_mut();
    statistics.writes += 1;
    statistics.bytes_written += bytes;
    statistics.write_latency.record(latency);
    Ok(())
}

/// A write that the ledger must learn the end of, also when its worker is dropped.
struct OpenWrite<'a> {
    ledger: &'a RefCell<Ledger>,
    first: u64,
    count: u32,
    is_acknowledged: bool,
}

impl Drop for OpenWrite<'_> {
    fn drop(&mut self) {
        let mut ledger = self.ledger.borrow_mut();
        ledger.end_write(self.first, self.count, self.is_acknowledged);
    }
}

/// An I/O that the gap meter must learn the end of. One that failed has not completed.
struct Timed<'a> {
    state: &'a State,
    since: Instant,
    is_completed: bool,
}

impl<'a> Timed<'a> {
    fn begin(state: &'a State) -> Self {
        let since = Instant::now();
        state.gap.borrow_mut().begin(since);
        Self {
            state,
            since,
            is_completed: false,
        }
    }

    fn completed(mut self) -> Duration {
        self.is_completed = true;
        self.since.elapsed()
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.state
            .gap
            .borrow_mut()
            .end(Instant::now(), self.is_completed);
    }
}

/// SplitMix64: small, seeded, and good enough to choose places.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut mixer = Self(seed);
        let start = mixer.next() ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        Self(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    fn place(&mut self, ledger: &Ledger, count: u32) -> u64 {
        ledger.first_block() + self.below(ledger.blocks() - u64::from(count) + 1)
    }

    fn size(&mut self, sizes: &[SizeWeight]) -> u32 {
        let total: u64 = sizes.iter().map(|size| u64::from(size.weight)).sum();
        let mut rest = self.below(total);
        for size in sizes {
            match rest.checked_sub(size.weight.into()) {
                Some(less) => rest = less,
                None => return size.bytes,
            }
        }
        unreachable!("the weights sum to the total")
    }
}

fn check(options: &LoadOptions, ledger: &Ledger, capacity: u64) -> Result<(), Error> {
    let block = BLOCK_BYTES as u32;
    let fits = |size: &SizeWeight| {
        size.bytes > 0
            && size.bytes.is_multiple_of(block)
            && u64::from(size.bytes / block) <= ledger.blocks()
    };
    let reason = if options.workers == 0 {
        "a load needs at least one worker"
    } else if !options.sizes.iter().all(fits) {
        "every size must be a multiple of 4096 bytes and fit the region"
    } else if options.sizes.iter().all(|size| size.weight == 0) {
        "at least one size needs a weight"
    } else if options.read_percent > 100 {
        "the share of reads is at most 100 percent"
    } else if options
        .operations_per_second_max
        .is_some_and(|rate| !(1e-3..=1e9).contains(&rate))
    {
        "the rate limit must lie between 0.001 and 10^9 a second"
    } else {
        return region_fits(ledger, capacity);
    };
    Err(Error::BadOptions { reason })
}

/// [`Error::OutOfRange`] unless the ledger's region lies on a disk of `capacity` bytes.
pub(crate) fn region_fits(ledger: &Ledger, capacity: u64) -> Result<(), Error> {
    let capacity_blocks = capacity / BLOCK_BYTES as u64;
    let end = ledger.first_block().checked_add(ledger.blocks());
    if end.is_some_and(|end| end <= capacity_blocks) {
        return Ok(());
    }
    Err(Error::OutOfRange {
        offset: ledger.first_block().saturating_mul(BLOCK_BYTES as u64),
        length: ledger.blocks().saturating_mul(BLOCK_BYTES as u64),
        capacity,
        block_length: BLOCK_BYTES as u32,
    })
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
