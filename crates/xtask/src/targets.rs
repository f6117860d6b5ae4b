//! `cargo xtask bench targets`: our target against Linux SCSI target framework's `tgtd`, on the
//! same memory, with the same initiator, in turns.
//!
//! Promises: both run at the same time and are measured in turns, in short rounds that begin now
//! with one and now with the other, so that whatever else the machine does hits both; a ratio is
//! taken within a round, and the median and the quartiles of the rounds are told. Ours is an
//! ordinary node with an ordinary volume of one copy, filled before it is read, and read when its
//! journal is empty: every read goes to the home. When this ends, so have both targets, and their
//! files are gone.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use wait_timeout::ChildExt as _;

use crate::figures::{median, quantile};
use crate::process::{cargo, find, output_of, release_binary, run, stop_tree};
use crate::processes::{self, Signal};

const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
const START_LIMIT: Duration = Duration::from_secs(20);
const EMPTY_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(20);
const POLL_PERIOD: Duration = Duration::from_millis(100);
/// Destaging what the last round wrote is not the next one's to pay.
const PAUSE_AFTER_WRITES: Duration = Duration::from_millis(1500);
/// Warming up, logging in and ending.
const AROUND_LOAD: Duration = Duration::from_secs(60);
const REGION_MIB: u64 = 256;
const DISK_BYTES: u64 = 512 << 20;
/// A journal that still holds this much is as good as empty.
const EMPTY_BYTES: u64 = 1 << 20;
const TGT_NAME: &str = "iqn.2026-11.io.holdfast.bench:tgt";

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Rounds of each load, both targets in each.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Measured time of one target in one round, in seconds.
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// I/Os under way at once.
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Where both keep their data: a file system in memory.
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// The `holdfast` to run, instead of building it.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Fail if random reads are not at least so many times tgt's I/Os a second.
    #[arg(long)]
    read_ratio_min: Option<f64>,
    /// Fail if a random read costs more than this share of the processor time of tgt's.
    #[arg(long)]
    cpu_ratio_max: Option<f64>,
}

/// What one target did in one round, as the initiator tells it.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Measured {
    ios: u64,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_ticks: u64,
}

impl Measured {
    fn cpu_us(&self) -> f64 {
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        self.cpu_ticks as f64 * 1e6 / per_second / self.ios as f64
    }
}

/// A disk to measure.
struct Subject {
    name: &'static str,
    pid: u32,
    portal: String,
    iqn: String,
    lun: u32,
}

/// Ends with the value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // A node hands over and empties its journal; what does not end is stopped.
        let _ = processes::signal(self.0.id(), Signal::TERM);
        if !matches!(self.0.wait_timeout(END_LIMIT), Ok(Some(_))) {
            let _ = stop_tree(&mut self.0);
        }
    }
}

/// Measures both, or ours alone where there is no tgt.
pub(crate) fn bench(options: &Options) -> anyhow::Result<()> {
    let binary = match &options.binary {
        Some(path) => path.canonicalize()?,
        None => release_binary()?,
    };
    let load = load_program()?;
    let directory = TempDir::new_in(&options.memory)
        .with_context(|| format!("a directory in {}", options.memory.display()))?;
    let (_node, ours, api) = start_node(&binary, directory.path())?;
    let mut subjects = vec![ours];
    let tgt = match start_tgt(directory.path())? {
        Some((daemon, subject)) => {
            subjects.push(subject);
            Some(daemon)
        }
        None => None,
    };
    for subject in &subjects {
        println!("filling {REGION_MIB} MiB of {}", subject.name);
        let mut fill = command(&load, subject, options);
        output_of(fill.arg("--fill"), BUILD_LIMIT)?;
    }
    wait_until_destaged(&binary, &api)?;

    println!(
        "\n4 KiB at random, {} under way, memory in {}, {} rounds of {} s in turns; medians, \
         and the quartiles of the ratio\n",
        options.depth,
        options.memory.display(),
        options.rounds,
        options.seconds
    );
    println!(
        "{:<7} {:<9} {:>9} {:>11} {:>9} {:>9}",
        "load", "target", "IO/s", "CPU us/IO", "p50 us", "p99 us"
    );
    let reads = rounds(&load, &subjects, options, false)?;
    let read_ratios = report("read", &subjects, &reads);
    let writes = rounds(&load, &subjects, options, true)?;
    report("write", &subjects, &writes);
    drop(tgt);
    judge(options, read_ratios)
}

