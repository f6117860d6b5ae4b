//! Measures the store on a real disk: `store_bench MEASUREMENT DIRECTORY [OPTIONS]`. Each
//! measurement makes its files in the directory, prints one line of JSON, and removes them.
//! `cargo xtask bench store` runs all of them beside fio.

#![allow(clippy::disallowed_methods, reason = "a program of the host")]

mod metered;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_runtime::Runtime;
use holdfast_runtime::host::{self, HostDirectory};
use holdfast_store::{
    BLOCK_BYTES, Body, CopyState, OperationId, Record, Seq, SliceKey, Store, StoreOptions, View,
};
use serde::Serialize;

use crate::metered::Metered;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks of a slice, as nodes have it.
const SLICE_BLOCKS: u32 = 1 << 20;
const HOLLOW: u8 = 0x5a;

const USAGE: &str = "usage: store_bench MEASUREMENT DIRECTORY [NUMBER...]
  append DIRECTORY DEPTH SECONDS           durable appends of one block
  overwrite DIRECTORY HOT_MIB JOURNAL_MIB TOTAL_MIB
  amplification DIRECTORY HOME_MIB         random overwrites of a home at 80 %
  fill-journal DIRECTORY JOURNAL_MIB       fills the journal, and dies
  restart DIRECTORY JOURNAL_MIB            opens what fill-journal left
  make-map DIRECTORY MAPPED_GIB            a map without the blocks' bytes
  read-map DIRECTORY MAPPED_GIB            its memory, and disk reads of cold reads
  space DIRECTORY HOME_MIB                 fills the home, unmaps all, waits for the space";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [measurement, directory, numbers @ ..] = arguments.as_slice() else {
        return eprintln!("{USAGE}");
    };
    let numbers: Vec<u64> = numbers
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let directory = PathBuf::from(directory);
    let bench = |hollow| {
        let bench = Bench::new(&directory, hollow);
        if !matches!(measurement.as_str(), "restart" | "read-map") {
            // What a run that was broken off has left.
            bench.remove();
        }
        bench
    };
    host::run(
        async |runtime| match (measurement.as_str(), numbers.as_slice()) {
            ("append", [depth, seconds]) => append(bench(None), runtime, *depth, *seconds).await,
            ("overwrite", [hot, journal, total]) => {
                overwrite(bench(None), runtime, *hot, *journal, *total).await;
            }
            ("amplification", [home]) => amplification(bench(Some(HOLLOW)), runtime, *home).await,
            ("fill-journal", [journal]) => fill_journal(bench(None), runtime, *journal).await,
            ("restart", [journal]) => restart(bench(None), runtime, *journal).await,
            ("make-map", [mapped]) => make_map(bench(Some(HOLLOW)), runtime, *mapped).await,
            ("read-map", [mapped]) => read_map(bench(Some(HOLLOW)), runtime, *mapped).await,
            ("space", [home]) => space(bench(Some(HOLLOW)), runtime, *home).await,
            _ => eprintln!("{USAGE}"),
        },
    );
}

/// One measurement's files.
struct Bench {
    path: PathBuf,
    directory: Metered,
}

impl Bench {
    fn new(path: &Path, hollow: Option<u8>) -> Self {
        let directory = HostDirectory::open(path).expect("the directory");
        Self {
            path: path.to_owned(),
            directory: Metered::new(directory, hollow),
        }
    }

    async fn open(&self, runtime: &Runtime, journal_bytes: u64, home_bytes: u64) -> Rc<Store> {
        let options = StoreOptions {
            identity: *b"store benchmark.",
            journal_bytes,
            home_bytes,
            slice_blocks: SLICE_BLOCKS,
        };
        let directory = Rc::new(self.directory.clone());
        let opened = Store::open(runtime.clone(), directory, options).await;
        opened.expect("the store opens").0
    }

    fn home_written(&self) -> u64 {
        self.directory.meter("home").written_bytes.get()
    }

    fn remove(&self) {
        for area in ["journal", "home", "facts"] {
            // What is left over is only space.
            let _ = std::fs::remove_file(self.path.join(area));
        }
    }
}

fn slice(number: u64) -> SliceKey {
    SliceKey {
        volume: 1,
        slice: (number / u64::from(SLICE_BLOCKS)) as u32,
    }
}

