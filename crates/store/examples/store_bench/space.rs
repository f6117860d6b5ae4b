//! The home's space: what collecting it costs, and how soon it is back.

use std::time::{Duration, Instant};

use holdfast_runtime::Runtime;
use serde::Serialize;

use crate::writer::{Dice, Writer};
use crate::{BLOCK, Bench, HOLLOW, MIB, SLICE_BLOCKS, in_sync, print, slice};

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

pub(crate) async fn amplification(bench: Bench, runtime: Runtime, home: u64) {
    let store = bench.open(&runtime, 64 * MIB, home * MIB).await;
    in_sync(&store, 1).await;
    let capacity = store.usage().home_bytes;
    let blocks = capacity / BLOCK * 4 / 5;
    let mut writer = Writer::new(&store, 64, HOLLOW);
    let mut sequence = 0..blocks;
    writer.write(|| sequence.next()).await;
    let mut dice = Dice::new(1);
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

#[derive(Serialize)]
struct Freed {
    home_mib: u64,
    filled_mib: u64,
    refused: bool,
    seconds_until_free: f64,
}

pub(crate) async fn space(bench: Bench, runtime: Runtime, home: u64) {
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
