//! Measures the store on a real disk: `store_bench MEASUREMENT DIRECTORY [OPTIONS]`. Each
//! measurement makes its files in the directory, prints one line of JSON, and removes them.
//! `cargo xtask bench store` runs all of them beside fio.

#![allow(clippy::disallowed_methods, reason = "a program of the host")]

mod journal;
mod map;
mod metered;
mod process;
mod segments;
mod space;
mod walk;
mod writer;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use holdfast_runtime::Runtime;
use holdfast_runtime::host::{self, HostDirectory};
use holdfast_store::{BLOCK_BYTES, CopyState, SliceKey, Store, StoreBounds, StoreOptions};
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
  fill-journal DIRECTORY JOURNAL_MIB BLOCKS  fills the journal in batches of BLOCKS, and dies
  restart DIRECTORY JOURNAL_MIB            opens what fill-journal left
  make-map DIRECTORY MAPPED_GIB            a map without the blocks' bytes
  walk-map DIRECTORY MAPPED_GIB AHEAD LATENCY_US CACHED_FACTS
                                           all facts in order, as a resync asks for them
  jump-map DIRECTORY MAPPED_GIB AHEAD LATENCY_US CACHED_FACTS
                                           cold reads of single blocks here and there
  read-map DIRECTORY MAPPED_GIB            its memory, and disk reads of cold reads
  space DIRECTORY HOME_MIB                 fills the home, unmaps all, waits for the space
  segments DIRECTORY HOME_TIB              what an empty home costs, and one whose segments are all
                                           in use, by the manifest; on tmpfs, which is sparse
AHEAD 1 reads ahead in the map, 0 does not; LATENCY_US is added to each disk read, one after the
other; CACHED_FACTS bounds the cache of leaves, 0 leaves it as it is. walk-map and jump-map leave
the map where it is, read-map removes it.";

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
        let goes_on = ["restart", "walk-map", "jump-map", "read-map"];
        if !goes_on.contains(&measurement.as_str()) {
            // What a run that was broken off has left.
            bench.remove();
        }
        bench
    };
    host::run(
        async |runtime| match (measurement.as_str(), numbers.as_slice()) {
            ("append", [depth, seconds]) => {
                journal::append(bench(None), runtime, *depth, *seconds).await;
            }
            ("overwrite", [hot, journal, total]) => {
                journal::overwrite(bench(None), runtime, *hot, *journal, *total).await;
            }
            ("amplification", [home]) => {
                space::amplification(bench(Some(HOLLOW)), runtime, *home).await;
            }
            ("fill-journal", [journal, blocks]) => {
                journal::fill(bench(None), runtime, *journal, *blocks).await;
            }
            ("restart", [journal]) => journal::restart(bench(None), runtime, *journal).await,
            ("make-map", [mapped]) => map::make(bench(Some(HOLLOW)), runtime, *mapped).await,
            ("walk-map" | "jump-map", [mapped, ahead, latency, cached]) => {
                let way = walk::Way {
                    mapped_gib: *mapped,
                    ahead: *ahead != 0,
                    latency_us: *latency,
                    cached_facts: *cached as usize,
                };
                let bench = bench(Some(HOLLOW));
                match measurement.as_str() {
                    "walk-map" => walk::in_order(bench, runtime, way).await,
                    _ => walk::at_random(bench, runtime, way).await,
                }
            }
            ("read-map", [mapped]) => map::read(bench(Some(HOLLOW)), runtime, *mapped).await,
            ("segments", [home]) => segments::measure(bench(None), runtime, *home).await,
            ("space", [home]) => space::space(bench(Some(HOLLOW)), runtime, *home).await,
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
            home_preallocated: false,
            slice_blocks: SLICE_BLOCKS,
            bounds: StoreBounds::SERVICE,
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
