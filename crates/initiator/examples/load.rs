//! Runs the verifying load against any iSCSI portal and then reads everything back.
//!
//! ```text
//! cargo run -p holdfast-initiator --example load -- \
//!     --portal 127.0.0.1:3260 --target iqn.2026-11.example:disk --region-mib 64 --seconds 10
//! ```
//!
//! The region is overwritten. It has to read as zeros before the first run, or be the region of
//! the ledger given with `--ledger`.
#![allow(
    clippy::disallowed_methods,
    reason = "a program of its own, outside the simulator"
)]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use holdfast_initiator::{
    BLOCK_BYTES, Chap, DigestOffer, Disk, DiskOptions, Histogram, Ledger, Load, LoadOptions,
    Secret, SessionOptions, SizeWeight, Statistics, VerifyOptions, discover, verify,
};

/// Verifying load against an iSCSI disk. Overwrites the region it is given.
#[derive(Parser)]
struct Arguments {
    /// A portal of the disk; repeat for several paths.
    #[arg(long = "portal", required = true)]
    portals: Vec<SocketAddr>,
    /// The target's name; without it the portal's targets are listed.
    #[arg(long)]
    target: Option<String>,
    #[arg(long, default_value_t = 0)]
    lun: u16,
    #[arg(long, default_value = "iqn.2026-11.io.holdfast:load")]
    initiator: String,
    /// CHAP user; the secret comes from the environment variable CHAP_SECRET.
    #[arg(long)]
    chap_user: Option<String>,
    /// CRC32C over headers and data.
    #[arg(long)]
    digests: bool,
    #[arg(long, default_value_t = 0)]
    region_start_mib: u64,
    #[arg(long, default_value_t = 64)]
    region_mib: u64,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 16)]
    workers: usize,
    #[arg(long, default_value_t = 30)]
    read_percent: u8,
    /// Size of an I/O in KiB; repeat for a mix of equal weights.
    #[arg(long = "size-kib", default_values_t = [4])]
    sizes_kib: Vec<u32>,
    /// I/Os a second at most.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Go on with the ledger in this file, if it is there, and save it at the end.
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// Verify the ledger's region and do nothing else.
    #[arg(long, requires = "ledger")]
    verify_only: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut session = SessionOptions::new(&arguments.initiator);
    if let Some(user) = &arguments.chap_user {
        let secret = std::env::var("CHAP_SECRET").context("CHAP_SECRET is not set")?;
        session.chap = Some(Chap::new(user, Secret::new(secret)));
    }
    if arguments.digests {
        session.header_digest = DigestOffer::Prefer;
        session.data_digest = DigestOffer::Prefer;
    }
    let Some(target) = &arguments.target else {
        for target in discover(arguments.portals[0], &session).await? {
            println!("{}  {}", target.name, target.portals.join(" "));
        }
        return Ok(());
    };
    let options = DiskOptions {
        lun: arguments.lun,
        ..DiskOptions::new(arguments.portals.clone(), target, session)
    };
    let disk = Disk::open(options).await.context("opening the disk")?;
    let ledger = match &arguments.ledger {
        Some(path) if path.exists() => Ledger::load(path)?,
        Some(path) if arguments.verify_only => bail!("no ledger at {}", path.display()),
        Some(_) | None => {
            let blocks_per_mib = (1 << 20) / BLOCK_BYTES as u64;
            let first = arguments.region_start_mib * blocks_per_mib;
            Ledger::new(arguments.seed, first, arguments.region_mib * blocks_per_mib)
        }
    };
    let ledger = Rc::new(RefCell::new(ledger));
    if !arguments.verify_only {
        generate(&arguments, &disk, &ledger).await?;
        if let Some(path) = &arguments.ledger {
            ledger.borrow().save(path)?;
        }
    }
    let report = verify(&disk, &ledger, VerifyOptions::default(), |_| {}).await?;
    println!(
        "verified {} blocks in {:.1?}: {} lost, {} stale, {} corrupt, {} unreadable",
        report.checked_blocks,
        report.elapsed,
        report.findings.lost,
        report.findings.stale,
        report.findings.corrupt,
        report.unreadable_blocks,
    );
    for (block, verdict) in &report.findings.examples {
        println!("  block {block}: {verdict:?}");
    }
    let is_clean = report.is_clean();
    disk.close().await?;
    if is_clean {
        Ok(())
    } else {
        bail!("the disk did not keep what it acknowledged")
    }
}

async fn generate(
    arguments: &Arguments,
    disk: &Disk,
    ledger: &Rc<RefCell<Ledger>>,
) -> anyhow::Result<()> {
    let size = |kib: &u32| SizeWeight {
        bytes: kib * 1024,
        weight: 1,
    };
    let options = LoadOptions {
        workers: arguments.workers,
        sizes: arguments.sizes_kib.iter().map(size).collect(),
        read_percent: arguments.read_percent,
        operations_per_second_max: arguments.rate,
        duration: Some(Duration::from_secs(arguments.seconds)),
        operations: None,
        seed: arguments.seed,
    };
    let load = Load::start(disk.clone(), Rc::clone(ledger), options)?;
    let mut earlier = load.statistics();
    while !load.is_finished() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = load.statistics();
        println!(
            "{:>4.0} s  {:>8.0} IO/s  {:>8.1} MB/s  gap {:>6.1?}  failovers {}",
            now.elapsed.as_secs_f64(),
            now.operations_per_second_since(&earlier),
            now.megabytes_per_second_since(&earlier),
            now.gap.current,
            disk.counters().failovers,
        );
        earlier = now;
    }
    summary(&load.wait().await);
    Ok(())
}

fn summary(statistics: &Statistics) {
    let line = |name: &str, count: u64, latency: &Histogram| {
        println!(
            "{name:<6} {count:>9}  p50 {:>9.1?}  p99 {:>9.1?}  max {:>9.1?}",
            latency.quantile(0.5),
            latency.quantile(0.99),
            latency.max(),
        );
    };
    line("reads", statistics.reads, &statistics.read_latency);
    line("writes", statistics.writes, &statistics.write_latency);
    let gap = statistics.gap;
    println!(
        "longest gap {:.1?}, {:.1?} after the start",
        gap.longest, gap.longest_began
    );
    let findings = &statistics.findings;
    println!(
        "errors {}, reads that showed lost {}, stale {}, corrupt {} blocks",
        statistics.errors, findings.lost, findings.stale, findings.corrupt
    );
    if let Some(error) = &statistics.last_error {
        println!("last error: {error}");
    }
}
