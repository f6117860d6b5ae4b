//! Faults on real node processes under load that is checked block by block.
//!
//! A cluster of processes, each in a network namespace of its own; clients that stay at their
//! portals and hosts that give paths up; and one fault after another, drawn from a seed. Every
//! block is checked as a register ([`register`]): no acknowledged write is lost, no read is stale,
//! nothing comes from nowhere, and a write of unknown outcome takes effect within a second after
//! its path was given up, or never. `docs/chaos.md` tells how to read what it prints.
//!
//! Exit code 0: nothing was wrong and every bound was kept; 1: something was; 2: it could not be
//! run.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a tool of the host: nothing of it runs in the simulator"
)]

mod cluster;
mod confine;
mod content;
mod faults;
mod gaps;
mod host;
mod ledger;
mod nemesis;
mod network;
mod random;
mod register;
mod report;
mod resident;
mod run;
mod scenarios;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

use faults::{Class, Pace};
use report::Strictness;
use run::Wanted;
use scenarios::Scenario;

/// Faults on real node processes under checked load.
#[derive(Parser)]
#[command(name = "cargo xtask chaos")]
struct Options {
    /// How long faults are fired, in minutes.
    #[arg(long, default_value_t = 10.0, value_name = "M")]
    minutes: f64,
    /// What decides faults and load; drawn and printed if absent.
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes, at least five.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(5..=9))]
    nodes: u8,
    /// How many volumes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    volumes: u8,
    /// Hosts for each volume.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    hosts: u8,
    /// The longest time that a fault lasts, in seconds.
    #[arg(long, default_value_t = 12, value_parser = fault_seconds())]
    longest: u64,
    /// Only these faults; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Class>,
    /// A directed scenario instead of faults that are drawn; may be given several times.
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// All of the directed scenarios.
    #[arg(long)]
    scenarios: bool,
    /// How strictly gaps are judged.
    #[arg(long, value_enum, default_value = "exact")]
    bounds: Strictness,
    /// Loopback addresses even if namespaces could be made: nothing can be cut.
    #[arg(long)]
    loopback: bool,
    /// The `holdfast` to run.
    #[arg(long, value_name = "PATH")]
    binary: PathBuf,
    /// Where the nodes' logs go, and their data without namespaces; kept.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Write the report there, too.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// What is to be noticed lasts for four seconds; clients wait for fifteen at most.
fn fault_seconds() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(4..=40)
}

fn main() -> ExitCode {
    let options = Options::parse();
    match start(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("\nchaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether nothing was wrong.
fn start(options: &Options) -> anyhow::Result<bool> {
    if !options.loopback && !confine::is_confined() {
        let missing = confine::enter()?;
        println!("notice: {missing}: nodes get loopback addresses, and no link is ever cut");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run_all(options))
}

async fn run_all(options: &Options) -> anyhow::Result<bool> {
    let temporary = tempfile::tempdir()?;
    let directory = match &options.directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)?;
            directory.clone()
        }
        None => temporary.path().to_owned(),
    };
    let seed = options.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |now| now.as_millis() as u64)
    });
    println!("seed {seed}");
    let binary = options.binary.canonicalize().context("--binary")?;
    let nodes = usize::from(options.nodes);
    let is_confined = !options.loopback && confine::is_confined();
    let volumes = usize::from(options.volumes);
    let cluster = run::cluster(&binary, &directory, nodes, volumes, is_confined).await?;
    if options.scenarios || !options.scenario.is_empty() {
        let wanted = if options.scenarios {
            Scenario::ALL.to_vec()
        } else {
            options.scenario.clone()
        };
        return scenarios::run(cluster, &wanted, seed, options.bounds).await;
    }
    let wanted = Wanted {
        seed,
        time: Duration::from_secs_f64(options.minutes * 60.0),
        volumes,
        hosts: options.hosts.into(),
        pace: Pace {
            longest: options.longest * 1000,
        },
        classes: options.only.clone(),
        bounds: options.bounds,
    };
    let report = run::run(cluster, &wanted).await?;
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    if !report.is_clean() {
        println!(
            "\nagain: cargo xtask chaos --seed {seed} --minutes {}",
            options.minutes
        );
    }
    Ok(report.is_clean())
}
