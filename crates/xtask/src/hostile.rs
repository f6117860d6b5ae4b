//! Logins that are begun and never finished, by the ten thousand, against a target that serves an
//! authenticated initiator: does its memory stay, and does it go on serving?
//!
//! Promise: when this returns, the processes that it started have ended.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::process::{Ended, capture, cargo, run as run_openly, stop_tree};
use crate::processes::{ClockTick, usage};

const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// What a load may take beyond its own time: verifying what it wrote.
const LOAD_GRACE: Duration = Duration::from_secs(60);
/// Of the load without and with the crowd.
const LOAD_SECONDS: u64 = 20;
/// How long the crowd stands there once all have come.
const STANDING: Duration = Duration::from_secs(5);
const SAMPLE_PERIOD: Duration = Duration::from_millis(20);
/// What the crowd may cost.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const THREADS: usize = 8;
const MIB: f64 = (1 << 20) as f64;

const USER: &str = "alice";
const SECRET: &str = "alicealice12";

/// How large a crowd.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Connections that begin a login and do not finish it.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    connections: usize,
}

/// A target with a volume in memory and CHAP.
struct MemoryTarget {
    child: Child,
    portal: SocketAddr,
    name: String,
}

impl MemoryTarget {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new("target/debug/examples/memory_target")
            .args(["--port", "0", "--size-mib", "64"])
            .args(["--chap-user", USER, "--chap-secret", SECRET])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the target")?;
        let said = child.stdout.take().context("the target has no output")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        let parts = line.trim().strip_prefix("iscsi://");
        let mut parts = parts.unwrap_or_default().split('/');
        let (portal, name) = (parts.next(), parts.next());
        let portal = portal.and_then(|portal| portal.parse().ok());
        match (portal, name) {
            (Some(portal), Some(name)) => Ok(Self {
                child,
                portal,
                name: name.to_owned(),
            }),
            _ => {
                stop_tree(&mut child)?;
                bail!("the target said {line:?}")
            }
        }
    }

    fn resident_bytes(&self, clock: ClockTick) -> anyhow::Result<u64> {
        let usage = usage(self.child.id(), clock).context("the target has ended")?;
        Ok(usage.resident_bytes)
    }

    /// Verified I/O of an initiator that has logged in.
    fn load(&self, initiator: &str, seconds: u64) -> Command {
        let mut command = Command::new("target/debug/examples/load");
        command.args(["--portal", &self.portal.to_string()]);
        command.args(["--target", &self.name, "--initiator", initiator]);
        command.args(["--chap-user", USER, "--region-mib", "8"]);
        command.args(["--rate", "2000", "--seconds", &seconds.to_string()]);
        command.env("CHAP_SECRET", SECRET);
        command
    }
}

impl Drop for MemoryTarget {
    fn drop(&mut self) {
        // One that has ended already was reported by what it was needed for.
        let _ = stop_tree(&mut self.child);
    }
}

/// Measures; an error if memory grows by more than 64 MiB or an initiator is not served.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut build = cargo();
    build.args([
        "build",
        "--quiet",
        "--package",
        "holdfast-iscsi",
        "--example",
        "memory_target",
    ]);
    run_openly(&mut build, BUILD_LIMIT)?;
    let mut build = cargo();
    build.args([
        "build",
        "--quiet",
        "--package",
        "holdfast-initiator",
        "--example",
        "load",
    ]);
    run_openly(&mut build, BUILD_LIMIT)?;
    // The target keeps the limit of descriptors that it would have anyway.
    let target = MemoryTarget::start()?;
    raise_descriptor_limit(options.connections)?;
    let clock = ClockTick::of_this_machine();

    let load = || {
        let mut command = target.load("iqn.2026-11.io.holdfast:steady", LOAD_SECONDS);
        let limit = Duration::from_secs(LOAD_SECONDS) + LOAD_GRACE;
        capture(&mut command, limit)
    };
    let alone = watched(&target, clock, || served(load()))?;
    let crowded = watched(&target, clock, || {
        thread::scope(|scope| {
            let steady = scope.spawn(load);
            let (crowd, took) = gather(target.portal, options.connections);
            let newcomer = newcomer(&target);
            thread::sleep(STANDING);
            let held = crowd.into_iter().filter(is_held).count();
            let steady = steady
                .join()
                .map_err(|_| anyhow::anyhow!("the load panicked"))?;
            Ok((served(steady)?, served(newcomer)?, held, took))
        })
    })?;
    let ((steady, newcomer, held, took), with) = crowded;
    let (quiet, without) = alone;

    println!(
        "\n{} logins begun in {:.1} s, {held} held at the end",
        options.connections,
        took.as_secs_f64()
    );
    println!("{:<26} {:>10} {:>16}", "", "MiB", "longest gap");
    println!(
        "{:<26} {:>10.1} {:>16}",
        "an initiator alone",
        without as f64 / MIB,
        quiet
    );
    println!(
        "{:<26} {:>10.1} {:>16}",
        "with the crowd",
        with as f64 / MIB,
        steady
    );
    println!("{:<26} {:>10} {:>16}", "one that came later", "", newcomer);
    let growth = with.saturating_sub(without);
    println!("memory grew by {:.1} MiB", growth as f64 / MIB);
    ensure!(growth <= GROWTH_BYTES_MAX, "that is more than 64 MiB");
    Ok(())
}

