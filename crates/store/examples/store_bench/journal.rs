//! The journal: its appends, what its size saves, and how long a full one takes to open.

use std::time::{Duration, Instant};

use holdfast_runtime::Runtime;
use serde::Serialize;

use crate::writer::{Dice, Writer};
use crate::{BLOCK, Bench, MIB, SLICE_BLOCKS, in_sync, print, slice};

/// What the blocks of a full journal are filled with.
const FILL: u8 = 7;

#[derive(Serialize)]
struct Appended {
    depth: u64,
    writes_per_second: f64,
    mean_us: f64,
    median_us: f64,
    p99_us: f64,
}

pub(crate) async fn append(bench: Bench, runtime: Runtime, depth: u64, seconds: u64) {
    let store = bench.open(&runtime, 512 * MIB, 4096 * MIB).await;
    in_sync(&store, 1).await;
    let mut writer = Writer::new(&store, depth as usize, 7);
    let mut dice = Dice::new(1);
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

pub(crate) async fn overwrite(bench: Bench, runtime: Runtime, hot: u64, journal: u64, total: u64) {
    let store = bench
        .open(&runtime, journal * MIB, 2 * hot * MIB + 512 * MIB)
        .await;
    in_sync(&store, 1).await;
    let blocks = hot * MIB / BLOCK;
    let mut dice = Dice::new(1);
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

/// How long a store needs at most until it has sealed its journal: by far too short to empty it.
const SEALED_AFTER: Duration = Duration::from_millis(50);

/// Fills the journal with batches of `blocks` blocks that are not stable yet, so that none leaves
/// it, lets them become stable, and dies.
pub(crate) async fn fill(bench: Bench, runtime: Runtime, journal: u64, blocks: u64) {
    let store = bench.open(&runtime, journal * MIB, 4096 * MIB).await;
    in_sync(&store, 1).await;
    let mut writer = Writer::new(&store, 64, FILL);
    let mut number = 0;
    loop {
        let records = (0..blocks).map(|_| {
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
    store.set_stable(slice(0), store.last_seq(slice(0)));
    runtime.sleep(SEALED_AFTER).await;
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
    seconds_open: f64,
    seconds_read_in: f64,
    /// Reads of what the journal holds, one after the other, until all of it was read in.
    reads_meanwhile: usize,
    read_median_us: f64,
    read_longest_us: f64,
}

pub(crate) async fn restart(bench: Bench, runtime: Runtime, journal: u64) {
    let begun = Instant::now();
    let store = bench.open(&runtime, journal * MIB, 4096 * MIB).await;
    let seconds_open = begun.elapsed().as_secs_f64();
    let journal_used_mib = store.usage().journal_used_bytes / MIB;
    let blocks = store.last_seq(slice(0)).0.min(u64::from(SLICE_BLOCKS)) - 1;
    let mut dice = Dice::new(1);
    let mut latencies = Vec::new();
    let reader = async {
        loop {
            let block = 1 + dice.below(blocks) as u32;
            let begun = Instant::now();
            let read = store.read(slice(0), block, 1).await;
            assert_eq!(read.expect("a sound store")[0], FILL);
            latencies.push(begun.elapsed().as_secs_f64() * 1e6);
            // What memory has already is answered at once, and would let nobody else go on.
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        recovered = store.recovered() => recovered.expect("a sound store"),
        () = reader => {}
    }
    let seconds_read_in = begun.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    print(&Restarted {
        journal_used_mib,
        seconds_open,
        seconds_read_in,
        reads_meanwhile: latencies.len(),
        read_median_us: latencies
            .get(latencies.len() / 2)
            .copied()
            .unwrap_or_default(),
        read_longest_us: latencies.last().copied().unwrap_or_default(),
    });
    drop(store);
    bench.remove();
}
