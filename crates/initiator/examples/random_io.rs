//! Random I/O of one size at a fixed queue depth, without verification: as little work on this
//! side as possible, so that the target is what is measured.
//!
//! ```text
//! cargo run --release -p holdfast-initiator --example random_io -- \
//!     --portal 127.0.0.1:3260 --target iqn.2026-11.example:disk --region-mib 256 --seconds 5
//! ```
//!
//! `--fill` writes the whole region first; `--write` writes instead of reading. The last line is a
//! JSON object; with `--pid` it holds what that process used meanwhile, by `/proc/PID/stat`.
#![allow(
    clippy::disallowed_methods,
    reason = "a program of its own, outside the simulator"
)]

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Parser;
use holdfast_initiator::{BlockRange, Chap, Histogram, Secret, Session, SessionOptions};

/// Random I/O at a fixed queue depth. With --write or --fill it overwrites the region.
#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    portal: SocketAddr,
    #[arg(long)]
    target: String,
    #[arg(long, default_value_t = 0)]
    lun: u16,
    #[arg(long, default_value = "iqn.2026-11.io.holdfast:bench")]
    initiator: String,
    /// CHAP user; the secret comes from the environment variable CHAP_SECRET.
    #[arg(long)]
    chap_user: Option<String>,
    #[arg(long, default_value_t = 256)]
    region_mib: u64,
    #[arg(long, default_value_t = 4)]
    size_kib: u32,
    /// I/Os under way at once.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Measured time, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Write instead of reading.
    #[arg(long)]
    write: bool,
    /// Write the whole region and do nothing else.
    #[arg(long)]
    fill: bool,
    /// The process whose processor time is to be told.
    #[arg(long)]
    pid: Option<u32>,
}

const FILL_BYTES: u32 = 256 << 10;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(arguments))
}

struct Disk {
    session: Session,
    lun: u16,
    block_bytes: u32,
}

impl Disk {
    fn range(&self, offset: u64, bytes: u32) -> BlockRange {
        BlockRange {
            first: offset / u64::from(self.block_bytes),
            blocks: bytes / self.block_bytes,
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut options = SessionOptions::new(&arguments.initiator);
    options.queue_depth = arguments.depth.max(8);
    if let Some(user) = &arguments.chap_user {
        let secret = std::env::var("CHAP_SECRET").context("CHAP_SECRET is not set")?;
        options.chap = Some(Chap::new(user, Secret::new(secret)));
    }
    let session = Session::connect(arguments.portal, &arguments.target, &options).await?;
    session.clear_attentions(arguments.lun).await?;
    let capacity = session.read_capacity(arguments.lun).await?;
    let block_bytes = capacity.block_length;
    let region_bytes = arguments.region_mib << 20;
    if region_bytes > capacity.blocks * u64::from(block_bytes) {
        bail!("the disk is smaller than the region");
    }
    let disk = Rc::new(Disk {
        session,
        lun: arguments.lun,
        block_bytes,
    });
    if arguments.fill {
        return fill(disk, region_bytes, arguments.depth).await;
    }
    let size = arguments.size_kib << 10;
    let places = region_bytes / u64::from(size);
    let content = noise(7, size as usize);
    let latency = Rc::new(RefCell::new(Histogram::default()));
    let phase = Rc::new(Cell::new(Phase::WarmUp));
    let workers: Vec<_> = (0..arguments.depth as u64)
        .map(|worker| {
            let (disk, latency) = (disk.clone(), latency.clone());
            let (phase, content) = (phase.clone(), content.clone());
            let write = arguments.write;
            tokio::task::spawn_local(async move {
                let mut random = Random(worker.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                while phase.get() != Phase::Over {
                    let place = random.next() % places;
                    let range = disk.range(place * u64::from(size), size);
                    let begin = Instant::now();
                    if write {
                        disk.session.write(disk.lun, range, content.clone()).await?;
                    } else {
                        disk.session.read(disk.lun, range, disk.block_bytes).await?;
                    }
                    if phase.get() == Phase::Measured {
                        latency.borrow_mut().record(begin.elapsed());
                    }
                }
                anyhow::Ok(())
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs_f64(arguments.warm_up)).await;
    let (begin, before) = (Instant::now(), ticks(arguments.pid)?);
    phase.set(Phase::Measured);
    tokio::time::sleep(Duration::from_secs_f64(arguments.seconds)).await;
    phase.set(Phase::Over);
    let (elapsed, after) = (begin.elapsed(), ticks(arguments.pid)?);
    for worker in workers {
        worker.await??;
    }
    let latency = latency.borrow();
    let ios = latency.count();
    let micros = |quantile| latency.quantile(quantile).as_secs_f64() * 1e6;
    println!(
        "{{\"ios\":{ios},\"seconds\":{:.3},\"iops\":{:.0},\"p50_us\":{:.1},\"p99_us\":{:.1},\
         \"max_us\":{:.1},\"cpu_ticks\":{}}}",
        elapsed.as_secs_f64(),
        ios as f64 / elapsed.as_secs_f64(),
        micros(0.5),
        micros(0.99),
        latency.max().as_secs_f64() * 1e6,
        after - before,
    );
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measured,
    Over,
}

async fn fill(disk: Rc<Disk>, region_bytes: u64, depth: usize) -> anyhow::Result<()> {
    let next = Rc::new(Cell::new(0));
    let workers: Vec<_> = (0..depth.min(16))
        .map(|_| {
            let (disk, next) = (disk.clone(), next.clone());
            tokio::task::spawn_local(async move {
                while next.get() < region_bytes {
                    let offset = next.get();
                    next.set(offset + u64::from(FILL_BYTES));
                    let range = disk.range(offset, FILL_BYTES);
                    let content = noise(offset, FILL_BYTES as usize);
                    disk.session.write(disk.lun, range, content).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

/// User and system time of a process since its start, in clock ticks.
fn ticks(pid: Option<u32>) -> anyhow::Result<u64> {
    let Some(pid) = pid else { return Ok(0) };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("no process {pid}"))?;
    // The name, in parentheses, may hold anything; fields 14 and 15 count from before it.
    let rest = stat.rsplit_once(") ").context("an odd /proc/PID/stat")?.1;
    let fields: Vec<&str> = rest.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Bytes that no target could take for zeroes or for each other.
fn noise(seed: u64, bytes: usize) -> Bytes {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let words = (0..bytes / 8).flat_map(|_| random.next().to_le_bytes());
    words.collect::<Vec<u8>>().into()
}

/// xorshift64*: places and content need no better.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