/// A cheap permutation-like sequence of numbers: the same on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A client that keeps `depth` writes under way, each stable as soon as it is durable.
struct Writer {
    store: Rc<Store>,
    data: Bytes,
    seq: u64,
    depth: usize,
    latencies: Vec<Duration>,
}

impl Writer {
    fn new(store: &Rc<Store>, depth: usize, fill: u8) -> Self {
        Self {
            store: store.clone(),
            data: Bytes::from(vec![fill; BLOCK_BYTES]),
            seq: 0,
            depth,
            latencies: Vec::new(),
        }
    }

    fn record(&mut self, number: u64, blocks: Option<u32>) -> Record {
        self.seq += 1;
        let first_block = (number % u64::from(SLICE_BLOCKS)) as u32;
        let body = match blocks {
            None => Body::Write {
                first_block,
                data: self.data.clone(),
            },
            Some(blocks) => Body::Zero {
                first_block,
                blocks,
            },
        };
        Record {
            slice: slice(number),
            view: View(1),
            seq: Seq(self.seq),
            stable: Seq(0),
            operation: OperationId {
                origin: 1,
                number: self.seq,
            },
            body,
        }
    }

    /// Writes the blocks that `next` names until it names none, or the store is full. Answers
    /// how many were written.
    async fn write(&mut self, mut next: impl FnMut() -> Option<u64>) -> u64 {
        let mut under_way = FuturesUnordered::new();
        let mut done = 0;
        loop {
            while under_way.len() < self.depth {
                let Some(number) = next() else { break };
                let record = self.record(number, None);
                let (key, seq) = (record.slice, record.seq);
                let begun = Instant::now();
                let appended = self.store.append(vec![record]);
                under_way.push(async move { (appended.await, key, seq, begun.elapsed()) });
            }
            match under_way.next().await {
                Some((Ok(()), key, seq, took)) => {
                    self.store.set_stable(key, seq);
                    self.latencies.push(took);
                    done += 1;
                }
                Some((Err(error), ..)) => {
                    eprintln!("after {done} writes: {error}");
                    return done;
                }
                None => return done,
            }
        }
    }

    /// Overwrites so many blocks at random of the first `blocks`.
    async fn overwrite(&mut self, dice: &mut Dice, blocks: u64, count: u64) -> u64 {
        let mut left = count;
        self.write(|| {
            left = left.checked_sub(1)?;
            Some(dice.below(blocks))
        })
        .await
    }

    fn percentile_us(&mut self, share: f64) -> f64 {
        self.latencies.sort_unstable();
        let place = (self.latencies.len() as f64 * share) as usize;
        let found = self
            .latencies
            .get(place.min(self.latencies.len().saturating_sub(1)));
        found.map_or(0.0, |time| time.as_nanos() as f64 / 1000.0)
    }
}

async fn in_sync(store: &Store, slices: u64) {
    for number in 0..slices {
        let key = slice(number * u64::from(SLICE_BLOCKS));
        store
            .set_copy_state(key, CopyState::InSync)
            .await
            .expect("a copy");
    }
}

fn print(figures: &impl Serialize) {
    println!("{}", serde_json::to_string(figures).expect("plain figures"));
}

#[derive(Serialize)]
struct Appended {
    depth: u64,
    writes_per_second: f64,
    mean_us: f64,
    median_us: f64,
    p99_us: f64,
}

async fn append(bench: Bench, runtime: Runtime, depth: u64, seconds: u64) {
    let store = bench.open(&runtime, 512 * MIB, 4096 * MIB).await;
    in_sync(&store, 1).await;
    let mut writer = Writer::new(&store, depth as usize, 7);
    let mut dice = Dice(1);
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    // Small enough that the ring replaces most of it: what is measured is the journal.
    let blocks = 16 * MIB / BLOCK;
    let done = writer
        .write(|| (Instant::now() < end).then(|| dice.below(blocks)))
        .await;
    let took = begun.elapsed().as_secs_f64();
    print(&Appended {
        depth,
        writes_per_second: done as f64 / took,
        mean_us: took * 1e6 * depth as f64 / done as f64,
        median_us: writer.percentile_us(0.5),
        p99_us: writer.percentile_us(0.99),
    });
    drop((writer, store));
    bench.remove();
}

#[derive(Serialize)]
struct Overwritten {
    hot_mib: u64,
    journal_mib: u64,
    written_mib: u64,
    home_written_mib: u64,
    destaged_per_byte: f64,
    mib_per_second: f64,
    p99_us: f64,
    longest_us: f64,
}

