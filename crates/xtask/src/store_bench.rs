//! `cargo xtask bench store`: the store on a real disk, beside what fio gets from the same disk.
//!
//! Promises: the raw figures and ours are taken in turns in one run, and each ratio is the median
//! of the ratios of the rounds, as the machine's other work hits both; what the store writes and
//! reads is counted below it, area by area. When this ends its files are gone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::figures::quantile;
use crate::process::{cargo, find, output_of, run};

const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
const RUN_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Facts of one of the two generations of a small cache of leaves: with a table's it is full.
const CACHED_FACTS_FEW: &str = "16384";

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// A directory on the disk to measure.
    #[arg(long, default_value = "target")]
    directory: PathBuf,
    /// Rounds of the journal's comparison with fio.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured time of each in each round, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Only the comparison with fio.
    #[arg(long)]
    journal_only: bool,
    /// Data of the synthetic map, in GiB.
    #[arg(long, default_value_t = 32)]
    mapped_gib: u64,
    /// Fail if a figure misses its goal.
    #[arg(long)]
    strict: bool,
}

/// One line of the outcome.
struct Line {
    what: String,
    found: f64,
    /// The bound, and whether it is the least or the most.
    goal: (&'static str, f64),
    detail: String,
}

impl Line {
    fn is_met(&self) -> bool {
        match self.goal.0 {
            "<=" => self.found <= self.goal.1,
            _ => self.found >= self.goal.1,
        }
    }
}

pub(crate) fn bench(options: &Options) -> anyhow::Result<()> {
    if find("fio").is_none() {
        bail!("fio is missing: install the package fio");
    }
    let program = build()?;
    let folder = options.directory.join("store-bench");
    std::fs::create_dir_all(&folder)?;
    let outcome = measure(options, &program, &folder);
    std::fs::remove_dir_all(&folder)?;
    let lines = outcome?;
    println!();
    for line in &lines {
        let verdict = if line.is_met() { "met" } else { "MISSED" };
        println!(
            "{:<58} {:>9.3}  {} {:<6} {verdict:<7} {}",
            line.what, line.found, line.goal.0, line.goal.1, line.detail
        );
    }
    let missed = lines.iter().filter(|line| !line.is_met()).count();
    if options.strict && missed > 0 {
        bail!("{missed} figures missed their goals");
    }
    Ok(())
}

fn build() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "holdfast-store",
    ]);
    build.args(["--features", "testing", "--example", "store_bench"]);
    run(&mut build, BUILD_LIMIT)?;
    let program = PathBuf::from("target/release/examples/store_bench");
    if !program.is_file() {
        bail!("the build left no {}", program.display());
    }
    Ok(program)
}

