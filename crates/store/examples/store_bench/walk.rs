//! Going through the block map, with its read-ahead and without.

use std::time::{Duration, Instant};

use holdfast_runtime::Runtime;
use holdfast_store::{Seq, Store};
use serde::Serialize;

use crate::process::{forget_peak, peak_bytes, processor_seconds, resident_bytes};
use crate::writer::Dice;
use crate::{Bench, HOLLOW, MIB, SLICE_BLOCKS, map, print, slice};

/// Blocks that are asked for at once.
const BLOCKS_AT_ONCE: usize = 16 * 1024;
/// Blocks that are read here and there.
const JUMPS: u64 = 500;

/// How to go through the map.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) mapped_gib: u64,
    pub(crate) ahead: bool,
    /// Added to each disk read.
    pub(crate) latency_us: u64,
    /// Bound of each generation of the cache of leaves; 0 for the store's own.
    pub(crate) cached_facts: usize,
}

#[derive(Serialize)]
struct Walked {
    ahead: bool,
    latency_us: u64,
    /// Facts that were told, or blocks that were read.
    found: u64,
    disk_reads: u64,
    disk_reads_each: f64,
    read_mib: f64,
    seconds: f64,
    found_per_second: f64,
    processor_seconds: f64,
    /// What the process grew by meanwhile, at most.
    resident_mib: f64,
    /// Leaves in the cache and on their way, at most, by the store's own count.
    held_mib: f64,
    /// What they may take at most.
    bound_mib: f64,
}

/// Memory of leaves, in bytes.
#[derive(Default)]
struct Held {
    most_bytes: u64,
    bound_bytes: u64,
}

impl Held {
    fn note(&mut self, store: &Store) {
        let (held, bound) = store.leaf_memory();
        self.most_bytes = self.most_bytes.max(held as u64);
        self.bound_bytes = bound as u64;
    }
}

/// Asks for everything that ever changed, as a resync of all slices does.
pub(crate) async fn in_order(bench: Bench, runtime: Runtime, way: Way) {
    let slices = map::blocks(way.mapped_gib).div_ceil(u64::from(SLICE_BLOCKS));
    walk(bench, runtime, way, async |store, held| {
        let mut found = 0;
        for number in 0..slices {
            let key = slice(number * u64::from(SLICE_BLOCKS));
            let mut from = 0;
            loop {
                let changed = store.changed_since(key, Seq(0), from, BLOCKS_AT_ONCE).await;
                found += changed.len() as u64;
                held.note(store);
                let Some((last, ..)) = changed.last().filter(|_| changed.len() == BLOCKS_AT_ONCE)
                else {
                    break;
                };
                from = last + 1;
            }
        }
        assert_eq!(found, map::blocks(way.mapped_gib), "facts");
        found
    })
    .await;
}

/// Reads single blocks far from each other.
pub(crate) async fn at_random(bench: Bench, runtime: Runtime, way: Way) {
    let blocks = map::blocks(way.mapped_gib);
    walk(bench, runtime, way, async |store, held| {
        let mut dice = Dice::new(9);
        for _ in 0..JUMPS {
            let number = dice.below(blocks);
            let block = (number % u64::from(SLICE_BLOCKS)) as u32;
            let read = store.read(slice(number), block, 1).await.expect("a read");
            assert!(read.iter().all(|byte| *byte == HOLLOW), "block {number}");
            held.note(store);
        }
        JUMPS
    })
    .await;
}

async fn walk(
    bench: Bench,
    runtime: Runtime,
    way: Way,
    through: impl AsyncFnOnce(&Store, &mut Held) -> u64,
) {
    let store = map::open(&bench, &runtime, way.mapped_gib).await;
    store.set_leaf_reads(
        way.ahead,
        (way.cached_facts > 0).then_some(way.cached_facts),
    );
    let meter = bench.directory.meter("home");
    let (reads, bytes) = (meter.reads.get(), meter.read_bytes.get());
    bench
        .directory
        .set_read_latency(Duration::from_micros(way.latency_us));
    forget_peak();
    let (resident, processor, begun) = (resident_bytes(), processor_seconds(), Instant::now());
    let mut held = Held::default();
    let found = through(&store, &mut held).await;
    let seconds = begun.elapsed().as_secs_f64();
    let processor_seconds = processor_seconds() - processor;
    let reads = meter.reads.get() - reads;
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    print(&Walked {
        ahead: way.ahead,
        latency_us: way.latency_us,
        found,
        disk_reads: reads,
        disk_reads_each: reads as f64 / found as f64,
        read_mib: mib(meter.read_bytes.get() - bytes),
        seconds,
        found_per_second: found as f64 / seconds,
        processor_seconds,
        resident_mib: mib(peak_bytes().saturating_sub(resident)),
        held_mib: mib(held.most_bytes),
        bound_mib: mib(held.bound_bytes),
    });
}
