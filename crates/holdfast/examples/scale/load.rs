//! Load on many volumes through the project's own initiator, with the time of each I/O.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_initiator::{
    BLOCK_BYTES, BlockDevice, Disk, DiskOptions, Error, Ledger, Load, LoadOptions, SessionOptions,
    SizeWeight,
};
use tokio::time::{Instant, sleep};

const INITIATOR: &str = "iqn.2026-11.io.holdfast:scale";
/// I/Os a second on each volume: fifty volumes leave the two cores room for what is measured.
const RATE: f64 = 10.0;
/// Blocks of each volume that the load uses: they lie in one slice.
const REGION_BLOCKS: u64 = 256;
/// Volumes that are filled at the same time.
const FILLED_AT_ONCE: usize = 16;
/// One write that fills.
const FILLED_BYTES: u64 = 256 << 10;
/// Distance of the blocks that fill a volume: one in each slice.
const STRIDE: u64 = 1 << 30;

/// Begin and end of every I/O on one volume.
type Times = Rc<RefCell<Vec<(Instant, Instant)>>>;

/// A disk that notes when its I/Os began and ended.
#[derive(Clone)]
struct Watched {
    disk: Disk,
    times: Times,
}

impl Watched {
    async fn watched<T>(&self, io: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let begun = Instant::now();
        let outcome = io.await;
        if outcome.is_ok() {
            self.times.borrow_mut().push((begun, Instant::now()));
        }
        outcome
    }
}

impl BlockDevice for Watched {
    fn capacity_bytes(&self) -> u64 {
        self.disk.capacity_bytes()
    }

    fn read(&self, offset: u64, length: u32) -> impl Future<Output = Result<Bytes, Error>> {
        self.watched(self.disk.read(offset, length))
    }

    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<(), Error>> {
        self.watched(self.disk.write(offset, data))
    }
}

/// One volume under load.
struct Loaded {
    name: String,
    disk: Disk,
    times: Times,
    load: Load,
}

/// Volumes under load.
pub(crate) struct Traffic {
    volumes: Vec<Loaded>,
}

async fn open(portals: &[SocketAddr], target: &str) -> anyhow::Result<Disk> {
    let session = SessionOptions::new(INITIATOR);
    let options = DiskOptions::new(portals.to_vec(), target, session);
    Disk::open(options)
        .await
        .with_context(|| format!("logging in to {target}"))
}

impl Traffic {
    /// Logs in to each of these volumes, by name and target, and begins. `seed` must be another
    /// each time; the first `REGION_BLOCKS` from `first_block` on have to read as zeroes.
    pub(crate) async fn start(
        portals: &[SocketAddr],
        volumes: &[(String, String)],
        first_block: u64,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let mut loaded = Vec::new();
        for (number, (name, target)) in (0..).zip(volumes) {
            let disk = open(portals, target).await?;
            let times = Times::default();
            let watched = Watched {
                disk: disk.clone(),
                times: times.clone(),
            };
            let ledger = Ledger::new(seed + number, first_block, REGION_BLOCKS);
            let options = LoadOptions {
                workers: 1,
                sizes: vec![SizeWeight {
                    bytes: BLOCK_BYTES as u32,
                    weight: 1,
                }],
                read_percent: 30,
                operations_per_second_max: Some(RATE),
                seed: seed + number,
                ..LoadOptions::default()
            };
            let load = Load::start(watched, Rc::new(RefCell::new(ledger)), options)?;
            loaded.push(Loaded {
                name: name.clone(),
                disk,
                times,
                load,
            });
        }
        Ok(Self { volumes: loaded })
    }

    /// How long after `moment` each of the named volumes had its first I/O that began after it;
    /// waits for that up to `limit`.
    pub(crate) async fn first_after(
        &self,
        names: &[String],
        moment: Instant,
        limit: Duration,
    ) -> anyhow::Result<Vec<Duration>> {
        let deadline = Instant::now() + limit;
        let mut first = Vec::new();
        for volume in self.volumes.iter().filter(|one| names.contains(&one.name)) {
            loop {
                let found = {
                    let times = volume.times.borrow();
                    let after = times.iter().find(|(begun, _)| *begun >= moment);
                    after.map(|(_, ended)| *ended - moment)
                };
                if let Some(took) = found {
                    first.push(took);
                    break;
                }
                if Instant::now() >= deadline {
                    bail!("no I/O on {} for {} s", volume.name, limit.as_secs());
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(first)
    }

    /// The longest I/O of those that ended after `moment`, or of all.
    pub(crate) fn longest_since(&self, moment: Option<Instant>) -> Duration {
        let mut longest = Duration::ZERO;
        for volume in &self.volumes {
            let times = volume.times.borrow();
            let after = times
                .iter()
                .filter(|(_, ended)| moment.is_none_or(|at| *ended >= at));
            let took = after.map(|(begun, ended)| *ended - *begun).max();
            longest = longest.max(took.unwrap_or_default());
        }
        longest
    }

    /// Ends the load. An I/O that failed or a block that was not as written is an error.
    pub(crate) async fn stop(self) -> anyhow::Result<u64> {
        let mut operations = 0;
        for volume in self.volumes {
            let statistics = volume.load.stop().await;
            operations += statistics.reads + statistics.writes;
            let findings = &statistics.findings;
            if statistics.errors > 0 || findings.lost + findings.stale + findings.corrupt > 0 {
                bail!(
                    "{}: {} I/Os failed ({:?}), {} lost, {} stale, {} corrupt blocks",
                    volume.name,
                    statistics.errors,
                    statistics.last_error,
                    findings.lost,
                    findings.stale,
                    findings.corrupt
                );
            }
            volume.disk.close().await?;
        }
        Ok(operations)
    }
}

/// Writes 4 KiB into each of the first `slices` slices of each volume, by target.
pub(crate) async fn fill(
    portals: &[SocketAddr],
    targets: &[String],
    slices: u64,
    mut progress: impl FnMut(usize),
) -> anyhow::Result<()> {
    let filling = stream::iter(targets).map(async |target| {
        let disk = open(portals, target).await?;
        for slice in 0..slices {
            // Behind the blocks that the load uses.
            let offset = slice * STRIDE + (STRIDE / 2);
            let data = Bytes::from(vec![slice as u8 | 1; BLOCK_BYTES]);
            let written = disk.write(offset, data).await;
            written.with_context(|| format!("writing to slice {slice} of {target}"))?;
        }
        disk.close().await?;
        anyhow::Ok(())
    });
    let mut filled = filling.buffer_unordered(FILLED_AT_ONCE);
    let mut count = 0;
    while filled.try_next().await?.is_some() {
        count += 1;
        progress(count);
    }
    Ok(())
}

/// Writes so many bytes into each of these slices of a volume.
pub(crate) async fn fill_slices(
    portals: &[SocketAddr],
    target: String,
    slices: Vec<u64>,
    bytes: u64,
) -> anyhow::Result<()> {
    let disk = open(portals, &target).await?;
    for slice in slices {
        // Behind the blocks that the load uses.
        let (mut offset, end) = (
            slice * STRIDE + STRIDE / 2,
            slice * STRIDE + STRIDE / 2 + bytes,
        );
        while offset < end {
            let length = FILLED_BYTES
                .min(end - offset)
                .next_multiple_of(BLOCK_BYTES as u64);
            let data = Bytes::from(vec![slice as u8 | 1; length as usize]);
            let written = disk.write(offset, data).await;
            written.with_context(|| format!("writing to slice {slice} of {target}"))?;
            offset += length;
        }
    }
    disk.close().await?;
    Ok(())
}
