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
//! [`failure::Failure`]. Neither stream is taken for granted: see the modules `standard`, `output`
//! and `log`.
#![forbid(unsafe_code)]
// A log or an output that cannot be written must not panic.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![allow(
    clippy::disallowed_methods,
    reason = "a process of the host: it never runs under the simulator"
)]

mod cli;
mod commands;
mod demo;
pub mod failure;
pub mod fleet;
mod log;
mod node;
mod output;
mod quantity;
mod standard;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, NodeCommand, SimCommand};
use failure::Failure;
use output::About;

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    holdfast_runtime::host::ignore_output_signals();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return explain(&answer),
    };
    let outcome = match cli.command {
        Command::Node(NodeCommand::Start(args)) => return start(&args),
        Command::Node(NodeCommand::List(args)) => commands::node::list(&args),
        Command::Node(NodeCommand::Show(args)) => commands::node::show(&args),
        Command::Node(NodeCommand::Drain(args)) => commands::node::drain(&args),
        Command::Node(NodeCommand::Remove(args)) => commands::node::remove(&args),
        Command::Node(NodeCommand::Evict(args)) => commands::node::evict(&args),
        Command::Node(NodeCommand::Scrub(args)) => commands::node::scrub(&args),
        Command::Cluster(command) => commands::cluster::run(&command),
        Command::Volume(command) => commands::volume::run(&command),
        Command::Store(command) => {
            log::start("error");
            commands::store::run(command)
        }
        Command::Demo(args) => {
            log::start("warn");
            demo::run(&args)
        }
        Command::Sim(SimCommand::Run(args)) => simulate(&args),
    };
    log::flush();
    let code = code(&outcome);
    match outcome {
        Ok(()) | Err(Failure::Unheard) => {}
        Err(failure) => standard::tell(&format!("error: {failure}")),
    }
    code
}

/// Runs a node. Its error message goes through the log's queue too, because a node never waits for
/// the reader of its standard error.
fn start(args: &cli::StartArgs) -> ExitCode {
    log::start("info");
    log::take_panics();
    let outcome = node::start(args);
    if let Err(failure) = &outcome {
        log::say(&format!("error: {failure}\n"));
    }
    log::flush();
    code(&outcome)
}

fn code(outcome: &Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.exit_code()),
    }
}

/// Prints what the parser of the command line has to say: help, the version, or an error.
fn explain(answer: &clap::Error) -> ExitCode {
    let code = u8::try_from(answer.exit_code()).unwrap_or(1);
    let printed = answer.print().and_then(|()| {
        use std::io::Write;
        std::io::stdout().flush()
    });
    match output::outcome(About::Look, printed) {
        Err(failure) if !answer.use_stderr() => {
            standard::tell(&format!("error: {failure}"));
            ExitCode::from(failure.exit_code())
        }
        Ok(()) | Err(_) => ExitCode::from(code),
    }
}

fn simulate(args: &holdfast_sim::RunArgs) -> Result<(), Failure> {
    let report = holdfast_sim::run(args).map_err(|error| Failure::Usage(error.to_string()))?;
    let text = holdfast_sim::cli::render(&report, args.output);
    output::show(About::Look, &format!("{text}\n"))?;
    if report.passed() {
        Ok(())
    } else {
        let (failed, missed) = (report.failed.len(), report.missed.len());
        Err(Failure::Failed(format!(
            "{failed} of {} seeds failed, {missed} branches were taken too rarely",
            report.seeds
        )))
    }
}
