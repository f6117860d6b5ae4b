//! Runs the simulator without the rest of the product: quick to build while working on it.

use clap::Parser;
use holdfast_runtime::planted::{Bug, Finder};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    run: holdfast_sim::RunArgs,
    /// Name the planted bugs and the scenarios that are to find them, one a line, and run nothing
    #[arg(long)]
    list_bugs: bool,
}

fn main() {
    let command = Command::parse();
    if command.list_bugs {
        for bug in Bug::ALL {
            match bug.finder() {
                Finder::Cluster => println!("{} cluster", bug.name()),
                Finder::LinkCuts => println!("{} link-cuts", bug.name()),
                Finder::Store => println!("{} store", bug.name()),
                Finder::CrashStates | Finder::Nobody => {}
            }
        }
        return;
    }
    match holdfast_sim::run(&command.run) {
        Ok(report) => println!("{}", holdfast_sim::cli::render(&report, command.run.output)),
        Err(error) => println!("{error}"),
    }
}