fn judge(options: &Options, ratios: Option<(f64, f64)>) -> anyhow::Result<()> {
    if options.read_ratio_min.is_none() && options.cpu_ratio_max.is_none() {
        return Ok(());
    }
    let Some((iops, cpu)) = ratios else {
        bail!("there is no tgtd (package tgt) to compare with");
    };
    if let Some(least) = options.read_ratio_min.filter(|least| iops < *least) {
        bail!("reads: {iops:.2} times tgt's I/Os a second; at least {least} was asked for");
    }
    if let Some(most) = options.cpu_ratio_max.filter(|most| cpu > *most) {
        bail!("reads: {cpu:.2} of tgt's processor time; at most {most} was asked for");
    }
    Ok(())
}

/// By target, in the order of the rounds.
type Rounds = BTreeMap<&'static str, Vec<Measured>>;

fn rounds(
    load: &Path,
    subjects: &[Subject],
    options: &Options,
    write: bool,
) -> anyhow::Result<Rounds> {
    let mut measured = Rounds::new();
    for round in 0..options.rounds {
        let mut turns: Vec<&Subject> = subjects.iter().collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for subject in turns {
            let mut command = command(load, subject, options);
            command.args(["--pid", &subject.pid.to_string()]);
            command.args(["--seconds", &options.seconds.to_string()]);
            if write {
                command.arg("--write");
            }
            let limit = AROUND_LOAD + Duration::from_secs(options.seconds);
            let said = output_of(&mut command, limit)?;
            let last = said.lines().last().unwrap_or_default();
            let round = serde_json::from_str(last).with_context(|| said.clone())?;
            measured.entry(subject.name).or_default().push(round);
            if write {
                thread::sleep(PAUSE_AFTER_WRITES);
            }
        }
    }
    Ok(measured)
}

/// Prints the rows of one load; the ratios of I/Os a second and of processor time.
fn report(load: &str, subjects: &[Subject], rounds: &Rounds) -> Option<(f64, f64)> {
    for subject in subjects {
        let of = |value: fn(&Measured) -> f64| median(rounds[subject.name].iter().map(value));
        println!(
            "{load:<7} {:<9} {:>9.0} {:>11.2} {:>9.0} {:>9.0}",
            subject.name,
            of(|round| round.iops),
            of(Measured::cpu_us),
            of(|round| round.p50_us),
            of(|round| round.p99_us),
        );
    }
    let [ours, theirs] = subjects else {
        return None;
    };
    let ratio = |value: fn(&Measured) -> f64, share: f64| {
        let pairs = rounds[ours.name].iter().zip(&rounds[theirs.name]);
        quantile(
            pairs.map(|(ours, theirs)| value(ours) / value(theirs)),
            share,
        )
    };
    for (name, share) in [("ratio", 0.5), ("from", 0.25), ("to", 0.75)] {
        println!(
            "{load:<7} {name:<9} {:>9.2} {:>11.2} {:>9.2} {:>9.2}",
            ratio(|round| round.iops, share),
            ratio(Measured::cpu_us, share),
            ratio(|round| round.p50_us, share),
            ratio(|round| round.p99_us, share),
        );
    }
    Some((ratio(|round| round.iops, 0.5), ratio(Measured::cpu_us, 0.5)))
}

/// Builds the initiator's load without verification.
fn load_program() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "holdfast-initiator"]);
    run(build.args(["--example", "random_io"]), BUILD_LIMIT)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(Path::new(&target).join("release/examples/random_io"))
}

fn command(load: &Path, subject: &Subject, options: &Options) -> Command {
    let mut command = Command::new(load);
    command.args(["--portal", &subject.portal, "--target", &subject.iqn]);
    command.args(["--lun", &subject.lun.to_string()]);
    command.args(["--region-mib", &REGION_MIB.to_string()]);
    command.args(["--depth", &options.depth.to_string()]);
    command
}