fn measure(options: &Options, program: &Path, folder: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = against_raw(options, program, folder)?;
    if options.journal_only {
        return Ok(lines);
    }
    let ours = |arguments: &[&str]| ours(program, folder, arguments);
    let hot = ours(&["overwrite", "1024", "2048", "4096"])?;
    lines.push(Line {
        what: "bytes written to the home per byte, hot 1 GiB, journal 2 GiB".into(),
        found: number(&hot, "destaged_per_byte")?,
        goal: ("<=", 0.5),
        detail: format!("{:.0} MiB/s", number(&hot, "mib_per_second")?),
    });
    let mixed = ours(&["amplification", "1024"])?;
    lines.push(Line {
        what: "write amplification, random overwrites at 80 %".into(),
        found: number(&mixed, "write_amplification")?,
        goal: ("<=", 3.0),
        detail: "home of 1 GiB".into(),
    });
    ours(&["fill-journal", "1024", "32"])?;
    let restarted = ours(&["restart", "1024"])?;
    lines.push(Line {
        what: "seconds until a full journal of 1 GiB is read in".into(),
        found: number(&restarted, "seconds_read_in")?,
        goal: ("<=", 5.0),
        detail: format!("{:.0} MiB in use", number(&restarted, "journal_used_mib")?),
    });
    lines.push(Line {
        what: "share of that time until the store serves".into(),
        found: number(&restarted, "seconds_open")? / number(&restarted, "seconds_read_in")?,
        goal: ("<=", 0.75),
        detail: format!(
            "{:.2} s; then {:.0} reads of 4 KiB, median {:.0} us, longest {:.0} us",
            number(&restarted, "seconds_open")?,
            number(&restarted, "reads_meanwhile")?,
            number(&restarted, "read_median_us")?,
            number(&restarted, "read_longest_us")?,
        ),
    });
    let mapped_gib = options.mapped_gib.to_string();
    ours(&["make-map", &mapped_gib])?;
    lines.extend(through_map(&mapped_gib, &ours)?);
    let map = ours(&["read-map", &mapped_gib])?;
    lines.push(Line {
        what: "MiB of memory per TiB mapped at 4 KiB".into(),
        found: number(&map, "resident_mib_per_tib")?,
        goal: ("<=", 256.0),
        detail: format!("measured with {mapped_gib} GiB"),
    });
    lines.push(Line {
        what: "most disk reads of one cold read".into(),
        found: number(&map, "disk_reads_most")?,
        goal: ("<=", 2.0),
        detail: format!(
            "{:.2} on average",
            number(&map, "disk_reads_per_cold_read")?
        ),
    });
    let freed = ours(&["space", "1024"])?;
    lines.push(Line {
        what: "seconds from unmapping a full home until its space is back".into(),
        found: number(&freed, "seconds_until_free")?,
        goal: ("<=", 60.0),
        detail: format!("{:.0} MiB", number(&freed, "filled_mib")?),
    });
    Ok(lines)
}

/// The map in order and here and there, with read-ahead and without, on this disk and on slower
/// ones.
fn through_map(
    mapped_gib: &str,
    ours: &dyn Fn(&[&str]) -> anyhow::Result<Value>,
) -> anyhow::Result<Vec<Line>> {
    let both = |measurement: &str, latency_us: &str, cached_facts: &str| {
        let one = |ahead| ours(&[measurement, mapped_gib, ahead, latency_us, cached_facts]);
        Ok::<_, anyhow::Error>((one("0")?, one("1")?))
    };
    let mut lines = Vec::new();
    let devices = [
        ("this disk", "0", 1.5),
        ("reads of 0.1 ms", "100", 4.0),
        ("reads of 5 ms", "5000", 8.0),
    ];
    for (device, latency_us, goal) in devices {
        let (plain, ahead) = both("walk-map", latency_us, "0")?;
        let figure = |name| Ok::<_, anyhow::Error>((number(&plain, name)?, number(&ahead, name)?));
        let (seconds, reads) = (figure("seconds")?, figure("disk_reads")?);
        let (processor, resident) = (figure("processor_seconds")?, figure("resident_mib")?);
        lines.push(Line {
            what: format!("map in order: times faster with read-ahead, {device}"),
            found: seconds.0 / seconds.1,
            goal: (">=", goal),
            detail: format!(
                "{:.2} s and {:.2} s, {} reads and {}, processor {:.2} s and {:.2} s, \
                 memory {:.0} MiB and {:.0} MiB",
                seconds.0,
                seconds.1,
                reads.0,
                reads.1,
                processor.0,
                processor.1,
                resident.0,
                resident.1
            ),
        });
    }
    // With a cache that holds little more than what is on its way.
    let (plain, ahead) = both("walk-map", "0", CACHED_FACTS_FEW)?;
    let more = number(&ahead, "held_mib")? - number(&plain, "held_mib")?;
    lines.push(Line {
        what: "MiB more that are held for read-ahead".into(),
        found: more,
        goal: ("<=", 4.5),
        detail: format!(
            "{:.1} MiB held, of {:.1} MiB at most; {:.2} s",
            number(&ahead, "held_mib")?,
            number(&ahead, "bound_mib")?,
            number(&ahead, "seconds")?
        ),
    });
    let (plain, ahead) = both("jump-map", "0", "0")?;
    lines.push(Line {
        what: "disk reads of cold reads here and there, over those without".into(),
        found: number(&ahead, "disk_reads")? / number(&plain, "disk_reads")?,
        goal: ("<=", 1.0),
        detail: format!("{:.2} each", number(&ahead, "disk_reads_each")?),
    });
    Ok(lines)
}

