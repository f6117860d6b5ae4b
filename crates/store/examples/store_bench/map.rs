//! The block map: its memory, and what a cold read costs.

use std::rc::Rc;
use std::time::Instant;

use holdfast_runtime::Runtime;
use holdfast_store::Store;
use serde::Serialize;

use crate::process::resident_bytes;
use crate::writer::{Dice, Writer};
use crate::{BLOCK, Bench, HOLLOW, MIB, SLICE_BLOCKS, in_sync, print, slice};

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

/// Blocks of so much data.
pub(crate) fn blocks(mapped_gib: u64) -> u64 {
    mapped_gib * 1024 * MIB / BLOCK
}

/// Opens a store with room for so much data.
pub(crate) async fn open(bench: &Bench, runtime: &Runtime, mapped_gib: u64) -> Rc<Store> {
    let home = mapped_gib * 1024 * MIB * 5 / 4 + 256 * MIB;
    bench.open(runtime, 256 * MIB, home).await
}

pub(crate) async fn make(bench: Bench, runtime: Runtime, mapped: u64) {
    let blocks = blocks(mapped);
    let slices = blocks.div_ceil(u64::from(SLICE_BLOCKS));
    let store = open(&bench, &runtime, mapped).await;
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
pub(crate) async fn read(bench: Bench, runtime: Runtime, mapped: u64) {
    let blocks = blocks(mapped);
    let before = resident_bytes();
    let begun = Instant::now();
    let store = open(&bench, &runtime, mapped).await;
    let open_seconds = begun.elapsed().as_secs_f64();
    let resident = resident_bytes().saturating_sub(before);
    let meter = bench.directory.meter("home");
    let mut dice = Dice::new(9);
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
