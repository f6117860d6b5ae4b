//! The command line of the simulator: `holdfast sim run …`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use holdfast_runtime::planted::Bug;
use thiserror::Error;

use crate::floors;
use crate::report::Report;
use crate::runner::{Amount, Plan, run_seeds};
use crate::scenario;
use crate::trace::TraceText;

/// Arguments of `holdfast sim run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Run this many seeds
    #[arg(long, default_value_t = 100, conflicts_with_all = ["seed", "minutes"])]
    pub seeds: u64,
    /// First seed
    #[arg(long, default_value_t = 0, conflicts_with = "seed")]
    pub start: u64,
    /// Run this one seed
    #[arg(long, conflicts_with = "minutes")]
    pub seed: Option<u64>,
    /// Run seeds for this many minutes
    #[arg(long)]
    pub minutes: Option<f64>,
    /// Say everything that happens, on standard error; only with --seed
    #[arg(long, requires = "seed")]
    pub trace: bool,
    /// Which scenario: cluster, link-cuts, ping-pong, store
    #[arg(long, default_value = "cluster")]
    pub scenario: String,
    /// Threads; each runs whole simulations
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Run every N-th seed twice and compare the traces; 0 for none
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub repeat_every: u64,
    /// Stop after the first seed that fails
    #[arg(long)]
    pub stop_at_failure: bool,
    /// Fail if rarely taken branches were taken too rarely; from 200 seeds on
    #[arg(long)]
    pub floors: bool,
    /// Turn a planted bug on (needs a build with the feature `planted`)
    #[arg(long, value_parser = parse_bug)]
    pub bug: Option<Bug>,
    /// Form of the report
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Why nothing was run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    /// No such scenario.
    #[error("there is no scenario {wanted:?}; there are {known}")]
    ScenarioUnknown {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// A time that is no time.
    #[error("{0} minutes are no time to run for")]
    MinutesInvalid(String),
}

/// Why a bug cannot be turned on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BugError {
    /// This build holds none.
    #[error("this build holds no planted bugs; build with `--features planted`")]
    NotBuilt,
    /// No such bug.
    #[error("there is no such bug; there are {known}")]
    Unknown {
        /// What there is.
        known: String,
    },
}

/// Runs what the arguments ask for. Progress goes to standard error if that is a terminal.
pub fn run(args: &RunArgs) -> Result<Report, ArgsError> {
    let scenario = scenario::named(&args.scenario).ok_or_else(|| {
        let known: Vec<&str> = scenario::ALL
            .iter()
            .map(|scenario| scenario.name())
            .collect();
        ArgsError::ScenarioUnknown {
            wanted: args.scenario.clone(),
            known: known.join(", "),
        }
    })?;
    let plan = plan(args)?;
    let shown = std::io::stderr().is_terminal() && !args.trace;
    let mut report = run_seeds(scenario, plan, |done, failed| {
        if shown {
            // A closed terminal is no reason to stop.
            let _ = write!(std::io::stderr(), "\r{done} seeds done, {failed} failed ");
        }
    });
    if shown {
        let _ = writeln!(std::io::stderr());
    }
    if args.floors {
        report.missed = floors::missed(&report);
    }
    Ok(report)
}

/// The report in the wanted form.
pub fn render(report: &Report, output: Output) -> String {
    match output {
        Output::Table => report.to_table(),
        Output::Json => report.to_json(),
    }
}

fn parse_bug(name: &str) -> Result<Bug, BugError> {
    if cfg!(not(feature = "planted")) {
        return Err(BugError::NotBuilt);
    }
    Bug::ALL
        .into_iter()
        .find(|bug| bug.name() == name)
        .ok_or_else(|| {
            let known: Vec<String> = Bug::ALL.into_iter().map(Bug::name).collect();
            BugError::Unknown {
                known: known.join(", "),
            }
        })
}

fn plan(args: &RunArgs) -> Result<Plan, ArgsError> {
    let amount = match (args.seed, args.minutes) {
        (Some(_), _) => Amount::Seeds(1),
        (None, Some(minutes)) => Amount::Time(
            Duration::try_from_secs_f64(minutes * 60.0)
                .map_err(|_| ArgsError::MinutesInvalid(minutes.to_string()))?,
        ),
        (None, None) => Amount::Seeds(args.seeds),
    };
    Ok(Plan {
        start: args.seed.unwrap_or(args.start),
        amount,
        threads: if args.seed.is_some() { 1 } else { args.threads },
        trace: if args.trace {
            TraceText::StandardError
        } else {
            TraceText::Off
        },
        repeat_every: args.repeat_every,
        stop_at_failure: args.stop_at_failure,
        bug: args.bug,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &str) -> Result<RunArgs, clap::Error> {
        Command::try_parse_from(line.split_whitespace()).map(|command| command.run)
    }

    #[test]
    fn the_replay_command_of_a_report_runs_one_seed_with_its_trace() {
        let command = crate::report::replay_command("ping-pong", 7);
        let line = command.replace("holdfast sim run", "run");
        let args = parse(&line).expect("a replay command is valid");
        let plan = plan(&args).expect("a plan");
        assert_eq!(
            (plan.start, plan.amount, plan.threads),
            (7, Amount::Seeds(1), 1)
        );
        assert_eq!(plan.trace, TraceText::StandardError);
        assert_eq!(args.scenario, "ping-pong");
    }

    #[test]
    fn contradictions_and_unknown_scenarios_are_refused() {
        assert!(parse("run --seed 1 --seeds 5").is_err());
        assert!(parse("run --trace").is_err());
        assert!(parse("run --seed 1 --minutes 2").is_err());
        let unknown = run(&parse("run --scenario sunday").expect("syntax is fine"));
        assert!(unknown.is_err_and(|error| error.to_string().contains("cluster, link-cuts")));
        let negative = plan(&parse("run --minutes=-1").expect("syntax is fine"));
        assert_eq!(
            negative.map(|_| ()),
            Err(ArgsError::MinutesInvalid("-1".to_owned()))
        );
    }
}
