//! What came out of a run of one seed, and of many.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use crate::executor::Halt;
use crate::faults::FaultClass;

/// Why a seed failed.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The run did not come to its end.
    #[error("halted: {0}")]
    Halted(String),
    /// The code under test panicked.
    #[error("panicked: {0}")]
    Panicked(String),
    /// An oracle objected.
    #[error("{oracle}: {what}")]
    Oracle {
        /// Which oracle.
        oracle: &'static str,
        /// What it found.
        what: String,
    },
    /// A second run of the seed took other steps.
    #[error("not deterministic: trace hashes {first:016x} and {second:016x}")]
    NotDeterministic {
        /// Hash of the first run.
        first: u64,
        /// Hash of the second.
        second: u64,
    },
}

impl Failure {
    /// The objection of an oracle.
    pub fn oracle(oracle: &'static str, what: impl std::fmt::Display) -> Self {
        Self::Oracle {
            oracle,
            what: what.to_string(),
        }
    }
}

impl From<Halt> for Failure {
    fn from(halt: Halt) -> Self {
        Self::Halted(halt.to_string())
    }
}

/// One seed's run.
#[derive(Clone, Debug)]
pub struct SeedResult {
    /// The seed.
    pub seed: u64,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Hash over every step.
    pub trace_hash: u64,
    /// Kept lines of the trace.
    pub trace_lines: Vec<String>,
    /// Virtual time passed.
    pub virtual_time: Duration,
    /// Polls made.
    pub polls: u64,
    /// Operations that an oracle has judged.
    pub operations: u64,
    /// How often each fault class fired.
    pub faults: BTreeMap<FaultClass, u64>,
    /// Remarks of the scenario, summed over seeds in the report.
    pub figures: BTreeMap<&'static str, u64>,
    /// How often each rarely taken branch was taken.
    pub reached: BTreeMap<&'static str, u64>,
}

/// A failed seed and how to see it again.
#[derive(Clone, Debug, Serialize)]
pub struct FailedSeed {
    /// The seed.
    pub seed: u64,
    /// Why.
    pub failure: Failure,
    /// The command that replays it.
    pub replay: String,
}

/// Many seeds' runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Which scenario.
    pub scenario: &'static str,
    /// First seed.
    pub start: u64,
    /// Seeds run.
    pub seeds: u64,
    /// Seeds that failed, in ascending order.
    pub failed: Vec<FailedSeed>,
    /// Virtual time of all seeds together.
    pub simulated_hours: f64,
    /// Processor time of all seeds together.
    pub cpu_hours: f64,
    /// Real time from begin to end, in seconds.
    pub wall_seconds: f64,
    /// Polls of all seeds together.
    pub polls: u64,
    /// Operations that an oracle has judged.
    pub operations: u64,
    /// Seeds that were run twice to compare their traces.
    pub repeated: u64,
    /// How often each fault class fired.
    pub faults: BTreeMap<FaultClass, u64>,
    /// In how many seeds each fault class fired.
    pub seeds_with_fault: BTreeMap<FaultClass, u64>,
    /// Sums of the scenario's own figures.
    pub figures: BTreeMap<&'static str, u64>,
    /// How often each rarely taken branch was taken.
    pub reached: BTreeMap<&'static str, u64>,
    /// In how many seeds it was.
    pub seeds_that_reached: BTreeMap<&'static str, u64>,
    /// Branches that were taken too rarely, if that was to be found out.
    pub missed: Vec<String>,
    /// Kept trace lines of the last seed, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<String>,
    /// Trace hash of the last seed by number.
    pub trace_hash: String,
}

impl Report {
    /// Adds one seed's run.
    pub fn add(&mut self, result: SeedResult) {
        if self.seeds == 0 || result.seed + 1 >= self.start + self.seeds {
            self.trace_hash = format!("{:016x}", result.trace_hash);
            self.trace = result.trace_lines;
        }
        self.seeds += 1;
        self.simulated_hours += result.virtual_time.as_secs_f64() / 3600.0;
        self.polls += result.polls;
        self.operations += result.operations;
        for (class, times) in result.faults {
            *self.faults.entry(class).or_default() += times;
            *self.seeds_with_fault.entry(class).or_default() += u64::from(times > 0);
        }
        for (name, times) in result.reached {
            *self.reached.entry(name).or_default() += times;
            *self.seeds_that_reached.entry(name).or_default() += u64::from(times > 0);
        }
        for (name, figure) in result.figures {
            *self.figures.entry(name).or_default() += figure;
        }
        if let Some(failure) = result.failure {
            let seed = result.seed;
            let replay = replay_command(self.scenario, seed);
            let place = self.failed.partition_point(|failed| failed.seed < seed);
            self.failed.insert(
                place,
                FailedSeed {
                    seed,
                    failure,
                    replay,
                },
            );
        }
    }

