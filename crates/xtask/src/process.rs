//! Running programs under a time limit.
//!
//! Invariant: when a function here returns, the program that it ran has ended; if its time was
//! over, so have all programs that it had started by then.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use wait_timeout::ChildExt as _;

use crate::processes;

/// What a program said, and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Standard output, then standard error.
    pub(crate) text: String,
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds the binary for release and answers where it is.
pub(crate) fn release_binary() -> anyhow::Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "holdfast"]);
    run(&mut build, Duration::from_secs(20 * 60))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let binary = Path::new(&target).join("release/holdfast");
    binary
        .canonicalize()
        .with_context(|| format!("the build left no {}", binary.display()))
}

/// Runs a program in the open. An exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command, limit: Duration) -> anyhow::Result<()> {
    let name = display(command);
    println!("$ {name}");
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let status = wait(child, limit).with_context(|| name.clone())?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

/// Runs a program and keeps what it says. Its exit code is the caller's to judge.
pub(crate) fn capture(command: &mut Command, limit: Duration) -> anyhow::Result<Ended> {
    let name = display(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let output = child.stdout.take().map(collect);
    let errors = child.stderr.take().map(collect);
    let status = wait(child, limit).with_context(|| name.clone())?;
    let mut text = String::new();
    for reader in [output, errors].into_iter().flatten() {
        let bytes = reader.join().expect("reading a pipe does not panic");
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    Ok(Ended { status, text })
}

/// Runs a program that has to end well and answers what it said.
pub(crate) fn output_of(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let name = display(command);
    let Ended { status, text } = capture(command, limit)?;
    if !status.success() {
        bail!("{name}: {status}\n{text}");
    }
    Ok(text)
}

/// Waits for the end of a program, or ends it and all that it started.
pub(crate) fn wait(mut child: Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    if let Some(status) = child.wait_timeout(limit)? {
        return Ok(status);
    }
    stop_tree(&mut child)?;
    bail!("not done within {} s: stopped", limit.as_secs());
}

/// Kills a program and all that it started.
pub(crate) fn stop_tree(child: &mut Child) -> anyhow::Result<()> {
    for descendant in processes::descendants(child.id()) {
        // Those that have ended meanwhile are what was wanted.
        let _ = processes::signal(descendant, processes::Signal::KILL);
    }
    child.kill().context("killing a program")?;
    child.wait().context("waiting for a killed program")?;
    Ok(())
}

/// Where a program lies in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        // Debian keeps daemons where an ordinary user's PATH does not lead.
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has said all it will say.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn display(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words: Vec<_> = std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_program_that_fails_is_an_error_with_its_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo said; echo complained >&2; exit 3"]);
        let error = output_of(&mut command, Duration::from_secs(10)).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("said\ncomplained") && text.contains("3"),
            "{text}"
        );
    }

    #[test]
    fn a_program_out_of_time_is_stopped_with_its_children() {
        let begin = Instant::now();
        let mut command = Command::new("sh");
        // The pipe stays open, and the capture would last, for as long as any child lives.
        command.args(["-c", "sleep 600 & sleep 600"]);
        let error = capture(&mut command, Duration::from_millis(300)).unwrap_err();
        assert!(format!("{error:#}").contains("not done within"));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_program_is_found_by_name() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