async fn overwrite(bench: Bench, runtime: Runtime, hot: u64, journal: u64, total: u64) {
    let store = bench
        .open(&runtime, journal * MIB, 2 * hot * MIB + 512 * MIB)
        .await;
    in_sync(&store, 1).await;
    let blocks = hot * MIB / BLOCK;
    let mut dice = Dice(1);
    let mut writer = Writer::new(&store, 32, 7);
    // Until the ring has wrapped: then everything is as it stays.
    let ring = journal * MIB / BLOCK;
    writer.overwrite(&mut dice, blocks, ring).await;
    writer.latencies.clear();
    let home_before = bench.home_written();
    let begun = Instant::now();
    let total = total * MIB / BLOCK;
    let done = writer.overwrite(&mut dice, blocks, total).await;
    let took = begun.elapsed().as_secs_f64();
    let home = bench.home_written() - home_before;
    print(&Overwritten {
        hot_mib: hot,
        journal_mib: journal,
        written_mib: done * BLOCK / MIB,
        home_written_mib: home / MIB,
        destaged_per_byte: home as f64 / (done * BLOCK) as f64,
        mib_per_second: (done * BLOCK / MIB) as f64 / took,
        p99_us: writer.percentile_us(0.99),
        longest_us: writer.percentile_us(1.0),
    });
    drop((writer, store));
    bench.remove();
}

#[derive(Serialize)]
struct Amplified {
    home_mib: u64,
    capacity_mib: u64,
    used_mib: u64,
    overwritten_mib: u64,
    home_written_mib: u64,
    collected_mib: u64,
    write_amplification: f64,
}

async fn amplification(bench: Bench, runtime: Runtime, home: u64) {
    let store = bench.open(&runtime, 64 * MIB, home * MIB).await;
    in_sync(&store, 1).await;
    let capacity = store.usage().home_bytes;
    let blocks = capacity / BLOCK * 4 / 5;
    let mut writer = Writer::new(&store, 64, HOLLOW);
    let mut sequence = 0..blocks;
    writer.write(|| sequence.next()).await;
    let mut dice = Dice(1);
    // Twice the capacity until the segments are as mixed as they get, then once more.
    writer.overwrite(&mut dice, blocks, 2 * blocks).await;
    let (home_before, collected_before) =
        (bench.home_written(), store.usage().home_collected_bytes);
    let done = writer.overwrite(&mut dice, blocks, 2 * blocks).await;
    let usage = store.usage();
    let written = bench.home_written() - home_before;
    print(&Amplified {
        home_mib: home,
        capacity_mib: capacity / MIB,
        used_mib: usage.home_used_bytes / MIB,
        overwritten_mib: done * BLOCK / MIB,
        home_written_mib: written / MIB,
        collected_mib: (usage.home_collected_bytes - collected_before) / MIB,
        write_amplification: written as f64 / (done * BLOCK) as f64,
    });
    drop((writer, store));
    bench.remove();
}

/// Fills the journal with records that are not stable yet, so that none leaves it, and dies.
async fn fill_journal(bench: Bench, runtime: Runtime, journal: u64) {
    let store = bench.open(&runtime, journal * MIB, 4096 * MIB).await;
    in_sync(&store, 1).await;
    let mut writer = Writer::new(&store, 64, 7);
    let mut number = 0;
    loop {
        let records = (0..64).map(|_| {
            number += 1;
            writer.record(number, None)
        });
        let appended = store.append(records.collect());
        let full = runtime
            .timeout(Duration::from_secs(2), appended)
            .await
            .is_none();
        if full {
            break;
        }
    }
    let usage = store.usage();
    println!(
        "{{\"journal_used_mib\":{}}}",
        usage.journal_used_bytes / MIB
    );
    std::process::exit(0);
}

#[derive(Serialize)]
struct Restarted {
    journal_used_mib: u64,
    seconds: f64,
}

async fn restart(bench: Bench, runtime: Runtime, journal: u64) {
    let begun = Instant::now();
    let store = bench.open(&runtime, journal * MIB, 4096 * MIB).await;
    let seconds = begun.elapsed().as_secs_f64();
    print(&Restarted {
        journal_used_mib: store.usage().journal_used_bytes / MIB,
        seconds,
    });
    drop(store);
    bench.remove();
}

