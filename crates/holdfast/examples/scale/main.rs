//! What must not grow with what is provisioned: five nodes on loopback, a thousand volumes, and a
//! table of what each point came to. Run it with `cargo xtask bench scale`.
//!
//! Promises: no process and no file is left behind, also after Ctrl-C; a point that fails is a row
//! of the table, and the points after it are still tried; the exit code is 0 only if every bound
//! was met.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a program of the host: it never runs under the simulator"
)]

mod cluster;
mod drained;
mod figures;
mod load;
mod points;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use cluster::Cluster;
use drained::Held;
use points::Bench;

/// Measures what thousands of volumes cost five nodes on loopback.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench scale", after_help = POINTS)]
struct Arguments {
    /// The `holdfast` to measure
    #[arg(long, value_name = "PATH")]
    binary: PathBuf,
    /// Points to measure, by number [default: all]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=8))]
    points: Vec<u8>,
    /// Volumes at points 2, 3, 4, 5 and 8; point 6 has ten times as many
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(10..=10_000))]
    volumes: u32,
    /// Size of each of these volumes, in GiB: smaller ones for trying the bench itself
    #[arg(long, value_name = "GIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    size_gib: u64,
    /// Slices of which the node has a copy that is drained at point 7
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(1..=20_000))]
    held_slices: u64,
    /// What it holds in them, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 5 << 10,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    held_mib: u64,
    /// Also write the rows to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the nodes' directories go; a new directory is made in it and removed
    #[arg(long, value_name = "DIR", default_value = "target")]
    directory: PathBuf,
    /// Keep the nodes' directories, with their logs
    #[arg(long)]
    keep: bool,
}

const POINTS: &str = "\
Points:
  1  a volume of 64 TiB is made and opens as fast as one of 1 GiB
  2  a thousand volumes of 1 TiB: creation stays flat, no thread stands still, memory, idle time
  3  fifty of them under load: their busiest owner is killed, comes back
  4  all nodes are killed and started: every volume opens
  5  4 KiB in each of 20,000 slices, then 1 to 4 again; what each used slice costs
  6  listings with ten thousand volumes
  7  of six other nodes one that holds 5 GiB in 2,000 slices is drained under load and removed
  8  everything is deleted: memory, facts and config state come back

Examples:
  cargo xtask bench scale
  cargo xtask bench scale --points 1,2 --volumes 100 --json scale.json
  cargo xtask bench scale --points 7 --held-slices 100 --held-mib 256";

/// All points but the seventh measure five nodes.
const NODES: usize = 5;

const ALL: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the operating system gives an event queue");
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, run(&arguments));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nscale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whether every bound was met.
async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let binary = arguments.binary.canonicalize();
    let binary = binary.with_context(|| format!("no {}", arguments.binary.display()))?;
    std::fs::create_dir_all(&arguments.directory)?;
    let mut directory = tempfile::Builder::new();
    let directory = directory
        .prefix("scale-")
        .disable_cleanup(arguments.keep)
        .tempdir_in(&arguments.directory)?;
    let place = directory.path().canonicalize()?;
    if arguments.keep {
        println!("the nodes' directories stay in {}", place.display());
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let points = match arguments.points[..] {
        [] => ALL.to_vec(),
        _ => arguments.points.clone(),
    };
    let table = tokio::select! {
        measured = measure(binary, place, &points, arguments) => measured?,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    };
    println!("\n{}", table.text());
    if let Some(path) = &arguments.json {
        std::fs::write(path, table.json()?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(table.is_met())
}

async fn measure(
    binary: PathBuf,
    place: PathBuf,
    points: &[u8],
    arguments: &Arguments,
) -> anyhow::Result<table::Table> {
    let cluster = Cluster::start(binary, place, NODES).await?;
    let held = Held {
        slices: arguments.held_slices,
        mib: arguments.held_mib,
    };
    let mut bench = Bench::new(cluster, arguments.volumes, arguments.size_gib, held);
    for point in points {
        bench.point(*point).await;
    }
    bench.end().await
}