/// An initiator that logs in while the crowd stands there.
fn newcomer(target: &MemoryTarget) -> anyhow::Result<Ended> {
    let mut command = target.load("iqn.2026-11.io.holdfast:newcomer", 2);
    command.args(["--region-start-mib", "32"]);
    capture(&mut command, LOAD_GRACE)
}

/// What an act gives, and the most memory that the target had meanwhile.
fn watched<T>(
    target: &MemoryTarget,
    clock: ClockTick,
    act: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<(T, u64)>
where
    T: Send,
{
    thread::scope(|scope| {
        let acting = scope.spawn(act);
        let mut most = target.resident_bytes(clock)?;
        while !acting.is_finished() {
            thread::sleep(SAMPLE_PERIOD);
            most = most.max(target.resident_bytes(clock)?);
        }
        let outcome = acting
            .join()
            .map_err(|_| anyhow::anyhow!("the load panicked"))??;
        Ok((outcome, most))
    })
}

/// The longest gap that a load noticed; an error unless all of its I/O was right.
fn served(ended: anyhow::Result<Ended>) -> anyhow::Result<String> {
    let Ended { status, text } = ended?;
    ensure!(
        status.success(),
        "an initiator was not served: {status}\n{text}"
    );
    ensure!(
        text.contains("errors 0,"),
        "errors of an initiator:\n{text}"
    );
    let gap = text
        .lines()
        .find_map(|line| line.strip_prefix("longest gap "));
    let gap = gap.and_then(|rest| rest.split(',').next());
    Ok(gap.context("the load names no gap")?.to_owned())
}

/// Opens all connections, each with a part of a login.
fn gather(portal: SocketAddr, connections: usize) -> (Vec<TcpStream>, Duration) {
    let begin = Instant::now();
    let crowd = thread::scope(|scope| {
        let members = (0..THREADS).map(|thread| {
            scope.spawn(move || {
                let mine = (thread..connections).step_by(THREADS);
                mine.filter_map(|number| begun(portal, number).ok())
                    .collect::<Vec<_>>()
            })
        });
        let members: Vec<_> = members.collect();
        let joined = members.into_iter().filter_map(|member| member.join().ok());
        joined.flatten().collect()
    });
    (crowd, begin.elapsed())
}

/// A login that stops at one of several points. A target that closed it meanwhile is no error.
fn begun(portal: SocketAddr, number: usize) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&portal, CONNECT_LIMIT)?;
    let mut header = [0; 48];
    header[0] = 0x43;
    // As much text as a login request may have.
    header[6] = 0x20;
    let mut bytes = header.to_vec();
    match number % 4 {
        0 => bytes.clear(),
        1 => bytes.truncate(20),
        2 => bytes.extend_from_slice(&[b'A'; 8000]),
        _ => {
            // One whole request that says that more text follows, then nothing.
            bytes[1] = 0x40;
            bytes.extend_from_slice(&[b'A'; 8192]);
        }
    }
    let _ = stream.write_all(&bytes);
    Ok(stream)
}

/// Whether the target has not closed the connection.
fn is_held(stream: &TcpStream) -> bool {
    let mut stream = stream;
    if stream.set_nonblocking(true).is_err() {
        return false;
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

fn raise_descriptor_limit(connections: usize) -> anyhow::Result<()> {
    let needed = connections as u64 + 256;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    ensure!(
        maximum.is_none_or(|maximum| maximum >= needed),
        "{connections} connections need {needed} descriptors, and the hard limit is {maximum:?}"
    );
    let current = Some(needed);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).context("raising the limit")
}
