//! The steps of `check` and `test`, one after another, each under its time limit.
//!
//! The limits stop what hangs; they are not what the steps usually take. All steps run even if an
//! earlier one failed, so that one run tells everything; the result is a table.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use crate::process::{cargo, find, run};
use crate::simulator::{self, Amount};
use crate::{chaos, fuzz, gate, linux, peers, process, tidy};

const FORMAT_LIMIT: Duration = minutes(2);
/// Checks every dependency once on a fresh machine.
const LINT_LIMIT: Duration = minutes(20);
/// Builds every dependency and every test on a fresh machine.
const TESTS_LIMIT: Duration = minutes(25);
const DOCUMENTS_LIMIT: Duration = minutes(10);
/// The demo's own aim is half a minute.
const DEMO_LIMIT: Duration = minutes(2);

/// Of all fuzz targets together; building them takes longer.
const FUZZ_SECONDS: u64 = 40;

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// What came of one step.
struct Taken {
    name: &'static str,
    time: Duration,
    error: Option<anyhow::Error>,
}

#[derive(Default)]
struct Steps {
    taken: Vec<Taken>,
}

impl Steps {
    fn step(&mut self, name: &'static str, act: impl FnOnce() -> anyhow::Result<()>) {
        println!("\n=== {name}");
        let begin = Instant::now();
        let error = act().err();
        if let Some(error) = &error {
            eprintln!("{name} failed: {error:#}");
        }
        let time = begin.elapsed();
        self.taken.push(Taken { name, time, error });
    }

    /// Prints the table; an error if any step failed.
    fn end(self) -> anyhow::Result<()> {
        println!("\n{:<28} {:>8}  result", "step", "seconds");
        for Taken { name, time, error } in &self.taken {
            let result = if error.is_some() { "FAILED" } else { "ok" };
            println!("{name:<28} {:>8.1}  {result}", time.as_secs_f64());
        }
        let total: Duration = self.taken.iter().map(|taken| taken.time).sum();
        println!("{:<28} {:>8.1}", "together", total.as_secs_f64());
        let failed: Vec<_> = self
            .taken
            .into_iter()
            .filter(|t| t.error.is_some())
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = failed.iter().map(|taken| taken.name).collect();
        Err(anyhow!("failed: {}", names.join(", ")))
    }
}

/// Everything that CI runs.
pub(crate) fn test(quick: bool, sim_seeds: u64) -> anyhow::Result<()> {
    let mut steps = Steps::default();
    check_steps(&mut steps);
    steps.step("tests", tests);
    steps.step("examples in documentation", || {
        let mut command = cargo();
        command.args(["test", "--workspace", "--doc"]);
        run(&mut command, TESTS_LIMIT)
    });
    steps.step("REST description", rest_description);
    if !quick {
        steps.step("demo", || demo(&["--check".to_owned()]));
        steps.step("foreign initiators", || {
            peers::run(&process::release_binary()?)
        });
        steps.step("a Linux kernel", || {
            linux::run_if_possible(&process::release_binary()?)
        });
        steps.step("chaos", || chaos::run_for_ci(&process::release_binary()?));
        steps.step("fuzzing", || fuzz::run_if_possible(FUZZ_SECONDS));
        steps.step("instructions", gate::run_if_possible);
        steps.step("simulator", || simulator::run(Amount::Seeds(sim_seeds)));
        steps.step("crash states", || {
            simulator::crash_states(simulator::CRASH_STATES_CI)
        });
    }
    steps.end()
}

/// What belongs before every commit.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut steps = Steps::default();
    check_steps(&mut steps);
    steps.end()
}

fn check_steps(steps: &mut Steps) {
    steps.step("tidy", tidy);
    steps.step("format", || {
        let mut command = cargo();
        command.args(["fmt", "--all", "--check"]);
        run(&mut command, FORMAT_LIMIT)
    });
    steps.step("lints", || {
        let mut command = cargo();
        command.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]);
        run(&mut command, LINT_LIMIT)
    });
    steps.step("rustdoc", rustdoc);
}

/// The rules of the module `tidy`.
pub(crate) fn tidy() -> anyhow::Result<()> {
    tidy::check(Path::new("."))
}

fn tests() -> anyhow::Result<()> {
    let mut command = cargo();
    if find("cargo-nextest").is_some() {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        println!("cargo-nextest is not installed: using cargo test");
        command.args(["test", "--workspace", "--all-targets", "--no-fail-fast"]);
    }
    run(&mut command, TESTS_LIMIT)
}

/// Rustdoc without warnings, and the REST description against the code.
pub(crate) fn documents() -> anyhow::Result<()> {
    rustdoc()?;
    rest_description()
}

fn rustdoc() -> anyhow::Result<()> {
    let mut rustdoc = cargo();
    rustdoc
        .args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings");
    run(&mut rustdoc, DOCUMENTS_LIMIT)
}

fn rest_description() -> anyhow::Result<()> {
    if !Path::new("docs/openapi.json").exists() {
        bail!("docs/openapi.json is missing");
    }
    // The whole workspace, so that what the tests were built with serves again.
    let mut openapi = cargo();
    openapi.args(["test", "--workspace", "--test", "openapi"]);
    let said = process::output_of(&mut openapi, TESTS_LIMIT)?;
    // A filter that matches nothing is content, too.
    let ran = said
        .lines()
        .any(|line| line.starts_with("running ") && line != "running 0 tests");
    if !ran {
        bail!("no test compares docs/openapi.json with the code:\n{said}");
    }
    println!("docs/openapi.json is current");
    Ok(())
}

/// `holdfast demo` with these arguments.
pub(crate) fn demo(arguments: &[String]) -> anyhow::Result<()> {
    let binary = process::release_binary()?;
    let mut command = Command::new(binary);
    command.arg("demo").args(arguments);
    if arguments.iter().any(|argument| argument == "--check") {
        return run(&mut command, DEMO_LIMIT);
    }
    // Somebody watches, or it serves until it is interrupted.
    let status = command.status()?;
    if !status.success() {
        bail!("holdfast demo: {status}");
    }
    Ok(())
}