#[derive(Serialize)]
struct Mapped {
    mapped_gib: u64,
    resident_mib: f64,
    resident_mib_per_tib: f64,
    open_seconds: f64,
    cold_reads: u64,
    disk_reads_per_cold_read: f64,
    disk_reads_most: u64,
    map_mib: u64,
}

fn home_for(mapped_gib: u64) -> u64 {
    mapped_gib * 1024 * MIB * 5 / 4 + 256 * MIB
}

async fn make_map(bench: Bench, runtime: Runtime, mapped: u64) {
    let blocks = mapped * 1024 * MIB / BLOCK;
    let slices = blocks.div_ceil(u64::from(SLICE_BLOCKS));
    let store = bench.open(&runtime, 256 * MIB, home_for(mapped)).await;
    in_sync(&store, slices).await;
    let mut writer = Writer::new(&store, 256, HOLLOW);
    // Far apart from one another, so that neighbours in the map are none on the disk: every
    // block is a fact of its own in any case.
    let step = 7_368_787 % blocks;
    let mut at = 0;
    let mut left = blocks;
    writer
        .write(|| {
            left = left.checked_sub(1)?;
            at = (at + step) % blocks;
            Some(at)
        })
        .await;
    store.flush().await.expect("a round");
    store.compact().await.expect("a merge");
    let map_mib = store.usage().home_map_bytes / MIB;
    println!("{{\"mapped_gib\":{mapped},\"map_mib\":{map_mib}}}");
}

/// In a process of its own: nothing is cached, and memory has held nothing else.
async fn read_map(bench: Bench, runtime: Runtime, mapped: u64) {
    let blocks = mapped * 1024 * MIB / BLOCK;
    let before = resident_bytes();
    let begun = Instant::now();
    let store = bench.open(&runtime, 256 * MIB, home_for(mapped)).await;
    let open_seconds = begun.elapsed().as_secs_f64();
    let resident = resident_bytes().saturating_sub(before);
    let meter = bench.directory.meter("home");
    let mut dice = Dice(9);
    let (mut reads, mut most) = (0, 0);
    let cold_reads = 2000;
    for _ in 0..cold_reads {
        let number = dice.below(blocks);
        let block = (number % u64::from(SLICE_BLOCKS)) as u32;
        let earlier = meter.reads.get();
        let read = store.read(slice(number), block, 1).await.expect("a read");
        assert!(read.iter().all(|byte| *byte == HOLLOW), "block {number}");
        let now = meter.reads.get() - earlier;
        (reads, most) = (reads + now, most.max(now));
    }
    let mib = resident as f64 / MIB as f64;
    print(&Mapped {
        mapped_gib: mapped,
        resident_mib: mib,
        resident_mib_per_tib: mib * 1024.0 / mapped as f64,
        open_seconds,
        cold_reads,
        disk_reads_per_cold_read: reads as f64 / cold_reads as f64,
        disk_reads_most: most,
        map_mib: store.usage().home_map_bytes / MIB,
    });
    drop(store);
    bench.remove();
}

#[derive(Serialize)]
struct Freed {
    home_mib: u64,
    filled_mib: u64,
    refused: bool,
    seconds_until_free: f64,
}

async fn space(bench: Bench, runtime: Runtime, home: u64) {
    let store = bench.open(&runtime, 64 * MIB, home * MIB).await;
    in_sync(&store, 1).await;
    let mut writer = Writer::new(&store, 32, HOLLOW);
    let capacity = store.usage().home_bytes / BLOCK;
    let mut sequence = 0..2 * capacity;
    let filled = writer.write(|| sequence.next()).await;
    let begun = Instant::now();
    let unmap = writer.record(0, Some(SLICE_BLOCKS));
    let seq = unmap.seq;
    store
        .append(vec![unmap])
        .await
        .expect("zeroing takes no space");
    store.set_stable(slice(0), seq);
    while store.usage().home_used_bytes > 0 {
        runtime.sleep(Duration::from_millis(5)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut again = 0..filled;
    assert_eq!(
        writer.write(|| again.next()).await,
        filled,
        "all of it can be used again"
    );
    print(&Freed {
        home_mib: home,
        filled_mib: filled * BLOCK / MIB,
        refused: filled < 2 * capacity,
        seconds_until_free: seconds,
    });
    drop((writer, store));
    bench.remove();
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.expect("VmRSS") * 1024
}
