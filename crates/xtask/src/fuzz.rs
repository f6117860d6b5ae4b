//! The fuzz targets of `fuzz/`, on a stable compiler and without any further tool.
//!
//! Promises: every target runs, also if an earlier one found something; an input that breaks one
//! is kept, and the command that replays it is printed. `docs/hostile-initiators.md` says what the
//! targets check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::process::{Ended, capture, cargo, find, output_of, run as run_openly};

/// The targets and their shares of the executions, in hundredths: the slower one is, the fewer.
const TARGETS: [(&str, u64); 5] = [
    ("pdu", 32),
    ("text", 30),
    ("login", 22),
    ("cdb", 15),
    ("session", 1),
];
/// Where everything is kept: builds, corpora, and inputs that broke a target.
const DIRECTORY: &str = "target/fuzz";
/// LLVM's coverage instrumentation as libFuzzer wants it. These are options of every compiler;
/// cargo-fuzz sets the same ones.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Fresh memory is filled with the complement of this, freed memory with this: what a target
/// shows without having written it is then noticed. No pattern of the targets has these bytes.
const PERTURB: &str = "glibc.malloc.perturb=165";
/// Long enough for a dozen commands; patterns of data are not part of the input.
const INPUT_BYTES_MAX: u32 = 256;
/// One input takes microseconds.
const INPUT_SECONDS_MAX: u32 = 10;
const MEMORY_MIB_MAX: u32 = 1024;

const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Beyond the time that was asked for: reading a corpus.
const GRACE: Duration = Duration::from_secs(120);
/// The slowest target makes a thousand executions a second on a busy core.
const EXECUTION_LIMIT: Duration = Duration::from_millis(1);

/// How much to fuzz.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Executions of all targets together, shared by what one costs.
    #[arg(long, conflicts_with_all = ["minutes", "replay"], value_name = "N")]
    runs: Option<u64>,
    /// For how long all targets together; one minute unless told otherwise.
    #[arg(long, conflicts_with = "replay", value_name = "M")]
    minutes: Option<u64>,
    /// Only this target.
    #[arg(long, value_parser = TARGETS.map(|(name, _)| name))]
    target: Option<String>,
    /// Runs one input of the target again.
    #[arg(long, requires = "target", value_name = "FILE")]
    replay: Option<PathBuf>,
}

#[derive(Clone, Copy)]
enum Amount {
    Runs(u64),
    Time(Duration),
}

impl Amount {
    /// What one target of those chosen gets.
    fn share(self, hundredths: u64, chosen: &[(&str, u64)]) -> Self {
        let all: u64 = chosen.iter().map(|(_, share)| share).sum();
        match self {
            Self::Runs(runs) => Self::Runs((runs * hundredths).div_ceil(all)),
            Self::Time(time) => Self::Time(time / chosen.len() as u32),
        }
    }

    fn limit(self) -> Duration {
        GRACE
            + match self {
                Self::Runs(runs) => EXECUTION_LIMIT * u32::try_from(runs).unwrap_or(u32::MAX),
                Self::Time(time) => time,
            }
    }
}

/// What a target did.
struct Fuzzed {
    target: &'static str,
    executions: u64,
    took: Duration,
    corpus: usize,
    /// What it said last, if it broke.
    broken: Option<String>,
}

/// Fuzzes, or replays one input.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let binaries = build()?;
    if let (Some(target), Some(input)) = (&options.target, &options.replay) {
        let mut command = prepared(&binaries, target);
        return run_openly(command.arg(input), GRACE);
    }
    let amount = match (options.runs, options.minutes) {
        (Some(runs), _) => Amount::Runs(runs),
        (None, minutes) => Amount::Time(Duration::from_secs(60 * minutes.unwrap_or(1))),
    };
    let mut chosen = TARGETS.to_vec();
    chosen.retain(|(name, _)| options.target.as_ref().is_none_or(|only| only == name));
    fuzz(&binaries, &chosen, amount)
}

/// A short run of every target, as part of CI. Without a C++ compiler, which libFuzzer needs, it
/// is skipped.
pub(crate) fn run_if_possible(seconds: u64) -> anyhow::Result<()> {
    if !["c++", "g++", "clang++"]
        .iter()
        .any(|name| find(name).is_some())
    {
        println!("skipped: fuzzing, for want of a C++ compiler (Debian: g++)");
        return Ok(());
    }
    let binaries = build()?;
    fuzz(
        &binaries,
        &TARGETS,
        Amount::Time(Duration::from_secs(seconds)),
    )
}

/// Builds every target and answers where they are.
fn build() -> anyhow::Result<PathBuf> {
    let version = output_of(Command::new("rustc").arg("-vV"), GRACE)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say for which machine it is")?;
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--bins",
        "--manifest-path",
        "fuzz/Cargo.toml",
    ]);
    // With a target named, the flags are not for build scripts.
    build.args(["--target", host, "--target-dir", DIRECTORY]);
    build.env("RUSTFLAGS", INSTRUMENTATION);
    run_openly(&mut build, BUILD_LIMIT)?;
    Ok(Path::new(DIRECTORY).join(host).join("release"))
}

