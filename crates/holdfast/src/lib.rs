//! The holdfast command: node, cluster administration, demo, simulator.
//!
//! ```text
//!  main ─ cli ─┬─ node      `node start`: one process of the cluster
//!              ├─ commands  administration, through the REST API; `store …` on a stopped node
//!              ├─ demo ─ fleet ─► child processes running `node start`
//!              └─ sim       `sim run`
//! ```
//!
//! Results go to standard output, everything else to standard error. Exit codes are those of
//! [`failure::Failure`].
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a process of the host: it never runs under the simulator"
)]

mod cli;
mod commands;
mod demo;
pub mod failure;
pub mod fleet;
mod node;
mod output;
mod quantity;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command, NodeCommand, SimCommand};
use failure::Failure;

/// Environment variable with the log filter, as `tracing-subscriber` reads it.
const LOG_VARIABLE: &str = "HOLDFAST_LOG";

/// What a node logs by default. The Raft library repeats itself as long as a node is down; what
/// matters of it the config group says.
const NODE_LOG: &str = "info,openraft=off";

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Node(NodeCommand::Start(args)) => {
            log_to_standard_error(NODE_LOG);
            node::start(&args)
        }
        Command::Node(NodeCommand::List(args)) => commands::node::list(&args),
        Command::Node(NodeCommand::Show(args)) => commands::node::show(&args),
        Command::Node(NodeCommand::Evict(args)) => commands::node::evict(&args),
        Command::Node(NodeCommand::Scrub(args)) => commands::node::scrub(&args),
        Command::Cluster(command) => commands::cluster::run(&command),
        Command::Volume(command) => commands::volume::run(&command),
        Command::Store(command) => {
            log_to_standard_error("error");
            commands::store::run(command)
        }
        Command::Demo(args) => {
            log_to_standard_error("warn");
            demo::run(&args)
        }
        Command::Sim(SimCommand::Run(args)) => simulate(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn simulate(args: &holdfast_sim::RunArgs) -> Result<(), Failure> {
    let report = holdfast_sim::run(args).map_err(|error| Failure::Usage(error.to_string()))?;
    println!("{}", holdfast_sim::cli::render(&report, args.output));
    if report.failed.is_empty() {
        Ok(())
    } else {
        let failed = report.failed.len();
        Err(Failure::Failed(format!(
            "{failed} of {} seeds failed",
            report.seeds
        )))
    }
}

fn log_to_standard_error(default: &str) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