/// The journal's appends against durable overwrites of a preallocated file.
fn against_raw(options: &Options, program: &Path, folder: &Path) -> anyhow::Result<Vec<Line>> {
    let (mut throughput, mut latency) = (Vec::new(), Vec::new());
    let seconds = options.seconds.to_string();
    for round in 1..=options.rounds {
        for depth in ["32", "1"] {
            let raw = raw(options, folder, depth)?;
            let ours = ours(program, folder, &["append", depth, &seconds])?;
            let our_rate = number(&ours, "writes_per_second")?;
            println!(
                "round {round}, depth {depth:>2}: raw {:.0} writes/s, {:.0} us; \
                 journal {our_rate:.0} writes/s, {:.0} us",
                raw.rate,
                raw.mean_us,
                number(&ours, "mean_us")?
            );
            match depth {
                "1" => latency.push(number(&ours, "mean_us")? / raw.mean_us),
                _ => throughput.push(our_rate / raw.rate),
            }
        }
    }
    let line = |what: &str, ratios: Vec<f64>, goal| {
        let share = |share| quantile(ratios.iter().copied(), share);
        Line {
            what: what.into(),
            found: share(0.5),
            goal,
            detail: format!("{:.2} to {:.2}", share(0.0), share(1.0)),
        }
    };
    Ok(vec![
        line(
            "journal appends of 4 KiB over raw writes, depth 32",
            throughput,
            (">=", 0.9),
        ),
        line(
            "journal append latency over raw, depth 1",
            latency,
            ("<=", 1.2),
        ),
    ])
}

struct Raw {
    rate: f64,
    mean_us: f64,
}

/// Random overwrites of a file that was written before, each durable when it completes.
fn raw(options: &Options, folder: &Path, depth: &str) -> anyhow::Result<Raw> {
    let file = folder.join("raw");
    let mut fio = Command::new("fio");
    fio.args(["--name=raw", "--output-format=json", "--ioengine=io_uring"]);
    fio.args(["--direct=1", "--sync=dsync", "--rw=randwrite", "--bs=4k"]);
    fio.args(["--size=512M", "--overwrite=1", "--time_based=1"]);
    fio.arg(format!("--iodepth={depth}"));
    fio.arg(format!("--runtime={}", options.seconds));
    fio.arg(format!("--filename={}", file.display()));
    let text = output_of(&mut fio, RUN_LIMIT)?;
    let begin = text.find('{').context("fio says nothing")?;
    let report: Value = serde_json::from_str(&text[begin..])?;
    let write = &report["jobs"][0]["write"];
    let found = |value: &Value| value.as_f64().context("fio leaves a figure out");
    Ok(Raw {
        rate: found(&write["iops"])?,
        mean_us: found(&write["clat_ns"]["mean"])? / 1000.0
            + found(&write["slat_ns"]["mean"])? / 1000.0,
    })
}

fn ours(program: &Path, folder: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let (measurement, rest) = arguments.split_first().context("a measurement")?;
    let mut command = Command::new(program);
    command
        .arg(measurement)
        .arg(folder.join("store"))
        .args(rest);
    let text = output_of(&mut command, RUN_LIMIT)?;
    let line = text.lines().rfind(|line| line.starts_with('{'));
    let line = line.with_context(|| format!("{measurement} says: {text}"))?;
    println!("{measurement}: {line}");
    Ok(serde_json::from_str(line)?)
}

fn number(value: &Value, name: &str) -> anyhow::Result<f64> {
    value[name]
        .as_f64()
        .with_context(|| format!("no {name} in {value}"))
}
