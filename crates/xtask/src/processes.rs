//! What Linux tells about running processes, from `/proc`.
//!
//! Everything here is a snapshot: a process may end at any moment, so each answer is optional.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, kill_process};

pub(crate) use rustix::process::Signal;

/// Processor time and memory of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time since its start.
    pub(crate) processor: Duration,
    /// Resident memory in bytes.
    pub(crate) resident_bytes: u64,
}

/// All processes that `ancestor` has started, directly or not; nearest first.
pub(crate) fn descendants(ancestor: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = all()
        .into_iter()
        .filter_map(|pid| Some((pid, stat_field(pid, 4)?.try_into().ok()?)))
        .collect();
    let mut family = vec![ancestor];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        family.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    family.split_off(1)
}

/// The words with which a process was started.
pub(crate) fn command_line(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = bytes.split(|byte| *byte == 0);
    let words = words.map(|word| String::from_utf8_lossy(word).into_owned());
    Some(words.filter(|word| !word.is_empty()).collect())
}

/// What a process has used so far, by `/proc/PID/stat`.
pub(crate) fn usage(pid: u32, clock: ClockTick) -> Option<Usage> {
    let ticks = stat_field(pid, 14)? + stat_field(pid, 15)?;
    Some(Usage {
        processor: clock.0.checked_mul(u32::try_from(ticks).ok()?)?,
        resident_bytes: stat_field(pid, 24)? * rustix::param::page_size() as u64,
    })
}

/// The unit of the kernel's accounting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockTick(Duration);

impl ClockTick {
    /// This machine's.
    pub(crate) fn of_this_machine() -> Self {
        let per_second = rustix::param::clock_ticks_per_second();
        Self(Duration::from_secs(1) / u32::try_from(per_second).unwrap_or(100))
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let raw = i32::try_from(pid).context("no process has this number")?;
    let pid = Pid::from_raw(raw).context("no process has this number")?;
    kill_process(pid, signal).with_context(|| format!("signalling process {raw}"))
}

fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// A numeric field of `/proc/PID/stat`, counted from 1 as proc(5) does.
fn stat_field(pid: u32, number: usize) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    field(&text, number)
}

fn field(stat: &str, number: usize) -> Option<u64> {
    // The second field is the program's name in brackets and may hold anything, brackets too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_field_is_found_behind_a_name_with_brackets_and_spaces() {
        let stat = "17 (a) b (c) S 4 5 6 7 8 9 10 11 12 13 140 150 16";
        assert_eq!(field(stat, 4), Some(4));
        assert_eq!(field(stat, 14), Some(140));
        assert_eq!(field(stat, 15), Some(150));
    }

    #[test]
    fn this_process_has_a_command_line_memory_and_a_child() {
        let me = std::process::id();
        assert!(!command_line(me).unwrap().is_empty());
        let usage = usage(me, ClockTick::of_this_machine()).unwrap();
        assert!(usage.resident_bytes > 100_000, "{usage:?}");
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(descendants(me).contains(&child.id()));
        signal(child.id(), Signal::KILL).unwrap();
        child.wait().unwrap();
    }
}