/// One node of a new cluster, with one volume; the address of its API too.
fn start_node(binary: &Path, directory: &Path) -> anyhow::Result<(Daemon, Subject, String)> {
    let [link, api, portal] = free_ports()?;
    let log = std::fs::File::create(directory.join("node.log"))?;
    let child = Command::new(binary)
        .args(["node", "start", "--listen", "127.0.0.1", "--data"])
        .arg(directory.join("node"))
        .args(["--link-port", &link, "--api-port", &api])
        .args(["--portal-port", &portal])
        .args([
            "--journal-size",
            "256MiB",
            "--home-size",
            "2GiB",
            "--home-sparse",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("starting a node")?;
    let node = Daemon(child);
    let api = format!("http://127.0.0.1:{api}");
    let ask = |words: &[&str]| {
        let mut command = Command::new(binary);
        output_of(command.args(words).args(["--api", &api]), COMMAND_LIMIT)
    };
    until(START_LIMIT, "the node", || {
        ask(&["cluster", "init"]).map(drop)
    })?;
    let created = ask(&[
        "volume",
        "create",
        "bench",
        "--size",
        "512MiB",
        "--copies",
        "1",
        "--no-chap",
        "-o",
        "json",
    ])?;
    let created: Value = serde_json::from_str(&created).with_context(|| created.clone())?;
    let iqn = created["volume"]["target"]
        .as_str()
        .context("a volume without a target")?;
    let subject = Subject {
        name: "holdfast",
        pid: node.0.id(),
        portal: format!("127.0.0.1:{portal}"),
        iqn: iqn.to_owned(),
        lun: 0,
    };
    Ok((node, subject, api))
}

/// `tgtd` with a file as its disk; `None` if it is not installed.
fn start_tgt(directory: &Path) -> anyhow::Result<Option<(Daemon, Subject)>> {
    let (Some(program), Some(admin)) = (find("tgtd"), find("tgtadm")) else {
        println!("no tgtd (package tgt): nothing to compare with");
        return Ok(None);
    };
    let disk = directory.join("tgt");
    std::fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    let [port] = free_ports()?;
    let portal = format!("127.0.0.1:{port}");
    let control = directory.join("control");
    let child = Command::new(program)
        .args(["-f", "-C", "1", "--iscsi", &format!("portal={portal}")])
        .env("TGT_IPC_SOCKET", &control)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting tgtd")?;
    let daemon = Daemon(child);
    let ask = |words: &[&str]| {
        let mut command = Command::new(&admin);
        command.args(["-C", "1", "--lld", "iscsi"]).args(words);
        output_of(command.env("TGT_IPC_SOCKET", &control), COMMAND_LIMIT)
    };
    until(START_LIMIT, "tgtd", || {
        ask(&["--op", "show", "--mode", "sys"]).map(drop)
    })?;
    let new = ["--op", "new", "--tid", "1", "--mode"];
    ask(&[&new[..], &["target", "-T", TGT_NAME]].concat())?;
    let disk = disk.to_str().context("a directory with an odd name")?;
    ask(&[&new[..], &["logicalunit", "--lun", "1", "-b", disk]].concat())?;
    ask(&[
        "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
    ])?;
    let subject = Subject {
        name: "tgt",
        pid: daemon.0.id(),
        portal,
        iqn: TGT_NAME.to_owned(),
        lun: 1,
    };
    Ok(Some((daemon, subject)))
}

fn wait_until_destaged(binary: &Path, api: &str) -> anyhow::Result<()> {
    until(EMPTY_LIMIT, "the journal", || {
        let mut command = Command::new(binary);
        command.args(["node", "list", "-o", "json", "--api", api]);
        let nodes: Value = serde_json::from_str(&output_of(&mut command, COMMAND_LIMIT)?)?;
        let used = nodes[0]["usage"]["journal_used_bytes"]
            .as_u64()
            .context("a node that does not tell what it uses")?;
        if used > EMPTY_BYTES {
            bail!("{used} bytes are not destaged yet");
        }
        Ok(())
    })
}

/// Repeats `attempt` until it succeeds.
fn until(
    limit: Duration,
    what: &str,
    attempt: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("{what} is not ready")));
            }
            Err(_) => thread::sleep(POLL_PERIOD),
        }
    }
}

/// Ports of this machine that nobody has at the moment.
fn free_ports<const COUNT: usize>() -> anyhow::Result<[String; COUNT]> {
    let mut held = Vec::new();
    for _ in 0..COUNT {
        held.push(TcpListener::bind("127.0.0.1:0")?);
    }
    let mut ports = std::array::from_fn(|_| String::new());
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port().to_string();
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct() {
        let [first, second] = free_ports().unwrap();
        assert_ne!(first, second);
    }
}