fn prepared(binaries: &Path, target: &str) -> Command {
    let mut command = Command::new(binaries.join(target));
    // A backtrace needs more memory than an input may use.
    command
        .env("RUST_BACKTRACE", "0")
        .env("GLIBC_TUNABLES", PERTURB);
    command.args([
        format!("-artifact_prefix={DIRECTORY}/crashes/{target}-"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
        format!("-timeout={INPUT_SECONDS_MAX}"),
    ]);
    command
}

fn fuzz(binaries: &Path, chosen: &[(&'static str, u64)], amount: Amount) -> anyhow::Result<()> {
    fs::create_dir_all(Path::new(DIRECTORY).join("crashes"))?;
    let mut all = Vec::new();
    for (target, hundredths) in chosen {
        let fuzzed = one(binaries, target, amount.share(*hundredths, chosen))?;
        let seconds = fuzzed.took.as_secs();
        println!("{target}: {} executions in {seconds} s", fuzzed.executions);
        all.push(fuzzed);
    }
    report(&all);
    let broken = all.iter().filter(|fuzzed| fuzzed.broken.is_some()).count();
    ensure!(broken == 0, "{broken} targets broke");
    Ok(())
}

fn one(binaries: &Path, target: &'static str, amount: Amount) -> anyhow::Result<Fuzzed> {
    let corpus = Path::new(DIRECTORY).join("corpus").join(target);
    fs::create_dir_all(&corpus)?;
    let mut command = prepared(binaries, target);
    command.env("HOLDFAST_FUZZ_SEEDS", &corpus);
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    match amount {
        Amount::Runs(runs) => command.arg(format!("-runs={runs}")),
        Amount::Time(time) => command.arg(format!("-max_total_time={}", time.as_secs().max(1))),
    };
    let begin = Instant::now();
    let Ended { status, text } = capture(command.arg(&corpus), amount.limit())?;
    let took = begin.elapsed();
    let executions = executions(&text);
    let broken = match (status.success(), executions) {
        (true, Some(1..)) => None,
        (true, Some(0) | None) => bail!("{target} executed nothing:\n{text}"),
        (false, _) => Some(what_broke(target, &text)),
    };
    Ok(Fuzzed {
        target,
        executions: executions.unwrap_or(0),
        took,
        corpus: fs::read_dir(&corpus)?.count(),
        broken,
    })
}

/// libFuzzer's own count.
fn executions(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    count.trim().parse().ok()
}

/// What the target said, and how to see it again.
fn what_broke(target: &str, text: &str) -> String {
    let kept = text
        .lines()
        .find_map(|line| line.split_once("Test unit written to "));
    let replay = match kept {
        Some((_, path)) => format!("cargo xtask fuzz --target {target} --replay {path}"),
        None => "no input was kept".to_owned(),
    };
    let said = text.lines().filter(|line| {
        ["panicked", "ERROR", "allocation of"]
            .iter()
            .any(|word| line.contains(word))
    });
    let said: Vec<&str> = said.collect();
    let after = text
        .lines()
        .skip_while(|line| !line.contains("panicked"))
        .nth(1);
    format!(
        "{}\n{}\n{replay}",
        said.join("\n"),
        after.unwrap_or_default()
    )
}

fn report(all: &[Fuzzed]) {
    println!(
        "\n{:<10} {:>12} {:>10} {:>8} {:>8}  result",
        "target", "executions", "per second", "seconds", "corpus"
    );
    let row = |name: &str, executions: u64, took: Duration, corpus: usize, result: &str| {
        let seconds = took.as_secs_f64();
        let rate = executions as f64 / seconds.max(0.001);
        println!("{name:<10} {executions:>12} {rate:>10.0} {seconds:>8.0} {corpus:>8}  {result}");
    };
    for fuzzed in all {
        let result = if fuzzed.broken.is_some() {
            "BROKEN"
        } else {
            "ok"
        };
        row(
            fuzzed.target,
            fuzzed.executions,
            fuzzed.took,
            fuzzed.corpus,
            result,
        );
    }
    let executions = all.iter().map(|fuzzed| fuzzed.executions).sum();
    let took = all.iter().map(|fuzzed| fuzzed.took).sum();
    let corpus = all.iter().map(|fuzzed| fuzzed.corpus).sum();
    row("together", executions, took, corpus, "");
    for fuzzed in all {
        if let Some(what) = &fuzzed.broken {
            println!("\n{} broke:\n{what}", fuzzed.target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_executions_are_shared_out() {
        assert_eq!(TARGETS.iter().map(|(_, share)| share).sum::<u64>(), 100);
        let shared = TARGETS.map(
            |(_, share)| match Amount::Runs(1000).share(share, &TARGETS) {
                Amount::Runs(runs) => runs,
                Amount::Time(_) => 0,
            },
        );
        assert_eq!(shared.iter().sum::<u64>(), 1000);
    }

    #[test]
    fn a_broken_target_names_the_command_that_replays_it() {
        let text = "thread '<unnamed>' panicked at src/x.rs:3:5:\nmore than was announced\n\
                    ==7== ERROR: libFuzzer: deadly signal\n\
                    artifact_prefix='d/'; Test unit written to target/fuzz/crashes/cdb-crash-1\n\
                    stat::number_of_executed_units: 17\n";
        assert_eq!(executions(text), Some(17));
        let what = what_broke("cdb", text);
        assert!(what.contains("more than was announced"), "{what}");
        let command = "cargo xtask fuzz --target cdb --replay target/fuzz/crashes/cdb-crash-1";
        assert!(what.ends_with(command), "{what}");
    }
}
