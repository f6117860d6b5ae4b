//! The simulator as CI and developers run it.

use std::process::Command;
use std::time::{Duration, Instant};

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
/// Seeds after which a bug counts as not found. Every change of the code under test deals new
/// cards, so the shyest has to be found in far fewer.
const PLANTED_SEEDS: &str = "500";

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
    command.args(["sim", "run", "--floors"]);
    command.args(amount.arguments());
    process::run(&mut command, amount.limit())?;
    let Amount::Seeds(seeds) = amount else {
        return Ok(());
    };
    // One store alone meets its own faults far oftener than a cluster's stores do. Cut links last
    // long, and each seed has three rounds of them.
    for (scenario, share) in [("store", 4), ("link-cuts", 20)] {
        let amount = Amount::Seeds(seeds.div_ceil(share));
        let mut command = Command::new(release_binary()?);
        command
            .args(["sim", "run", "--scenario", scenario, "--floors"])
            .args(amount.arguments());
        process::run(&mut command, amount.limit())?;
    }
    Ok(())
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
    /// Longest sequence that a device lies about.
    #[arg(long, default_value_t = CRASH_STATES_CI.lies)]
    lies: u32,
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
    lies: 1,
    states_min: 500_000,
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
        ("--lies", u64::from(wanted.lies)),
        ("--states-min", wanted.states_min),
        ("--points-min", wanted.points_min),
    ];
    for (option, number) in numbers {
        explore.args([option, &number.to_string()]);
    }
    process::run(&mut explore, CRASH_STATES_LIMIT)
}

/// A planted bug that was hunted.
struct Hunted {
    bug: String,
    /// Where it was looked for.
    place: String,
    /// Seeds or states that it took.
    tried: u64,
    /// Who objected; `None` if nobody did.
    found: Option<String>,
}

/// Makes a golden image of the store's formats as they are.
pub(crate) fn golden() -> anyhow::Result<()> {
    let mut make = cargo();
    make.args([
        "run",
        "--package",
        "holdfast-store",
        "--features",
        "testing",
    ]);
    make.args(["--example", "golden", "--", "crates/store/fixtures"]);
    process::run(&mut make, CRASH_STATES_LIMIT)
}

/// Proves that the oracles see: each planted bug has to be found.
///
/// One build holds them all, and each run turns one on, so that this stays within CI's time.
pub(crate) fn planted() -> anyhow::Result<()> {
    let mut build = cargo();
    build.args(["build", "--release", "--target-dir", PLANTED_TARGET]);
    build.args(["--package", "holdfast-sim", "--example", "run"]);
    build.args(["--package", "holdfast-store", "--example", "crash_states"]);
    let features = [
        "holdfast-sim/planted",
        "holdfast-store/planted",
        "holdfast-store/testing",
    ];
    build.args(["--features", &features.join(",")]);
    process::run(&mut build, PLANTED_LIMIT)?;
    let examples = format!("{PLANTED_TARGET}/release/examples");
    let (seeds, states) = (
        format!("{examples}/run"),
        format!("{examples}/crash_states"),
    );
    let for_states = output_of(Command::new(&states).arg("--list-bugs"), GRACE)?;
    let for_seeds = output_of(Command::new(&seeds).arg("--list-bugs"), GRACE)?;
    let in_states = for_states.lines().map(|bug| hunt_states(&states, bug));
    let in_seeds = for_seeds.lines().map(|line| {
        let (bug, scenario) = line.split_once(' ').context("a bug without a scenario")?;
        hunt_seeds(&seeds, bug, scenario)
    });
    let mut missed = Vec::new();
    println!(
        "{:<28} {:<13} {:>9} {:>9}  found by",
        "planted bug", "in", "after", "seconds"
    );
    let mut begin = Instant::now();
    for hunted in in_states.chain(in_seeds) {
        let Hunted {
            bug,
            place,
            tried,
            found,
        } = hunted?;
        let seconds = std::mem::replace(&mut begin, Instant::now())
            .elapsed()
            .as_secs_f64();
        let finder = found.as_deref().unwrap_or("NOT FOUND");
        println!("{bug:<28} {place:<13} {tried:>9} {seconds:>9.1}  {finder}");
        if found.is_none() {
            missed.push(bug);
        }
    }
    anyhow::ensure!(
        !for_states.is_empty() && !for_seeds.is_empty(),
        "the build holds no planted bugs"
    );
    anyhow::ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

/// Hunts a bug with seeds of a scenario.
fn hunt_seeds(binary: &str, bug: &str, scenario: &str) -> anyhow::Result<Hunted> {
    let mut hunt = Command::new(binary);
    hunt.args(["--scenario", scenario, "--seeds", PLANTED_SEEDS]);
    hunt.args(["--repeat-every", "0", "--stop-at-failure"]);
    hunt.args(["--bug", bug, "-o", "json"]);
    let said = output_of(&mut hunt, PLANTED_LIMIT)?;
    // What the run said on standard error comes after its report.
    let mut said = serde_json::Deserializer::from_str(&said).into_iter();
    let report: serde_json::Value = said.next().context("a hunt without a report")??;
    let failure = &report["failed"][0]["failure"];
    let oracle = failure["oracle"]["oracle"].as_str();
    let found = oracle.unwrap_or("a panic or a stuck run").to_owned();
    Ok(Hunted {
        bug: bug.to_owned(),
        place: scenario.to_owned(),
        tried: report["seeds"].as_u64().unwrap_or(0),
        found: (!failure.is_null()).then_some(found),
    })
}

/// Hunts a bug with crash states and lies of the device.
fn hunt_states(binary: &str, bug: &str) -> anyhow::Result<Hunted> {
    let mut hunt = Command::new(binary);
    hunt.args(["--length", "3", "--later", "1", "--lies", "1", "--bug", bug]);
    let said = output_of(&mut hunt, PLANTED_LIMIT)?;
    let line = said.lines().next().context("a hunt without a report")?;
    let (tried, found) = match line.split_once(' ') {
        Some((tried, what)) => {
            let what = what.rsplit_once("]: ").map_or(what, |(_, what)| what);
            (tried, Some(what.chars().take(50).collect()))
        }
        None => (line, None),
    };
    Ok(Hunted {
        bug: bug.to_owned(),
        place: "crash states".to_owned(),
        tried: tried.parse().context("a hunt that does not count")?,
        found,
    })
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
