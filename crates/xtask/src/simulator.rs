//! The simulator as CI and developers run it.

use std::process::Command;
use std::time::Duration;

use crate::process::{self, cargo, release_binary};

/// What a seed that was begun, and a build, may take beyond the time that was asked for.
const GRACE: Duration = Duration::from_secs(120);
/// A thousand seeds are meant to take ten minutes on two cores.
const SEED_LIMIT: Duration = Duration::from_millis(1200);
/// Building with planted bugs rebuilds the workspace's crates; the hunt has its own bound.
const PLANTED_LIMIT: Duration = Duration::from_secs(15 * 60);

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
    process::run(&mut command, amount.limit())
}

/// Proves that the oracles see: each planted bug has to be found.
pub(crate) fn planted() -> anyhow::Result<()> {
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--package",
        "holdfast",
        "--features",
        "planted",
    ]);
    command.args(["--", "sim", "planted"]);
    process::run(&mut command, PLANTED_LIMIT)
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
