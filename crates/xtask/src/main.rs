//! Build, test, bench and docs entry points: `cargo xtask <command>`, the same here and in CI.
//!
//! Promises: every command ends with exit code 0 only if all that it names was done and was right;
//! what could not be done (a program that is not installed) is said by name; a step that exceeds
//! its time limit is stopped with everything that it started.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a tool of the host: nothing of it runs in the simulator"
)]

mod bench;
mod chaos;
mod cluster;
mod conformance;
mod figures;
mod fuzz;
mod gate;
mod hostile;
mod idle;
mod linux;
mod peers;
mod process;
mod processes;
mod scale;
mod simulator;
mod steps;
mod store_bench;
mod targets;
mod tidy;
mod trixie;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Entry points of the Holdfast workspace.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    after_help = "Examples:\n  \
        cargo xtask check               format, lints, tidy rules, rustdoc: before every commit\n  \
        cargo xtask test                everything that CI runs\n  \
        cargo xtask test --quick        the same without simulator, demo and foreign initiators\n  \
        cargo xtask fuzz --minutes 10   what initiators reach, with coverage-guided inputs\n  \
        cargo xtask sim --seed 42       one seed again, with its trace\n  \
        cargo xtask chaos --minutes 10  faults on real processes under checked load\n  \
        cargo xtask sim planted         does the simulator find the planted bugs?"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that CI runs, and a table of what each step took.
    Test(TestArguments),
    /// Format, lints, tidy rules and rustdoc.
    Check,
    /// What no linter checks: file sizes, headers, leftovers, dead links. Takes a second.
    Tidy,
    /// Rustdoc without warnings, and the REST description against the code.
    Docs,
    /// The demo of the README; arguments go to `holdfast demo`.
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs the simulator.
    Sim(SimArguments),
    /// Faults on real node processes in network namespaces, under checked load; `--help` tells all.
    #[command(disable_help_flag = true)]
    Chaos {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Foreign initiators against a served demo.
    E2e {
        /// Which initiators.
        #[arg(value_enum, default_value_t)]
        initiators: Initiators,
        /// The `holdfast` to run, instead of building it.
        #[arg(long, value_name = "PATH")]
        binary: Option<std::path::PathBuf>,
    },
    /// Every conformance test of libiscsi against a served demo: up to twenty minutes.
    Conformance(conformance::Options),
    /// Fuzzes what initiators reach, from framing to whole sessions.
    Fuzz(fuzz::Options),
    /// Every state that a crash can leave of a node's store, for all short sequences of operations.
    CrashStates(simulator::CrashStates),
    /// A golden image of what the store writes, for a format that has changed.
    Golden,
    /// Ten thousand logins that are never finished, against a target that serves others.
    Hostile(hostile::Options),
    /// Measures this machine: disk and link latency, then load against a served demo.
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        #[command(subcommand)]
        what: Option<BenchCommand>,
        /// A directory on the disk to measure.
        #[arg(long, default_value = "target")]
        directory: std::path::PathBuf,
        /// Duration of each load, in seconds.
        #[arg(long, default_value_t = 15)]
        seconds: u64,
    },
    /// Counts the instructions of a 4 KiB write and read, and compares them with the budget in
    /// `crates/sim/gate.json`. Takes half a minute after the build.
    Gate {
        /// Make what is counted the budget.
        #[arg(long)]
        set: bool,
    },
    /// Measures what an idle cluster of five nodes costs.
    Idle {
        /// How long to watch, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Fail if all nodes together use more than this share of one core, in percent.
        #[arg(long)]
        cpu_percent_max: Option<f64>,
    },
}

#[derive(Subcommand)]
enum BenchCommand {
    /// One node against Debian's tgt: 4 KiB at random, on memory, in turns. Takes two minutes.
    Targets(targets::Options),
    /// The store on a real disk, beside what fio gets from it. Takes about five minutes.
    Store(store_bench::Options),
    /// Thousands of volumes on five nodes: what must not grow with them; `--help` tells all.
    #[command(disable_help_flag = true)]
    Scale {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Initiators {
    /// libiscsi with its conformance tests, and QEMU's tools.
    #[default]
    Peers,
    /// A Linux kernel in a virtual machine, with open-iscsi and dm-multipath.
    Linux,
}

#[derive(Args)]
struct TestArguments {
    /// Only what needs no release build.
    #[arg(long)]
    quick: bool,
    /// Seeds of the simulator
    #[arg(long, default_value_t = 1000, value_name = "N")]
    sim_seeds: u64,
}

#[derive(Args)]
struct SimArguments {
    #[command(subcommand)]
    command: Option<SimCommand>,
    /// How many seeds.
    #[arg(long, conflicts_with_all = ["minutes", "seed"])]
    seeds: Option<u64>,
    /// For how long, in minutes.
    #[arg(long, conflicts_with = "seed")]
    minutes: Option<u64>,
    /// One seed, with its trace.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Subcommand)]
enum SimCommand {
    /// Turns each planted bug on and counts the seeds until an oracle objects.
    Planted,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Every path below is relative to the workspace.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two levels below the workspace");
    let result = std::env::set_current_dir(root)
        .map_err(Into::into)
        .and_then(|()| run(arguments.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Test(TestArguments { quick, sim_seeds }) => steps::test(quick, sim_seeds),
        Command::Check => steps::check(),
        Command::Tidy => steps::tidy(),
        Command::Docs => steps::documents(),
        Command::Demo { arguments } => steps::demo(&arguments),
        Command::Sim(arguments) => match arguments.command {
            Some(SimCommand::Planted) => simulator::planted(),
            None => simulator::run(simulator::Amount::from_options(
                arguments.seeds,
                arguments.minutes,
                arguments.seed,
            )),
        },
        Command::Chaos { arguments } => chaos::run(&arguments),
        Command::E2e { initiators, binary } => {
            let binary = match binary {
                Some(path) => path.canonicalize()?,
                None => process::release_binary()?,
            };
            match initiators {
                Initiators::Peers => peers::run(&binary),
                Initiators::Linux => linux::run(&binary),
            }
        }
        Command::Conformance(options) => conformance::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::CrashStates(wanted) => simulator::crash_states(wanted),
        Command::Golden => simulator::golden(),
        Command::Hostile(options) => hostile::run(&options),
        Command::Bench {
            what: Some(BenchCommand::Targets(options)),
            ..
        } => targets::bench(&options),
        Command::Bench {
            what: Some(BenchCommand::Store(options)),
            ..
        } => store_bench::bench(&options),
        Command::Bench {
            what: Some(BenchCommand::Scale { arguments }),
            ..
        } => scale::run(&arguments),
        Command::Bench {
            what: None,
            directory,
            seconds,
        } => bench::run_all(&directory, seconds),
        Command::Gate { set } => gate::run_gate(set),
        Command::Idle {
            seconds,
            cpu_percent_max,
        } => idle::run(seconds, cpu_percent_max),
    }
}
