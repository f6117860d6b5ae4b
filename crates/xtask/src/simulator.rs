//! The simulator as CI and developers run it.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::process::{self, cargo, output_of, release_binary};

/// What a seed that was begun, and a build, may take beyond the time that was asked for.
const GRACE: Duration = Duration::from_secs(120);
/// A thousand seeds are meant to take ten minutes on two cores.
const SEED_LIMIT: Duration = Duration::from_millis(1200);
/// Building with planted bugs rebuilds the workspace's crates; a hunt takes minutes if a bug is
/// not found.
const PLANTED_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A build, and sequences of three operations.
const CRASH_STATES_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Apart from the product's own build: nothing with planted bugs shall be taken for it.
const PLANTED_TARGET: &str = "target/planted";
/// Seeds after which a bug counts as not found: several times what the shyest has needed, because
/// every change of the code under test deals new cards.
const PLANTED_SEEDS: &str = "2000";

/// How much to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    /// So many seeds from the first.
    Seeds(u64),
    /// As many as fit into this real time.
    Minutes(u64),
    /// One, with its trace.
    Seed(u64),
}

impl Amount {
    /// From the command line; a hundred seeds unless told otherwise.
    pub(crate) fn from_options(
        seeds: Option<u64>,
        minutes: Option<u64>,
        seed: Option<u64>,
    ) -> Self {
        match (seeds, minutes, seed) {
            (_, _, Some(seed)) => Self::Seed(seed),
            (_, Some(minutes), None) => Self::Minutes(minutes),
            (Some(seeds), None, None) => Self::Seeds(seeds),
            (None, None, None) => Self::Seeds(100),
        }
    }

    fn arguments(self) -> Vec<String> {
        match self {
            Self::Seeds(seeds) => vec!["--seeds".to_owned(), seeds.to_string()],
            Self::Minutes(minutes) => vec!["--minutes".to_owned(), minutes.to_string()],
            Self::Seed(seed) => vec!["--seed".to_owned(), seed.to_string(), "--trace".to_owned()],
        }
    }

    fn limit(self) -> Duration {
        let seeds = |seeds: u64| SEED_LIMIT * u32::try_from(seeds).unwrap_or(u32::MAX);
        GRACE
            + match self {
                Self::Seeds(count) => seeds(count),
                Self::Minutes(minutes) => Duration::from_secs(60 * minutes),
                Self::Seed(_) => seeds(100),
            }
    }
}

/// Runs seeds through every fault and oracle.
pub(crate) fn run(amount: Amount) -> anyhow::Result<()> {
    let binary = release_binary()?;
    let mut command = Command::new(binary);
    command.args(["sim", "run"]).args(amount.arguments());
    process::run(&mut command, amount.limit())?;
    let Amount::Seeds(seeds) = amount else {
        return Ok(());
    };
    // One store alone meets its own faults far oftener than a cluster's stores do.
    let amount = Amount::Seeds(seeds.div_ceil(4));
    let mut command = Command::new(release_binary()?);
    command
        .args(["sim", "run", "--scenario", "store"])
        .args(amount.arguments());
    process::run(&mut command, amount.limit())
}

/// Which crash states of a store are opened.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct CrashStates {
    /// Longest sequence of operations.
    #[arg(long, default_value_t = CRASH_STATES_CI.length)]
    length: u32,
    /// Longest sequence after whose crashes the store is crashed once more: in its recovery, and in
    /// what follows it. With 3, a million states and many minutes.
    #[arg(long, default_value_t = CRASH_STATES_CI.later)]
    later: u32,
    /// Fail if there are fewer different contents of the disks.
    #[arg(long, default_value_t = 0, value_name = "N")]
    states_min: u64,
    /// Fail if any kind of operation is cut off at fewer points.
    #[arg(long, default_value_t = 0, value_name = "N")]
    points_min: u64,
}

/// What CI tries. The counts are somewhat below what was found when they were written: an
/// exploration that shrinks shall not pass.
pub(crate) const CRASH_STATES_CI: CrashStates = CrashStates {
    length: 3,
    later: 2,
    states_min: 200_000,
    points_min: 100,
};

/// Opens every state that a crash can leave of a store, for all short sequences of operations.
pub(crate) fn crash_states(wanted: CrashStates) -> anyhow::Result<()> {
    let mut explore = cargo();
    explore.args(["run", "--release", "--package", "holdfast-store"]);
    explore.args(["--features", "testing", "--example", "crash_states", "--"]);
    let numbers = [
        ("--length", u64::from(wanted.length)),
        ("--later", u64::from(wanted.later)),
        ("--states-min", wanted.states_min),
        ("--points-min", wanted.points_min),
    ];
    for (option, number) in numbers {
        explore.args([option, &number.to_string()]);
    }
    process::run(&mut explore, CRASH_STATES_LIMIT)
}

/// Proves that the oracles see: each planted bug has to be found.
///
/// One build holds them all, and each run turns one on, so that this stays within CI's time.
pub(crate) fn planted() -> anyhow::Result<()> {
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--package",
        "holdfast-sim",
        "--features",
        "planted",
    ]);
    build.args(["--example", "run", "--target-dir", PLANTED_TARGET]);
    process::run(&mut build, PLANTED_LIMIT)?;
    let binary = format!("{PLANTED_TARGET}/release/examples/run");
    let bugs = output_of(Command::new(&binary).arg("--list-bugs"), GRACE)?;
    let mut missed = Vec::new();
    println!(
        "{:<28} {:>6} {:>10}  found by",
        "planted bug", "seeds", "CPU s"
    );
    for bug in bugs.lines() {
        let mut hunt = Command::new(&binary);
        hunt.args([
            "--seeds",
            PLANTED_SEEDS,
            "--repeat-every",
            "0",
            "--stop-at-failure",
        ]);
        hunt.args(["--bug", bug, "-o", "json"]);
        let said = output_of(&mut hunt, PLANTED_LIMIT)?;
        // What the run said on standard error comes after its report.
        let mut said = serde_json::Deserializer::from_str(&said).into_iter();
        let report: serde_json::Value = said.next().context("a hunt without a report")??;
        let seeds = report["seeds"].as_u64().unwrap_or(0);
        let cpu_seconds = report["cpu_hours"].as_f64().unwrap_or(0.0) * 3600.0;
        let failure = &report["failed"][0]["failure"];
        let oracle = failure["oracle"]["oracle"]
            .as_str()
            .unwrap_or("a panic or a stuck run");
        let found = if failure.is_null() {
            "NOT FOUND"
        } else {
            oracle
        };
        println!("{bug:<28} {seeds:>6} {cpu_seconds:>10.1}  {found}");
        if failure.is_null() {
            missed.push(bug.to_owned());
        }
    }
    anyhow::ensure!(!bugs.is_empty(), "the build holds no planted bugs");
    anyhow::ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_is_traced_and_time_is_respected() {
        let one = Amount::from_options(None, None, Some(42));
        assert_eq!(one.arguments(), ["--seed", "42", "--trace"]);
        let minutes = Amount::from_options(None, Some(8), None);
        assert_eq!(minutes.arguments(), ["--minutes", "8"]);
        assert!(minutes.limit() < Duration::from_secs(11 * 60));
        let default = Amount::from_options(None, None, None);
        assert_eq!(default.arguments(), ["--seeds", "100"]);
    }
}