    /// Whether every seed passed, and no branch was taken too rarely.
    pub fn passed(&self) -> bool {
        self.failed.is_empty() && self.missed.is_empty()
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report holds only plain data")
    }

    /// The report for a terminal of 80 columns.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<28}{value}");
        };
        line("scenario", self.scenario.to_owned());
        line("seeds", format!("{} from {}", self.seeds, self.start));
        line("failed", self.failed.len().to_string());
        line("simulated hours", format!("{:.2}", self.simulated_hours));
        line("CPU hours", format!("{:.4}", self.cpu_hours));
        line("wall seconds", format!("{:.1}", self.wall_seconds));
        line("operations checked", self.operations.to_string());
        line("polls", self.polls.to_string());
        line("seeds run twice", self.repeated.to_string());
        if self.seeds == 1 {
            line("trace hash", self.trace_hash.clone());
        }
        for (name, figure) in &self.figures {
            line(name, figure.to_string());
        }
        let _ = writeln!(text, "\n{:<28}{:>14}{:>14}", "fault", "fired", "in seeds");
        for (class, times) in &self.faults {
            let seeds = self.seeds_with_fault.get(class).copied().unwrap_or(0);
            let _ = writeln!(text, "{:<28}{times:>14}{seeds:>14}", class.name());
        }
        let _ = writeln!(text, "\n{:<66}{:>10}{:>10}", "branch", "taken", "in seeds");
        for (name, times) in &self.reached {
            let seeds = self.seeds_that_reached.get(name).copied().unwrap_or(0);
            let _ = writeln!(text, "{name:<66}{times:>10}{seeds:>10}");
        }
        for missed in &self.missed {
            let _ = writeln!(text, "\nTAKEN TOO RARELY: {missed}");
        }
        for failed in &self.failed {
            let FailedSeed {
                seed,
                failure,
                replay,
            } = failed;
            let _ = writeln!(text, "\nseed {seed} failed: {failure}\n  replay: {replay}");
        }
        text
    }
}

/// The command that runs one seed again with its trace.
pub fn replay_command(scenario: &str, seed: u64) -> String {
    format!("holdfast sim run --scenario {scenario} --seed {seed} --trace")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(seed: u64, failure: Option<Failure>) -> SeedResult {
        SeedResult {
            seed,
            failure,
            trace_hash: seed,
            trace_lines: Vec::new(),
            virtual_time: Duration::from_secs(1800),
            polls: 1,
            operations: 10,
            faults: [(FaultClass::Crash, seed % 2)].into_iter().collect(),
            figures: BTreeMap::new(),
            reached: BTreeMap::new(),
        }
    }

    #[test]
    fn a_report_sums_up_and_names_the_replay_of_each_failed_seed() {
        let mut report = Report {
            scenario: "cluster",
            start: 1,
            ..Report::default()
        };
        let objection = Failure::oracle("durability", "gone");
        report.add(result(3, Some(objection.clone())));
        report.add(result(1, None));
        report.add(result(2, Some(objection)));
        assert_eq!(
            (report.seeds, report.operations, report.simulated_hours),
            (3, 30, 1.5)
        );
        let failed: Vec<u64> = report.failed.iter().map(|failed| failed.seed).collect();
        assert_eq!(failed, [2, 3]);
        assert_eq!(report.seeds_with_fault[&FaultClass::Crash], 2);
        let command = "holdfast sim run --scenario cluster --seed 3 --trace";
        assert!(report.to_table().contains(command));
        let json: serde_json::Value =
            serde_json::from_str(&report.to_json()).expect("the report is JSON");
        assert_eq!(json["failed"][1]["replay"], command);
        assert_eq!(json["faults"]["crash"], 2);
    }
}
